"""Fragmented MP4: exact times, whole fragments, playable up to any cut, marked, truly named."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from skyreels_rt.errors import InvalidArgument, NonFinite, OutputError
from skyreels_rt.media.encoder import SYNTHETIC_MARK
from skyreels_rt.media.fragmented import FragmentedWriter

H, W = 48, 64


def clip(count: int, first: int = 0) -> np.ndarray:
    """Frames that differ from each other."""
    levels = ((np.arange(first, first + count) * 7) % 200 + 20).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(levels[:, None, None, None], (count, H, W, 3)))


def sweep(samples: int, channels: int, rate: int) -> np.ndarray:
    time = np.arange(samples)[:, None] / rate
    wave = np.sin(2 * np.pi * (200 + 60 * time) * time)
    return (0.4 * wave * np.linspace(1, 0.5, channels)).astype(np.float32)


def stream(*, chunks=(1, 4, 4, 4, 3), fps=25, rate=16_000, channels=1, **options):
    """Segments of a stream of the given chunks, and the writer."""
    writer = FragmentedWriter(
        fps=fps, height=H, width=W, sample_rate=rate, channels=channels, **options
    )
    segments, first = [writer.init], 0
    sound = None if rate is None else sweep(sum(chunks) * rate // fps, channels, rate)
    for count in chunks:
        last = first + count
        part = None if sound is None else sound[first * rate // fps : last * rate // fps]
        segments.append(writer.write(clip(count, first), part))
        first = last
    end = writer.finish()
    return segments + ([end] if end else []), writer


def decode(segments, kind="video"):
    data = segments if isinstance(segments, bytes) else b"".join(s.data for s in segments)
    with av.open(io.BytesIO(data), format="mov") as container:
        return list(container.decode(getattr(container.streams, kind)[0]))


def stated_samples(segments, rate):
    """Where the sound ends by its packets' times and durations."""
    with av.open(io.BytesIO(b"".join(s.data for s in segments)), format="mov") as container:
        last = [p for p in container.demux(container.streams.audio[0]) if p.size][-1]
        return (last.pts + last.duration) * last.time_base * rate


@pytest.mark.parametrize("fps", [24, 25, 30])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (48_000, 1)])
def test_times_are_exact(fps, rate, channels):
    segments, _ = stream(chunks=(1, 4, 9, 2, 14), fps=fps, rate=rate, channels=channels)
    frames = decode(segments)
    assert [frame.pts * frame.time_base for frame in frames] == [
        Fraction(n, fps) for n in range(30)
    ]
    sound = decode(segments, "audio")
    assert stated_samples(segments, rate) == 30 * rate // fps
    at = 0
    for frame in sound:
        assert frame.pts * frame.time_base == Fraction(at, rate)
        at += frame.samples


def test_frames_and_sound_come_back_in_place():
    segments, _ = stream(chunks=(1,) + (4,) * 18)
    for number, frame in enumerate(decode(segments)):
        level = frame.to_ndarray(format="rgb24").mean()
        assert abs(level - ((number * 7) % 200 + 20)) < 4
    got = np.concatenate([f.to_ndarray() for f in decode(segments, "audio")], axis=1)[0, : 73 * 640]
    sound = sweep(len(got), 1, 16_000)[:, 0]
    error = {shift: np.abs(np.roll(got, shift) - sound).mean() for shift in range(-3, 4)}
    assert min(error, key=error.__getitem__) == 0
    assert np.corrcoef(got, sound)[0, 1] > 0.99


def test_every_chunk_is_whole_when_its_call_returns():
    segments, _ = stream(chunks=(1, 4, 4, 4, 3))
    assert [s.kind for s in segments[:6]] == ["init"] + ["media"] * 5
    assert [s.num_frames for s in segments[1:6]] == [1, 4, 4, 4, 3]
    assert [s.pts for s in segments[1:6]] == [Fraction(n, 25) for n in (0, 1, 5, 9, 13)]
    done = 0
    for end in range(2, 7):
        done += segments[end - 1].num_frames
        assert len(decode(segments[:end])) == done


def test_init_alone_parses_and_is_marked():
    for mark in (SYNTHETIC_MARK, "made by a machine", None):
        segments, _ = stream(chunks=(1,), synthetic_mark=mark)
        with av.open(io.BytesIO(segments[0].data), format="mov") as container:
            assert [s.type for s in container.streams] == ["video", "audio"]
            assert (container.streams.video[0].width, container.streams.video[0].height) == (W, H)
            assert container.streams.audio[0].rate == 16_000
            assert container.metadata.get("comment") == mark


def test_playing_can_start_at_a_keyframe():
    segments, _ = stream(chunks=(1,) + (4,) * 40, keyframe_seconds=2)
    starts = [n for n, s in enumerate(segments) if s.is_keyframe and s.kind == "media"]
    assert len(starts) == 4
    assert all(segments[n].pts >= 2 * index for index, n in enumerate(starts))
    for start in starts:
        frames = decode([segments[0], *segments[start:]])
        times = [frame.pts * frame.time_base for frame in frames]
        assert times == [Fraction(n, 25) for n in range(int(segments[start].pts * 25), 161)]


def test_codecs_are_those_of_the_stream():
    segments, writer = stream()
    avcc = segments[0].data.index(b"avcC") + 4
    profile = segments[0].data[avcc + 1 : avcc + 4].hex()
    assert writer.mime_type == f'video/mp4; codecs="avc1.{profile}, mp4a.40.2"'
    _, silent = stream(rate=None)
    assert silent.mime_type.startswith('video/mp4; codecs="avc1.')
    assert "mp4a" not in silent.mime_type


def test_no_sound_and_missing_sound():
    segments, _ = stream(rate=None)
    assert len(decode(segments)) == 16
    writer = FragmentedWriter(fps=25, height=H, width=W, sample_rate=16_000)
    parts = [
        writer.init,
        writer.write(clip(25), None),
        writer.write(clip(25), sweep(8000, 1, 16_000)),
    ]
    parts.append(writer.finish())
    got = np.concatenate([f.to_ndarray() for f in decode(parts, "audio")], axis=1)[0]
    assert stated_samples(parts, 16_000) == 32_000
    assert np.abs(got[:15_000]).max() < 1e-3
    assert np.abs(got[26_000:]).max() < 1e-3


def test_same_input_gives_the_same_bytes():
    first, second = (b"".join(s.data for s in stream()[0]) for _ in range(2))
    assert first == second


def test_state_does_not_grow():
    import tracemalloc

    writer = FragmentedWriter(fps=25, height=H, width=W, sample_rate=16_000, preset="ultrafast")
    frames, sound = clip(4), sweep(2560, 1, 16_000)

    def write(count):
        for _ in range(count):
            writer.write(frames, sound)

    write(100)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        write(500)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 20_000, f"{grown} bytes over 500 fragments"


def test_misuse_is_refused_and_changes_nothing():
    with pytest.raises(InvalidArgument, match="keyframe_seconds"):
        FragmentedWriter(fps=25, height=H, width=W, keyframe_seconds=-1)
    with pytest.raises(InvalidArgument, match="height"):
        FragmentedWriter(fps=25, height=47, width=W)
    writer = FragmentedWriter(fps=25, height=H, width=W, sample_rate=16_000)
    bad = (
        (clip(2)[:, :-2], None, InvalidArgument),
        (clip(0), None, InvalidArgument),
        (clip(2), sweep(1280, 2, 16_000), InvalidArgument),
        (clip(2), np.full((1280, 1), np.nan, np.float32), NonFinite),
    )
    for frames, sound, expected in bad:
        with pytest.raises(expected):
            writer.write(frames, sound)
    segments = [writer.init, writer.write(clip(2), sweep(1280, 1, 16_000))]
    assert len(decode(segments)) == 2
    assert writer.finish() is not None
    assert writer.finish() is None
    with pytest.raises(OutputError, match="closed"):
        writer.write(clip(1))
    assert FragmentedWriter(fps=25, height=H, width=W).finish() is None
