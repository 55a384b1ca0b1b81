"""Says which pixels of a source video may change: the mouth, the face, or a mask of the user's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image, ImageDraw

from skyreels_rt.conditioning.face import Face, FaceFinder, face_polygon, mouth_polygon
from skyreels_rt.conditioning.portrait import cover_crop
from skyreels_rt.errors import FaceNotFound, InvalidArgument, MediaError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

logger = logging.getLogger("skyreels_rt.conditioning")

_POLYGONS: dict[str, Callable[[Face], NDArray[np.float32]]] = {
    "mouth": mouth_polygon,
    "face": face_polygon,
}
# Share of the shorter side over which an edit fades in (ours): 6 pixels at 480.
_FEATHER_SHARE = 1 / 80


class FrameMask(Protocol):
    """Where the pixels of each frame may change."""

    def alpha(self, frame: NDArray[np.uint8], index: int) -> NDArray[np.float32]:
        """Weight of the edit for frame ``index``, asked for in order.

        Parameters
        ----------
        frame : ndarray, shape (H, W, 3), uint8
            The source frame at the video's size.
        index : int
            Its number in the video, from 0.

        Returns
        -------
        ndarray, shape (H, W), float32 in [0, 1]
            Exactly 0 outside the region, 1 deep inside, a ramp inside its border. Read only.

        Raises
        ------
        FaceNotFound
            The region follows a face and none has been seen yet.
        """


def resolve_edit_mask(
    spec: str | Path | NDArray[Any], height: int, width: int, finder: FaceFinder | None
) -> FrameMask:
    """Make the mask that ``spec`` asks for, new and with no memory of other videos.

    Parameters
    ----------
    spec : str, Path or ndarray
        ``"mouth"`` or ``"face"``: found in every frame, held where it is lost. A path: a picture
        whose grey is at least 128 where the video may change, resized as the source's frames are.
        Transparent pixels count as white.
        An array of shape (height, width) or (F, height, width): bool, uint8 (>= 128 means edit)
        or floating point in [0, 1] (>= 0.5 means edit); the last of the F masks is held.
    height, width : int
        Pixels of the generated video.
    finder : FaceFinder or None
        Used for the two words; None makes one.

    Raises
    ------
    InvalidArgument
        Naming ``edit_mask``: an unknown word, an unreadable file, a wrong shape, dtype or range,
        NaN, or a mask that allows no pixel to change.
    MissingDependency
        A word was given without a finder, and the ``face`` extra is not installed.
    """
    if isinstance(spec, str) and spec in _POLYGONS:
        return _FaceMask(spec, height, width, finder or FaceFinder())
    if isinstance(spec, str | Path):
        return _FixedMask(_mask_from_picture(spec, height, width)[None])
    if not isinstance(spec, np.ndarray):
        raise InvalidArgument(
            "edit_mask", expected='"mouth", "face", a path or an array', got=type(spec).__name__
        )
    return _FixedMask(_mask_from_array(spec, height, width))


class _FixedMask:
    """Masks given in advance, one per frame; the last is held."""

    def __init__(self, masks: NDArray[np.bool_]) -> None:
        if not masks.any():
            raise InvalidArgument(
                "edit_mask",
                expected="a mask that lets some pixel change",
                got="an empty one",
                hint="Pictures and uint8 masks count values of 128 and more as editable.",
            )
        self._masks = masks
        self._position = -1
        self._alpha = np.zeros(masks.shape[1:], dtype=np.float32)

    def alpha(self, frame: NDArray[np.uint8], index: int) -> NDArray[np.float32]:  # noqa: ARG002
        position = min(index, len(self._masks) - 1)
        if position != self._position:
            self._position, self._alpha = position, _feathered(self._masks[position])
        return self._alpha


class _FaceMask:
    """The mouth or the face, found frame by frame; where it is lost the last one is held."""

    def __init__(self, part: str, height: int, width: int, finder: FaceFinder) -> None:
        self._part = part
        self._size = (height, width)
        self._finder = finder
        self._alpha: NDArray[np.float32] | None = None
        self._has_warned = False

    def alpha(self, frame: NDArray[np.uint8], index: int) -> NDArray[np.float32]:
        region = self._region(frame)
        if region is not None:
            self._alpha = _feathered(region)
        elif self._alpha is None:
            raise FaceNotFound(
                f"edit_mask={self._part!r}: frame {index} of the source video shows no"
                f" {self._part}, and none was seen before it.",
                stage="conditioning",
                hint="Begin the video where the face is visible, or give the mask as a picture.",
            )
        elif not self._has_warned:
            logger.warning(
                "no face found in frame %d of the source video: the last %s region is held",
                index,
                self._part,
            )
            self._has_warned = True
        return self._alpha

    def _region(self, frame: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
        """Mask of the part, or None where there is no face or the part is out of the picture."""
        face = self._finder.find(frame)
        if face is None:
            return None
        region = _filled(_POLYGONS[self._part](face), *self._size)
        return region if region.any() else None


def _filled(polygon: NDArray[np.float32], height: int, width: int) -> NDArray[np.bool_]:
    canvas = Image.new("1", (width, height))
    # Pillow's coordinates name pixel centres, ours pixel corners.
    corners = [(float(x), float(y)) for x, y in polygon - np.float32(0.5)]
    ImageDraw.Draw(canvas).polygon(corners, fill=1)
    return np.array(canvas, dtype=np.bool_)


def _feathered(region: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Ramp from the border of ``region`` inwards: 0 outside, 1 from the ramp's depth on.

    The picture's own border is no border of the region.
    """
    alpha = np.zeros(region.shape, dtype=np.float32)
    if not region.any():
        return alpha
    depth = max(1, round(min(region.shape) * _FEATHER_SHARE))
    (rows,), (columns,) = np.nonzero(region.any(axis=1)), np.nonzero(region.any(axis=0))
    inside = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    # One pixel around the region's box stands for what lies outside it.
    level = np.pad(region, 1, mode="edge")[rows[0] : rows[-1] + 3, columns[0] : columns[-1] + 3]
    total = level.astype(np.uint16)
    for step in range(depth):
        level = _eroded(level, corners=step % 2 == 1)
        total += level
    alpha[inside] = total[1:-1, 1:-1] / np.float32(depth + 1)
    return alpha


def _eroded(region: NDArray[np.bool_], *, corners: bool) -> NDArray[np.bool_]:
    """Pixels all of whose 4 neighbours (8 with ``corners``) belong to ``region``."""
    padded = np.pad(region, 1, mode="edge")
    if corners:
        rows = padded[:-2] & padded[1:-1] & padded[2:]
        return rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]
    across = padded[1:-1, :-2] & padded[1:-1, 2:]
    return region & across & padded[:-2, 1:-1] & padded[2:, 1:-1]


def _mask_from_picture(spec: str | Path, height: int, width: int) -> NDArray[np.bool_]:
    from skyreels_rt.media.image import load_image

    if not Path(spec).is_file():
        raise InvalidArgument(
            "edit_mask",
            expected="'mouth', 'face', the path of a picture, or an array",
            got=repr(str(spec)),
        )
    try:
        picture = load_image(spec)
    except MediaError as error:
        raise InvalidArgument("edit_mask", expected="a readable picture", got=error) from error
    grey = Image.fromarray(cover_crop(picture, height, width)).convert("L")
    return np.asarray(grey) >= 128


def _mask_from_array(mask: NDArray[Any], height: int, width: int) -> NDArray[np.bool_]:
    """``mask`` as bool of shape (F, height, width)."""
    if mask.ndim not in (2, 3) or mask.shape[-2:] != (height, width) or mask.size == 0:
        raise InvalidArgument(
            "edit_mask",
            expected=f"shape ({height}, {width}) or (F, {height}, {width})",
            got=mask.shape,
            hint="An array has the size of the generated video; a picture may have any size.",
        )
    if mask.dtype == np.bool_:
        edited = mask.astype(np.bool_)
    elif mask.dtype == np.uint8:
        edited = mask >= 128
    elif np.issubdtype(mask.dtype, np.floating):
        if not ((mask >= 0) & (mask <= 1)).all():
            raise InvalidArgument(
                "edit_mask", expected="numbers from 0 to 1", got="NaN or numbers outside"
            )
        edited = mask >= 0.5
    else:
        raise InvalidArgument("edit_mask", expected="bool, uint8 or floating point", got=mask.dtype)
    return edited.reshape(-1, height, width)
