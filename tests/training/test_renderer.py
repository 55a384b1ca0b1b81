"""What is drawn agrees with the ground truth that comes with it."""

import dataclasses

import numpy as np
import pytest
import torch

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.training.data import identity as people
from skyreels_rt.training.data.motion import Motion, sample_motion
from skyreels_rt.training.data.mouth import MouthShape
from skyreels_rt.training.data.renderer import render

SIZE = 128
SWEEP = np.concatenate([np.linspace(0, 1, 13), np.linspace(0.96, 0.04, 8)])


def mouth(opening, **others):
    """A mouth of the given opening; the rest constant."""
    opening = np.asarray(opening, np.float32)
    closed = MouthShape.closed(len(opening))
    others = {name: np.full(len(opening), value, np.float32) for name, value in others.items()}
    return dataclasses.replace(closed, opening=opening, **others)


def moved(num_frames=1, **channels):
    """A still motion but for the given channels, constants or arrays."""
    arrays = {
        name: np.broadcast_to(np.asarray(value, np.float32), (num_frames,)).copy()
        for name, value in channels.items()
    }
    return dataclasses.replace(Motion.still(num_frames), **arrays)


def person(seed=3, **changes):
    plain = {"glasses": "none", "beard": "none"}
    return dataclasses.replace(people.sample_identity(seed), **(plain | changes))


def same(one, other):
    return all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name))
        for field in dataclasses.fields(one)
    )


def measured_opening(clip, identity):
    """Height of the dark hole in the middle column of the mouth, in pixels, from colours alone."""
    column = round(identity.head_x * SIZE)
    heights = []
    for frame, mask in zip(clip.frames, clip.mouth_mask, strict=True):
        strip = frame[:, column - 1 : column + 2].astype(np.float32).max(-1).mean(1)
        inside = mask[:, column]
        # Cavity: brightest channel below 110; lips and skin of light people are far above.
        heights.append(np.clip((125 - strip[inside]) / 60, 0, 1).sum())
    return np.array(heights)


@pytest.mark.parametrize("seed", [0, 3, 8, 21])
def test_true_opening_agrees_with_the_dark_region(seed):
    identity = person(seed, skin=1.0, skin_warmth=0.0, lip_red=0.3)
    clip = render(identity, Motion.still(len(SWEEP)), mouth(SWEEP), SIZE)
    seen = measured_opening(clip, identity)
    assert np.corrcoef(seen, clip.opening_px)[0, 1] >= 0.99
    assert clip.opening_px[0] == 0
    assert clip.opening_px.max() > 0.06 * SIZE
    # Not only correlated: the same pixels, but for the soft edge and the seam between the lips.
    assert np.abs((seen - seen[0]) - clip.opening_px).max() < 2.5


def test_the_check_of_the_opening_notices_a_delay():
    identity = person(3, skin=1.0)
    opening = 0.5 + 0.5 * np.sin(np.arange(40) * 0.6)
    clip = render(identity, Motion.still(40), mouth(opening), SIZE)
    seen = measured_opening(clip, identity)
    assert np.corrcoef(np.roll(seen, 5), clip.opening_px)[0, 1] < 0.5


def test_a_nearer_head_has_a_larger_opening():
    shapes = mouth([0.5, 0.5])
    clip = render(person(), moved(2, zoom=[0.0, 0.05]), shapes, SIZE)
    assert clip.opening_px[1] == pytest.approx(1.05 * clip.opening_px[0], rel=1e-5)


@pytest.mark.parametrize("seed", [1, 3, 13, 46])
def test_the_mouth_changes_nothing_outside_the_jaw_mask(seed):
    identity = people.sample_identity(seed)
    rng = np.random.default_rng(seed)
    one = sample_motion(seed, 1, amount=2.0)
    still = moved(9, **{f.name: getattr(one, f.name)[0] for f in dataclasses.fields(one)})
    values = rng.uniform(0, 1, (5, 9)).astype(np.float32)
    values[0, 0], values[0, 1] = 0, 1
    clip = render(identity, still, MouthShape(*values), SIZE)
    changed = (clip.frames != clip.frames[:1]).any(-1)
    allowed = clip.jaw_mask | clip.jaw_mask[:1]
    assert changed[1:].any()
    assert not (changed & ~allowed).any()
    assert not (clip.mouth_mask & ~clip.jaw_mask).any()
    # Most of the frame is not the jaw's.
    assert clip.jaw_mask.mean() < 0.35


@pytest.mark.parametrize("channel", ["teeth", "tongue"])
def test_what_is_inside_the_mouth_changes_only_the_mouth(channel):
    ramp = np.linspace(0, 1, 5, dtype=np.float32)
    shapes = dataclasses.replace(mouth([0.8] * 5), **{channel: ramp})
    clip = render(person(), Motion.still(5), shapes, SIZE)
    changed = (clip.frames != clip.frames[:1]).any(-1)
    assert changed[-1].sum() > 20
    assert not (changed & ~clip.mouth_mask).any()


def test_lips_follow_width_and_rounding():
    def lip_width(**others):
        closed = render(
            person(lip_red=1.0, skin=0.0), Motion.still(1), mouth([0.3], **others), SIZE
        )
        red = closed.frames[0].astype(int)
        lips = (red[..., 0] - red[..., 1] > 70) & closed.mouth_mask[0]
        return np.ptp(np.flatnonzero(lips.any(0)))

    assert lip_width(width=1.0) > lip_width(width=0.45) + 3
    assert lip_width(rounding=1.0) < lip_width(rounding=0.0) - 6


@pytest.mark.parametrize("seed", [0, 4, 9, 30])
def test_a_blink_covers_the_eyes_and_changes_nothing_else(seed):
    identity = person(seed, hair_style="short", skin=1.0)
    clip = render(identity, moved(3, blink=[0, 0.5, 1]), MouthShape.closed(3), SIZE)
    changed = (clip.frames != clip.frames[:1]).any(-1)
    assert changed[2].sum() > 40
    assert not (changed & ~clip.eye_mask).any()
    light = clip.frames.astype(np.float32).mean(-1)
    rows = round((identity.head_y + identity.head_scale * (identity.eye_height + 0.005)) * SIZE)
    for side in (-1, 1):
        center = identity.head_x + side * identity.head_scale * identity.eye_spacing
        cols = slice(round((center - 0.022) * SIZE), round((center + 0.022) * SIZE) + 1)
        # Above the closed lashes: the pupil is dark, the lid that covers it is not.
        dark = [light[index, rows - 2 : rows, cols].min() for index in (0, 2)]
        assert dark[1] > 1.8 * dark[0]


def test_gaze_moves_the_iris_and_brows_move_the_face():
    clip = render(person(), moved(3, gaze_x=[0, 1, 0], brow=[0, 0, 1]), MouthShape.closed(3), SIZE)
    changed = (clip.frames != clip.frames[:1]).any(-1)
    assert changed[1].sum() > 10
    assert not (changed[1] & ~clip.eye_mask[1]).any()
    assert changed[2].sum() > 20


def test_the_head_moves_where_the_motion_says():
    identity = person(4, hair_style="bald", background_kind="plain")
    clip = render(
        identity,
        moved(5, shift_x=[0, 0.2, 0, 0, 0], shift_y=[0, 0, 0.2, 0, 0], yaw=[0, 0, 0, 0.3, -0.3]),
        MouthShape.closed(5),
        SIZE,
    )
    places = [np.argwhere(mask).mean(0) for mask in clip.eye_mask]
    step = 0.2 * identity.head_scale * SIZE
    assert places[1][1] - places[0][1] == pytest.approx(step, abs=0.5)
    assert places[2][0] - places[0][0] == pytest.approx(step, abs=0.5)
    assert places[3][1] - places[0][1] > 2
    assert places[0][1] - places[4][1] > 2


def test_no_motion_gives_identical_frames():
    clip = render(people.sample_identity(2), Motion.still(19), mouth([0.4] * 19), SIZE)
    assert (clip.frames == clip.frames[:1]).all()


def test_same_input_same_bytes_and_frames_do_not_depend_on_their_neighbours():
    identity, motion = people.sample_identity(6), sample_motion(6, 20, amount=2.0)
    shapes = mouth(np.linspace(0, 1, 20))
    clip = render(identity, motion, shapes, SIZE)
    assert same(clip, render(identity, motion, shapes, SIZE))

    def cut(part):
        return type(part)(*(getattr(part, f.name)[:11] for f in dataclasses.fields(part)))

    short = render(identity, cut(motion), cut(shapes), SIZE)
    assert np.array_equal(short.frames, clip.frames[:11])
    assert np.array_equal(short.jaw_mask, clip.jaw_mask[:11])
    assert np.array_equal(short.opening_px, clip.opening_px[:11])


def test_bytes_do_not_depend_on_the_number_of_threads():
    identity, motion = people.sample_identity(1), sample_motion(1, 16, amount=2.0)
    shapes = mouth(np.linspace(0, 1, 16), teeth=0.6, tongue=0.5)
    before = torch.get_num_threads()
    clips = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            clips.append(render(identity, motion, shapes, SIZE))
    finally:
        torch.set_num_threads(before)
    assert same(clips[0], clips[1])
    assert same(clips[0], clips[2])


def nearest(color, names):
    return min(names, key=lambda name: np.linalg.norm(np.subtract(names[name], color)))


def chroma_nearest(color, names):
    """Nearest class after the best change of brightness, because light models the hair."""
    best = {}
    for name, target in names.items():
        gains = np.linspace(0.7, 1.3, 25)
        best[name] = min(np.linalg.norm(gain * np.array(target) - color) for gain in gains)
    return min(best, key=best.get)


def test_background_classes_can_be_measured():
    hits = 0
    for seed in range(100, 170):
        identity = people.sample_identity(seed)
        frame = render(identity, Motion.still(1), MouthShape.closed(1), 64).frames[0]
        edge = np.concatenate([frame[:40, :4].reshape(-1, 3), frame[:40, -4:].reshape(-1, 3)])
        hits += nearest(np.median(edge, 0), people.BACKGROUND_COLORS) == identity.background_color
    assert hits == 70


def test_hair_classes_can_be_measured():
    hits = count = 0
    for seed in range(100, 180):
        identity = people.sample_identity(seed)
        if identity.hair_style == "bald":
            continue
        frame = render(identity, Motion.still(1), MouthShape.closed(1), 64).frames[0]
        row = round((identity.head_y - 0.88 * identity.head_scale) * 64)
        reach = round(0.35 * identity.head_scale * 64)
        middle = round(identity.head_x * 64)
        patch = frame[row - 1 : row + 2, middle - reach : middle + reach + 1].reshape(-1, 3)
        hits += chroma_nearest(np.median(patch, 0), people.HAIR_COLORS) == identity.hair_color
        count += 1
    assert hits >= 0.97 * count


def test_people_look_different():
    frames = np.stack(
        [
            render(
                dataclasses.replace(
                    people.sample_identity(seed),
                    head_x=0.5, head_y=0.48, head_scale=0.31, background_kind="plain",
                    background_color="gray", light_angle=0.0,
                ),
                Motion.still(1),
                MouthShape.closed(1),
                48,
            ).frames[0]
            for seed in range(40)
        ]
    ).astype(np.float32)  # fmt: skip
    flat = frames[:, 4:44, 8:40].reshape(40, -1)
    distance = np.abs(flat[:, None] - flat[None]).mean(-1) + 255 * np.eye(40)
    assert distance.min() > 3
    assert np.median(distance) > 20


def test_the_face_mask_covers_skin_and_not_the_background():
    identity = person(4, hair_style="bald", background_color="blue", skin=0.5)
    clip = render(identity, Motion.still(1), MouthShape.closed(1), SIZE)
    frame, mask = clip.frames[0].astype(int), clip.face_mask[0]
    assert 0.1 < mask.mean() < 0.4
    assert np.mean(frame[mask][:, 0] > frame[mask][:, 2]) > 0.95
    assert np.mean(frame[~mask][:, 0] < frame[~mask][:, 2]) > 0.5


@pytest.mark.parametrize("size", [32, 97, 130, 255])
def test_odd_sizes_and_one_frame(size):
    clip = render(people.sample_identity(11), sample_motion(1, 1), MouthShape.closed(1), size)
    assert clip.frames.shape == (1, size, size, 3)
    assert clip.frames.dtype == np.uint8
    for mask in (clip.face_mask, clip.mouth_mask, clip.jaw_mask, clip.eye_mask):
        assert mask.shape == (1, size, size)
        assert mask.dtype == np.bool_
        assert 0 < mask.mean() < 0.6
    assert clip.opening_px.shape == (1,)


def test_every_style_is_drawn_and_extreme_poses_stay_finite():
    strong = moved(
        2, yaw=[0.5, -0.5], pitch=[0.35, -0.35], roll=[0.25, -0.25], shift_x=[0.25, -0.25],
        shift_y=[-0.2, 0.2], zoom=[0.06, -0.06], brow=[1, -1], smile=[1, 0],
    )  # fmt: skip
    seen = set()
    for sex, styles in people.HAIR_STYLES.items():
        for number, style in enumerate(styles):
            identity = dataclasses.replace(
                people.sample_identity(number),
                sex=sex,
                hair_style=style,
                glasses=people.GLASSES[number % 4],
                beard=people.BEARDS[number % 5] if sex == "man" else "none",
            )
            clip = render(identity, strong, mouth([1.0, 0.0]), 64)
            assert clip.frames.std() > 10
            assert clip.face_mask.any(axis=(1, 2)).all()
            seen.add(clip.frames.tobytes())
    assert len(seen) == sum(len(styles) for styles in people.HAIR_STYLES.values())


def bad_mouth(**changes):
    return dataclasses.replace(MouthShape.closed(3), **changes)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"size": 31}, "size"),
        ({"size": 64.0}, "size"),
        ({"size": 5000}, "size"),
        ({"mouth": MouthShape.closed(4)}, "mouth.opening"),
        ({"mouth": bad_mouth(width=np.full(3, 1.2))}, "mouth.width"),
        ({"mouth": bad_mouth(teeth=np.full(3, -0.1))}, "mouth.teeth"),
        ({"mouth": bad_mouth(tongue=np.full(3, np.nan))}, "mouth.tongue"),
        ({"motion": moved(3, yaw=np.inf)}, "motion.yaw"),
    ],
)
def test_bad_arguments_are_refused(arguments, name):
    good = {"motion": Motion.still(3), "mouth": MouthShape.closed(3), "size": 64}
    with pytest.raises(InvalidArgument, match=name):
        render(people.sample_identity(0), **(good | arguments))
