"""Pace, needs and figures of a live session."""

import io
import itertools
from fractions import Fraction

import numpy as np
import pytest

import skyreels_rt as rt
from skyreels_rt.errors import InvalidArgument, MediaError
from skyreels_rt.options import resolve_settings
from skyreels_rt.session import Session
from skyreels_rt.streaming.needs import AudioNeeds
from skyreels_rt.streaming.pcm import PCMFormat, paced, read_pcm
from skyreels_rt.streaming.statistics import LiveStatistics, percentile
from skyreels_rt.types import FrameChunk


@pytest.fixture(scope="module")
def engine():
    return rt.Engine.from_pretrained("tiny-random")


def portrait(settings):
    return np.full((settings.height, settings.width, 3), 128, np.uint8)


@pytest.mark.parametrize("horizon", [1, 2])
def test_needs_are_those_of_the_session(engine, horizon):
    settings = resolve_settings(engine.components, {"horizon": horizon, "num_steps": 1})
    needs = AudioNeeds(engine.components, settings)
    with Session(engine.components, settings, portrait=portrait(settings)) as session:
        need, pushed = needs.first(), 0
        for _ in range(3):
            samples = int(need.seconds * 16_000)
            session.push_audio(np.zeros(samples - 1 - pushed, np.float32), 16_000)
            assert list(session.frames()) == []
            session.push_audio(np.zeros(1, np.float32), 16_000)
            chunks = list(session.frames())
            assert chunks[0].index == need.first_frame
            assert sum(len(chunk.frames) for chunk in chunks) == need.stop_frame - need.first_frame
            need, pushed = needs.after(need), samples


def chunk(index, count=4):
    frames = np.zeros((count, 16, 16, 3), np.uint8)
    return FrameChunk(frames, np.zeros((0, 1), np.float32), 16_000, Fraction(index, 25), index)


def test_figures(engine):
    settings = resolve_settings(engine.components, {"horizon": 1})
    needs = AudioNeeds(engine.components, settings)
    first = needs.first()
    second = needs.after(first)
    now = [0.0]
    statistics = LiveStatistics(needs, 25, clock=lambda: now[0])
    assert statistics.figures().chunk_p95_s is None

    def push_until(seconds):
        while statistics._pushed < seconds - 1e-9:
            now[0] += 0.02
            statistics.pushed(0.02)

    push_until(float(first.seconds) + 0.5)
    ready = next(0.02 * n for n in itertools.count() if 0.02 * n >= float(first.seconds) - 1e-6)
    statistics.delivered(chunk(0, first.stop_frame))
    got = statistics.figures()
    assert got.first_frame_s == pytest.approx(now[0] - ready)
    assert got.rtf == pytest.approx((now[0] - ready) / (first.stop_frame / 25))
    assert got.buffered_s == pytest.approx(now[0] - first.stop_frame / 25)
    assert got.late == 0
    push_until(float(second.seconds) + 3.0)
    latency = statistics.delivered(chunk(first.stop_frame, 4))
    assert latency == pytest.approx(3.0, abs=0.03)
    assert statistics.figures().late == int(latency > (second.stop_frame - first.stop_frame) / 25)
    assert statistics.figures().head_start_s > 0
    assert len(statistics._arrivals) < 200
    statistics.interrupted()
    assert statistics.figures().buffered_s == 0


def test_the_last_groups_are_due_one_after_the_other(engine):
    """Groups that become ready together at the end are counted at the pace of the ones before."""
    settings = resolve_settings(engine.components, {"horizon": 1})
    needs = AudioNeeds(engine.components, settings)
    groups = [needs.first()]
    for _ in range(3):
        groups.append(needs.after(groups[-1]))
    length = float(groups[2].seconds - groups[1].seconds)
    assert length == (groups[2].stop_frame - groups[2].first_frame) / 25
    compute = 0.7 * length

    def run(compute):
        """Speech up to 0.05 s short of the third group's need, each group ``compute`` long."""
        now, free, out = [0.0], 0.0, []
        statistics = LiveStatistics(needs, 25, clock=lambda: now[0])
        stop = float(groups[2].seconds) - 0.05
        arrived = [float(groups[0].seconds), float(groups[1].seconds), stop, stop]
        events = []
        for group, when in zip(groups, arrived, strict=True):
            free = max(free, when) + compute
            events.append((free, group))
        spoken = 0.0
        for when, group in events:
            while spoken < min(when, stop) - 1e-9:
                spoken = min(stop, spoken + 0.01)
                now[0] = spoken
                statistics.pushed(spoken - statistics._pushed)
                if spoken > stop - 1e-6:
                    statistics.ended()
            now[0] = when
            frames = group.stop_frame - group.first_frame
            out.append(statistics.delivered(chunk(group.first_frame, frames)))
        return out, statistics.figures()

    latencies, figures = run(compute)
    assert latencies[:2] == pytest.approx([compute, compute], abs=0.02)
    # The third is due 0.05 s after the end, the fourth a group later: neither is late.
    assert latencies[2] == pytest.approx(compute - 0.05, abs=0.02)
    assert latencies[3] == pytest.approx(2 * compute - 0.05 - length, abs=0.02)
    assert figures.late == 0
    assert figures.chunk_p95_s <= length
    # One that cannot keep up is late there as everywhere.
    latencies, figures = run(1.5 * length)
    assert latencies[3] > latencies[2] > latencies[1] > length
    assert figures.late >= 3
    assert figures.rtf > 1.0


def test_percentile_is_a_nearest_rank():
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, rank) for rank in (1, 50, 95, 100)] == [1, 50, 95, 100]
    assert percentile([3.0], 50) == 3.0
    assert percentile([], 50) is None


@pytest.mark.parametrize("kind", ["s16le", "f32le"])
def test_pcm_comes_back(kind):
    layout = PCMFormat(kind, 48_000, 2)
    samples = np.random.default_rng(0).integers(-32768, 32768, (5000, 2)).astype(np.int16)
    data = samples.astype("<i2") if kind == "s16le" else (samples / 32768).astype("<f4")
    blocks = list(read_pcm(io.BytesIO(data.tobytes()), layout))
    assert {len(block) for block in blocks[:-1]} == {960}
    assert all(block.dtype == np.float32 for block in blocks)
    assert np.array_equal(np.concatenate(blocks) * 32768, samples)
    with pytest.raises(MediaError, match="inside"):
        list(read_pcm(io.BytesIO(data.tobytes()[:-1]), layout))


def test_pace_follows_the_clock():
    now, waits = [10.0], []

    def sleep(seconds):
        waits.append(seconds)
        now[0] += seconds

    blocks = [np.zeros((320, 1), np.float32)] * 5
    out = []
    for _ in paced(blocks, 16_000, clock=lambda: now[0], sleep=sleep):
        out.append(now[0])
        now[0] += 0.03 if len(out) == 2 else 0  # a slow consumer is caught up with
    assert out == pytest.approx([10.02, 10.04, 10.07, 10.08, 10.10])
    assert sum(waits) == pytest.approx(0.07)
    assert list(paced(blocks, 16_000, clock=lambda: 0.0, sleep=lambda _: True)) == []


@pytest.mark.parametrize(
    "fields", [("s24le", 16_000, 1), ("s16le", 16_001, 1), ("s16le", 16_000, 0)]
)
def test_bad_formats(fields):
    with pytest.raises(InvalidArgument):
        PCMFormat(*fields)
