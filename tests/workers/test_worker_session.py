"""Live sessions that workers compute: those of one process, and what a death does to them."""

import asyncio
import contextlib
import os
import signal
import threading
import time

import numpy as np
import pytest

import skyreels_rt as rt
from skyreels_rt import errors

RATE = 16_000
DEVICES = ("cpu", "cpu")
SCENE = {"horizon": 2, "prompt": "a face", "text_guidance_scale": 2.0}


def speech(seconds, seed=0):
    draw = np.random.default_rng(seed)
    return (0.2 * draw.standard_normal(round(seconds * RATE))).astype(np.float32)


def face(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (64, 80, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def engine(small_model):
    with rt.Engine.from_pretrained(small_model, devices=DEVICES) as started:
        yield started


@pytest.fixture(scope="module")
def alone(small_model):
    return rt.Engine.from_pretrained(small_model)


def open_session(engine, **options):
    return engine.open_session(**{"image": face(), **SCENE, **options})


def plain(chunks):
    """What chunks hold, to compare."""
    facts = [(chunk.index, chunk.pts, chunk.sample_rate) for chunk in chunks]
    return facts, [chunk.frames for chunk in chunks], [chunk.audio for chunk in chunks]


def assert_same(found, expected):
    (facts, frames, audio), (other_facts, other_frames, other_audio) = plain(found), plain(expected)
    assert facts == other_facts
    assert facts
    np.testing.assert_array_equal(np.concatenate(frames), np.concatenate(other_frames))
    np.testing.assert_array_equal(np.concatenate(audio), np.concatenate(other_audio))


def story(engine):
    """A conversation: pieces, another prompt, an interruption, another portrait, the end."""
    chunks, cuts = [], []
    with open_session(engine) as session:
        for piece in np.array_split(speech(2.6), 7):
            session.push_audio(piece, RATE)
            chunks += session.frames()
        session.set_prompt("another face")
        session.push_audio(speech(1.5, 1), RATE)
        chunks.append(session.next_chunk(wait=False))
        cuts.append((session.interrupt(), session.num_pushed, round(session.buffered_s, 6)))
        session.push_audio(speech(2.0, 2), RATE)
        session.set_image(face(3))
        session.end_audio()
        chunks += session
        assert session.next_chunk() is None
    return chunks, cuts


def test_a_conversation_is_that_of_one_process(engine, alone):
    before = [one.work for one in engine.workers]
    (found, found_cuts), (expected, expected_cuts) = story(engine), story(alone)
    assert_same(found, expected)
    assert found_cuts == expected_cuts
    assert "skyreels_rt_sessions_total" in engine.metrics()
    grown = [one.work - count for one, count in zip(engine.workers, before, strict=True)]
    assert max(grown) < 2 * min(grown)  # both computed


def test_asyncio_and_a_source_video(engine, alone):
    video = np.random.default_rng(1).integers(0, 256, (40, 32, 48, 3), dtype=np.uint8)
    mask = np.zeros((32, 48), bool)
    mask[8:24, 8:24] = True

    async def run(one):
        async with open_session(one, image=None, video=video, edit_mask=mask) as session:
            await session.push_audio(speech(1.6), RATE)
            await session.end_audio()
            return [chunk async for chunk in session]

    assert_same(asyncio.run(run(engine)), asyncio.run(run(alone)))


def test_snapshots_fit_any_number_of_processes(engine, alone):
    def begun(one):
        with open_session(one) as session:
            session.push_audio(speech(2.5), RATE)
            session.next_chunk(wait=False)
            return session.snapshot()

    def finished(one, snapshot):
        with one.restore_session(snapshot) as session:
            session.end_audio()
            return list(session)

    snapshots = begun(engine), begun(alone)
    assert_same(finished(alone, snapshots[0]), finished(alone, snapshots[1]))
    assert_same(finished(engine, snapshots[1]), finished(alone, snapshots[1]))
    for wrong in (b"nothing", "no/such/file"):
        with pytest.raises(errors.InvalidArgument, match="snapshot"):
            engine.restore_session(wrong)


def test_one_thing_at_a_time(engine):
    with open_session(engine) as session:
        for call in (lambda: engine.generate(speech(1), sample_rate=RATE, image=face()),
                     lambda: open_session(engine)):  # fmt: skip
            with pytest.raises(errors.AdmissionRefused, match="live session"):
                call()
        assert "mesh" in engine.describe()
        session.push_audio(speech(2.5), RATE)
        assert session.next_chunk(wait=False) is not None
    with pytest.raises(errors.SessionStateError, match="closed"):
        session.push_audio(speech(1), RATE)
    engine.generate(speech(1), sample_rate=RATE, image=face())


def test_what_one_process_refuses_the_workers_refuse_alike(engine):
    with pytest.raises(errors.InvalidMesh) as caught:
        open_session(engine, horizon=1)
    assert caught.value.suggestions == ("guidance=2", "ulysses=2", "ring=2")
    for option in ({"number": 1}, {"idle": 1}, {"num_steps": 0}, {"max_ahead_s": 0.1}):
        with pytest.raises(errors.InvalidArgument, match=next(iter(option))):
            open_session(engine, **option)
    with open_session(engine) as session, pytest.raises(errors.MediaError):
        session.set_image("no/such/face.png")


def test_an_interruption_does_not_wait_for_the_chunk(engine):
    chunks = []

    def take():
        with contextlib.suppress(errors.SessionStateError):  # closed at the end
            chunks.extend(session)

    with open_session(engine, num_steps=400) as session:
        session.push_audio(speech(2.5), RATE)
        taker = threading.Thread(target=take)
        taker.start()
        before = engine.workers[0].work
        while engine.workers[0].work < before + 20:  # it is in the middle of the first group
            time.sleep(0.01)
        assert session.interrupt().frame_index == 0
        assert session.buffered_s == 0.0
    with pytest.raises(errors.SessionStateError):
        session.interrupt()
    taker.join(5)
    assert not taker.is_alive()
    assert chunks == []


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_death_while_a_session_waits(small_model, rank, raised, assert_gone):
    """With rank 0, for speech; with rank 1, for room: whoever waits and whoever comes later."""
    caught = []

    def pending(call):
        try:
            call()
        except errors.SkyReelsError as error:
            caught.append(error)

    engine = rt.Engine.from_pretrained(small_model, devices=DEVICES)
    pids = [one.pid for one in engine.workers]
    with open_session(engine, max_ahead_s=4.0) as session:
        session.push_audio(speech(1.0), RATE)
        waits = {0: lambda: list(session), 1: lambda: session.push_audio(speech(9.0), RATE)}[rank]
        waiter = threading.Thread(target=pending, args=[waits])
        waiter.start()
        time.sleep(0.5)
        assert waiter.is_alive()
        os.kill(pids[rank], signal.SIGKILL)
        waiter.join(5)
        assert [(one.rank, one.signal) for one in caught] == [(rank, signal.SIGKILL)]
        for call in (
            lambda: session.push_audio(speech(1.0), RATE), session.end_audio, session.next_chunk,
            lambda: list(session.frames()), session.interrupt, session.snapshot,
            lambda: session.set_prompt("x"), lambda: session.set_image(face()), engine.describe,
        ):  # fmt: skip
            assert raised(call, errors.WorkerDied).rank == rank
    assert_gone(pids)
    engine.close()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_speech(engine):
    def peak():
        return max(one.usage["peak_rss"] for one in engine.workers)

    with open_session(engine) as session:
        for second in range(120):
            session.push_audio(speech(1.0, second), RATE)
            assert session.buffered_s < 10
            list(session.frames())
            if second == 30:
                before = peak()
        assert peak() <= before + 4 * 2**20
