"""Loudness of BS.1770: reference levels, gates, and pyloudnorm as a peer."""

import math

import numpy as np
import pytest
import soundfile

from skyreels_rt.audio.loudness import integrated_loudness, normalise_loudness

RATE = 16_000


def tone(level_db, seconds=2.0, frequency=997.0, rate=RATE):
    time = np.arange(round(seconds * rate)) / rate
    return (10 ** (level_db / 20) * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_a_sine_of_997_hz_has_the_level_of_the_standard(rate):
    # BS.1770-4: a 0 dBFS sine of 997 Hz in one front channel reads -3.01 LKFS.
    assert integrated_loudness(tone(0.0, rate=rate), rate) == pytest.approx(-3.01, abs=0.1)
    assert integrated_loudness(tone(-20.0, rate=rate), rate) == pytest.approx(-23.01, abs=0.1)


def test_pauses_do_not_count():
    speech = tone(-20.0, 4.0)
    with_pause = np.concatenate([speech, np.zeros(8 * RATE, np.float32), tone(-60.0, 4.0)])
    plain = integrated_loudness(speech, RATE)
    assert integrated_loudness(with_pause, RATE) == pytest.approx(plain, abs=0.5)


def test_silence_and_snippets_have_no_level_and_are_left_alone():
    for samples in (np.zeros(RATE, np.float32), tone(-10.0, 0.39), np.zeros(0, np.float32)):
        assert integrated_loudness(samples, RATE) == -math.inf
        assert np.array_equal(normalise_loudness(samples, RATE, -23.0), samples)


def test_normalised_speech_has_the_target_level(shared_data):
    speech, rate = soundfile.read(shared_data / "speech" / "jfk_16k_11s.wav", dtype="float32")
    louder = normalise_loudness(speech, rate, -23.0)
    assert integrated_loudness(louder.astype(np.float32), rate) == pytest.approx(-23.0, abs=1e-3)
    ratio = louder[speech != 0] / speech[speech != 0]
    assert np.ptp(ratio) < 1e-9 * ratio.mean()  # one gain


@pytest.mark.peer
def test_equals_pyloudnorm(shared_data):
    pyloudnorm = pytest.importorskip("pyloudnorm")
    speech, rate = soundfile.read(shared_data / "speech" / "jfk_16k_11s.wav", dtype="float32")
    for samples in (speech, speech[: 8 * rate], 0.01 * speech[rate : 3 * rate]):
        expected = pyloudnorm.Meter(rate).integrated_loudness(samples.astype(np.float64))
        assert integrated_loudness(samples, rate) == pytest.approx(expected, abs=1e-6)
