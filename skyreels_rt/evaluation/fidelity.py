"""Likeness of pictures, steadiness and sharpness of clips, and blinks.

PSNR and SSIM as in Wang, Bovik, Sheikh & Simoncelli, "Image quality assessment: from error
visibility to structural similarity", IEEE TIP 13(4), 2004 (Gaussian window 11x11, sigma 1.5).
Legend: F frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.evaluation.identity import Box, check_box, check_frames, follow, warped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

_MAX_PSNR = 100.0  # decibels: what equal pictures get, so that means stay finite
_K1, _K2, _SIGMA, _WINDOW = 0.01, 0.03, 1.5, 11
_SHUT, _OPEN_AGAIN = 0.6, 0.75  # shares of the usual openness
_LONGEST_BLINK_S = 0.7


@dataclass(frozen=True)
class Blinks:
    """Blinks of a clip.

    Attributes
    ----------
    count : int
        How many.
    durations_s : tuple of float
        How long each had the eyes less than about half open, seconds.
    """

    count: int
    durations_s: tuple[float, ...]


def _as_clips(
    a: NDArray[np.uint8], b: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Two pictures or clips as clips."""
    first, second = (part[None] if part.ndim == 3 else part for part in (a, b))
    check_frames(first, "a")
    check_frames(second, "b")
    if first.shape != second.shape:
        raise InvalidArgument("b", expected=f"shape {a.shape} as a", got=b.shape)
    return first, second


def _checked_mask(
    mask: NDArray[np.bool_] | None, shape: tuple[int, ...], name: str = "mask"
) -> NDArray[np.bool_]:
    """Mask of every frame, (F, H, W)."""
    if mask is None:
        return np.ones(shape, np.bool_)
    if mask.dtype != np.bool_ or mask.shape not in (shape, shape[1:]):
        expected = f"bool of shape {shape} or {shape[1:]}"
        raise InvalidArgument(name, expected=expected, got=f"{mask.dtype} {mask.shape}")
    if not mask.any():
        raise InvalidArgument(name, expected="at least one pixel", got="none")
    return np.broadcast_to(mask, shape)


def psnr(
    a: NDArray[np.uint8], b: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None
) -> float:
    """Peak signal-to-noise ratio.

    Parameters
    ----------
    a, b : ndarray, shape (F, H, W, 3) or (H, W, 3), uint8
        Two clips or pictures.
    mask : ndarray, shape (F, H, W) or (H, W), bool, optional
        Pixels that count; all by default.

    Returns
    -------
    float
        Decibels over all pixels together; 100 where they are equal.

    Raises
    ------
    InvalidArgument
        Shapes differ, or the mask is empty.
    """
    first, second = _as_clips(a, b)
    counted = _checked_mask(mask, first.shape[:3])
    error = np.square(first[counted].astype(np.float32) - second[counted]).mean(dtype=np.float64)
    return _MAX_PSNR if error == 0 else float(min(_MAX_PSNR, 10 * np.log10(255.0**2 / error)))


def _smoothed(pictures: Tensor) -> Tensor:
    """Gaussian means of pictures (N, 1, H, W) where the window fits."""
    place = torch.arange(_WINDOW, dtype=pictures.dtype) - _WINDOW // 2
    weights = torch.exp(-place.square() / (2 * _SIGMA**2))
    weights = weights / weights.sum()
    across = F.conv2d(pictures, weights.reshape(1, 1, 1, -1))
    return F.conv2d(across, weights.reshape(1, 1, -1, 1))


def ssim(
    a: NDArray[np.uint8], b: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None
) -> float:
    """Structural similarity.

    Parameters
    ----------
    a, b : ndarray, shape (F, H, W, 3) or (H, W, 3), uint8
        Two clips or pictures, 11 pixels or more per side.
    mask : ndarray, shape (F, H, W) or (H, W), bool, optional
        Pixels whose windows count; all that a whole window fits around by default.

    Returns
    -------
    float
        Mean over pixels, frames and the three colours, up to 1.

    Raises
    ------
    InvalidArgument
        Shapes differ, the pictures are too small, or the mask is empty.
    """
    first, second = _as_clips(a, b)
    if min(first.shape[1:3]) < _WINDOW:
        raise InvalidArgument("a", expected=f"{_WINDOW} pixels or more", got=first.shape)
    edge = _WINDOW // 2
    counted = _checked_mask(mask, first.shape[:3])[:, edge:-edge, edge:-edge]
    if not counted.any():
        raise InvalidArgument("mask", expected="pixels 5 or more off the border", got="none")
    total, count = 0.0, 0
    for one, other, keep in zip(first, second, counted, strict=True):
        x, y = (
            torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1).double()[:, None]
            for part in (one, other)
        )
        mean_x, mean_y, xx, yy, xy = (_smoothed(part) for part in (x, y, x * x, y * y, x * y))
        c1, c2 = (_K1 * 255) ** 2, (_K2 * 255) ** 2
        spread = (xx - mean_x**2) + (yy - mean_y**2)
        likeness = (2 * mean_x * mean_y + c1) * (2 * (xy - mean_x * mean_y) + c2)
        likeness = likeness / ((mean_x**2 + mean_y**2 + c1) * (spread + c2))
        kept = likeness[:, 0].numpy()[:, keep]
        total, count = total + float(kept.sum()), count + kept.size
    return total / count


def flicker(frames: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
    """Measure how much pixels that should stand still change from frame to frame.

    Parameters
    ----------
    frames : ndarray, shape (F, H, W, 3), uint8
        A clip, F >= 3.
    mask : ndarray, shape (H, W), bool
        Pixels that should stand still, e.g. a corner of the background.

    Returns
    -------
    float
        Root mean square of the second difference in time over the square root of 6, in grey
        levels: the standard deviation of white noise, 0 for a still or evenly changing picture.

    Raises
    ------
    InvalidArgument
        The clip is too short, or the mask is empty or of another shape.
    """
    check_frames(frames)
    if len(frames) < 3:
        raise InvalidArgument("frames", expected="3 frames or more", got=len(frames))
    if mask.shape != frames.shape[1:3] or mask.dtype != np.bool_ or not mask.any():
        expected = f"bool of shape {frames.shape[1:3]}, not empty"
        raise InvalidArgument("mask", expected=expected, got=f"{mask.dtype} {mask.shape}")
    pixels = frames[:, mask].astype(np.float32)
    bend = pixels[:-2] - 2 * pixels[1:-1] + pixels[2:]
    return float(np.sqrt(np.square(bend).mean(dtype=np.float64) / 6))


def gradient_energy(
    frames: NDArray[np.uint8], region: Box | NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Sharpness of every frame.

    Parameters
    ----------
    frames : ndarray, shape (F, H, W, 3), uint8
        A clip.
    region : tuple of int, or ndarray of shape (F, H, W) or (H, W), bool
        Box (left, top, right, bottom) or mask of what counts.

    Returns
    -------
    ndarray, shape (F,), float64
        Mean square of the brightness gradient, grey levels squared per pixel squared.

    Raises
    ------
    InvalidArgument
        ``frames`` is no clip, or the region is empty in a frame or leaves it.
    """
    check_frames(frames)
    shape = frames.shape[:3]
    if isinstance(region, np.ndarray) and region.dtype == np.bool_:
        mask = _checked_mask(region, shape, "region")
    else:
        left, top, right, bottom = (int(value) for value in region)
        check_box((left, top, right, bottom), shape[1:], "region")
        mask = np.zeros(shape, np.bool_)
        mask[:, top:bottom, left:right] = True
    energies = []
    for frame, keep in zip(frames, mask, strict=True):
        if not keep.any():
            raise InvalidArgument("region", expected="a pixel in every frame", got="none in one")
        luma = frame.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        down, across = np.gradient(luma)
        energies.append(float((down**2 + across**2)[keep].mean()))
    return np.asarray(energies)


def sharpness_ratio(energy_late: NDArray[np.floating], energy_early: NDArray[np.floating]) -> float:
    """Compare the sharpness of a clip's end with that of its start.

    Parameters
    ----------
    energy_late, energy_early : ndarray, shape (N,), floating
        Parts of `gradient_energy`.

    Returns
    -------
    float
        Median of the late ones over the median of the early ones: 1 keeps the sharpness.

    Raises
    ------
    InvalidArgument
        A part is empty, or the early one has no gradient at all.
    """
    if np.size(energy_late) == 0 or np.size(energy_early) == 0:
        raise InvalidArgument("energy_late", expected="frames in both parts", got="none in one")
    early = float(np.median(energy_early))
    if early <= 0:
        raise InvalidArgument("energy_early", expected="a median > 0", got=early)
    return float(np.median(energy_late)) / early


def eye_openness(frames: NDArray[np.uint8], eye_boxes: Sequence[Box]) -> NDArray[np.float64]:
    """Read how open the eyes are, relative to the clip's usual.

    Eyes and nose are followed. Every row of an eye departs from the colour of the skin around it
    by so much; that profile is compared with the usual one, the median over the clip.

    Parameters
    ----------
    frames : ndarray, shape (F, H, W, 3), uint8
        A portrait.
    eye_boxes : sequence of tuple of int
        Left, top, right, bottom of every eye with lids, in frame 0 or in the portrait that the
        clip starts from.

    Returns
    -------
    ndarray, shape (F,), float64
        About 1 for eyes as usual, about 0 for shut ones; mean over the eyes.

    Raises
    ------
    InvalidArgument
        ``frames`` is no clip, there are no boxes, or one leaves the frame.
    """
    check_frames(frames)
    if len(eye_boxes) == 0:
        raise InvalidArgument("eye_boxes", expected="one box or more", got="none")
    for box in eye_boxes:
        check_box(box, frames.shape[1:], "eye_boxes")
    edges = np.asarray(eye_boxes, np.int64)
    left, top = (int(value) for value in edges[:, :2].min(axis=0))
    right, bottom = (int(value) for value in edges[:, 2:].max(axis=0))
    tall = bottom - top
    region = (
        max(0, int(left - 0.3 * tall)),
        max(0, int(top - 0.8 * tall)),
        min(frames.shape[2], int(right + 0.3 * tall)),
        min(frames.shape[1], int(bottom + 1.2 * tall)),
    )
    tracks = follow(frames, region)
    return np.asarray(np.mean([_one_eye(frames, tracks, box) for box in edges], axis=0))


def _one_eye(
    frames: NDArray[np.uint8], tracks: NDArray[np.float64], box: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Openness of one eye, (F,)."""
    left, top, right, bottom = box
    across, tall = 0.18 * (right - left), bottom - top
    grid_x, grid_y = np.meshgrid(
        np.arange(left + across, right - across), np.arange(top + 0.15 * tall, bottom - 0.1 * tall)
    )
    eye = warped(frames, tracks, grid_x, grid_y)
    # Skin above and below the eye, where the lid comes from; rows, because a glance sideways moves
    # what is in a row and not how much of it is eye.
    skin = np.median(eye[:, [0, -1]], axis=(0, 1, 2))
    shown = np.abs(eye - skin).mean(axis=(2, 3))
    shown = shown - np.minimum(shown[:, :1], shown[:, -1:])
    usual = np.median(shown, axis=0)
    size = float(np.square(usual).sum())
    return np.asarray(shown @ usual / max(size, 1e-6), np.float64)


def count_blinks(openness: NDArray[np.floating], fps: float) -> Blinks:
    """Count blinks in a curve of openness.

    Parameters
    ----------
    openness : ndarray, shape (F,), floating
        From `eye_openness`.
    fps : float, > 0
        Frames per second.

    Returns
    -------
    Blinks
        A blink goes below 0.6 of the usual openness and comes back above 0.75 of it within 0.7 s;
        one that the clip's ends cut is counted if it was shut.

    Raises
    ------
    InvalidArgument
        The curve is empty, or ``fps`` not positive.
    """
    curve = np.asarray(openness, dtype=np.float64)
    if curve.ndim != 1 or len(curve) == 0 or not fps > 0:
        raise InvalidArgument("openness", expected="values (F,) and fps > 0", got=curve.shape)
    usual = float(np.median(curve))
    durations, shut_since = [], -1
    for index, value in enumerate([*curve, np.inf]):
        if shut_since < 0 and value < _SHUT * usual:
            shut_since = index
        elif shut_since >= 0 and value > _OPEN_AGAIN * usual:
            seconds = (index - shut_since) / fps
            if seconds <= _LONGEST_BLINK_S:
                durations.append(seconds)
            shut_since = -1
    return Blinks(len(durations), tuple(durations))
