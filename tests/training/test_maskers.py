import numpy as np
import pytest

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.training.data.maskers import (
    KINDS,
    Acoustics,
    apply_acoustics,
    limit_band,
    masker,
    mix,
    reverberate,
    sample_acoustics,
)

RATE = 16_000


def need_espeak(kind):
    if kind == "babble":
        pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed")


@pytest.fixture
def tone():
    time = np.arange(2 * RATE) / RATE
    envelope = 0.5 + 0.5 * np.sin(2 * np.pi * 3 * time)
    return (0.2 * envelope * np.sin(2 * np.pi * 300 * time)).astype(np.float32)


def rms(samples):
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def octave_levels(samples):
    power = np.abs(np.fft.rfft(samples)) ** 2
    frequency = np.fft.rfftfreq(len(samples), 1 / RATE)
    bands = [(low, 2 * low) for low in (125, 250, 500, 1000, 2000)]
    return np.array(
        [10 * np.log10(power[(frequency >= a) & (frequency < b)].mean()) for a, b in bands]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_masker_is_deterministic_and_of_unit_level(kind):
    need_espeak(kind)
    sound = masker(kind, 3 * RATE, 5)
    assert sound.shape == (3 * RATE,) and sound.dtype == np.float32
    assert np.isfinite(sound).all() and rms(sound) == pytest.approx(1.0, abs=1e-4)
    np.testing.assert_array_equal(sound, masker(kind, 3 * RATE, 5))
    assert not np.array_equal(sound, masker(kind, 3 * RATE, 6))
    for num_samples in (1, 2, 333):
        assert masker(kind, num_samples, 5).shape == (num_samples,)


@pytest.mark.parametrize(("kind", "slope"), [("white", 0.0), ("pink", -3.0), ("brown", -6.0)])
def test_noise_has_its_colour(kind, slope):
    steps = np.diff(octave_levels(masker(kind, 8 * RATE, 1)))
    np.testing.assert_allclose(steps, slope, atol=1.0)


def test_babble_voices_differ_by_split():
    need_espeak("babble")
    train, held_out = (masker("babble", RATE, 3, split=s) for s in ("train", "held_out"))
    assert not np.array_equal(train, held_out)


def test_hum_is_low_and_music_is_tonal():
    levels = octave_levels(masker("hum", 4 * RATE, 2))
    assert levels[4] < levels[0] - 30
    music = np.abs(np.fft.rfft(masker("music", 4 * RATE, 2))) ** 2
    noise = np.abs(np.fft.rfft(masker("white", 4 * RATE, 2))) ** 2

    def share_of_strongest(power):
        return np.sort(power)[-len(power) // 50 :].sum() / power.sum()

    assert share_of_strongest(music) > 0.5 > 2 * share_of_strongest(noise)


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 7.5, 30.0])
@pytest.mark.parametrize("kind", ["pink", "clicks", "music"])
def test_snr_is_exact(tone, kind, snr_db):
    mixed = mix(tone, masker(kind, len(tone), 1), snr_db)
    residue = mixed.astype(np.float64) - tone
    assert 20 * np.log10(rms(tone) / rms(residue)) == pytest.approx(snr_db, abs=0.01)


def test_mixing_silence():
    silence = np.zeros(100, np.float32)
    noise = masker("white", 100, 1)
    assert not mix(silence, noise, 10.0).any()
    np.testing.assert_array_equal(mix(noise, silence, 10.0), noise)


def test_room_keeps_time_and_decays():
    click = np.zeros(2 * RATE, np.float32)
    click[1000] = 1.0
    wet = reverberate(click, 0.5, 4)
    assert int(np.argmax(np.abs(wet))) == 1000
    assert np.abs(wet[:1000]).max() < 1e-6
    early, late = rms(wet[1100:1900]), rms(wet[1100 + 4000 : 1900 + 4000])
    # A quarter of a second is half of the decay time: 30 dB.
    assert 20 * np.log10(early / late) == pytest.approx(30.0, abs=3.0)
    assert rms(wet) == pytest.approx(rms(click), rel=1e-4)
    np.testing.assert_array_equal(wet, reverberate(click, 0.5, 4))
    np.testing.assert_array_equal(reverberate(click, 0.0, 4), click)


def test_band_limit():
    noise = masker("white", 4 * RATE, 1)
    narrow = limit_band(noise, 500.0, 2000.0)
    change = octave_levels(narrow) - octave_levels(noise)
    assert change[2] > -1.0 + change[3] > -4.0
    assert change[0] < change[3] - 25 and change[4] < change[3] - 8
    click = np.zeros(4000, np.float32)
    click[2000] = 1.0
    assert int(np.argmax(np.abs(limit_band(click, 0.0, 3000.0)))) == 2000
    np.testing.assert_array_equal(limit_band(noise, 0.0, 8000.0), noise)


def test_everything_together_is_deterministic_and_within_scale(tone):
    hard = Acoustics("pink", 5.0, 0.4, 100.0, 4000.0, 30.0)
    result = apply_acoustics(tone, hard, 3)
    assert result.dtype == np.float32 and result.shape == tone.shape
    assert np.abs(result).max() == pytest.approx(0.98, abs=1e-3)
    np.testing.assert_array_equal(result, apply_acoustics(tone, hard, 3))
    assert not np.array_equal(result, apply_acoustics(tone, hard, 4))
    np.testing.assert_array_equal(apply_acoustics(tone, Acoustics(), 3), tone)
    quieter = apply_acoustics(tone, Acoustics(gain_db=-6.0206), 3)
    np.testing.assert_allclose(quieter, 0.5 * tone, atol=1e-6)


def test_difficulty():
    easy = [sample_acoustics(seed, difficulty=0.0) for seed in range(50)]
    hard = [sample_acoustics(seed, difficulty=1.0) for seed in range(300)]
    assert set(easy) == {Acoustics(snr_db=a.snr_db) for a in easy}
    assert hard == [sample_acoustics(seed, difficulty=1.0) for seed in range(300)]
    assert {a.masker for a in hard} == {None, *KINDS}
    assert 0.7 < np.mean([a.masker is not None for a in hard]) < 0.9
    assert min(a.snr_db for a in hard) < 3 and any(a.reverb_s > 0 for a in hard)


def test_bad_arguments(tone):
    with pytest.raises(InvalidArgument, match="kind"):
        masker("rain", 100, 1)
    with pytest.raises(InvalidArgument, match="num_samples"):
        masker("white", 0, 1)
    with pytest.raises(InvalidArgument, match="split"):
        masker("white", 10, 1, split="test")
    with pytest.raises(InvalidArgument, match="noise"):
        mix(tone, tone[:-1], 0.0)
    with pytest.raises(InvalidArgument, match="snr_db"):
        mix(tone, tone, 99.0)
    with pytest.raises(InvalidArgument, match="samples"):
        mix(tone.astype(np.float64), tone, 0.0)
    with pytest.raises(InvalidArgument, match="reverb_s"):
        reverberate(tone, 3.0, 1)
    with pytest.raises(InvalidArgument, match="low_hz"):
        limit_band(tone, 3000.0, 300.0)
    with pytest.raises(InvalidArgument, match="difficulty"):
        sample_acoustics(1, difficulty=1.5)
