"""Lip sync of two videos of one speech: equal ones lose nothing, a delayed or still mouth does."""

import numpy as np
import pytest

from skyreels_rt.bench.stream_sync import MAX_SYNC_LOSS, SyncLoss, lips_box, sync_loss
from skyreels_rt.conditioning.face import FaceFinder, face_available
from skyreels_rt.evaluation.mouth import mouth_opening
from skyreels_rt.evaluation.sync import correlation

pytest.importorskip("espeakng_loader", reason="the speech synthesiser is not installed ([train])")
pytestmark = pytest.mark.skipif(not face_available(), reason="needs the face extra")

FPS, RATE = 25, 16_000


@pytest.fixture(scope="module")
def triplet():
    from skyreels_rt.training.data.triplets import TripletSource

    return TripletSource("held_out", size=256, duration_s=4.0, difficulty=0.0).triplet(5)


def test_a_found_mouth_is_read_nearly_as_well_as_a_known_one(triplet):
    frames, truth = triplet.clip.frames, triplet.clip.opening_px
    box = lips_box(FaceFinder().find(frames[0]))
    assert correlation(mouth_opening(frames, box), truth) > 0.8


def test_the_same_video_loses_nothing(triplet):
    frames, voice = triplet.clip.frames, triplet.audio[:, None]
    got = sync_loss(frames, frames[: len(frames) - 3], voice, RATE, FPS)
    assert isinstance(got, SyncLoss)
    assert got.agreement == pytest.approx(1.0)
    loss = next(row for row in got.rows() if row.name == "stream.sync_loss")
    assert (loss.value, loss.ok) == (0.0, True)
    assert got.offline > 0.3


@pytest.mark.parametrize("fault", ["rolled", "still"])
def test_a_mouth_that_does_not_follow_is_seen(triplet, fault):
    frames, voice = triplet.clip.frames, triplet.audio[:, None]
    broken = np.roll(frames, 25, axis=0)
    if fault == "still":
        broken = np.repeat(frames[:1], len(frames), axis=0)
    got = sync_loss(broken, frames, voice, RATE, FPS)
    loss = next(row for row in got.rows() if row.name == "stream.sync_loss")
    assert loss.value > 3 * MAX_SYNC_LOSS
    assert loss.ok is False
    assert got.agreement < 0.5


def test_a_video_without_a_face_is_not_measured():
    noise = np.random.default_rng(0).integers(0, 256, (10, 64, 64, 3), dtype=np.uint8)
    voice = np.zeros((RATE, 1), np.float32)
    assert sync_loss(noise, noise, voice, RATE, FPS) == "no face was found in the video"
