"""How far a mouth is open, from pixels alone.

Eyes and nose are followed through the clip, so that every frame gives one upright line of colours
through the middle of the mouth. The clip's own closed mouth is the ruler: its upper part (skin and
upper lip) slides up, its lower part (lower lip and chin) slides down until they explain the line,
with the mouth's inside between them. Nothing is learned. Legend: F frames, Y places of a line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from skyreels_rt.evaluation.identity import Box, check_box, check_frames, follow, warped

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

_RULER = 0.5  # pixels between two places of a line, at the scale of _UNIT
_UNIT = 72.0  # width of a mouth's box at which the numbers of this file are in pixels
_UP, _DOWN = (-9.0, 5.0), (-9.0, 25.0)  # how far the two halves may slide
_ABOVE, _BELOW = 16.0, 34.0  # reach of a line over and under the seam
_INSIDE_COST, _MAX_COST = 16.0, 60.0  # grey levels


def mouth_opening(frames: NDArray[np.uint8], mouth_box: Box) -> Array:
    """Read the opening of a mouth in every frame.

    Parameters
    ----------
    frames : ndarray, shape (F, H, W, 3), uint8
        A talking portrait.
    mouth_box : tuple of int
        Left, top, right, bottom of the mouth with a margin, in frame 0 or in the portrait that the
        clip starts from, in pixels. About 1.5 times as wide as the lips.

    Returns
    -------
    ndarray, shape (F,), float32, >= 0
        Pixels between the lips, along the head's axis, relative to the clip's most closed frames.

    Raises
    ------
    InvalidArgument
        ``frames`` is no clip, or the box leaves it.
    """
    check_frames(frames)
    check_box(mouth_box, frames.shape[1:], "mouth_box")
    lines, unit = _lines(frames, mouth_box)
    seam = round(_ABOVE / _RULER)
    upper, lower = lines[0], lines[0]
    for _ in range(3):
        top, gap = _fit(lines, upper, lower, seam)
        upper, lower = _closed_lines(lines, top, gap)
    _, gap = _fit(lines, upper, lower, seam)
    # The ruler may have become a little shorter than the frames it was made from.
    gap = gap - np.median(np.sort(gap)[: _num_closed(len(gap))])
    return np.asarray(np.maximum(gap * _RULER * unit, 0.0), np.float32)


def _lines(frames: NDArray[np.uint8], box: Box) -> tuple[Array, float]:
    """Upright lines (F, Y, 3) through the middle of the mouth, and pixels of the frame per unit."""
    left, top, right, _ = box
    width = right - left
    unit = width / _UNIT
    height, across = frames.shape[1:3]
    # Eyes and nose: what the speech does not move.
    region = (
        max(0, round(left - 0.06 * width)),
        max(0, round(top - 0.75 * width)),
        min(across, round(right + 0.06 * width)),
        min(height, top + round(0.03 * width)),
    )
    tracks = follow(frames, region)
    seam = top + 0.18 * width
    ys = seam + unit * np.arange(-_ABOVE, _BELOW + _RULER / 2, _RULER)
    xs = (left + right - 1) / 2 + unit * np.linspace(-4.0, 4.0, 9)
    grid_x, grid_y = np.meshgrid(xs, ys)
    return warped(frames, tracks, grid_x, grid_y).mean(axis=2), unit


def _inside_cost(lines: Array) -> Array:
    """What it costs (F, Y) to call a place the inside of the mouth: little if dark or white."""
    luma = lines @ np.array([0.299, 0.587, 0.114], np.float32)
    usual = np.median(luma)
    chroma = lines.max(-1) - lines.min(-1)
    dark = np.maximum(0, luma - 0.5 * usual)
    white = np.maximum(0, chroma - 25) + np.maximum(0, 90 - luma)
    return np.asarray(np.minimum(np.minimum(dark, white) * 0.5 + 2, _INSIDE_COST), np.float32)


def _fit(lines: Array, upper: Array, lower: Array, seam: int) -> tuple[Array, Array]:
    """Slide the two halves of the closed mouth (Y, 3): seam's shift and gap (F,) in places."""
    count = lines.shape[1]
    ups = np.arange(round(_UP[0] / _RULER), round(_UP[1] / _RULER) + 1)
    downs = np.arange(round(_DOWN[0] / _RULER), round(_DOWN[1] / _RULER) + 1)
    places = np.arange(count)

    def summed(half: Array, shifts: NDArray[np.int64]) -> Array:
        moved = half[np.clip(places - shifts[:, None], 0, count - 1)]
        cost = np.abs(lines[:, None] - moved).mean(-1)
        return np.pad(np.minimum(cost, _MAX_COST).cumsum(-1), ((0, 0), (0, 0), (1, 0)))

    above, below = summed(upper, ups), summed(lower, downs)
    below = below[..., -1:] - below
    inside = np.pad(_inside_cost(lines).cumsum(-1), ((0, 0), (1, 0)))
    # Halves that overlap meet in the middle: a mouth more closed than the ruler.
    middle = seam + (ups[:, None] + downs) // 2
    first = np.where(downs >= ups[:, None], seam + ups[:, None], middle)
    last = np.where(downs >= ups[:, None], seam + downs, middle)
    a, b = np.arange(len(ups))[:, None], np.arange(len(downs))
    total = above[:, a, first] + below[:, b, last] + inside[:, last] - inside[:, first]
    best = total.reshape(len(lines), -1).argmin(1)
    top = ups[best // len(downs)]
    return np.asarray(top, np.float32), np.asarray(downs[best % len(downs)] - top, np.float32)


def _num_closed(num_frames: int) -> int:
    """How many of a clip's frames are taken for closed mouths."""
    return max(3, num_frames // 5)


def _closed_lines(lines: Array, top: Array, gap: Array) -> tuple[Array, Array]:
    """Make the ruler anew: the median of the most closed frames, each half in its own place."""
    order = np.argsort(gap, kind="stable")[: _num_closed(len(gap))]
    places = np.arange(lines.shape[1])

    def aligned(shift: Array) -> Array:
        rows = [
            lines[index][np.clip(places + round(float(shift[index])), 0, len(places) - 1)]
            for index in order
        ]
        return np.asarray(np.median(rows, axis=0), np.float32)

    return aligned(top), aligned(top + gap)
