import logging

import numpy as np
import pytest
from PIL import Image

from skyreels_rt.conditioning.face import Face, FaceFinder, face_available, face_status
from skyreels_rt.conditioning.portrait import cover_crop, prepare_portrait
from skyreels_rt.errors import InvalidArgument

SIZES = [(480, 832), (832, 480), (512, 512)]


class FixedFinder:
    """Says where the face is, without looking."""

    def __init__(self, box):
        self.box = box

    def find(self, frame):
        return self.box and Face(self.box, 1.0, np.zeros((468, 2), np.float32))


def coordinate_image(rows, columns):
    """A picture whose red and green say where a pixel is: x / columns and y / rows, times 255."""
    y, x = np.mgrid[0:rows, 0:columns]
    red, green = (x + 0.5) / columns * 255, (y + 0.5) / rows * 255
    return np.stack((red, green, np.zeros_like(red)), axis=-1).round().astype(np.uint8)


def crop_of(result, rows, columns):
    """The crop box that a resized coordinate image came from, to about 2 source pixels in 500."""
    height, width = result.shape[:2]
    x = result[height // 2, :, 0].astype(float) / 255 * columns
    y = result[:, width // 2, 1].astype(float) / 255 * rows
    # A straight line through the inner part is free of rounding and of the filter's edges.
    edges = []
    for values, count in ((x, width), (y, height)):
        at = np.arange(count // 8, count - count // 8)
        slope, start = np.polyfit(at + 0.5, values[at], 1)
        edges.append((start, start + slope * count))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(
    ("rows", "columns", "face"),
    [
        (1000, 1000, (400, 300, 560, 500)),
        (1000, 1000, (20, 30, 180, 230)),
        (1000, 1000, (830, 790, 990, 990)),
        (600, 900, (300, 50, 650, 500)),
        (900, 500, (100, 200, 300, 450)),
        (500, 500, (60, 20, 440, 480)),
    ],
)
def test_crop_holds_the_face_and_stays_inside(rows, columns, face, height, width):
    image = coordinate_image(rows, columns)
    result = prepare_portrait(image, height, width, finder=FixedFinder(face))
    assert result.shape == (height, width, 3)
    assert result.dtype == np.uint8
    left, top, right, bottom = crop_of(result, rows, columns)
    slack = 0.01 * max(rows, columns)
    assert left > -slack
    assert top > -slack
    assert right < columns + slack
    assert bottom < rows + slack
    assert (right - left) / (bottom - top) == pytest.approx(width / height, rel=0.02)
    largest = min(rows, columns * height / width)
    # Where even the largest crop is smaller than the face, its centre is kept instead.
    if largest >= face[3] - face[1]:
        assert top < face[1] + slack
        assert bottom > face[3] - slack
    else:
        assert (top + bottom) / 2 == pytest.approx((face[1] + face[3]) / 2, abs=2 * slack)
    if largest * width / height >= face[2] - face[0]:
        assert left < face[0] + slack
        assert right > face[2] - slack


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_face_takes_its_share_where_there_is_room(height, width):
    face = (460, 420, 560, 540)
    image = coordinate_image(1000, 1000)
    left, top, right, bottom = crop_of(
        prepare_portrait(image, height, width, finder=FixedFinder(face)), 1000, 1000
    )
    assert 0.4 <= (face[3] - face[1]) / (bottom - top) <= 0.5
    assert (left + right) / 2 == pytest.approx((face[0] + face[2]) / 2, abs=5)
    # Room for the hair above the forehead.
    assert 0.15 < (face[1] - top) / (bottom - top) < 0.3


def test_tight_picture_gives_its_largest_crop():
    image = coordinate_image(500, 400)
    result = prepare_portrait(image, 300, 300, finder=FixedFinder((50, 60, 350, 430)))
    left, top, right, bottom = crop_of(result, 500, 400)
    assert (left, right) == pytest.approx((0, 400), abs=5)
    assert (top, bottom) == pytest.approx((45, 445), abs=8)


def test_narrow_target_keeps_the_width_of_the_face():
    image = coordinate_image(1200, 600)
    result = prepare_portrait(image, 900, 300, finder=FixedFinder((200, 300, 400, 500)))
    left, _, right, _ = crop_of(result, 1200, 600)
    assert left < 200
    assert right > 400


@pytest.mark.parametrize("finder", [None, FixedFinder(None)])
def test_without_a_face_the_centre_is_taken(finder, caplog):
    image = coordinate_image(300, 700)
    with caplog.at_level(logging.WARNING, logger="skyreels_rt.conditioning"):
        result = prepare_portrait(image, 200, 200, finder=finder)
    assert np.array_equal(result, cover_crop(image, 200, 200))
    assert crop_of(result, 300, 700) == pytest.approx((200, 0, 500, 300), abs=4)
    assert len(caplog.records) == (0 if finder is None else 1)


def test_same_input_gives_the_same_bytes():
    image = np.random.default_rng(1).integers(0, 256, (333, 417, 3), dtype=np.uint8)
    finder = FixedFinder((120, 100, 220, 230))
    first, second = (prepare_portrait(image, 128, 96, finder=finder) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_shrinking_averages_instead_of_skipping():
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    result = cover_crop(stripes, 100, 100)
    assert np.abs(result.astype(int) - 127)[:, 2:-2].max() < 12


def test_frame_of_the_right_size_is_unchanged_and_new():
    frame = np.random.default_rng(2).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    result = cover_crop(frame, 48, 80)
    assert np.array_equal(result, frame)
    assert not np.shares_memory(result, frame)
    assert result.flags.writeable


@pytest.mark.parametrize("size", [(1, 997), (997, 1), (7, 13)])
def test_odd_shapes_are_covered(size):
    frame = np.full((*size, 3), 200, np.uint8)
    result = cover_crop(frame, 33, 47)
    assert result.shape == (33, 47, 3)
    assert (result == 200).all()


@pytest.mark.parametrize(
    ("image", "size", "argument"),
    [
        (np.zeros((4, 4), np.uint8), (8, 8), "image"),
        (np.zeros((4, 4, 3), np.float32), (8, 8), "image"),
        (np.zeros((4, 4, 3), np.uint8), (0, 8), "height, width"),
    ],
)
def test_bad_arguments_are_named(image, size, argument):
    with pytest.raises(InvalidArgument) as caught:
        prepare_portrait(image, *size, finder=None)
    assert caught.value.argument == argument


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("name", ["blogger.jpg", "producer.jpg"])
def test_real_face_is_found_again_in_the_middle(shared_data, name, height, width):
    pytest.importorskip("ai_edge_litert", reason="needs the face extra")
    if not face_available():
        pytest.skip(f"needs the face extra: {face_status()}")
    finder = FaceFinder()
    image = np.asarray(Image.open(shared_data / "portraits" / name).convert("RGB"))
    face = finder.find(prepare_portrait(image, height, width, finder=finder))
    assert face is not None
    left, top, right, bottom = face.box
    assert (left + right) / 2 == pytest.approx(width / 2, abs=0.06 * width)
    assert (top + bottom) / 2 == pytest.approx(0.45 * height, abs=0.06 * height)
    # Its share is 0.45, or more where the whole picture is too narrow for that.
    original = finder.find(image).box
    largest = min(image.shape[0], image.shape[1] * height / width)
    share = max(0.45, (original[3] - original[1]) / largest)
    assert (bottom - top) / height == pytest.approx(share, rel=0.15)
    assert left > 0
    assert right < width
