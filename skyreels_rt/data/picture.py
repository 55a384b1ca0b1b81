"""What the frames show without knowing of faces: black, frozen, text that does not move, blur."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from skyreels_rt.data.dependencies import opencv

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SMALL = 160  # longer side at which change is looked for
_BLOCK = 8  # pixels of that; a mouth that moves is at least one block
_CHANGE = 1.2  # grey levels of a block's mean that count as change: codecs refresh frozen frames
_BLACK = 16.0
_TEXT_HEIGHT = 270  # rows at which text is looked for: a subtitle's strokes are 2 to 4 pixels there
_STROKE = 7  # pixels: wider than a stroke
_CONTRAST = 90  # grey levels by which a stroke of a subtitle stands out
_WINDOW = 4  # pictures over which text must not move


class PictureGauge:
    """Looks at the frames of one clip in order, in constant memory."""

    def __init__(self) -> None:
        self._cv = opencv()
        self._previous: NDArray[np.float32] | None = None
        self._num_frames = self._num_black = 0
        self._still = self._longest = 0
        self._strokes: list[NDArray[np.uint8]] = []
        self._text_areas: list[float] = []

    def add(self, frame: NDArray[np.uint8], *, look_for_text: bool) -> None:
        """Take the next frame, shape (H, W, 3), uint8."""
        grey = self._cv.cvtColor(frame, self._cv.COLOR_RGB2GRAY)
        blocks = self._blocks(grey)
        self._num_frames += 1
        self._num_black += bool(blocks.mean() < _BLACK)
        if self._previous is not None and blocks.shape == self._previous.shape:
            is_still = float(np.abs(blocks - self._previous).max()) < _CHANGE
            self._still = self._still + 1 if is_still else 0
            self._longest = max(self._longest, self._still)
        self._previous = blocks
        if look_for_text:
            self._strokes.append(self._stroke_map(grey))
            if len(self._strokes) == _WINDOW:
                self._text_areas.append(self._text_area(np.min(self._strokes, axis=0)))
                self._strokes.clear()

    @property
    def black_share(self) -> float:
        """Share of black frames."""
        return self._num_black / max(1, self._num_frames)

    @property
    def longest_still(self) -> int:
        """Most frames in a row that equal the one before."""
        return self._longest

    @property
    def text_area(self) -> float:
        """Share of the picture under text; the median over windows of four looks."""
        return float(np.median(self._text_areas)) if self._text_areas else 0.0

    def _blocks(self, grey: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Means of blocks of the shrunk picture."""
        height, width = grey.shape
        scale = min(1.0, _SMALL / max(height, width)) / _BLOCK
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        blocks: NDArray[np.float32] = self._cv.resize(
            grey.astype(np.float32), size, interpolation=self._cv.INTER_AREA
        )
        return blocks

    def _stroke_map(self, grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Contrast of strokes, bright or dark, that are thinner than ``_STROKE``."""
        cv = self._cv
        width = max(1, round(grey.shape[1] * _TEXT_HEIGHT / grey.shape[0]))
        small = cv.resize(grey, (width, _TEXT_HEIGHT), interpolation=cv.INTER_AREA)
        kernel = cv.getStructuringElement(cv.MORPH_RECT, (_STROKE, _STROKE))
        bright = cv.morphologyEx(small, cv.MORPH_TOPHAT, kernel)
        dark = cv.morphologyEx(small, cv.MORPH_BLACKHAT, kernel)
        strokes: NDArray[np.uint8] = np.maximum(bright, dark)
        return strokes

    def _text_area(self, strokes: NDArray[np.uint8]) -> float:
        """Share of the picture under components that look like lines of text."""
        cv = self._cv
        marks = (strokes > _CONTRAST).astype(np.uint8)
        joined = cv.morphologyEx(
            marks, cv.MORPH_CLOSE, cv.getStructuringElement(cv.MORPH_RECT, (11, 1))
        )
        _, labels, stats, _ = cv.connectedComponentsWithStats(joined, connectivity=8)
        return float(sum(_line_area(marks, box) for box in stats[1:]) / labels.size)


def _line_area(marks: NDArray[np.uint8], box: NDArray[np.int32]) -> int:
    """Pixels of a component's box if it looks like a line of text, else 0."""
    left, top, width, height = (int(v) for v in box[:4])
    if not (8 <= height <= 45 and width >= 3 * height and width >= 40):
        return 0
    part = marks[top : top + height, left : left + width]
    density = part.mean()
    # Letters cross a row many times; an edge or a stripe crosses it once or twice.
    crossings = np.abs(np.diff(part.astype(np.int8), axis=1)).sum(axis=1)
    is_text = 0.3 <= density <= 0.85 and float(np.median(crossings)) >= 0.6 * width / height
    return width * height if is_text else 0


def sharpness(grey: NDArray[np.uint8]) -> float:
    """Share of the detail that a blur takes away (Crete et al. 2007, one minus their measure).

    Parameters
    ----------
    grey : ndarray, shape (H, W), uint8
        A face.

    Returns
    -------
    float
        0 (blurred, or flat) to 1.
    """
    cv: Any = opencv()
    picture = grey.astype(np.float32)
    values = []
    for axis, size in ((1, (9, 1)), (0, (1, 9))):
        detail = np.abs(np.diff(picture, axis=axis))
        left = np.abs(np.diff(cv.blur(picture, size), axis=axis))
        total = float(detail.sum())
        values.append(float(np.maximum(detail - left, 0).sum()) / total if total > 0 else 0.0)
    return min(values)
