"""Likeness, flicker, sharpness and blinks against planted changes and the renderer's truth."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.evaluation.fidelity import (
    count_blinks,
    eye_openness,
    flicker,
    gradient_energy,
    psnr,
    sharpness_ratio,
    ssim,
)
from skyreels_rt.training.data.identity import sample_identity
from skyreels_rt.training.data.motion import sample_motion
from skyreels_rt.training.data.mouth import MouthShape
from skyreels_rt.training.data.renderer import render

SEEDS, FRAMES, FPS = (4, 10, 14), 75, 25.0


def eye_boxes(mask):
    """Boxes of the two eyes: they are apart, so there is a gap between their columns."""
    cols = np.nonzero(mask.any(axis=0))[0]
    cut = int(np.diff(cols).argmax()) + 1
    boxes = []
    for part in (cols[:cut], cols[cut:]):
        rows = np.nonzero(mask[:, part].any(axis=1))[0]
        boxes.append((int(part[0]), int(rows[0]), int(part[-1]) + 1, int(rows[-1]) + 1))
    return boxes


@pytest.fixture(scope="module")
def blinking():
    clips = []
    for seed in SEEDS:
        motion = sample_motion(seed, FRAMES, FPS, blinks_per_minute=45.0)
        clip = render(sample_identity(seed), motion, MouthShape.closed(FRAMES), 256)
        clips.append((clip, motion.blink))
    return clips


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(40, 200, (32, 32, 3)).astype(np.uint8)


def test_psnr_of_a_known_error(picture):
    assert psnr(picture, picture + np.uint8(5)) == pytest.approx(20 * np.log10(255 / 5))
    assert psnr(picture, picture) == 100.0


def test_psnr_counts_only_the_mask(picture):
    changed = picture.copy()
    changed[:16] += 20
    mask = np.zeros((32, 32), bool)
    mask[16:] = True
    assert psnr(picture, changed, mask) == 100.0
    assert psnr(picture, changed, ~mask) == pytest.approx(20 * np.log10(255 / 20))


def test_ssim_is_the_papers(picture):
    """One window by the formula, in the middle of an 11x11 picture."""
    a, b = picture[:11, :11], picture[11:22, :11]
    place = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(place, place) / place.sum() ** 2
    expected = []
    for channel in range(3):
        x, y = a[..., channel].astype(float), b[..., channel].astype(float)
        mx, my = (weights * x).sum(), (weights * y).sum()
        vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
        xy = (weights * (x - mx) * (y - my)).sum()
        c1, c2 = 2.55**2, 7.65**2
        top, low = (2 * mx * my + c1) * (2 * xy + c2), (mx**2 + my**2 + c1) * (vx + vy + c2)
        expected.append(top / low)
    assert ssim(a, b) == pytest.approx(np.mean(expected), rel=1e-9)
    assert ssim(picture, picture) == pytest.approx(1.0)


def test_ssim_counts_only_the_mask(picture):
    changed = picture.copy()
    changed[:8] = 0
    mask = np.zeros((32, 32), bool)
    mask[20:] = True
    assert ssim(picture, changed, mask) == pytest.approx(1.0)
    assert ssim(picture, changed) < 0.9


def test_flicker_is_the_deviation_of_noise():
    rng = np.random.default_rng(1)
    ramp = 60 + np.arange(40)[:, None, None, None] + np.zeros((40, 24, 24, 3))
    mask = np.zeros((24, 24), bool)
    mask[:12] = True
    assert flicker(ramp.astype(np.uint8), mask) == 0
    noisy = np.rint(ramp + rng.normal(0, 3, ramp.shape)).astype(np.uint8)
    assert flicker(noisy, mask) == pytest.approx(3, rel=0.05)


def test_sharpness_falls_with_blur(blinking):
    frames = blinking[0][0].frames[:4]
    soft = (frames.astype(int) + np.roll(frames, 1, axis=2) + np.roll(frames, 2, axis=2)) // 3
    box = (60, 60, 200, 200)
    early, late = gradient_energy(frames, box), gradient_energy(soft.astype(np.uint8), box)
    assert early.shape == (4,)
    assert sharpness_ratio(early, early) == 1.0
    assert sharpness_ratio(late, early) < 0.8
    mask = np.zeros((256, 256), bool)
    mask[60:200, 60:200] = True
    assert_allclose(gradient_energy(frames, mask), early)


def test_openness_follows_the_lids_of_a_moving_head(blinking):
    for clip, blink in blinking:
        openness = eye_openness(clip.frames, eye_boxes(clip.eye_mask[0]))
        assert np.corrcoef(openness, 1 - blink)[0, 1] > 0.9


def test_blinks_are_counted(blinking):
    for clip, blink in blinking:
        found = count_blinks(eye_openness(clip.frames, eye_boxes(clip.eye_mask[0])), FPS)
        shut = np.concatenate([[0], (blink > 0.5).astype(int), [0]])
        starts, ends = np.nonzero(np.diff(shut) > 0)[0], np.nonzero(np.diff(shut) < 0)[0]
        assert found.count == len(starts) > 0
        assert_allclose(found.durations_s, (ends - starts) / FPS, atol=0.09)


def test_open_eyes_do_not_blink():
    motion = replace(sample_motion(SEEDS[0], 30), blink=np.zeros(30, np.float32))
    open_eyed = render(sample_identity(SEEDS[0]), motion, MouthShape.closed(30), 256)
    openness = eye_openness(open_eyed.frames, eye_boxes(open_eyed.eye_mask[0]))
    assert count_blinks(openness, FPS).count == 0


def test_count_blinks_on_a_curve():
    curve = np.ones(100)
    curve[20:25] = 0.2
    curve[50:53] = 0.3
    curve[70:95] = 0.1  # a second is no blink
    found = count_blinks(curve, FPS)
    assert found.count == 2
    assert_allclose(found.durations_s, [0.2, 0.12])


def test_wrong_arguments_are_refused(picture, blinking):
    frames = blinking[0][0].frames[:3]
    none = np.zeros((256, 256), bool)
    with pytest.raises(InvalidArgument, match="b"):
        psnr(picture, picture[:16])
    with pytest.raises(InvalidArgument, match="mask"):
        ssim(frames, frames, none)
    with pytest.raises(InvalidArgument, match="mask"):
        flicker(frames, none)
    with pytest.raises(InvalidArgument, match="region"):
        gradient_energy(frames, (0, 0, 300, 20))
    with pytest.raises(InvalidArgument, match="eye_boxes"):
        eye_openness(frames, [])
    with pytest.raises(InvalidArgument, match="energy_early"):
        sharpness_ratio(np.ones(2), np.zeros(2))
