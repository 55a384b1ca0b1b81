"""Contact sheets: rows of small frames with a label, to look at many videos at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from skyreels_rt.errors import InvalidArgument

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GAP = 4
_LINE = 18
_BACKGROUND = (250, 250, 250)
_INK = (40, 44, 52)


def spread(num_frames: int, columns: int) -> NDArray[np.int64]:
    """Indices of ``columns`` frames spread evenly over ``num_frames``, first and last included."""
    return np.linspace(0, num_frames - 1, columns).round().astype(np.int64)


def contact_sheet(
    videos: Sequence[NDArray[np.uint8]],
    labels: Sequence[str],
    columns: int,
    *,
    cell_height: int = 128,
) -> NDArray[np.uint8]:
    """Lay out frames of several videos, one row each.

    Parameters
    ----------
    videos : sequence of ndarray, shape (F, H, W, 3), uint8
        RGB videos; sizes and lengths may differ.
    labels : sequence of str
        Written above each row; cut where it is wider than the row.
    columns : int
        Frames a row, spread evenly over the video, first and last included.
    cell_height : int
        Pixels of a frame's height in the sheet; the aspect ratio is kept.

    Returns
    -------
    ndarray, shape (H, W, 3), uint8
        The sheet.

    Raises
    ------
    InvalidArgument
        No video or an empty one, not one label a video, or a number that is not positive.
    """
    if columns < 1 or cell_height < 1:
        raise InvalidArgument(
            "columns, cell_height", expected="positive numbers", got=(columns, cell_height)
        )
    if not videos or len(labels) != len(videos):
        raise InvalidArgument(
            "labels", expected=f"one for each of {len(videos)} videos", got=len(labels)
        )
    rows = []
    for number, video in enumerate(videos):
        if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8 or not len(video):
            raise InvalidArgument(
                f"videos[{number}]",
                expected="uint8 of shape (F, H, W, 3), F >= 1",
                got=f"{video.dtype} of shape {video.shape}",
            )
        cell_width = max(1, round(cell_height * video.shape[2] / video.shape[1]))
        shown = [Image.fromarray(video[index]) for index in spread(len(video), columns)]
        rows.append([frame.resize((cell_width, cell_height)) for frame in shown])
    width = max(columns * (row[0].width + _GAP) for row in rows) + _GAP
    sheet = Image.new("RGB", (width, len(rows) * (cell_height + _LINE + _GAP) + _GAP), _BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        top = _GAP + number * (cell_height + _LINE + _GAP)
        pen.text((_GAP, top + 2), _fitting(label, width - 2 * _GAP, pen, font), _INK, font)
        for column, frame in enumerate(row):
            sheet.paste(frame, (_GAP + column * (frame.width + _GAP), top + _LINE))
    return np.array(sheet)


def _fitting(
    label: str,
    width: int,
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> str:
    """As much of ``label`` as is ``width`` pixels wide, in characters every font has."""
    text = " ".join(label.split()).encode("latin-1", "replace").decode("latin-1")
    while text and pen.textlength(text, font) > width:
        text = text[:-1]
    return text
