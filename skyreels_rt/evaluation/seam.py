"""Can one see where a window of a long video begins.

The picture is cut into cells. A change between two frames is measured per cell against what is
usual there and then, so that a slight change of a calm cheek counts as much as a jump of an edge.
A border is compared with the liveliest change near it: heads, lids and lips make jumps of their
own. Legend: F frames, H W pixels, C cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.evaluation.identity import check_frames

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_CELLS = 16  # per side
_NEAR = 8  # frames on either side of a border
_FLOOR = 0.4  # grey levels: less is no change
_CALM = 0.5  # where nothing moves, a border is compared with this instead
_CEILING = 12.0  # times the usual: a blink in one cell does not outweigh the rest


def _cell_changes(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Change of every cell's mean colour since the frame before: (F - 1, C), grey levels."""
    num_frames, height, width = frames.shape[:3]
    rows = np.linspace(0, height, min(_CELLS, height) + 1).astype(np.int64)[:-1]
    cols = np.linspace(0, width, min(_CELLS, width) + 1).astype(np.int64)[:-1]
    means = np.empty((num_frames, len(rows), len(cols), 3), np.float32)
    area = np.outer(np.diff(np.append(rows, height)), np.diff(np.append(cols, width)))
    for index, frame in enumerate(frames):
        summed = np.add.reduceat(frame.astype(np.float32), rows, axis=0)
        means[index] = np.add.reduceat(summed, cols, axis=1) / area[..., None]
    change = np.sqrt(np.square(np.diff(means, axis=0)).mean(axis=-1))
    return np.asarray(change.reshape(num_frames - 1, -1), np.float32)


def seam_score(frames: NDArray[np.uint8], borders: Sequence[int]) -> float:
    """Measure how much the borders between windows stand out.

    Parameters
    ----------
    frames : ndarray, shape (F, H, W, 3), uint8
        The video.
    borders : sequence of int, 1 to F - 1
        Frames with which a window's new part starts.

    Returns
    -------
    float, >= 1
        Median over the borders of (change into the border's frame) / (largest change among the 8
        frames on either side), not less than 1. At 1.0 the borders are invisible.

    Raises
    ------
    InvalidArgument
        ``frames`` is no clip, there are no borders, or one has not two other frames next to it.
    """
    check_frames(frames)
    places = sorted({int(border) for border in borders})
    if not places or places[0] < 1 or places[-1] >= len(frames):
        raise InvalidArgument(
            "borders", expected=f"one or more of 1 to {len(frames) - 1}", got=list(borders)
        )
    change = _cell_changes(frames)
    ratios = [_ratio(change, border, frozenset(places)) for border in places]
    return float(np.median(np.maximum(ratios, 1.0)))


def _ratio(change: NDArray[np.float32], border: int, borders: frozenset[int]) -> float:
    """Change into frame ``border`` relative to the largest one near it that is no border."""
    near = [
        index - 1
        for index in range(max(1, border - _NEAR), min(len(change), border + _NEAR) + 1)
        if index not in borders
    ]
    if len(near) < 2:
        raise InvalidArgument(
            "borders", expected="two or more other frames near each", got=f"fewer at {border}"
        )
    usual = np.median(change[near], axis=0) + _FLOOR
    energy = np.sqrt(np.square(np.minimum(change / usual, _CEILING)).mean(axis=1))
    return float(energy[border - 1] / max(float(energy[near].max()), _CALM))
