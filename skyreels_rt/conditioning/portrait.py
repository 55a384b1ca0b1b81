"""Brings pictures to the size of the video: around the face for portraits, centred otherwise."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from skyreels_rt.conditioning.face import require_frame
from skyreels_rt.errors import InvalidArgument

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from skyreels_rt.conditioning.face import Face, FaceFinder

logger = logging.getLogger("skyreels_rt.conditioning")

Box = tuple[float, float, float, float]

# Framing of talking portraits, all ours: the face's share of the picture's height, where its
# centre lies between top (0) and bottom (1), and the least room beside it.
_FACE_SHARE = 0.45
_FACE_CENTRE = 0.45
_SIDE_ROOM = 1.3
_NEARLY_ALL = 0.97


def prepare_portrait(
    image: NDArray[np.uint8], height: int, width: int, *, finder: FaceFinder | None
) -> NDArray[np.uint8]:
    """Crop ``image`` around its face to the target's aspect ratio, and resize.

    The face takes about 0.45 of the height where the picture allows. The crop never leaves the
    picture; a picture that is already tight gives its largest crop, centred on the face as far as
    its borders allow. Without a finder, or without a face (logged), the centre is taken.

    Parameters
    ----------
    image : ndarray, shape (h, w, 3), uint8
        RGB portrait of any size.
    height, width : int
        Pixels of the result, positive.
    finder : FaceFinder or None
        Finds the face; None takes the centre.

    Returns
    -------
    ndarray, shape (height, width, 3), uint8
        A new array.

    Raises
    ------
    InvalidArgument
        ``image`` is not such an array, or the size is not positive.
    """
    require_frame("image", image)
    _require_size(height, width)
    face = finder.find(image) if finder is not None else None
    if face is None:
        if finder is not None:
            logger.warning("no face found in the portrait: its centre is used")
        return cover_crop(image, height, width)
    return _resize_crop(image, _face_crop(face, image.shape[:2], width / height), height, width)


def cover_crop(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize ``frame`` to cover (height, width) and cut what sticks out, evenly on both sides.

    A frame that already has the size comes back unchanged, as a copy.

    Parameters
    ----------
    frame : ndarray, shape (h, w, 3), uint8
        RGB frame of any size.
    height, width : int
        Pixels of the result, positive.

    Returns
    -------
    ndarray, shape (height, width, 3), uint8
        A new array.

    Raises
    ------
    InvalidArgument
        ``frame`` is not such an array, or the size is not positive.
    """
    require_frame("frame", frame)
    _require_size(height, width)
    rows, columns = frame.shape[:2]
    crop_height, crop_width = _largest_crop(rows, columns, width / height)
    left, top = (columns - crop_width) / 2, (rows - crop_height) / 2
    return _resize_crop(frame, (left, top, left + crop_width, top + crop_height), height, width)


def _face_crop(face: Face, size: tuple[int, ...], aspect: float) -> Box:
    """Crop box (left, top, right, bottom) of ``aspect`` (width / height) around ``face``."""
    rows, columns = size
    left, top, right, bottom = face.box
    face_height, face_width = bottom - top, right - left
    largest_height, _ = _largest_crop(rows, columns, aspect)
    wanted = max(face_height / _FACE_SHARE, _SIDE_ROOM * face_width / aspect)
    # Nearly everything is taken as everything: resizing by a percent would only soften the picture.
    crop_height = wanted if wanted < _NEARLY_ALL * largest_height else largest_height
    crop_width = min(crop_height * aspect, float(columns))
    # Room above the head fades out as the crop gets tight, so that the chin stays in.
    spare = np.clip((crop_height / face_height - 1) / (1 / _FACE_SHARE - 1), 0, 1)
    anchor = 0.5 + float(spare) * (_FACE_CENTRE - 0.5)
    x = _clamp((left + right - crop_width) / 2, columns - crop_width)
    y = _clamp((top + bottom) / 2 - anchor * crop_height, rows - crop_height)
    return x, y, x + crop_width, y + crop_height


def _clamp(start: float, most: float) -> float:
    return min(max(start, 0.0), max(most, 0.0))


def _largest_crop(rows: int, columns: int, aspect: float) -> tuple[float, float]:
    """Height and width of the largest crop of ``aspect`` that fits."""
    if columns > rows * aspect:
        return float(rows), rows * aspect
    return columns / aspect, float(columns)


def _resize_crop(image: NDArray[np.uint8], box: Box, height: int, width: int) -> NDArray[np.uint8]:
    """``box`` of ``image`` resized with an antialiasing Lanczos filter."""
    rows, columns = image.shape[:2]
    left, top, right, bottom = box
    # Rounding may put an edge an ulp outside, which Pillow refuses.
    inside = (left, top, min(right, float(columns)), min(bottom, float(rows)))
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.array(picture.resize((width, height), Image.Resampling.LANCZOS, box=inside))


def _require_size(height: int, width: int) -> None:
    if height <= 0 or width <= 0:
        raise InvalidArgument(
            "height, width", expected="positive numbers of pixels", got=(height, width)
        )
