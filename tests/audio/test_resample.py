"""SpeechResampler: any cutting gives the same bytes, of an exact length, equal to one-shot soxr."""

import hashlib

import numpy as np
import pytest
import soundfile
import soxr
import torch

from skyreels_rt.audio.resample import ResampledAudio, SpeechResampler
from skyreels_rt.errors import InvalidArgument, NonFinite
from skyreels_rt.media.audio_file import open_audio

RATES = (8_000, 11_025, 22_050, 24_000, 32_000, 44_100, 44_056, 48_000, 96_000)


def noise(num_samples, channels, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.5, 0.5, (num_samples, channels)).astype(np.float32)


def resample(block, sample_rate, cuts=()):
    resampler = SpeechResampler(sample_rate, block.shape[1])
    pieces = [resampler.push(piece) for piece in np.split(block, cuts)]
    return np.concatenate([*pieces, resampler.finish()])


def random_cuts(rng, num_samples):
    return np.sort(rng.integers(0, num_samples + 1, rng.integers(0, 300)))


@pytest.mark.parametrize("sample_rate", [*RATES, 16_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_cutting_gives_the_same_bytes(sample_rate, channels):
    block = noise(sample_rate, channels)
    rng = np.random.default_rng(1)
    digests = {
        hashlib.sha256(
            resample(block, sample_rate, random_cuts(rng, len(block))).tobytes()
        ).hexdigest()
        for _ in range(10)
    }
    digests.add(hashlib.sha256(resample(block, sample_rate).tobytes()).hexdigest())
    assert len(digests) == 1


def test_single_samples_give_the_bytes_of_one_push():
    block = noise(3_000, 2)
    expected = resample(block, 44_100)
    np.testing.assert_array_equal(resample(block, 44_100, range(1, 3_000)), expected)


@pytest.mark.parametrize("channels", [3, 9])
def test_memory_layout_of_the_input_does_not_matter(channels):
    block = noise(5_000, channels)
    expected = resample(block, 48_000)
    np.testing.assert_array_equal(resample(np.asfortranarray(block), 48_000), expected)


@pytest.mark.parametrize("sample_rate", RATES)
def test_equals_one_shot_soxr(sample_rate):
    block = noise(sample_rate, 2)
    expected = soxr.resample(block.mean(axis=1), sample_rate, 16_000, quality="HQ")
    torch.testing.assert_close(*map(torch.from_numpy, (resample(block, sample_rate), expected)))


@pytest.mark.parametrize("sample_rate", [*RATES, 16_000])
@pytest.mark.parametrize("num_samples", [0, 1, 2, 3, 5, 441, 1_000, 12_345])
def test_length_is_the_rounded_duration(sample_rate, num_samples):
    expected = int(np.floor(num_samples * 16_000 / sample_rate + 0.5))
    assert len(resample(noise(num_samples, 1), sample_rate)) == expected


def test_mono_at_16_khz_passes_bit_for_bit():
    block = noise(4_000, 1)
    np.testing.assert_array_equal(resample(block, 16_000, [7, 7, 1_000]), block[:, 0])


def test_output_does_not_alias_the_input():
    block = noise(100, 1)
    ready = SpeechResampler(16_000, 1).push(block)
    before = ready.copy()
    block[:] = 0
    np.testing.assert_array_equal(ready, before)


def test_channels_are_averaged():
    block = np.array([[0.5, 0.25, -0.25, 0.5], [1.0, 0.0, 0.0, -0.5]], np.float32)
    np.testing.assert_array_equal(resample(block[:, :2], 16_000), np.float32([0.375, 0.5]))
    np.testing.assert_array_equal(resample(block, 16_000), np.float32([0.25, 0.125]))


@pytest.mark.parametrize("sample_rate", [8_000, 44_100, 48_000])
def test_keeps_the_frequency_level_and_time_of_a_sine(sample_rate):
    seconds = np.arange(2 * sample_rate) / sample_rate
    sine = (0.5 * np.sin(2 * np.pi * 1_000 * seconds)).astype(np.float32)[:, None]
    out = resample(sine, sample_rate)
    expected = 0.5 * np.sin(2 * np.pi * 1_000 * np.arange(len(out)) / 16_000).astype(np.float32)
    middle = slice(4_000, -4_000)  # the filter rings at the two ends
    torch.testing.assert_close(*map(torch.from_numpy, (out[middle], expected[middle])))


def test_output_keeps_up_with_a_live_input():
    resampler, ready = SpeechResampler(44_100, 1), 0
    for i in range(200):
        ready += len(resampler.push(noise(441, 1, seed=i)))
        assert (i + 1) * 160 - ready <= 0.041 * 16_000


def test_real_stereo_speech(shared_data):
    block, sample_rate = soundfile.read(
        shared_data / "speech" / "speech_44k_stereo.wav", dtype="float32"
    )
    rng = np.random.default_rng(2)
    expected = resample(block, sample_rate)
    np.testing.assert_array_equal(
        resample(block, sample_rate, random_cuts(rng, len(block))), expected
    )
    assert np.abs(expected).max() > 0.05


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_samples_raise_and_are_not_taken(value):
    block, resampler = noise(2_000, 2), SpeechResampler(48_000, 2)
    bad = block.copy()
    bad[500, 1] = value
    with pytest.raises(NonFinite):
        resampler.push(bad)
    after = np.concatenate([resampler.push(block), resampler.finish()])
    np.testing.assert_array_equal(after, resample(block, 48_000))


def test_unscaled_integers_raise_with_a_hint():
    with pytest.raises(InvalidArgument, match="32768"):
        SpeechResampler(16_000, 1).push(np.full((10, 1), 2_000, np.float32))


@pytest.mark.parametrize(
    "block",
    [np.zeros(8, np.float32), np.zeros((8, 1), np.float32), np.zeros((8, 2), np.float64)],
    ids=["one axis", "one channel", "float64"],
)
def test_wrong_block_raises(block):
    with pytest.raises(InvalidArgument, match="block"):
        SpeechResampler(16_000, 2).push(block)


@pytest.mark.parametrize(("sample_rate", "channels"), [(0, 1), (999, 1), (10**6, 1), (48_000, 0)])
def test_wrong_format_raises(sample_rate, channels):
    with pytest.raises(InvalidArgument):
        SpeechResampler(sample_rate, channels)


@pytest.mark.parametrize("call", ["push", "finish"])
def test_nothing_follows_finish(call):
    resampler = SpeechResampler(48_000, 1)
    resampler.finish()
    arguments = [noise(1, 1)] if call == "push" else []
    with pytest.raises(InvalidArgument, match="finish"):
        getattr(resampler, call)(*arguments)


def test_resampled_audio_keeps_the_contract_of_its_blocks():
    rng = np.random.default_rng(0)
    stereo = (0.1 * rng.standard_normal((30_000, 2))).astype(np.float32)
    source = ResampledAudio(open_audio(stereo, 10_000), 48_000)
    blocks = list(source.blocks(16_000))
    assert [len(block) for block in blocks[:-1]] == [16_000] * (len(blocks) - 1)
    assert sum(map(len, blocks)) == pytest.approx(144_000, abs=2)
    np.testing.assert_array_equal(np.concatenate(list(source.blocks(777))), np.concatenate(blocks))
