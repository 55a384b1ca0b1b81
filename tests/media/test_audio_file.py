"""Sound files: exact lengths, streamed blocks, and a typed error for every bad input."""

from __future__ import annotations

import struct
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from skyreels_rt.errors import InvalidArgument, MediaError, NonFinite
from skyreels_rt.media.audio_file import MAX_CHANNELS, MIN_AUDIO_SECONDS, open_audio

RATE = 16_000


def tone(seconds: float = 1.0, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """Sines of another pitch in each channel, shape (S, channels), peak 0.5."""
    time = np.arange(round(seconds * rate))[:, None] / rate
    return (0.5 * np.sin(2 * np.pi * (220 + 110 * np.arange(channels)) * time)).astype(np.float32)


def read(source, **options) -> np.ndarray:
    return np.concatenate(list(open_audio(source, **options).blocks()))


def encode(path: Path, codec: str, samples: np.ndarray, container: str, rate: int = 44_100) -> Path:
    """Write ``samples`` (S, 2) through PyAV."""
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples.T), format="fltp", layout="stereo"
        )
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def wav_bytes(**fields: int) -> bytes:
    """A PCM16 mono WAV of one second with header fields overwritten."""
    header = {"channels": 1, "rate": RATE, "data_size": 2 * RATE} | fields
    channels, rate, size = header["channels"], header["rate"], header["data_size"]
    block = 2 * channels
    fmt = struct.pack("<HHIIHH", 1, channels, rate, rate * block % 2**32, block % 2**16, 16)
    data = np.ones(RATE, "<i2").tobytes()
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + fmt
        + b"data"
        + struct.pack("<I", size)
        + data
    )


@pytest.mark.parametrize(
    ("name", "rate", "channels", "samples"),
    [
        ("speech/jfk_16k_11s.wav", 16_000, 1, 176_000),
        ("speech/speech_silence_16k_60s.wav", 16_000, 1, 960_000),
        ("speech/speech_44k_stereo.wav", 44_100, 2, 471_056),
    ],
)
def test_real_wav_files(shared_data, name, rate, channels, samples):
    source = open_audio(shared_data / name)
    assert (source.sample_rate, source.channels, source.num_samples) == (rate, channels, samples)
    blocks = list(source.blocks())
    assert {len(block) for block in blocks[:-1]} == {16_000}
    assert all(block.dtype == np.float32 for block in blocks)
    with wave.open(str(shared_data / name)) as file:
        pcm = np.frombuffer(file.readframes(samples), "<i2").reshape(-1, channels)
    np.testing.assert_array_equal(np.concatenate(blocks), pcm / np.float32(32768))


def test_sound_track_of_a_real_video(shared_data):
    source = open_audio(shared_data / "video/talking_458_25fps_15s.mp4")
    assert (source.sample_rate, source.channels) == (44_100, 2)
    sound = np.concatenate(list(source.blocks()))
    # 15 s to the sample: the padding of the last AAC frame is gone.
    assert sound.shape == (661_500, 2)
    assert 0.05 < np.abs(sound).max() <= 1.5


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("a.wav", {"subtype": "PCM_16"}, 1e-4),
        ("a.wav", {"subtype": "PCM_U8"}, 1e-2),
        ("a.wav", {"subtype": "PCM_24"}, 1e-6),
        ("a.wav", {"subtype": "FLOAT"}, 0),
        ("a.wav", {"format": "RF64"}, 1e-4),
        ("a.flac", {}, 1e-4),
        ("named.txt", {"format": "WAV"}, 1e-4),
        ("a.aiff", {}, 1e-4),
        ("a.ogg", {"format": "OGG", "subtype": "VORBIS"}, 0.05),
    ],
)
def test_formats_of_exact_length(tmp_path, name, options, error):
    samples = tone(1.3, channels=2)
    soundfile.write(tmp_path / name, samples, RATE, **options)
    got = read(tmp_path / name)
    assert got.shape == samples.shape
    assert np.abs(got - samples).max() <= error


@pytest.mark.parametrize(
    ("name", "codec", "container", "slack"),
    [
        ("a.m4a", "aac", "mp4", 0),
        ("a.mkv", "aac", "matroska", 2048),
        ("a.aac", "aac", "adts", 2048),
        ("a.webm", "libopus", "webm", 2048),
        ("a.mp3", "libmp3lame", "mp3", 2304),
        ("a.mov", "alac", "mov", 0),
    ],
)
def test_compressed_formats(tmp_path, name, codec, container, slack):
    rate = 48_000 if codec == "libopus" else 44_100
    samples = tone(1.0, rate, channels=2)
    source = open_audio(encode(tmp_path / name, codec, samples, container, rate))
    assert (source.sample_rate, source.channels, source.num_samples) == (rate, 2, None)
    got = np.concatenate(list(source.blocks()))
    assert rate <= len(got) <= rate + slack
    # The pitch of each channel survives, so they are neither swapped nor mixed.
    for channel, pitch in enumerate((220, 330)):
        spectrum = np.abs(np.fft.rfft(got[:rate, channel]))
        assert abs(int(spectrum.argmax()) - pitch) <= 1
    assert np.sqrt(np.mean(got[rate // 4 : rate // 2] ** 2)) == pytest.approx(0.5**1.5, rel=0.1)


def test_eight_planes(tmp_path):
    # 7.1 in AAC decodes to 8 planes, all that a frame holds pointers for.
    samples = tone(1.0, 48_000, channels=8)
    packed = (samples * 32767).astype(np.int16).reshape(1, -1)
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        stream = output.add_stream("aac", rate=48_000, layout="7.1")
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout="7.1")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    source = open_audio(tmp_path / "a.mp4")
    assert source.channels == 8
    got = np.concatenate(list(source.blocks()))
    assert got.shape == (48_000, 8)
    for channel in (0, 1, 2, 4, 5, 6, 7):
        spectrum = np.abs(np.fft.rfft(got[:, channel]))
        assert abs(int(spectrum.argmax()) - (220 + 110 * channel)) <= 1


def test_flac_that_does_not_say_how_long_it_is(tmp_path):
    samples = tone()
    soundfile.write(tmp_path / "a.flac", samples, RATE)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(data)
    source = open_audio(tmp_path / "a.flac")
    assert source.num_samples is None
    got = np.concatenate(list(source.blocks()))
    assert got.shape == samples.shape
    assert np.abs(got - samples).max() < 1e-4


@pytest.mark.parametrize("name", ["a.wav", "a.m4a", "array"])
@pytest.mark.parametrize("block_samples", [1, 333, 16_000, 10**9])
def test_any_block_size_gives_the_same_samples(tmp_path, name, block_samples):
    samples = tone(0.05, 44_100, 2)
    if name == "array":
        source = open_audio(samples, 44_100)
    elif name == "a.m4a":
        source = open_audio(encode(tmp_path / name, "aac", samples, "mp4"))
    else:
        soundfile.write(tmp_path / name, samples, 44_100)
        source = open_audio(tmp_path / name)
    blocks = list(source.blocks(block_samples))
    assert all(len(block) == block_samples for block in blocks[:-1])
    assert 0 < len(blocks[-1]) <= block_samples
    np.testing.assert_array_equal(np.concatenate(blocks), np.concatenate(list(source.blocks())))


def test_block_size_must_be_positive():
    with pytest.raises(InvalidArgument, match="block_samples"):
        open_audio(tone(), RATE).blocks(0)


def open_descriptors(path: Path) -> int:
    return sum(1 for fd in Path("/proc/self/fd").iterdir() if fd.resolve() == path.resolve())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", ["a.wav", "a.m4a"])
def test_closing_the_iterator_closes_the_file(tmp_path, name):
    path = tmp_path / name
    if name == "a.wav":
        soundfile.write(path, tone(), RATE)
    else:
        encode(path, "aac", tone(1, 44_100, 2), "mp4")
    source = open_audio(path)
    assert open_descriptors(path) == 0
    blocks = source.blocks(100)
    next(blocks)
    assert open_descriptors(path) == 1
    blocks.close()
    assert open_descriptors(path) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int16])
def test_arrays(dtype):
    samples = tone(0.2, channels=2)
    given = (samples * 32768).astype(np.int16) if dtype == np.int16 else samples.astype(dtype)
    source = open_audio(given, RATE)
    assert (source.sample_rate, source.channels, source.num_samples) == (RATE, 2, 3200)
    blocks = list(source.blocks(1000))
    got = np.concatenate(blocks)
    assert got.dtype == np.float32
    assert np.abs(got - samples).max() < 1e-3
    blocks[0][:] = 9
    assert np.abs(given[0]).max() < 9 or dtype == np.int16, "a block shares the caller's memory"
    np.testing.assert_array_equal(read(given[:, 0], sample_rate=RATE)[:, 0], got[:, 0])


@pytest.mark.parametrize(
    ("samples", "rate", "argument"),
    [
        (tone(), None, "sample_rate"),
        (tone(), 999, "sample_rate"),
        (tone(), 400_000, "sample_rate"),
        (tone().T, RATE, "audio"),
        (tone(channels=MAX_CHANNELS + 1), RATE, "audio"),
        (tone()[None], RATE, "audio"),
        (np.zeros((), np.float32), RATE, "audio"),
        (np.zeros(RATE, np.int32), RATE, "audio"),
        (np.zeros(RATE, complex), RATE, "audio"),
        ([0.0] * RATE, RATE, "audio"),
    ],
)
def test_bad_arrays(samples, rate, argument):
    with pytest.raises(InvalidArgument) as caught:
        open_audio(samples, rate)
    assert caught.value.argument == argument


def test_a_file_knows_its_own_rate(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    with pytest.raises(InvalidArgument, match="sample_rate"):
        open_audio(tmp_path / "a.wav", RATE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_samples_are_found_in_their_block(tmp_path, value):
    samples = tone()
    samples[12_345] = value
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    for source in (open_audio(tmp_path / "a.wav"), open_audio(samples, RATE)):
        blocks = source.blocks(1000)
        clean = [next(blocks) for _ in range(12)]
        assert np.isfinite(clean).all()
        with pytest.raises(NonFinite, match=r"0\.75 s and 0\.81 s"):
            next(blocks)


def test_shortest_sound(tmp_path):
    least = round(MIN_AUDIO_SECONDS * RATE)
    for samples in (0, 1, least - 1):
        soundfile.write(tmp_path / "a.wav", np.zeros(samples), RATE)
        for source, rate in ((tmp_path / "a.wav", None), (np.zeros(samples), RATE)):
            with pytest.raises(MediaError, match="audio"):
                open_audio(source, rate)
    soundfile.write(tmp_path / "a.wav", np.zeros(least), RATE)
    assert len(read(tmp_path / "a.wav")) == least


def test_short_sound_of_unknown_length_is_refused_at_its_end(tmp_path):
    # ALAC in MOV: exact, but the header of the container is not trusted for the length.
    path = encode(tmp_path / "a.mov", "alac", tone(0.005, 44_100, 2), "mov")
    blocks = open_audio(path).blocks()
    with pytest.raises(MediaError, match="at least"):
        list(blocks)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("0 Hz", wav_bytes(rate=0), "decoded|Hz"),
        ("500 Hz", wav_bytes(rate=500), "500 Hz"),
        ("4 GHz", wav_bytes(rate=2**32 - 1), "decoded|Hz"),
        ("0 channels", wav_bytes(channels=0), "decoded|channels"),
        ("9 channels", wav_bytes(channels=9), "9"),
        ("1024 channels", wav_bytes(channels=1024), "1024"),
        ("no data", wav_bytes(data_size=0), "no samples"),
        ("header only", wav_bytes()[:30], "decoded"),
        ("text", b"not sound, whatever the name says\n", "begins like none"),
        ("utf-16 text", "#EXTM3U sound".encode("utf-16"), "begins like none"),
        ("empty", b"", "empty"),
        ("mp3 tag and text", b"ID3\x03\0\0\0\0\0\x05hello#EXTM3U\nother.wav\n", "begins like none"),
        ("mp4 without index", b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(99), "decoded"),
        ("cut matroska", b"\x1aE\xdf\xa3" + bytes(99), "decoded|track"),
    ],
)
def test_bad_files(tmp_path, name, content, reason):
    path = tmp_path / f"{name}.wav"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=reason) as caught:
        open_audio(path)
    assert caught.value.hint
    assert caught.value.stage == "audio"


def test_four_gigabyte_size_field_means_to_the_end(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav_bytes(data_size=2**32 - 1))
    assert read(tmp_path / "a.wav").shape == (RATE, 1)


def test_truncated_flac(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.random.default_rng(0).normal(0, 0.1, 5 * RATE), RATE)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError):
        read(tmp_path / "a.flac")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("absent.wav", "Check the path"),
        ("/dev/zero", "regular"),
        (".", "directory"),
        ("bad\0name.wav", "valid path"),
        ("http://example.org/a.wav", "Addresses"),
        ("concat:a.wav|b.wav", "Addresses"),
        ("subfile,,start,0,end,9,,:a.wav", "Addresses"),
        ("data:audio/wav;base64,UklGRg==", "Addresses"),
    ],
)
def test_sources_that_are_no_file(source, reason):
    with pytest.raises(MediaError, match=reason):
        open_audio(source)


def test_video_without_sound(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width = stream.height = 32
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with pytest.raises(MediaError, match="without one"):
        open_audio(tmp_path / "a.mp4")


def test_rare_codec_is_refused(tmp_path):
    path = encode(tmp_path / "a.mkv", "wavpack", tone(0.5, 44_100, 2), "matroska")
    with pytest.raises(MediaError, match="wavpack"):
        open_audio(path)


def test_a_file_replaced_while_in_use(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    source = open_audio(tmp_path / "a.wav")
    soundfile.write(tmp_path / "a.wav", tone(channels=2), RATE)
    with pytest.raises(MediaError, match="channels throughout"):
        list(source.blocks())
    soundfile.write(tmp_path / "a.wav", tone(0.5), RATE)
    with pytest.raises(MediaError, match="truncated"):
        list(source.blocks())
