"""Colours named from drawn portraits, with true boxes and with guessed ones."""

from dataclasses import fields, replace

import numpy as np
import pytest

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.evaluation.attributes import (
    BACKGROUND_CHART,
    HAIR_CHART,
    dominant_background,
    hair_colour,
    portrait_layout,
)
from skyreels_rt.training.data.identity import BACKGROUND_COLORS, HAIR_COLORS, sample_identity
from skyreels_rt.training.data.motion import sample_motion
from skyreels_rt.training.data.mouth import MouthShape
from skyreels_rt.training.data.renderer import render

COUNT, SIZE = 60, 256


def bounding_box(mask):
    rows, cols = np.nonzero(mask)
    return int(cols.min()), int(rows.min()), int(cols.max()) + 1, int(rows.max()) + 1


def overlap(a, b):
    """Intersection over union."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (areas - width * height)


@pytest.fixture(scope="module")
def portraits():
    """Held-out people, a second into a clip: (identity, frame, box of the face)."""
    drawn = []
    for number in range(5000, 5000 + COUNT):
        identity, motion = sample_identity(2 * number + 1), sample_motion(2 * number + 1, 26)
        now = replace(motion, **{f.name: getattr(motion, f.name)[25:] for f in fields(motion)})
        clip = render(identity, now, MouthShape.closed(1), SIZE)
        drawn.append((identity, clip.frames[0], bounding_box(clip.face_mask[0])))
    return drawn


def test_charts_name_the_classes_of_captions():
    assert set(BACKGROUND_CHART) == set(BACKGROUND_COLORS)
    assert set(HAIR_CHART) == set(HAIR_COLORS)


def test_hair_is_named(portraits):
    haired = [portrait for portrait in portraits if portrait[0].hair_style != "bald"]
    right = [hair_colour(frame, box) == who.hair_color for who, frame, box in haired]
    assert len({who.hair_color for who, _, _ in haired}) == len(HAIR_CHART)
    assert np.mean(right) >= 0.95
    guessed = [hair_colour(f, portrait_layout(f)[0]) == who.hair_color for who, f, _ in haired]
    assert np.mean(guessed) >= 0.90


def test_background_is_named(portraits):
    right = [
        dominant_background(frame, portrait_layout(frame)[1]) == who.background_color
        for who, frame, _ in portraits
    ]
    assert np.mean(right) >= 0.95


def test_layout_finds_the_face(portraits):
    found = [(portrait_layout(frame), box) for _, frame, box in portraits]
    overlaps = [overlap(face, box) for (face, _), box in found]
    assert np.mean(overlaps) > 0.75
    assert np.percentile(overlaps, 5) > 0.5
    for (face, head), _ in found:
        assert head[0] <= face[0] < face[2] <= head[2]
        assert head[1] <= face[1] < face[3] <= head[3]


def test_a_paler_and_softer_picture_keeps_its_names(portraits):
    """A small generator is a little off in colour."""
    right = []
    for who, frame, box in portraits[:20]:
        pale = (0.9 * frame.astype(np.float32) + 14).astype(np.uint8)
        pale = ((pale.astype(int) + np.roll(pale, 1, 0) + np.roll(pale, 1, 1)) // 3).astype(
            np.uint8
        )
        right.append(dominant_background(pale, portrait_layout(pale)[1]) == who.background_color)
        if who.hair_style != "bald":
            right.append(hair_colour(pale, box) == who.hair_color)
    assert np.mean(right) >= 0.95


def test_any_picture_has_a_layout():
    for level in (0, 255):
        face, head = portrait_layout(np.full((128, 96, 3), level, np.uint8))
        assert 0 <= head[0] <= face[0] < face[2] <= head[2] <= 96
        assert 0 <= head[1] <= face[1] < face[3] <= head[3] <= 128


def test_wrong_arguments_are_refused():
    frame = np.zeros((128, 128, 3), np.uint8)
    with pytest.raises(InvalidArgument, match="frame"):
        portrait_layout(frame[:32])
    with pytest.raises(InvalidArgument, match="frame"):
        hair_colour(frame.astype(float), (40, 40, 80, 80))
    with pytest.raises(InvalidArgument, match="face_box"):
        hair_colour(frame, (40, 40, 200, 80))
    with pytest.raises(InvalidArgument, match="head_box"):
        dominant_background(frame, (-1, 40, 80, 80))
