"""Colour correction: frames take over the reference's colours, each by itself."""

import numpy as np
import pytest

import skyreels_rt as rt
from skyreels_rt.conditioning.color import ColorMatch, from_lab, lab
from skyreels_rt.errors import InvalidArgument

KIND = {"first_frames": 3, "portrait": None}


@pytest.fixture
def picture():
    rng = np.random.default_rng(0)
    rough = rng.integers(60, 190, (4, 5, 3))
    return rough.repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)


def tinted(picture, gain=(0.8, 1.0, 1.1), offset=12):
    return np.clip(picture * np.array(gain) + offset, 0, 255).astype(np.uint8)


def test_lab_of_known_colours_and_back():
    colours = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
    expected = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]
    np.testing.assert_allclose(lab(colours), expected, atol=0.02)
    every = np.random.default_rng(1).integers(0, 256, (500, 3)).astype(np.uint8)
    np.testing.assert_allclose(from_lab(lab(every)), every, atol=0.05)


def test_a_tint_is_taken_back_to_the_portrait(picture):
    match = ColorMatch(1.0, "portrait", **KIND | {"portrait": picture})
    corrected = match(np.stack([tinted(picture)]))[0]
    before = np.abs(tinted(picture).astype(int) - picture).mean()
    after = np.abs(corrected.astype(int) - picture).mean()
    assert after < 0.4 * before
    means = [lab(one).reshape(-1, 3).mean(0) for one in (corrected, picture)]
    np.testing.assert_allclose(*means, atol=0.5)


def test_strength_mixes_and_zero_changes_nothing(picture):
    frames = np.stack([tinted(picture)])
    full = ColorMatch(1.0, "portrait", **KIND | {"portrait": picture})(frames)
    half = ColorMatch(0.5, "portrait", **KIND | {"portrait": picture})(frames)
    middle = (full.astype(float) + frames) / 2
    assert np.abs(half - middle).max() <= 1
    off = ColorMatch(0.0, "portrait", **KIND | {"portrait": picture})
    assert np.array_equal(off(frames), frames)


def test_the_first_window_passes_and_later_frames_follow_it(picture):
    drift = [tinted(picture, offset=3 * step) for step in range(8)]
    for reference in ("first_window", "portrait"):  # the latter without a portrait
        match = ColorMatch(1.0, reference, **KIND)
        first, rest = match(np.stack(drift[:3])), match(np.stack(drift[3:]))
        assert np.array_equal(first, drift[:3])
        means = [lab(frame)[..., 0].mean() for frame in (*first, *rest)]
        wanted = np.mean(means[:3])
        assert np.abs(np.array(means[3:]) - wanted).max() < 0.5


def test_any_cut_of_the_frames_and_a_state_give_the_same_bytes(picture):
    frames = np.stack([tinted(picture, offset=2 * step) for step in range(9)])
    whole = ColorMatch(1.0, "first_window", **KIND)(frames)
    match = ColorMatch(1.0, "first_window", **KIND)
    parts = [match(frames[:2])]
    other = ColorMatch(1.0, "first_window", **KIND)
    other.restore(match.state())
    parts += [other(frames[index : index + 1]) for index in range(2, 9)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_a_flat_frame_stays_finite(picture):
    match = ColorMatch(1.0, "portrait", **KIND | {"portrait": picture})
    assert match(np.full((1, 8, 8, 3), 90, np.uint8)).shape == (1, 8, 8, 3)


def test_an_engine_corrects_towards_the_portrait():
    engine = rt.Engine.from_pretrained("tiny-random")
    speech = 0.1 * np.random.default_rng(0).standard_normal(8_000).astype(np.float32)
    image = np.random.default_rng(1).integers(60, 190, (128, 128, 3), dtype=np.uint8)
    options = {"sample_rate": 16_000, "image": image, "num_steps": 1}
    plain = engine.generate(speech, **options).frames
    corrected = engine.generate(speech, color_correction=1.0, **options).frames
    wanted = lab(image).reshape(-1, 3).mean(0)
    distances = [
        np.linalg.norm(lab(frames).reshape(-1, 3).mean(0) - wanted) for frames in (plain, corrected)
    ]
    assert distances[1] < 0.3 * distances[0]


@pytest.mark.parametrize("changes", [{"color_correction": 1.5}, {"color_reference": "sky"}])
def test_values_out_of_range_are_refused(changes):
    engine = rt.Engine.from_pretrained("tiny-random")
    with pytest.raises(InvalidArgument, match=next(iter(changes))):
        engine.generate(np.zeros(800, np.float32), sample_rate=16_000, prompt="x", **changes)


def test_a_source_video_keeps_its_colours():
    engine = rt.Engine.from_pretrained("tiny-random")
    with pytest.raises(InvalidArgument, match="color_correction"):
        engine.generate(
            np.zeros(800, np.float32), sample_rate=16_000, color_correction=1.0,
            video=np.zeros((5, 128, 128, 3), np.uint8),
        )  # fmt: skip
