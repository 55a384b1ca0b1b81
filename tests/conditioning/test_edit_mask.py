import logging

import numpy as np
import pytest
from PIL import Image

from skyreels_rt.conditioning.edit_mask import resolve_edit_mask
from skyreels_rt.conditioning.face import FaceFinder, face_available, face_status
from skyreels_rt.errors import FaceNotFound, InvalidArgument

HEIGHT, WIDTH = 240, 320
FRAME = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def finder():
    pytest.importorskip("ai_edge_litert", reason="needs the face extra")
    if not face_available():
        pytest.skip(f"needs the face extra: {face_status()}")
    return FaceFinder()


class ScriptedFinder:
    """Gives the listed faces one after the other."""

    def __init__(self, faces):
        self.faces = list(faces)

    def find(self, frame):
        return self.faces.pop(0)


def disc(radius, centre=(120, 160)):
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2


def alpha_of(spec, index=0):
    return resolve_edit_mask(spec, HEIGHT, WIDTH, None).alpha(FRAME, index)


@pytest.fixture(scope="module")
def real_face(finder, shared_data):
    image = Image.open(shared_data / "portraits" / "blogger.jpg").convert("RGB")
    return finder.find(np.asarray(image.crop((40, 60, 360, 300))))


def test_fixed_mask_fades_in_inside_the_region_only():
    region = disc(80)
    alpha = alpha_of(region)
    assert alpha.shape == (HEIGHT, WIDTH)
    assert alpha.dtype == np.float32
    assert (alpha[~region] == 0).all()
    assert (alpha[region] > 0).all()
    assert (alpha[disc(70)] == 1).all()
    assert len(np.unique(alpha)) > 3
    # The ramp rises inwards and nowhere else.
    row = alpha[120, 80:161]
    assert (np.diff(row) >= 0).all()


def test_feather_is_as_wide_on_small_frames_as_their_size_allows():
    region = np.zeros((64, 64), bool)
    region[20:40, 20:40] = True
    alpha = resolve_edit_mask(region, 64, 64, None).alpha(np.zeros((64, 64, 3), np.uint8), 0)
    assert (alpha[22:38, 22:38] == 1).all()
    assert 0 < alpha[20, 30] < 1


def test_region_does_not_fade_at_the_edge_of_the_picture():
    assert (alpha_of(np.ones((HEIGHT, WIDTH), bool)) == 1).all()
    corner = np.zeros((HEIGHT, WIDTH), bool)
    corner[:100, :100] = True
    alpha = alpha_of(corner)
    assert (alpha[:80, :80] == 1).all()
    assert alpha[0, 99] < 1
    assert (alpha[~corner] == 0).all()


def test_thin_regions_survive():
    line = np.zeros((HEIGHT, WIDTH), bool)
    line[100:102, 50:200] = True
    alpha = alpha_of(line)
    assert (alpha[line] > 0).all()
    assert (alpha[~line] == 0).all()


@pytest.mark.parametrize(
    "convert",
    [
        lambda m: m,
        lambda m: m.astype(np.uint8) * 128,
        lambda m: m.astype(np.float32) * 0.5,
        lambda m: m.astype(np.float64),
        lambda m: m[None],
    ],
)
def test_array_types_mean_the_same(convert):
    assert np.array_equal(alpha_of(convert(disc(50))), alpha_of(disc(50)))


def test_masks_per_frame_follow_the_index_and_the_last_is_held():
    masks = np.stack([disc(30), np.zeros((HEIGHT, WIDTH), bool), disc(60)])
    mask = resolve_edit_mask(masks, HEIGHT, WIDTH, None)
    assert np.array_equal(mask.alpha(FRAME, 0), alpha_of(disc(30)))
    assert not mask.alpha(FRAME, 1).any()
    for index in (2, 3, 1000):
        assert np.array_equal(mask.alpha(FRAME, index), alpha_of(disc(60)))


@pytest.mark.parametrize("as_text", [True, False])
def test_picture_counts_grey_from_128(tmp_path, as_text):
    grey = np.where(disc(50), 128, 127).astype(np.uint8)
    path = tmp_path / "mask.png"
    Image.fromarray(grey).save(path)
    assert np.array_equal(alpha_of(str(path) if as_text else path), alpha_of(disc(50)))


def test_picture_is_resized_as_source_frames_are(tmp_path):
    # Twice the size and wider: the surplus left and right is cut.
    region = np.zeros((2 * HEIGHT, 2 * WIDTH + 200), np.uint8)
    region[100:300, 300:500] = 255
    path = tmp_path / "mask.png"
    Image.fromarray(region).save(path)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[50:150, 100:200] = True
    assert np.array_equal(alpha_of(path) > 0, expected)


@pytest.mark.parametrize(
    "spec",
    [
        "lips",
        "no/such/file.png",
        "",
        np.zeros((HEIGHT, WIDTH), bool),
        np.ones((HEIGHT, WIDTH), np.uint8),
        np.zeros((0, HEIGHT, WIDTH), bool),
        np.ones((HEIGHT, WIDTH + 1), bool),
        np.ones((HEIGHT,), bool),
        np.ones((1, HEIGHT, WIDTH, 3), bool),
        np.ones((HEIGHT, WIDTH), np.int64),
        np.full((HEIGHT, WIDTH), np.nan, np.float32),
        np.where(disc(3), np.inf, 0.0),
        np.full((HEIGHT, WIDTH), 255.0),
        np.full((HEIGHT, WIDTH), -1.0),
        np.full((HEIGHT, WIDTH), "a"),
    ],
)
def test_bad_masks_are_named(spec):
    with pytest.raises(InvalidArgument) as caught:
        resolve_edit_mask(spec, HEIGHT, WIDTH, None)
    assert caught.value.argument == "edit_mask"


def test_one_bad_number_among_good_ones_is_refused():
    mask = disc(50).astype(np.float32)
    mask[0, 0] = np.nan
    with pytest.raises(InvalidArgument, match="NaN"):
        resolve_edit_mask(mask, HEIGHT, WIDTH, None)


def test_unreadable_picture_is_named(tmp_path):
    path = tmp_path / "mask.png"
    path.write_bytes(b"not a picture")
    with pytest.raises(InvalidArgument) as caught:
        resolve_edit_mask(path, HEIGHT, WIDTH, None)
    assert caught.value.argument == "edit_mask"


def test_black_picture_is_named(tmp_path):
    path = tmp_path / "mask.png"
    Image.new("L", (WIDTH, HEIGHT), 100).save(path)
    with pytest.raises(InvalidArgument, match="128"):
        resolve_edit_mask(path, HEIGHT, WIDTH, None)


@pytest.mark.parametrize("word", ["mouth", "face"])
def test_no_face_in_the_first_frame(word):
    mask = resolve_edit_mask(word, HEIGHT, WIDTH, ScriptedFinder([None]))
    with pytest.raises(FaceNotFound, match=word) as caught:
        mask.alpha(FRAME, 0)
    assert caught.value.hint


@pytest.mark.parametrize("word", ["mouth", "face"])
def test_lost_face_holds_the_last_region_and_warns_once(word, real_face, caplog):
    script = ScriptedFinder([real_face, None, None, real_face, None])
    mask = resolve_edit_mask(word, HEIGHT, WIDTH, script)
    with caplog.at_level(logging.WARNING, logger="skyreels_rt.conditioning"):
        alphas = [mask.alpha(FRAME, index) for index in range(5)]
    assert alphas[0].any()
    for alpha in alphas[1:]:
        assert np.array_equal(alpha, alphas[0])
    assert len(caplog.records) == 1
    assert "frame 1" in caplog.text


def test_masks_of_two_videos_do_not_share_memory(real_face):
    first = resolve_edit_mask("mouth", HEIGHT, WIDTH, ScriptedFinder([real_face]))
    first.alpha(FRAME, 0)
    second = resolve_edit_mask("mouth", HEIGHT, WIDTH, ScriptedFinder([None]))
    with pytest.raises(FaceNotFound):
        second.alpha(FRAME, 0)


def test_words_edit_the_mouth_of_a_real_face(finder, shared_data):
    image = Image.open(shared_data / "portraits" / "blogger.jpg").convert("RGB")
    frame = np.asarray(image.crop((40, 60, 360, 300)))
    mouth, face = (
        resolve_edit_mask(word, HEIGHT, WIDTH, finder).alpha(frame, 0) for word in ("mouth", "face")
    )
    landmarks = finder.find(frame).landmarks
    for index in (13, 14, 61, 291, 17):
        x, y = landmarks[index].astype(int)
        assert mouth[y, x] == 1
    for index in (33, 263, 10):
        x, y = landmarks[index].astype(int)
        assert mouth[y, x] == 0
    for index in (33, 263, 1):
        x, y = landmarks[index].astype(int)
        assert face[y, x] == 1
    assert not (mouth[face == 0] > 0).any()
