"""Head motion is smooth, deterministic and stable as a clip grows, with blinks like people's."""

from dataclasses import fields

import numpy as np
import pytest

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.training.data.motion import Motion, sample_motion

NAMES = [field.name for field in fields(Motion)]
HEAD = ["shift_x", "shift_y", "zoom", "yaw", "pitch", "roll"]


def blink_count(motion):
    closed = motion.blink > 0.5
    return int(closed[0]) + int(np.sum(closed[1:] & ~closed[:-1]))


def test_the_same_seed_is_the_same_motion():
    one, other, third = sample_motion(4, 50), sample_motion(4, 50), sample_motion(5, 50)
    for name in NAMES:
        assert np.array_equal(getattr(one, name), getattr(other, name))
    assert not np.array_equal(one.yaw, third.yaw)


@pytest.mark.parametrize("with_energy", [False, True])
def test_a_longer_clip_starts_like_a_shorter_one(with_energy):
    energy = np.random.default_rng(0).uniform(size=400) if with_energy else None
    short = sample_motion(9, 90, energy=None if energy is None else energy[:90])
    long = sample_motion(9, 400, energy=energy)
    for name in NAMES:
        assert np.array_equal(getattr(short, name), getattr(long, name)[:90]), name


def test_the_head_moves_smoothly():
    for seed in range(10):
        motion = sample_motion(seed, 250, amount=2.0)
        for name in HEAD:
            values = getattr(motion, name).astype(np.float64)
            assert np.abs(np.diff(values)).max() < 0.4 * max(values.std(), 1e-6), name


def test_amount_scales_the_head_and_leaves_blinks_alone():
    still, calm, lively = (sample_motion(3, 250, amount=amount) for amount in (0.0, 1.0, 2.0))
    for name in HEAD:
        assert not getattr(still, name).any()
        assert 0 < getattr(calm, name).std() < getattr(lively, name).std()
    assert np.array_equal(still.blink, lively.blink)
    assert not still.gaze_x.any()


def test_people_blink_at_the_asked_rate_and_close_their_eyes():
    minutes = 20
    for rate in (10, 17, 25):
        motions = [sample_motion(seed, 60 * 25, blinks_per_minute=rate) for seed in range(minutes)]
        assert 0.6 * rate < np.mean([blink_count(motion) for motion in motions]) < 1.5 * rate
    blink = motions[0].blink
    starts = np.flatnonzero((blink[1:] > 0.5) & (blink[:-1] <= 0.5))
    for start in starts:
        around = blink[start : start + 8]
        assert around.max() == 1.0
    open_share = np.mean(blink == 0)
    assert 0.75 < open_share < 0.98
    assert not sample_motion(1, 500, blinks_per_minute=0).blink.any()


def test_who_speaks_blinks_in_the_pauses():
    energy = np.full(500, 0.8)
    pauses = [60, 130, 142, 200, 350]  # the third comes too soon after the second
    for start in pauses:
        energy[start : start + 5] = 0.1
    energy[250:252] = 0.0  # too short to be one
    motion = sample_motion(3, 500, energy=energy, blinks_per_minute=17)
    by_chance = sample_motion(3, 500, energy=np.full(500, 0.8), blinks_per_minute=17)
    heard = (motion.blink > 0.5) & ~(by_chance.blink > 0.5)
    starts = np.flatnonzero(heard[1:] & ~heard[:-1]) + 1
    assert len(starts) == 4
    for pause, start in zip([60, 130, 200, 350], starts, strict=True):
        assert 2 <= start - pause <= 5
    # Before the first word nobody has paused.
    silence = sample_motion(3, 500, energy=np.zeros(500), blinks_per_minute=17)
    assert np.array_equal(silence.blink, by_chance.blink)
    assert not sample_motion(3, 500, energy=energy, blinks_per_minute=0).blink.any()


def test_loud_speech_nods_and_raises_brows():
    energy = np.zeros(100)
    energy[50:60] = 1.0
    quiet, loud = sample_motion(2, 100), sample_motion(2, 100, energy=energy)
    assert np.array_equal(quiet.pitch[:50], loud.pitch[:50])
    assert (loud.pitch - quiet.pitch)[52:60].mean() > 0.02
    assert (loud.brow - quiet.brow)[52:60].mean() > 0.1


def test_expressions_rest_differently():
    def mean(expression, channel):
        return np.mean(
            [getattr(sample_motion(s, 50, expression=expression), channel) for s in range(5)]
        )

    assert mean("smiling", "smile") > mean("neutral", "smile") + 0.4
    assert mean("surprised", "brow") > mean("serious", "brow") + 0.6


def test_a_still_motion_is_zero_and_one_frame_works():
    still = Motion.still(3)
    assert still.num_frames == 3
    assert all(not getattr(still, name).any() for name in NAMES)
    assert sample_motion(0, 1).num_frames == 1


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"seed": -1}, "seed"),
        ({"num_frames": 0}, "num_frames"),
        ({"num_frames": 2.5}, "num_frames"),
        ({"fps": 0}, "fps"),
        ({"fps": float("nan")}, "fps"),
        ({"amount": -0.1}, "amount"),
        ({"blinks_per_minute": 500}, "blinks_per_minute"),
        ({"expression": "furious"}, "expression"),
        ({"energy": np.zeros(9)}, "energy"),
        ({"energy": np.full(10, 1.5)}, "energy"),
        ({"energy": np.full(10, np.nan)}, "energy"),
    ],
)
def test_bad_arguments_are_refused(arguments, name):
    with pytest.raises(InvalidArgument, match=name):
        sample_motion(**({"seed": 0, "num_frames": 10} | arguments))


def test_posture_is_a_pose_that_the_head_moves_about():
    still, posed = (sample_motion(3, 60, amount=0.0, posture=p) for p in (0.0, 1.0))
    for name in HEAD:
        values = getattr(posed, name)
        assert np.all(values == values[0]) and values[0] != 0
        assert not getattr(still, name).any()
    both, moving = sample_motion(3, 60, amount=0.2, posture=1.0), sample_motion(3, 60, amount=0.2)
    np.testing.assert_allclose(both.yaw - posed.yaw, moving.yaw, atol=1e-6)
    poses = [sample_motion(seed, 1, amount=0.0, posture=1.0).yaw[0] for seed in range(40)]
    wide = [sample_motion(seed, 1, amount=1.0).yaw[0] for seed in range(40)]
    assert 0.5 < np.std(poses) / np.std(wide) < 2
