"""The clips that training reads, by number: drawn on demand, or from elsewhere in the same form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from skyreels_rt.training.data.mouth import MouthShape
from skyreels_rt.training.data.triplets import FPS, Triplet, TripletSource
from skyreels_rt.types import Timeline

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from skyreels_rt.training.recipe import Recipe

REGIONS = ("face", "mouth", "jaw", "eye")
"""Masks of a clip."""

MOUTH_PARAMETERS = ("opening", "width", "rounding", "teeth", "tongue")
"""Columns of a clip's true mouth."""

_SPARE_SPEECH = 2.0
_DIFFICULTIES = (0.0, 0.35, 0.7, 1.0)
_MOTIONS = (0.05, 0.1, 0.2)
_EDITED_MOTIONS = (0.2, 0.6, 1.0)
_CLIPS_PER_EDIT = 5


@dataclass(frozen=True, eq=False)
class TrainingClip:
    """A clip as training wants it.

    Attributes
    ----------
    frames : ndarray, shape (F, S, S, 3), uint8
        RGB at 25 fps.
    masks : mapping of str to ndarray, shape (F, S, S), bool
        One for each of ``REGIONS``.
    audio : ndarray, shape (F * 640,), float32
        Mono at 16 kHz.
    caption : str
        What it shows.
    mouth : ndarray, shape (F, 5), float32
        True mouth in the order of ``MOUTH_PARAMETERS``; zeros where nobody knows it.
    lids : ndarray, shape (F,), float32
        How far the eyes are closed, 0 to 1; NaN where nobody knows it.
    difficulty : float
        Of the sound, 0 (clean) to 1.
    """

    frames: NDArray[np.uint8]
    masks: Mapping[str, NDArray[np.bool_]]
    audio: NDArray[np.float32]
    caption: str
    mouth: NDArray[np.float32]
    lids: NDArray[np.float32]
    difficulty: float


class ClipSource(Protocol):
    """Clips by number; a number always gives the same clip."""

    def clip(self, index: int) -> TrainingClip:
        """Clip number ``index``, any number >= 0."""


@dataclass(frozen=True)
class DrawnClips:
    """Training clips drawn on demand.

    Attributes
    ----------
    size : int
        Pixels per side.
    duration_s : float
        Wanted length of the speech; met to about a third.
    max_frames : int, optional
        Longer clips are cut to it.
    """

    size: int
    duration_s: float
    max_frames: int | None = None

    @classmethod
    def short(cls, size: int, num_latents: int) -> DrawnClips:
        """Clips of ``num_latents`` latents, as :func:`draw_short_clip` draws them."""
        num_frames = Timeline().num_frames(num_latents)
        return cls(size, _SPARE_SPEECH * num_frames / FPS, num_frames)

    def clip(self, index: int) -> TrainingClip:
        """Draw clip number ``index``."""
        triplet = draw_clip(
            index, size=self.size, duration_s=self.duration_s, max_frames=self.max_frames
        )
        return training_clip(triplet, index)


@dataclass(frozen=True)
class RecipeClips:
    """The clips of a training run.

    Attributes
    ----------
    whole : ClipSource
        For the VAE: clips as long as they are.
    short : ClipSource
        For the transformer: clips of the recipe's number of latents.
    mark : str
        Tells sources apart that a run must not mix; empty for drawn clips.
    """

    whole: ClipSource
    short: ClipSource
    mark: str = ""


def drawn_clips(recipe: Recipe) -> RecipeClips:
    """Clips drawn for a recipe."""
    size = recipe.sizes.generation.height
    return RecipeClips(DrawnClips(size, recipe.clip_s), DrawnClips.short(size, recipe.clip_latents))


def training_clip(triplet: Triplet, index: int) -> TrainingClip:
    """Bring drawn clip number ``index`` into the form of all training clips."""
    return TrainingClip(
        frames=triplet.clip.frames,
        masks={name: getattr(triplet.clip, f"{name}_mask") for name in REGIONS},
        audio=triplet.audio,
        caption=triplet.caption,
        mouth=mouth_values(triplet.mouth),
        lids=triplet.blink,
        difficulty=difficulty_of(index),
    )


def mouth_values(mouth: MouthShape) -> NDArray[np.float32]:
    """Parameters (F, 5), float32, in the order of ``MOUTH_PARAMETERS``."""
    columns = [getattr(mouth, name) for name in MOUTH_PARAMETERS]
    return np.stack(columns, axis=1).astype(np.float32)


def difficulty_of(index: int) -> float:
    """Difficulty of the sound of drawn clip number ``index``."""
    return _DIFFICULTIES[index % len(_DIFFICULTIES)]


def has_edit(index: int) -> bool:
    """Whether clip number ``index`` is for edits: also encoded with an edit region blank."""
    return index % _CLIPS_PER_EDIT == 0


def draw_clip(
    index: int, *, size: int, duration_s: float, max_frames: int | None = None
) -> Triplet:
    """Draw training clip number ``index``: from clean to noisy sound, any pose, calm heads.

    What moves cannot be told from the speech, and every shift by a pixel changes the latents of
    hair and edges; with livelier heads a small model spends itself on them. Not so in an edit,
    whose surroundings tell how the head moves: there heads are as lively as a user's.
    """
    motions = _EDITED_MOTIONS if has_edit(index) else _MOTIONS
    source = TripletSource(
        "train",
        size,
        duration_s,
        difficulty_of(index),
        motions[index % len(motions)],
        posture=1.0,
        max_frames=max_frames,
    )
    return source.triplet(index)


def draw_short_clip(index: int, *, size: int, num_latents: int) -> Triplet:
    """Draw training clip number ``index`` for the joint stage, ``num_latents`` long.

    Short clips of many people teach more than long ones of few: what a model learns by heart is
    faces. So the speech is asked for longer than needed and cut, for pauses and last words, too.
    """
    source = DrawnClips.short(size, num_latents)
    return draw_clip(index, size=size, duration_s=source.duration_s, max_frames=source.max_frames)
