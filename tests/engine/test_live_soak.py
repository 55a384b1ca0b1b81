"""Live sessions for hours: memory, interruptions, open and close. Runs with -m slow (make soak)."""

import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import skyreels_rt as rt
from skyreels_rt import errors
from skyreels_rt.testing.tiny import TinyModel, tiny_components

pytestmark = pytest.mark.slow

RATE = 16_000
FAST = TinyModel().with_generation(
    height=32, width=32, window=13, overlap=1, num_steps=1, audio_guidance_scale=1.0
)
NOISE = 0.1 * np.random.default_rng(0).standard_normal(60 * RATE).astype(np.float32)
PORTRAIT = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
MAX_SLOPE = 1.0  # MiB per 10,000 frames


@pytest.fixture(scope="module")
def engine():
    return rt.Engine(tiny_components(FAST))


def resident_mib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def slope_of(num_frames, *, leaks=False):
    """MiB per 10,000 frames over the second half of ``num_frames``, and sizes of the state.

    In a process of its own: one that held much before takes a leak from what it has free.
    """
    command = [sys.executable, "-P", str(Path(__file__).parent / "programs" / "long_stream.py")]
    done = subprocess.run(
        [*command, str(num_frames), *(["leak"] if leaks else [])],
        capture_output=True, text=True, check=False, timeout=2_000,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    half = [(x, y) for x, y in measured["points"] if x >= num_frames / 2]
    assert len(half) >= 15
    return np.polyfit(*zip(*half, strict=True), 1)[0] * 10_000, measured["sizes"]


def test_memory_of_a_long_stream_is_flat():
    slope, sizes = slope_of(100_000)
    assert slope <= MAX_SLOPE
    assert max(sizes[20:]) <= max(sizes[:20]) + 64  # digits of the counters


def test_a_leak_is_seen():
    slope, _ = slope_of(20_000, leaks=True)
    assert slope > MAX_SLOPE


def test_interrupt_at_200_random_moments(monkeypatch):
    """Once an interruption is asked for, at most one call of a model begins (the one that was about
    to), and when it returned the next one waits for new speech."""
    engine = rt.Engine(tiny_components(FAST.with_generation(num_steps=20)))
    parts, late = engine.components, []
    session = engine.open_session(image=PORTRAIT)
    kinds = {"forward": 0, "decode_step": 0}

    def watch(model, name):
        original = getattr(model, name)

        def watched(*arguments, **options):
            kinds[name] += 1
            if session._must_stop():
                late.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(model, name, watched)

    watch(parts.transformer, "forward")
    watch(parts.vae, "decode_step")
    rng = random.Random(0)
    with session:
        frames = []

        def take():
            try:
                frames.extend(session)
            except errors.SessionStateError:
                return

        taker = threading.Thread(target=take)
        taker.start()
        for _ in range(200):
            session.push_audio(NOISE[: 4 * RATE], RATE)
            time.sleep(rng.uniform(0, 0.1))
            del late[:]
            cut = session.interrupt()
            assert len(late) <= 1, late
            assert session.buffered_s == pytest.approx(0, abs=1e-9)
            assert cut.frame_index == sum(len(chunk.frames) for chunk in list(frames))
        session.close()
        taker.join()
    assert min(kinds.values()) > 20, "the moments met both models"


def test_500_sessions_leave_nothing_behind(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def held():
        gc.collect()
        folders = ("/proc/self/fd", "/proc/self/task", tmp_path)
        return [len(list(Path(folder).iterdir())) for folder in folders]

    def cycle(kind):
        with engine.open_session(image=PORTRAIT) as session:
            if kind:
                session.push_audio(NOISE[: 4 * RATE], RATE)
                next(session.frames())
            if kind == 2:
                session.snapshot()

    cycle(2)
    before = held()
    for number in range(500):
        cycle(number % 3)
    assert held() == before
    assert engine.health().num_sessions == 0


def test_a_producer_ten_times_too_fast_waits(engine):
    """The queue holds what it may; the producer goes at the pace of the consumer."""
    highest = []
    with engine.open_session(image=PORTRAIT, max_ahead_s=4.0) as session:

        def produce():
            for piece in np.split(NOISE, 600):
                session.push_audio(piece, RATE)
                highest.append(session.buffered_s)
            session.end_audio()

        producer = threading.Thread(target=produce)
        producer.start()
        frames = 0
        for chunk in session:
            frames += len(chunk.frames)
            time.sleep(0.002)
        producer.join()
    assert frames == 1_500
    assert max(highest) <= 4.0 + 1 / RATE


def test_a_producer_ten_times_too_fast_is_refused(engine):
    """Ten pieces are offered for each that is shown, 60 s long: nine of ten come back."""
    piece, offered, refused, frames, memory = NOISE[: RATE // 25 * 4], 0, 0, 0, []
    with engine.open_session(image=PORTRAIT, max_ahead_s=4.0, on_full="raise") as session:
        while frames < 60 * 25:
            for _ in range(10):
                offered += 1
                try:
                    session.push_audio(piece, RATE)
                except errors.QueueFull:
                    refused += 1
            assert session.buffered_s <= 4.0 + 1e-9
            chunk = session.next_chunk(wait=False)
            frames += 0 if chunk is None else len(chunk.frames)
            memory.append(resident_mib())
    assert refused / offered == pytest.approx(0.9, abs=0.02)
    assert max(memory) - memory[len(memory) // 10] < 16.0
