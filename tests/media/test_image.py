"""Portraits: every mode becomes upright RGB, every bad input a typed error."""

from __future__ import annotations

import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skyreels_rt.errors import InvalidArgument, MediaError, NonFinite
from skyreels_rt.media.image import MAX_IMAGE_PIXELS, load_image

H, W = 24, 32
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quadrants() -> np.ndarray:
    """Red, green / blue, white: every mirror and turn of it is different."""
    pixels = np.zeros((H, W, 3), np.uint8)
    pixels[: H // 2, : W // 2], pixels[: H // 2, W // 2 :] = RED, GREEN
    pixels[H // 2 :, : W // 2], pixels[H // 2 :, W // 2 :] = BLUE, WHITE
    return pixels


def blank_png(path: Path, width: int, height: int) -> Path:
    """A valid black 8-bit grey PNG of any size, made without holding its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer, row = zlib.compressobj(1), bytes(width + 1)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.bmp", {}),
        ("a.tiff", {}),
        ("a.tiff", {"compression": "tiff_lzw"}),
        ("a.webp", {"lossless": True}),
        ("png named.jpg", {"format": "PNG"}),
    ],
)
def test_lossless_files_come_back_exactly(tmp_path, name, options):
    Image.fromarray(quadrants()).save(tmp_path / name, **options)
    for source in (tmp_path / name, str(tmp_path / name)):
        pixels = load_image(source)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, quadrants())


def test_real_portraits(shared_data):
    portraits = sorted((shared_data / "portraits").iterdir())
    assert portraits
    for path in portraits:
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(load_image(path), expected)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "PA"])
def test_pillow_modes_in_png(tmp_path, mode):
    saved = Image.fromarray(quadrants()).convert("L").convert(mode if mode != "PA" else "P")
    saved.save(tmp_path / "a.png")
    expected = np.asarray(saved.convert("RGB"))
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), expected)


def test_palette_with_transparent_entries_is_laid_over_white(tmp_path):
    image = Image.fromarray(quadrants()).quantize(4)
    palette = np.array(image.getpalette()).reshape(-1, 3)
    (transparent,) = np.flatnonzero((palette == BLUE).all(axis=1))[:1]
    alphas = bytes(0 if entry == transparent else 255 for entry in range(4))
    image.save(tmp_path / "a.png", transparency=alphas)
    expected = quadrants()
    expected[H // 2 :, : W // 2] = WHITE
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(load_image(tmp_path / "a.png"), expected)


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    rgba = np.dstack([quadrants(), np.full((H, W), 128, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    pixels = load_image(tmp_path / "a.png")
    assert tuple(pixels[0, 0]) == (255, 127, 127)
    np.testing.assert_array_equal(load_image(rgba), pixels)
    np.testing.assert_array_equal(load_image(Image.fromarray(rgba)), pixels)


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, name):
    ramp = np.linspace(0, 65535, W, dtype=np.uint16)
    Image.fromarray(np.tile(ramp, (H, 1))).save(tmp_path / name)
    pixels = load_image(tmp_path / name)
    expected = np.rint(ramp / 257.0)
    for channel in range(3):
        np.testing.assert_array_equal(pixels[0, :, channel], expected)


def test_cmyk_jpeg_has_the_colours_of_its_rgb(tmp_path):
    cmyk = Image.fromarray(quadrants()).convert("CMYK")
    cmyk.save(tmp_path / "a.jpg", quality=100, subsampling=0)
    difference = np.abs(load_image(tmp_path / "a.jpg").astype(int) - quadrants())
    # Away from the edges of the patches, where JPEG rings.
    assert difference[2:10, 2:14].max() <= 4
    assert difference[14:22, 18:30].max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tiff", "a.webp"])
def test_exif_orientation(tmp_path, name, orientation):
    # Exif 2.32: where the stored row 0 and column 0 are seen, for each value.
    turned = {
        1: lambda p: p,
        2: np.fliplr,
        3: lambda p: np.rot90(p, 2),
        4: np.flipud,
        5: lambda p: p.swapaxes(0, 1),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
        8: np.rot90,
    }[orientation](quadrants())
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossy = {"quality": 100, "subsampling": 0} if name == "a.jpg" else {}
    lossless = {"lossless": True} if name == "a.webp" else {}
    Image.fromarray(quadrants()).save(tmp_path / name, exif=exif, **lossy, **lossless)
    pixels = load_image(tmp_path / name)
    assert pixels.shape == turned.shape
    assert np.abs(pixels.astype(int) - turned).mean() < 4


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(np.full((H, W, 3), level, np.uint8)) for level in (10, 200)]
    for name, options in (("a.png", {}), ("a.tiff", {}), ("a.webp", {"lossless": True})):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(load_image(tmp_path / name), np.asarray(frames[0]))


def test_arrays(tmp_path):
    pixels = quadrants()
    result = load_image(pixels)
    np.testing.assert_array_equal(result, pixels)
    result[:] = 0
    assert pixels.any(), "the caller's array was changed"
    np.testing.assert_array_equal(load_image(pixels / 255.0), pixels)
    np.testing.assert_array_equal(load_image(pixels[..., 0]), np.dstack([pixels[..., 0]] * 3))


def test_bad_arrays():
    good = quadrants()
    for bad in (good.transpose(2, 0, 1), good[None], good.astype(np.int32), good * 1.0, good - 0.5):
        with pytest.raises(InvalidArgument, match="image"):
            load_image(bad)
    for value in (np.nan, np.inf):
        bad = good / 255.0
        bad[3, 4, 1] = value
        with pytest.raises(NonFinite):
            load_image(bad)
    with pytest.raises(InvalidArgument, match="image"):
        load_image(3)
    for shape in ((1, 1, 3), (15, 64, 3), (0, 0, 3)):
        with pytest.raises(MediaError, match="16 pixels a side"):
            load_image(np.zeros(shape, np.uint8))


def test_size_limits_are_exact(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "least.png")
    assert load_image(tmp_path / "least.png").shape == (16, 16, 3)
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    with pytest.raises(MediaError, match="1x1"):
        load_image(tmp_path / "dot.png")
    wide = blank_png(tmp_path / "wide.png", MAX_IMAGE_PIXELS // 16 + 1, 16)
    with pytest.raises(MediaError, match="at most"):
        load_image(wide)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_bombs_are_refused_from_the_header(tmp_path, side):
    # 10,000 a side is where Pillow itself would only warn.
    bomb = blank_png(tmp_path / "bomb.png", side, side)
    settings = Image.MAX_IMAGE_PIXELS
    load_image(quadrants())
    tracemalloc.start()
    try:
        with warnings.catch_warnings(), pytest.raises(MediaError, match=f"{side}x{side}") as caught:
            warnings.simplefilter("error")
            load_image(bomb)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()
    assert caught.value.hint
    assert settings == Image.MAX_IMAGE_PIXELS


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tiff"])
def test_truncated_files(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    for keep in (len(data) // 2, 20):
        (tmp_path / name).write_bytes(data[:keep])
        with pytest.raises(MediaError, match="decoded"):
            load_image(tmp_path / name)


def test_files_that_are_no_image(tmp_path):
    (tmp_path / "text.png").write_text("not a picture\n")
    (tmp_path / "bm.bmp").write_text("BMW is a make of car, and this is text." * 9)
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.gif")
    cases = {
        "text.png": "begins like none",
        "bm.bmp": "decoded",
        "empty.png": "empty",
        "a.gif": "begins like none",
        "absent.png": "no such file",
        ".": "directory",
        "https://example.org/a.png": "no such file",
    }
    for name, reason in cases.items():
        source = name if "://" in name else tmp_path / name
        with pytest.raises(MediaError, match=reason) as caught:
            load_image(source)
        assert caught.value.hint
        assert caught.value.stage == "image"


def test_32_bit_pixels_are_refused(tmp_path):
    for mode in ("I", "F"):
        Image.new(mode, (32, 32)).save(tmp_path / "a.tiff")
        with pytest.raises(MediaError, match="32-bit"):
            load_image(tmp_path / "a.tiff")
