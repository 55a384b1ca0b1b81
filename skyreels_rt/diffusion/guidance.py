"""Classifier-free guidance with separate text and audio scales, as a list of weighted passes.

With u = neither, a = audio only, t = text only, c = both, the two published three-pass forms are

    audio_first:  v = u + s_text (c - a) + s_audio (a - u)      MultiTalk, InfiniteTalk, LongCat
    text_first:   v = u + s_text (t - u) + s_audio (c - t)      FantasyTalking, OmniAvatar

Both are linear combinations whose weights sum to 1. A pass whose weight is 0 is never run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from skyreels_rt.config import GuidanceForm
from skyreels_rt.errors import InvalidArgument


@dataclass(frozen=True)
class GuidancePass:
    """One run of the model within a step.

    Attributes
    ----------
    text, audio : bool
        Which conditions the pass sees; the others are replaced by their empty form.
    weight : float
        Factor of the pass's velocity in the combination.
    """

    text: bool
    audio: bool
    weight: float


def guidance_passes(
    form: GuidanceForm,
    text_guidance_scale: float,
    audio_guidance_scale: float,
    *,
    has_text: bool,
    has_audio: bool,
) -> tuple[GuidancePass, ...]:
    """List the passes that a step needs, each with a weight other than 0.

    Parameters
    ----------
    form : {"audio_first", "text_first"}
        Form of the combination, see the module's docstring.
    text_guidance_scale, audio_guidance_scale : float
        Scales, finite and >= 0; 1.0 switches that guidance off.
    has_text, has_audio : bool
        Whether the request has a prompt and speech. Passes that differ only in a condition which
        is absent are one pass.

    Returns
    -------
    tuple of GuidancePass
        One to three passes in the order u, then a or t, then c. Weights sum to 1; a single pass
        has weight exactly 1.0.

    Raises
    ------
    InvalidArgument
        The form is unknown, or a scale is negative or not finite.
    """
    for name, scale in (
        ("text_guidance_scale", text_guidance_scale),
        ("audio_guidance_scale", audio_guidance_scale),
    ):
        if not (math.isfinite(scale) and scale >= 0):
            raise InvalidArgument(
                name,
                expected="a finite number >= 0",
                got=scale,
                hint="1.0 switches this guidance off.",
            )
    # Exact fractions: merged weights such as (s_audio - s_text) + s_text must not leave a residue.
    text, audio = Fraction(text_guidance_scale), Fraction(audio_guidance_scale)
    if form == "audio_first":
        terms = [((False, False), 1 - audio), ((False, True), audio - text), ((True, True), text)]
    elif form == "text_first":
        terms = [((False, False), 1 - text), ((True, False), text - audio), ((True, True), audio)]
    else:
        raise InvalidArgument("form", expected="'audio_first' or 'text_first'", got=repr(form))
    merged: dict[tuple[bool, bool], Fraction] = {}
    for (sees_text, sees_audio), weight in terms:
        key = (sees_text and has_text, sees_audio and has_audio)
        merged[key] = merged.get(key, Fraction(0)) + weight
    return tuple(
        GuidancePass(text=key[0], audio=key[1], weight=float(weight))
        for key, weight in merged.items()
        if weight
    )


def combine(passes: Sequence[GuidancePass], velocities: Sequence[Tensor]) -> Tensor:
    """Weighted sum of the passes' velocities, in fp32 and in the order of the passes.

    Parameters
    ----------
    passes : sequence of GuidancePass
        Result of :func:`guidance_passes`.
    velocities : sequence of Tensor, any one shape, floating point
        Velocity of each pass, aligned with ``passes``.

    Returns
    -------
    Tensor, same shape, float32
        A single pass of weight 1 is returned as it came (converted to float32).

    Raises
    ------
    InvalidArgument
        The number of velocities is not the number of passes, or there is none.
    """
    if not passes or len(velocities) != len(passes):
        raise InvalidArgument(
            "velocities", expected=f"{max(len(passes), 1)} tensors, one a pass", got=len(velocities)
        )
    if len(passes) == 1 and passes[0].weight == 1.0:
        return velocities[0].to(torch.float32)
    total = velocities[0].to(torch.float32) * passes[0].weight
    for item, velocity in zip(passes[1:], velocities[1:], strict=True):
        total = total + velocity.to(torch.float32) * item.weight
    return total
