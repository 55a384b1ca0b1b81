"""Colours of the made frames brought back to those of a reference picture.

Long videos drift in colour. SkyReels-V3 and InfiniteTalk move every frame's mean and deviation in
CIE Lab to those of the portrait (``match_and_blend_colors``), after Reinhard et al. 2001 ("Color
transfer between images"). Here it is an option, and the reference may also be what the first window
showed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from skyreels_rt.types import PartState

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from skyreels_rt.config import ColorReference

_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])
_KNEE = 6 / 29
_LEAST_DEVIATION = 1e-6


def lab(pixels: NDArray[np.generic]) -> NDArray[np.float32]:
    """Bring sRGB to CIE L*a*b* (D65, 2 degrees), in which distances are about what people see.

    Parameters
    ----------
    pixels : ndarray, shape (..., 3), uint8 or floating in [0, 255]
        sRGB.

    Returns
    -------
    ndarray, shape (..., 3), float32
        Lightness 0 to 100, green-red, blue-yellow (CIE 15:2004).
    """
    value = np.asarray(pixels, np.float32) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    ratio = linear @ _TO_XYZ.astype(np.float32).T / _WHITE.astype(np.float32)
    root = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.asarray(np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1), np.float32)


def from_lab(colors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Invert :func:`lab`: sRGB in [0, 255], shape (..., 3); colours outside are clipped."""
    y = (colors[..., 0] + 16) / 116
    root = np.stack([y + colors[..., 1] / 500, y, y - colors[..., 2] / 200], axis=-1)
    ratio = np.where(root > _KNEE, root**3, (116 * root - 16) * (27 / 24389))
    to_linear = np.linalg.inv(_TO_XYZ).T.astype(np.float32)
    linear = np.clip((ratio * _WHITE.astype(np.float32)) @ to_linear, 0, 1)
    value = np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** np.float32(1 / 2.4) - 0.055
    )
    return np.asarray(value * 255, np.float32)


class ColorMatch:
    """Moves the mean and deviation of every frame in Lab to those of a reference.

    Parameters
    ----------
    strength : float
        0 leaves the frames as they are, 1 takes the reference's colours over.
    reference : {"portrait", "first_window"}
        The portrait; or the frames of the first window, which then pass unchanged.
    first_frames : int
        Frames of the first window.
    portrait : ndarray, shape (H, W, 3), uint8, or None
        Without one the first window is the reference in any case.
    """

    def __init__(
        self,
        strength: float,
        reference: ColorReference,
        *,
        first_frames: int,
        portrait: NDArray[np.uint8] | None,
    ) -> None:
        self._strength = strength
        self._first_frames = first_frames
        self._by_portrait = reference == "portrait" and portrait is not None
        # Sums over the reference's frames of their statistics: rows are mean and deviation.
        self._sums = np.zeros((2, 3), np.float64)
        self._count = 0
        if strength and self._by_portrait:
            assert portrait is not None
            self._add(lab(portrait))

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The next frames (F, H, W, 3) of the video, corrected; each by itself."""
        if not self._strength:
            return frames
        out = frames.copy()
        for index, frame in enumerate(frames):
            colors = lab(frame)
            if not self._by_portrait and self._count < self._first_frames:
                self._add(colors)
            else:
                out[index] = self._moved(frame, colors)
        return out

    def state(self) -> PartState:
        """Everything :meth:`restore` needs."""
        return PartState({"count": self._count}, {"sums": torch.from_numpy(self._sums.copy())})

    def restore(self, state: PartState) -> None:
        """Go on where :meth:`state` was taken."""
        self._count = state.facts["count"]
        self._sums = state.tensors["sums"].cpu().numpy().copy()

    def _add(self, colors: NDArray[np.float32]) -> None:
        """Count a frame of the reference."""
        self._sums += _statistics(colors)
        self._count += 1

    def _moved(self, frame: NDArray[np.uint8], colors: NDArray[np.float32]) -> NDArray[np.uint8]:
        mean, deviation = _statistics(colors)
        wanted_mean, wanted_deviation = self._sums / self._count
        scale = wanted_deviation / np.maximum(deviation, _LEAST_DEVIATION)
        moved = (colors - mean) * scale + wanted_mean
        full = from_lab(moved.astype(np.float32))
        mixed = (1 - self._strength) * frame.astype(np.float32) + self._strength * full
        return np.rint(mixed).astype(np.uint8)


def _statistics(colors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean and deviation of each channel, shape (2, 3)."""
    flat = colors.reshape(-1, 3)
    return np.stack([flat.mean(0, dtype=np.float64), flat.std(0, dtype=np.float64)])
