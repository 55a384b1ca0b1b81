"""Captions: a hook for the user's own captioner, and rules over what was measured."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from skyreels_rt.data.measures import ClipScores
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.evaluation.attributes import dominant_background

if TYPE_CHECKING:
    from numpy.typing import NDArray

Captioner = Callable[["NDArray[np.uint8]", ClipScores], str]
"""From a cropped frame (S, S, 3), uint8, and the clip's scores to one sentence."""

_MAX_LENGTH = 2_000


def load_captioner(hook: str) -> Captioner:
    """Find the captioner that the settings name.

    Parameters
    ----------
    hook : str
        ``"package.module:function"`` of an installed package of the user's; its code is imported
        and run. Empty for :func:`rule_caption`.

    Raises
    ------
    InvalidArgument
        There is no such function.
    """
    if not hook:
        return rule_caption
    module, _, name = hook.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidArgument(
            "caption.hook", expected="package.module:function", got=f"{hook!r} ({error})"
        ) from error
    return _checked(function)


def _checked(function: Captioner) -> Captioner:
    def caption(frame: NDArray[np.uint8], scores: ClipScores) -> str:
        text = function(frame, scores)
        if not isinstance(text, str) or len(text) > _MAX_LENGTH:
            raise InvalidArgument(
                "caption",
                expected=f"a str of at most {_MAX_LENGTH} characters",
                got=repr(text)[:80],
            )
        return " ".join(text.split())

    return caption


def rule_caption(frame: NDArray[np.uint8], scores: ClipScores) -> str:
    """Say what the measures know: framing, pose, light, background.

    Parameters
    ----------
    frame : ndarray, shape (S, S, 3), uint8
        Cropped frame.
    scores : ClipScores
        Of the clip.

    Returns
    -------
    str
        One English sentence.
    """
    face = scores.face
    turn = face.turn_degrees or 0.0
    pose = "facing the camera" if turn < 15 else "with a moving or turned head"
    luma = face.luma or 128.0
    light = "dim light" if luma < 80 else "bright light" if luma > 190 else "even light"
    size = frame.shape[0]
    head = (size // 5, size // 8, size - size // 5, size)
    background = dominant_background(frame, head)
    return f"A person is talking, {pose}, in {light}, in front of a {background} background."
