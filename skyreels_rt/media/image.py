"""Portraits from files, arrays and Pillow images, as uint8 RGB."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from skyreels_rt.errors import InvalidArgument, MediaError, NonFinite
from skyreels_rt.media.local_file import decoding, open_local

if TYPE_CHECKING:
    from PIL.Image import Image

ImageInput: TypeAlias = "str | Path | NDArray[Any] | Image"
"""What :func:`load_image` takes."""

MAX_IMAGE_PIXELS: Final = 7680 * 4320
MIN_IMAGE_SIDE: Final = 16
_ORIENTATION_TAG: Final = 0x0112
# EXIF orientation -> (swap axes, then flip left-right, then flip top-bottom), Exif 2.32 §4.6.4.
_ORIENTATIONS: Final = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


def load_image(source: ImageInput) -> NDArray[np.uint8]:
    """Read one image as RGB, upright.

    EXIF orientation is applied. Transparent pixels are laid over white. 16-bit grey is scaled, not
    clipped. Of an animation the first frame is taken. Colour profiles are not applied.

    Parameters
    ----------
    source : str, Path, ndarray or PIL.Image.Image
        A local PNG, JPEG, WebP, BMP or TIFF file, recognised by content. Or an array of shape
        (H, W, 3), (H, W, 4) or (H, W), uint8 or float in [0, 1].

    Returns
    -------
    ndarray, shape (H, W, 3), uint8
        A new array.

    Raises
    ------
    MediaError
        The file is missing, empty, truncated, of another format, larger than
        ``MAX_IMAGE_PIXELS`` (refused from the header) or smaller than ``MIN_IMAGE_SIDE`` a side.
    InvalidArgument
        An array of a wrong shape, dtype or range; another type of object.
    NonFinite
        A float array holds NaN or infinity.

    Notes
    -----
    Pillow's process-wide settings are neither used nor changed: its plug-ins are called directly,
    so its own size limit (a warning, then an error) does not apply. Its warning about damaged TIFF
    tags is let through: silencing it would change a setting of the whole process.
    """
    from PIL import Image

    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        with decoding("<PIL image>", stage="image"):
            return _from_pillow(source, "<PIL image>")
    if not isinstance(source, str | Path):
        raise InvalidArgument(
            "image",
            expected="a path, a numpy array or a PIL image",
            got=type(source).__name__,
            stage="image",
        )
    with open_local(source, stage="image") as file:
        return _from_file(file, str(source))


def read_image(data: bytes) -> NDArray[np.uint8]:
    """Like :func:`load_image`, from the content of an image file.

    Parameters
    ----------
    data : bytes
        PNG, JPEG, WebP, BMP or TIFF.

    Returns
    -------
    ndarray, shape (H, W, 3), uint8

    Raises
    ------
    MediaError
        As in :func:`load_image`.
    """
    return _from_file(io.BytesIO(data), "<bytes>")


def _from_file(file: BinaryIO, name: str) -> NDArray[np.uint8]:
    """RGB of an image file, recognised by its first bytes."""
    opener = _plugin(file)
    if opener is None:
        raise MediaError(
            f"image {name!r}: expected PNG, JPEG, WebP, BMP or TIFF, got a file that "
            "begins like none of them.",
            stage="image",
            hint="The content decides, not the name: save it as PNG or JPEG.",
        )
    with decoding(name, stage="image"), opener(file) as image:
        return _from_pillow(image, name)


def require_frame_size(name: str, width: int, height: int, *, stage: str) -> None:
    """Raise a MediaError unless ``width`` x ``height`` is within the limits of one frame."""
    if width * height > MAX_IMAGE_PIXELS:
        raise MediaError(
            f"{stage} {name!r}: expected at most {MAX_IMAGE_PIXELS} pixels (7680x4320), "
            f"got {width}x{height}.",
            stage=stage,
            hint="Scale it down first.",
        )
    if min(width, height) < MIN_IMAGE_SIDE:
        raise MediaError(
            f"{stage} {name!r}: expected at least {MIN_IMAGE_SIDE} pixels a side, "
            f"got {width}x{height}.",
            stage=stage,
            hint="Pass a larger picture.",
        )


def reorient(
    pixels: NDArray[np.uint8], swap_axes: bool, flip_x: bool, flip_y: bool
) -> NDArray[np.uint8]:
    """``pixels`` (H, W, 3) with axes swapped, then mirrored; contiguous."""
    turned = pixels.swapaxes(0, 1) if swap_axes else pixels
    return np.ascontiguousarray(turned[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def _plugin(file: BinaryIO) -> Callable[[BinaryIO], Image] | None:
    """Pillow plug-in for the signature at the start of ``file``."""
    from PIL import (
        BmpImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    head = file.read(16)
    file.seek(0)
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return PngImagePlugin.PngImageFile
    if head[:3] == b"\xff\xd8\xff":
        return JpegImagePlugin.JpegImageFile
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    if head[:2] == b"BM":
        return BmpImagePlugin.BmpImageFile
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return TiffImagePlugin.TiffImageFile
    return None


def _from_pillow(image: Image, name: str) -> NDArray[np.uint8]:
    """RGB of an opened Pillow image; its size is checked before a pixel is decoded."""
    require_frame_size(name, *image.size, stage="image")
    image.load()
    pixels = _rgb(image, name)
    # After load(): TIFF applies its own orientation there and drops the tag.
    orientation = _ORIENTATIONS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    return reorient(pixels, *orientation) if orientation else pixels


def _rgb(image: Image, name: str) -> NDArray[np.uint8]:
    """Pixels of a loaded image in any mode as RGB."""
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint32)
        return _grey_to_rgb(((grey + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise MediaError(
            f"image {name!r}: expected 8 or 16 bits a channel, got 32-bit pixels.",
            stage="image",
            hint="Save it as an 8-bit PNG: 32-bit pixels do not say which value is white.",
        )
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        if image.mode in ("RGBa", "La"):
            image = image.convert(image.mode.upper())
        return _over_white(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _over_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``rgba`` (H, W, 4) laid over white, rounded to the nearest level."""
    wide = rgba.astype(np.uint16)
    alpha = wide[..., 3:]
    return ((wide[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _grey_to_rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[..., None], 3, axis=2)


def _from_array(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """RGB copy of a uint8 or float array."""
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if not is_image:
        raise InvalidArgument(
            "image",
            expected="shape (H, W, 3), (H, W, 4) or (H, W)",
            got=f"shape {pixels.shape}",
            stage="image",
            hint="Put the channels last.",
        )
    require_frame_size("<array>", pixels.shape[1], pixels.shape[0], stage="image")
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            raise NonFinite(
                "image: expected finite values, got NaN or infinity.",
                stage="image",
                hint="Check how the array was computed.",
            )
        if pixels.min() < 0 or pixels.max() > 1:
            raise InvalidArgument(
                "image",
                expected="float values in [0, 1]",
                got=f"[{pixels.min():.4g}, {pixels.max():.4g}]",
                stage="image",
                hint="Divide by 255, or pass uint8.",
            )
        pixels = np.rint(pixels.astype(np.float32) * 255.0).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise InvalidArgument(
            "image", expected="uint8, or float in [0, 1]", got=f"{pixels.dtype}", stage="image"
        )
    if pixels.ndim == 2:
        return _grey_to_rgb(pixels)
    return _over_white(pixels) if pixels.shape[2] == 4 else pixels.copy()
