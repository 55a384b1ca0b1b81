"""What an evaluation is given: a model behind one call, and clips with known truth.

Boxes are (left, top, right, bottom) in pixels of a clip's first frame; right and bottom are the
first ones outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Box = tuple[int, int, int, int]


class Generate(Protocol):
    """Makes the frames of a talking video."""

    def __call__(
        self,
        *,
        audio: NDArray[np.float32],
        sample_rate: int,
        seed: int,
        image: NDArray[np.uint8] | None = None,
        prompt: str | None = None,
        video: NDArray[np.uint8] | None = None,
        edit_mask: NDArray[np.bool_] | None = None,
        **options: Any,  # noqa: ANN401 - any further generation option
    ) -> NDArray[np.uint8]:
        """Generate.

        Parameters
        ----------
        audio : ndarray, shape (S,), float32 in [-1, 1]
            Speech.
        sample_rate : int
            Hz.
        seed : int
            Seed of the noise.
        image : ndarray, shape (H, W, 3), uint8, optional
            Portrait.
        prompt : str, optional
            What to show.
        video : ndarray, shape (F, H, W, 3), uint8, optional
            Source video of which only ``edit_mask``, shape (F, H, W), bool, may change.
        **options
            Any further generation option, for example ``audio_guidance_scale``.

        Returns
        -------
        ndarray, shape (F, H, W, 3), uint8
            As many frames as the speech lasts, of the size of image or video.

        Raises
        ------
        SkyReelsError
            The model cannot do what is asked.
        """


@dataclass(frozen=True)
class EvalModel:
    """A model under evaluation.

    Attributes
    ----------
    generate : Generate
        Makes frames.
    windows : callable
        From a number of frames to the (first, last + 1) frames of every window the model denoises
        for a video of that length, in order.
    fps : int
        Frames per second it makes.
    audio_guidance_scale : float
        Its default; 1.0 is off.
    """

    generate: Generate
    windows: Callable[[int], Sequence[tuple[int, int]]]
    fps: int = 25
    audio_guidance_scale: float = 2.0


@dataclass(frozen=True, eq=False)
class EvalClip:
    """A talking clip and what is known about it.

    Attributes
    ----------
    name : str
        Shown beside its pictures.
    frames : ndarray, shape (F, H, W, 3), uint8
        The truth; frame 0 is the portrait.
    audio : ndarray, shape (S,), float32 in [-1, 1]
        Its speech, as long as the frames.
    sample_rate : int
        Hz.
    caption : str
        What it shows.
    opening_px : ndarray, shape (F,), float32
        True distance between the lips, in pixels.
    mouth_box, face_box : Box
        Where they are in frame 0.
    eye_boxes : tuple of Box
        Both eyes in frame 0.
    edit_mask : ndarray, shape (F, H, W), bool
        Everything that the mouth can change.
    hair, background : str or None
        Names of their colours; no hair for the bald.
    """

    name: str
    frames: NDArray[np.uint8]
    audio: NDArray[np.float32]
    sample_rate: int
    caption: str
    opening_px: NDArray[np.float32]
    mouth_box: Box
    face_box: Box
    eye_boxes: tuple[Box, Box]
    edit_mask: NDArray[np.bool_]
    hair: str | None
    background: str | None

    @property
    def portrait(self) -> NDArray[np.uint8]:
        """Frame 0, shape (H, W, 3), uint8."""
        first: NDArray[np.uint8] = self.frames[0]
        return first


def mask_box(mask: NDArray[np.bool_]) -> Box:
    """Bounding box of a mask, shape (H, W); the whole picture if the mask is empty."""
    if not mask.any():
        return 0, 0, mask.shape[1], mask.shape[0]
    (rows,), (columns,) = np.nonzero(mask.any(axis=1)), np.nonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def eye_boxes(mask: NDArray[np.bool_]) -> tuple[Box, Box]:
    """Boxes of the left and the right half of a mask of both eyes, shape (H, W)."""
    left, _, right, _ = mask_box(mask)
    middle = (left + right) // 2
    halves = mask.copy(), mask.copy()
    halves[0][:, middle:] = False
    halves[1][:, :middle] = False
    return mask_box(halves[0]), mask_box(halves[1])


def still_mask(
    frames: NDArray[np.uint8], portrait: NDArray[np.uint8], *, levels: int = 4
) -> NDArray[np.bool_]:
    """Find the background that a talking head never covers.

    Parameters
    ----------
    frames : ndarray, shape (F, H, W, 3), uint8
        The truth.
    portrait : ndarray, shape (H, W, 3), uint8
        What to compare with.
    levels : int
        Grey levels by which a still pixel differs less, in every channel and frame.

    Returns
    -------
    ndarray, shape (H, W), bool
        True for still pixels at least 1/32 of the height away from any other.
    """
    moved = np.zeros(portrait.shape[:2], np.bool_)
    low, high = portrait.astype(np.int16) - levels, portrait.astype(np.int16) + levels
    for frame in frames:
        moved |= ((frame <= low) | (frame >= high)).any(axis=-1)
    return ~_grown(moved, max(1, portrait.shape[0] // 32))


def _grown(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """``mask`` with every pixel at most ``radius`` rows and columns away from it."""
    for axis in (0, 1):
        # A running maximum over 2 r + 1 pixels is a difference of running sums.
        size = mask.shape[axis]
        sums = np.concatenate(
            [np.zeros_like(mask.take([0], axis), dtype=np.int64), mask.cumsum(axis)], axis
        )
        places = np.arange(size)
        upper = sums.take(np.minimum(places + radius + 1, size), axis)
        mask = upper > sums.take(np.maximum(places - radius, 0), axis)
    return mask
