"""The same face in other poses is near, other people are far, and drift is measured."""

from dataclasses import fields, replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.evaluation.identity import (
    drift,
    follow,
    identity_descriptor,
    identity_distances,
    lab,
)
from skyreels_rt.training.data.identity import sample_identity
from skyreels_rt.training.data.motion import sample_motion
from skyreels_rt.training.data.mouth import MouthShape
from skyreels_rt.training.data.renderer import render

SIZE, FRAMES = 256, 6


def bounding_box(mask):
    rows, cols = np.nonzero(mask)
    return int(cols.min()), int(rows.min()), int(cols.max()) + 1, int(rows.max()) + 1


def drawn(seed):
    """Six frames, half a second apart, with mouths from shut to wide open."""
    motion = sample_motion(seed, FRAMES * 12)
    motion = replace(motion, **{f.name: getattr(motion, f.name)[::12] for f in fields(motion)})
    mouth = replace(MouthShape.closed(FRAMES), opening=np.linspace(0, 1, FRAMES, dtype=np.float32))
    return render(sample_identity(seed), motion, mouth, SIZE)


@pytest.fixture(scope="module")
def people():
    return [drawn(2 * number) for number in range(10)]


@pytest.fixture(scope="module")
def between(people):
    found = [identity_descriptor(c.frames[0], bounding_box(c.face_mask[0])) for c in people]
    apart = np.linalg.norm(np.subtract.outer(found, found).diagonal(axis1=1, axis2=3), axis=-1)
    return apart[np.triu_indices(len(people), 1)]


def test_same_person_is_near_whatever_pose_and_mouth(people, between):
    within = [
        identity_distances(clip.frames[1:], clip.frames[0], bounding_box(clip.face_mask[0]))
        for clip in people
    ]
    assert np.mean(within) < 0.15 * between.mean()
    assert np.max(within) < between.min()


def test_descriptor_needs_no_track(people, between):
    within = []
    for clip in people[:5]:
        boxes = [bounding_box(mask) for mask in clip.face_mask]
        first, *others = map(identity_descriptor, clip.frames, boxes)
        within += [np.linalg.norm(first - other) for other in others]
    assert np.mean(within) < 0.35 * between.mean()


def test_distance_is_a_color_difference(people):
    """A face made redder by some Lab units is that far from its portrait."""
    clip = people[0]
    box = bounding_box(clip.face_mask[0])
    changed = np.clip(clip.frames[:1].astype(int) + np.array([12, -4, -4]), 0, 255).astype(np.uint8)
    apart = identity_distances(changed, clip.frames[0], box)[0]
    moved = np.linalg.norm(lab(changed[0]) - lab(clip.frames[0]), axis=-1)[clip.face_mask[0]]
    assert 0.5 * moved.mean() < apart < 1.5 * moved.mean()


def test_follow_finds_a_planted_shift(people):
    still = people[1].frames[0]
    moved = np.stack([still, np.roll(still, (7, -12), axis=(0, 1))])
    left, top, right, bottom = bounding_box(people[1].eye_mask[0])
    track = follow(moved, (left, top, right, bottom + 30))
    centre = np.array([(left + right) / 2, (top + bottom) / 2, 1.0])
    assert_allclose(track[0] @ centre, centre[:2], atol=0.05)
    assert_allclose(track[1] @ centre, centre[:2] + np.array([-12, 7]), atol=0.3)


def test_lab_of_known_colors():
    found = lab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]], np.uint8))
    assert_allclose(found, [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.2]], atol=0.05)


def test_drift_finds_a_slope_and_bounds_it():
    rng = np.random.default_rng(0)
    times = np.arange(60 * 25) / 25
    # Poses last for about a second: neighbouring frames are no new evidence.
    wobble = np.repeat(rng.normal(0, 0.5, 60), 25)
    rising = drift(3 + 0.05 * times + wobble, times, 30.0)
    assert abs(rising.slope_per_s - 0.05) < 0.012
    assert abs(rising.slope_per_s) < rising.slope_upper95 < 0.08
    assert rising.relative_60s == pytest.approx(rising.slope_upper95 * 2)
    steady = drift(3 + wobble, times, 30.0)
    assert steady.relative_60s < 0.05


def test_drift_bound_holds_as_often_as_it_says():
    rng = np.random.default_rng(1)
    times = np.arange(8 * 5) / 5
    bounds = [drift(rng.normal(0, 1, 40) + 0.4 * times, times, 1.0) for _ in range(300)]
    assert np.mean([found.slope_upper95 >= 0.4 for found in bounds]) > 0.93


def test_wrong_arguments_are_refused(people):
    frames = people[0].frames
    with pytest.raises(InvalidArgument, match="face_box"):
        identity_descriptor(frames[0], (10, 10, 12, 60))
    with pytest.raises(InvalidArgument, match="reference"):
        identity_distances(frames, frames[0, :128], (60, 60, 120, 120))
    with pytest.raises(InvalidArgument, match="times_s"):
        drift(np.zeros(50), np.arange(50) / 25, 1.0)
    with pytest.raises(InvalidArgument, match="mean_between"):
        drift(np.zeros(50), np.arange(50) / 5, 0.0)
