"""Openings read from pixels against the renderer's truth."""

import numpy as np
import pytest

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.evaluation.mouth import mouth_opening
from skyreels_rt.evaluation.sync import best_lag, correlation

pytest.importorskip("espeakng_loader", reason="the speech synthesiser is not installed ([train])")


def bounding_box(mask):
    rows, cols = np.nonzero(mask)
    return int(cols.min()), int(rows.min()), int(cols.max()) + 1, int(rows.max()) + 1


def drawn(split, indices, duration_s=2.0):
    from skyreels_rt.training.data.triplets import TripletSource

    source = TripletSource(split, size=256, duration_s=duration_s, difficulty=0.0, motion=1.0)
    for index in indices:
        yield source.triplet(index).clip


def degraded(frames, seed):
    """Blur of sigma 1.2 pixels and noise of 4 grey levels, as a small generator makes them."""
    place = np.arange(-4, 5)
    weights = np.exp(-(place**2) / (2 * 1.2**2))
    weights = (weights / weights.sum()).astype(np.float32)
    soft = frames.astype(np.float32)
    for axis in (1, 2):
        pad = [(4, 4) if number == axis else (0, 0) for number in range(4)]
        wide = np.pad(soft, pad, mode="edge")
        size = soft.shape[axis]
        soft = sum(
            weight * wide.take(range(k, k + size), axis=axis) for k, weight in enumerate(weights)
        )
    noise = 4 * np.random.default_rng(seed).standard_normal(soft.shape, np.float32)
    return np.clip(np.rint(soft + noise), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def clips():
    return list(drawn("train", (0, 2, 4, 5)))


def scores(clips, change=lambda frames, seed: frames):
    return [
        correlation(
            mouth_opening(change(clip.frames, seed), bounding_box(clip.mouth_mask[0])),
            clip.opening_px,
        )
        for seed, clip in enumerate(clips)
    ]


def test_opening_follows_truth_and_is_in_pixels(clips):
    assert np.mean(scores(clips)) > 0.96
    for clip in clips:
        found = mouth_opening(clip.frames, bounding_box(clip.mouth_mask[0]))
        assert found.shape == (len(clip.frames),) and found.dtype == np.float32
        assert np.abs(found - clip.opening_px).mean() < 2.5


def test_blur_and_noise_are_borne(clips):
    assert np.mean(scores(clips[:2], degraded)) > 0.93


def test_planted_delay_is_found(clips):
    for clip in clips[:2]:
        late = clip.frames[np.maximum(np.arange(len(clip.frames)) - 5, 0)]
        found = mouth_opening(late, bounding_box(clip.mouth_mask[0]))
        assert best_lag(found, clip.opening_px, 10)[0] == 5


def test_wrong_speech_is_not_followed(clips):
    first, second = clips[0], clips[2]
    found = mouth_opening(first.frames, bounding_box(first.mouth_mask[0]))
    length = min(len(found), len(second.opening_px))
    assert correlation(found[:length], second.opening_px[:length]) < 0.6


def test_a_repeated_portrait_gives_a_constant(clips):
    still = np.repeat(clips[0].frames[:1], 30, axis=0)
    found = mouth_opening(still, bounding_box(clips[0].mouth_mask[0]))
    assert np.ptp(found) == 0
    assert correlation(found, clips[0].opening_px[:30]) == 0.0


def test_one_frame_is_a_clip(clips):
    found = mouth_opening(clips[0].frames[:1], bounding_box(clips[0].mouth_mask[0]))
    assert found.tolist() == [0.0]


def test_wrong_arguments_are_refused(clips):
    frames = clips[0].frames
    with pytest.raises(InvalidArgument, match="frames"):
        mouth_opening(frames.astype(np.float32), (100, 150, 160, 180))
    with pytest.raises(InvalidArgument, match="mouth_box"):
        mouth_opening(frames, (100, 150, 300, 180))


@pytest.mark.slow
def test_bar_on_48_clips_of_other_people():
    held_out = list(drawn("held_out", range(1000, 1048)))
    found = np.array(scores(held_out))
    assert found.mean() >= 0.95
    assert np.percentile(found, 10) >= 0.9
    assert np.mean(scores(held_out, degraded)) >= 0.93
