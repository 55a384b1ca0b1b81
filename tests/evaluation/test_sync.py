"""Correlations, lags and loudness against curves whose answer is known."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.evaluation.sync import (
    best_lag,
    correlation,
    energy_sync,
    speech_energy,
    sync_at,
    without_moving_mean,
)


@pytest.fixture
def curve():
    return np.random.default_rng(0).random(80)


def test_correlation_is_pearsons(curve):
    other = curve + 0.3 * np.random.default_rng(1).random(80)
    assert_allclose(correlation(curve, other), np.corrcoef(curve, other)[0, 1])
    assert correlation(curve, -3 * curve + 2) == pytest.approx(-1)


def test_a_constant_correlates_with_nothing(curve):
    flat = np.full(80, 7.3)
    assert correlation(curve, flat) == correlation(flat, curve) == correlation(flat, flat) == 0.0
    assert best_lag(flat, curve, 4) == (0, 0.0)


@pytest.mark.parametrize("lag", [-5, -1, 0, 3, 5])
def test_best_lag_says_how_late_the_first_curve_is(curve, lag):
    late = np.roll(curve, lag)
    found, value = best_lag(late, curve, 6)
    assert found == lag
    assert value > 0.99


def test_sync_at_forgives_one_frame_and_not_three(curve):
    assert sync_at(np.roll(curve, 1), curve) > 0.99
    assert sync_at(np.roll(curve, 3), curve) < 0.5
    assert sync_at(np.roll(curve, 3), curve, tolerance=3) > 0.99


def test_speech_energy_is_centred_on_the_frame():
    audio = np.zeros(16000, np.float32)
    audio[10 * 640 - 100 : 10 * 640 + 100] = 0.5
    energy = speech_energy(audio, 16000, 25, 25.0)
    assert energy.shape == (25,)
    assert energy.argmax() == 10
    assert_allclose(energy[9], energy[11])
    # The sound may be shorter than the video: silence follows.
    assert speech_energy(audio[:8000], 16000, 25, 25.0)[20] == 0


def test_moving_mean_takes_slow_parts_away():
    time = np.arange(100) / 25
    fast = np.sin(2 * np.pi * 5 * time)
    left = without_moving_mean(fast + 4 + 0.5 * time, 1.0, 25.0)
    assert correlation(left, fast) > 0.98
    assert abs(left[20:-20].mean()) < 0.02


def test_energy_sync_finds_lips_that_lead():
    rng = np.random.default_rng(3)
    loud = np.clip(rng.normal(0.5, 0.3, 100), 0, 1)
    samples = np.interp(np.arange(100 * 640) / 640, np.arange(100), loud)
    audio = (samples * rng.choice([-1, 1], len(samples))).astype(np.float32)
    lag, value = energy_sync(np.roll(loud, -2), audio, 16000, 25.0)
    assert lag == -2
    assert value > 0.9


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: correlation(np.zeros(4), np.zeros(5)), "b"),
        (lambda: correlation(np.zeros((2, 2)), np.zeros(4)), "a"),
        (lambda: correlation(np.array([0.0, np.nan]), np.zeros(2)), "a"),
        (lambda: best_lag(np.zeros(5), np.zeros(5), 4), "max_lag"),
        (lambda: speech_energy(np.zeros((2, 9)), 16000, 5, 25.0), "audio"),
        (lambda: speech_energy(np.zeros(9), 16000, 0, 25.0), "num_frames"),
        (lambda: without_moving_mean(np.zeros(9), 0.0, 25.0), "seconds"),
    ],
)
def test_wrong_arguments_are_named(call, argument):
    with pytest.raises(InvalidArgument) as error:
        call()
    assert argument in error.value.argument
