"""What a caption asked for: colours of background and hair, named from pixels.

The reference colours are a chart: medians in CIE Lab of drawn portraits of every class, as these
functions see them. Legend: H W pixels, P pixels of a region.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from skyreels_rt.conditioning.color import lab
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.evaluation.identity import Box, check_box, check_frames

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Chart = Mapping[str, tuple[float, float, float]]

BACKGROUND_CHART: Chart = {
    "blue": (49.8, 10.6, -46.6),
    "green": (56.6, -41.5, 29.1),
    "red": (42.6, 48.9, 27.5),
    "yellow": (81.0, -1.2, 58.3),
    "purple": (42.8, 47.3, -45.3),
    "gray": (54.6, -0.2, -3.7),
    "white": (93.6, -0.7, 1.9),
}
HAIR_CHART: Chart = {
    "black": (14.5, 3.5, -3.6),
    "brown": (37.2, 17.9, 28.0),
    "blonde": (85.6, 3.1, 49.6),
    "red": (50.5, 51.8, 51.8),
    "gray": (72.2, 0.5, -3.5),
    "blue": (43.7, 26.1, -61.9),
    "pink": (68.6, 52.5, -6.8),
}
# Where a portrait's face is if nothing better is known, as shares of the frame.
_USUAL_FACE = (0.28, 0.30, 0.72, 0.79)
_LIGHTNESS_WEIGHT = 0.6  # light and shade change lightness more than hue
_CELLS = 64  # per side of the picture in which the layout is looked for
_SKIN_RANGE = 13.0  # Lab, lightness weighed: how far skin may be from the cheeks' colour


def _checked_picture(frame: NDArray[np.uint8]) -> None:
    check_frames(np.asarray(frame)[None], "frame")


def _nearest(color: NDArray[np.floating], chart: Chart) -> str:
    """Name of the chart's nearest colour; lightness counts less."""
    weights = np.array([_LIGHTNESS_WEIGHT, 1.0, 1.0])
    return min(chart, key=lambda name: float(np.linalg.norm(weights * (color - chart[name]))))


def background_color(frame: NDArray[np.uint8], head_box: Box) -> NDArray[np.float64]:
    """Median colour of what is beside and above a head.

    Parameters
    ----------
    frame : ndarray, shape (H, W, 3), uint8
        RGB.
    head_box : tuple of int
        Left, top, right, bottom of the head with its hair.

    Returns
    -------
    ndarray, shape (3,), float64
        CIE Lab.

    Raises
    ------
    InvalidArgument
        ``frame`` is no picture, or the box leaves it.
    """
    _checked_picture(frame)
    check_box(head_box, frame.shape, "head_box")
    left, top, right, bottom = head_box
    outside = np.ones(frame.shape[:2], np.bool_)
    outside[top:, left:right] = False
    # A box as wide as the frame still leaves its edge, where heads seldom are.
    edge = max(1, frame.shape[1] // 20)
    outside[:, :edge] = outside[:, -edge:] = True
    # Shoulders begin under the chin, which is a little above the box's end.
    outside[top + round(0.75 * (bottom - top)) :] = False
    return np.asarray(np.median(lab(frame[outside]), axis=0), np.float64)


def dominant_background(frame: NDArray[np.uint8], head_box: Box) -> str:
    """Name the colour of the background.

    Parameters
    ----------
    frame : ndarray, shape (H, W, 3), uint8
        RGB.
    head_box : tuple of int
        Left, top, right, bottom of the head with its hair; a rough box will do.

    Returns
    -------
    str
        A name of `BACKGROUND_CHART`.

    Raises
    ------
    InvalidArgument
        As in `background_color`.
    """
    return _nearest(background_color(frame, head_box), BACKGROUND_CHART)


def hair_color(frame: NDArray[np.uint8], face_box: Box) -> NDArray[np.float64]:
    """Median colour of the hair over the middle of the forehead.

    Parameters
    ----------
    frame : ndarray, shape (H, W, 3), uint8
        RGB.
    face_box : tuple of int
        Left, top, right, bottom of the visible skin of the face.

    Returns
    -------
    ndarray, shape (3,), float64
        CIE Lab.

    Raises
    ------
    InvalidArgument
        ``frame`` is no picture, or the box leaves it.
    """
    _checked_picture(frame)
    check_box(face_box, frame.shape, "face_box")
    left, top, right, bottom = face_box
    tall, wide = bottom - top, right - left
    low = max(1, top - max(1, round(0.03 * tall)))
    high = max(0, min(low - 1, top - round(0.14 * tall)))
    band = frame[high:low, left + round(0.3 * wide) : right - round(0.3 * wide)]
    return np.asarray(np.median(lab(band.reshape(-1, 3)), axis=0), np.float64)


def hair_colour(frame: NDArray[np.uint8], face_box: Box) -> str:
    """Name the colour of the hair; of a bald head, what its skin is nearest to.

    Parameters
    ----------
    frame : ndarray, shape (H, W, 3), uint8
        RGB.
    face_box : tuple of int
        Left, top, right, bottom of the visible skin of the face; a rough box will do.

    Returns
    -------
    str
        A name of `HAIR_CHART`.

    Raises
    ------
    InvalidArgument
        As in `hair_color`.
    """
    return _nearest(hair_color(frame, face_box), HAIR_CHART)


def portrait_layout(frame: NDArray[np.uint8]) -> tuple[Box, Box]:
    """Guess where face and head of a portrait are, where no truth says so.

    Skin is what is joined to the middle of the frame and coloured like it; the width of the face
    at the eyes and cheeks says how far down it may reach before it is neck.

    Parameters
    ----------
    frame : ndarray, shape (H, W, 3), uint8
        A portrait, the face about in the middle.

    Returns
    -------
    face_box, head_box : tuple of int
        Left, top, right, bottom of the visible skin of the face, and of the head with its hair.

    Raises
    ------
    InvalidArgument
        ``frame`` is no picture, or under 64 pixels high or wide.
    """
    _checked_picture(frame)
    height, width = frame.shape[:2]
    if min(height, width) < _CELLS:
        raise InvalidArgument("frame", expected=f"{_CELLS} pixels or more", got=frame.shape)
    picture = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float()
    small = F.adaptive_avg_pool2d(picture, _CELLS)[0].permute(1, 2, 0).numpy()
    left, top, right, bottom = _skin_extent(lab(small))
    sx, sy = width / _CELLS, height / _CELLS
    face = (round(left * sx), round(top * sy), round(right * sx), round(bottom * sy))
    wide, tall = face[2] - face[0], face[3] - face[1]
    head = (
        max(0, face[0] - round(0.25 * wide)),
        max(0, face[1] - round(0.35 * tall)),
        min(width, face[2] + round(0.25 * wide)),
        min(height, face[3] + round(0.05 * tall)),
    )
    return face, head


def _skin_extent(colors: NDArray[np.float32]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the face's skin in cells; colors are Lab, (64, 64, 3)."""
    count = len(colors)
    usual = np.asarray(_USUAL_FACE) * count
    seed = colors[
        round(0.50 * count) : round(0.60 * count), round(0.42 * count) : round(0.58 * count)
    ]
    skin = np.median(seed.reshape(-1, 3), axis=0)
    weights = np.array([_LIGHTNESS_WEIGHT * 0.6, 1.0, 1.0], np.float32)
    near = np.linalg.norm((colors - skin) * weights, axis=-1) < _SKIN_RANGE
    face = _joined(near, (round(0.55 * count), count // 2))
    rows = np.arange(round(0.46 * count), round(0.64 * count))
    spans = [np.nonzero(face[row])[0] for row in rows]
    spans = [span for span in spans if len(span) > 0]
    if not spans:
        return usual[0], usual[1], usual[2], usual[3]
    left = float(np.median([span[0] for span in spans]))
    right = float(np.median([span[-1] for span in spans])) + 1
    if not 0.25 * count < right - left < 0.62 * count:
        left, right = usual[0], usual[2]
    middle = face[:, round(left + 0.3 * (right - left)) : round(right - 0.3 * (right - left))]
    filled = np.nonzero(middle.mean(axis=1) > 0.5)[0]
    top = float(filled[0]) if len(filled) else usual[1]
    if not 0.15 * count < top < 0.45 * count:
        top = usual[1]
    # A face from its middle to the chin is about two thirds as high as it is wide.
    bottom = min(0.47 * count + 0.66 * (right - left), 0.88 * count)
    return left, top, right, bottom


def _joined(mask: NDArray[np.bool_], start: tuple[int, int]) -> NDArray[np.bool_]:
    """Cells of a mask joined to the cells around a start."""
    allowed = torch.from_numpy(mask).float()[None, None]
    found = torch.zeros_like(allowed)
    found[..., start[0] - 3 : start[0] + 4, start[1] - 5 : start[1] + 6] = 1
    found = found * allowed
    for _ in range(len(mask)):
        grown = F.max_pool2d(found, 3, stride=1, padding=1) * allowed
        if torch.equal(grown, found):
            break
        found = grown
    return np.asarray(found[0, 0].numpy() > 0)
