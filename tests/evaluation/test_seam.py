"""Planted cuts are seen, arbitrary borders of a continuous clip are not."""

import numpy as np
import pytest

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.evaluation.seam import seam_score

pytest.importorskip("espeakng_loader", reason="the speech synthesiser is not installed ([train])")


@pytest.fixture(scope="module")
def clips():
    from skyreels_rt.training.data.triplets import TripletSource

    source = TripletSource("train", size=256, duration_s=2.6, difficulty=0.0, motion=1.0)
    return [source.triplet(index).clip for index in (0, 4, 9)]


def borders(frames):
    return [17, len(frames) // 2, len(frames) - 14]


def after_each(frames, change):
    """Change what follows the first border and leave it, change it back at the second, ..."""
    changed = frames.copy()
    for number, border in enumerate(borders(frames)):
        changed[border:] = change(frames[border:]) if number % 2 == 0 else frames[border:]
    return changed


def brighter_face(part, mask):
    changed = np.where(mask[..., None], part.astype(int) + 6, part)
    return np.clip(changed, 0, 255).astype(np.uint8)


def test_continuous_clips_have_no_seams(clips):
    for clip in clips:
        assert seam_score(clip.frames, borders(clip.frames)) <= 1.05
        assert seam_score(clip.frames, [13, 29, 38, 44]) <= 1.05


def test_a_jump_is_seen(clips):
    for clip in clips:
        cut = after_each(clip.frames, lambda part: np.roll(part, 3, axis=2))
        assert seam_score(cut, borders(clip.frames)) >= 1.5


def test_another_skin_is_seen(clips):
    for clip in clips:
        cut = after_each(
            clip.frames,
            lambda part, c=clip: brighter_face(part, c.face_mask[len(c.frames) - len(part) :]),
        )
        assert seam_score(cut, borders(clip.frames)) >= 1.5


def test_skipped_frames_are_seen(clips):
    for clip in clips:
        first = len(clip.frames) // 3
        cut = np.concatenate([clip.frames[:first], clip.frames[first + 12 :]])
        assert seam_score(cut, [first]) >= 1.5


def test_a_still_picture_is_seamless(clips):
    assert seam_score(np.repeat(clips[0].frames[:1], 40, axis=0), [10, 20]) == 1.0


@pytest.mark.parametrize("places", [[], [0], [70000], [1, 2, 3, 4, 5]])
def test_borders_without_neighbours_are_refused(clips, places):
    with pytest.raises(InvalidArgument, match="borders"):
        seam_score(clips[0].frames[:6], places)
