"""Live sessions: any cutting, threads, interruption, snapshots, back-pressure, asyncio."""

import asyncio
import hashlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest

import skyreels_rt as rt
from skyreels_rt import errors
from skyreels_rt.testing.tiny import TinyModel, tiny_components

RATE = 16_000
SMALL = TinyModel().with_generation(height=32, width=32, window=5, overlap=2, num_steps=2)
SPEECH = 0.1 * np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32)
PORTRAIT = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
OTHER = np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def engine():
    return rt.Engine(tiny_components(SMALL))


def opened(engine, **options):
    return engine.open_session(**{"image": PORTRAIT, "prompt": "hello", **options})


def joined(chunks):
    chunks = list(chunks)
    return (
        np.concatenate([chunk.frames for chunk in chunks]),
        np.concatenate([chunk.audio for chunk in chunks]),
    )


def spoken(session, speech=SPEECH, rate=RATE):
    session.push_audio(speech, rate)
    session.end_audio()
    return joined(session)


def digest(frames, audio):
    return hashlib.sha256(frames.tobytes() + audio.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def whole(engine):
    with opened(engine) as session:
        frames, audio = spoken(session)
    assert frames.shape == (75, 32, 32, 3)
    np.testing.assert_array_equal(audio[:, 0], SPEECH)
    return frames


# ------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_any_cutting_gives_the_same_bytes(engine, rate):
    speech = np.repeat(SPEECH[: RATE * 2, None], 2, axis=1)
    digests = set()
    for seed in range(8):
        rng = random.Random(seed)
        cuts = sorted(rng.sample(range(len(speech)), rng.randint(0, 40)))
        chunks = []
        with opened(engine) as session:
            for piece in np.split(speech, cuts):
                session.push_audio(piece, rate)
                if rng.random() < 0.5:
                    chunks.extend(session.frames())
            session.end_audio()
            digests.add(digest(*joined([*chunks, *session])))
    assert len(digests) == 1


@pytest.mark.parametrize("horizon", [1, 3])
def test_a_session_gives_the_bytes_of_generate(engine, horizon):
    video = engine.generate(
        SPEECH, sample_rate=RATE, image=PORTRAIT, prompt="hello", horizon=horizon,
        on_progress=lambda progress: None,
    )  # fmt: skip
    with opened(engine, horizon=horizon) as session:
        frames, audio = spoken(session)
    np.testing.assert_array_equal(frames, video.frames)
    np.testing.assert_array_equal(audio, video.audio)


def test_live_horizon_is_one(engine, whole):
    with opened(engine, horizon=1) as session:
        np.testing.assert_array_equal(spoken(session)[0], whole)


def test_chunks_follow_each_other_exactly(engine):
    with opened(engine) as session:
        session.push_audio(SPEECH, RATE)
        session.end_audio()
        index = 0
        for chunk in session:
            assert chunk.index == index
            assert chunk.pts == Fraction(index, 25)
            assert len(chunk.audio) == len(chunk.frames) * RATE // 25
            index += len(chunk.frames)


def test_the_first_frames_come_once_their_audio_is_there(engine):
    with opened(engine) as session:
        needed = int(session.latency_s * RATE)
        session.push_audio(SPEECH[: needed - 1], RATE)
        assert list(session.frames()) == []
        session.push_audio(SPEECH[needed - 1 : needed], RATE)
        assert len(list(session.frames())) >= SMALL.generation.window


@pytest.mark.parametrize("rate", [RATE, 48_000])
def test_snapshot_at_every_chunk_boundary(engine, rate):
    speech = SPEECH[: 2 * RATE]
    options = {"image": PORTRAIT, "prompt": "hello"}
    with engine.open_session(**options) as session:
        expected = spoken(session, speech, rate)
    snapshots, made = [], []
    with engine.open_session(**options) as session:
        for piece in np.split(speech, range(0, len(speech), 1_777)):
            session.push_audio(piece, rate)
            for chunk in session.frames():
                made.append(chunk)
                snapshots.append((len(made), session.num_pushed, session.snapshot()))
        session.end_audio()
        snapshots.append((len(made), session.num_pushed, session.snapshot()))
        for chunk in session:
            made.append(chunk)
            snapshots.append((len(made), None, session.snapshot()))
    assert digest(*joined(made)) == digest(*expected)
    assert len(snapshots) > 5
    for count, pushed, snapshot in snapshots:
        with engine.restore_session(snapshot) as session:
            if pushed is not None and pushed < len(speech):
                session.push_audio(speech[pushed:], rate)
                session.end_audio()
            elif not session.has_ended:
                session.end_audio()
            rest = list(session)
        assert digest(*joined(made[:count] + rest)) == digest(*expected), (count, pushed)


def test_state_has_constant_size(engine):
    with opened(engine) as session:
        sizes = []
        for _ in range(12):
            session.push_audio(SPEECH, RATE)
            for _chunk in session.frames():
                pass
            sizes.append(len(session.snapshot()))
    assert max(sizes[6:]) <= 1.01 * max(sizes[:6])


def test_sessions_beside_each_other_change_nothing(engine, whole):
    def run(seed):
        with opened(engine, seed=seed) as session:
            return digest(*spoken(session))

    serial = [run(seed) for seed in range(8)]
    assert len(set(serial)) == 8
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(8))) == serial


# ----------------------------------------------------------------------------------- interruption


def test_interrupt_continues_from_the_last_delivered_frame(engine, whole):
    with opened(engine) as session:
        session.push_audio(SPEECH, RATE)
        chunks = session.frames()
        made = [next(chunks) for _ in range(4)]
        cut = session.interrupt()
        assert (cut.frame_index, cut.seconds) == (13, Fraction(13, 25))
        assert session.buffered_s == 0
        assert list(session.frames()) == []
        session.push_audio(SPEECH[:RATE], RATE)
        session.end_audio()
        rest = list(session)
    assert rest[0].index == 13
    frames, audio = joined(made + rest)
    np.testing.assert_array_equal(frames[:13], whole[:13])
    assert len(frames) == 13 + 25
    np.testing.assert_array_equal(audio[:, 0], np.concatenate([SPEECH[: 13 * 640], SPEECH[:RATE]]))


@pytest.mark.parametrize("count", [0, 1, 3, 5, 6, 7])
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_nothing_of_the_dropped_speech_is_left(engine, count, rate):
    """Two sessions that differ in the dropped speech alone go on with the same bytes."""
    results = set()
    # Delivered latents depend on later speech by the look-ahead: what was needed is common.
    common = np.concatenate([SPEECH, SPEECH])[: int(rate * 2.4)]
    for seed in (7, 8):
        dropped = 0.3 * np.random.default_rng(seed).standard_normal(rate).astype(np.float32)
        with opened(engine) as session:
            session.push_audio(common, rate)
            chunks = session.frames()
            made = [next(chunks) for _ in range(count)]
            session.push_audio(dropped, rate)
            session.interrupt()
            session.push_audio(SPEECH[:RATE], rate)
            session.end_audio()
            results.add(digest(*joined([*made, *session])))
    assert len(results) == 1


def test_interrupt_stops_within_a_step(engine):
    seen = []
    with opened(engine, num_steps=50) as session:
        session.push_audio(SPEECH, RATE)
        core = session._core
        started = threading.Event()
        predict = core._parts.transformer.forward

        def counted(*arguments, **options):
            seen.append(1)
            started.set()
            return predict(*arguments, **options)

        core._parts.transformer.forward = counted
        try:
            taker = threading.Thread(target=lambda: list(session.frames()))
            taker.start()
            started.wait()
            before = len(seen)
            assert session.interrupt().frame_index == 0
            assert len(seen) <= before + 2 * 2  # two guidance passes, the step at hand and one more
        finally:
            core._parts.transformer.forward = predict
            session.close()
            taker.join()


def test_interrupt_after_the_end_lets_speech_follow(engine):
    with opened(engine) as session:
        session.push_audio(SPEECH, RATE)
        session.end_audio()
        next(iter(session))
        session.interrupt()
        session.push_audio(SPEECH[:RATE], RATE)
        session.end_audio()
        assert sum(len(chunk.frames) for chunk in session) == 25


def test_interrupt_drops_a_push_that_waits(engine):
    with opened(engine, max_ahead_s=2.0) as session:
        pusher = threading.Thread(target=session.push_audio, args=(np.tile(SPEECH, 4), RATE))
        pusher.start()
        while session.buffered_s < 1.9:
            pass
        session.interrupt()
        pusher.join()
        assert session.buffered_s == 0


# ------------------------------------------------------------------------------ changes on the way


def test_prompt_and_portrait_change_from_the_next_group_on(engine, whole):
    with opened(engine) as session:
        session.push_audio(SPEECH, RATE)
        first = next(session.frames())
        session.set_prompt("someone else")
        session.set_image(OTHER)
        session.end_audio()
        frames, _ = joined([first, *session])
    window = 17
    np.testing.assert_array_equal(frames[:window], whole[:window])
    assert np.any(frames[window:] != whole[window:])


def test_a_prompt_that_cannot_be_read_changes_nothing(engine, whole, monkeypatch):
    with opened(engine) as session:
        session.push_audio(SPEECH, RATE)
        first = next(session.frames())

        def refuse(prompt):
            raise errors.Cancelled("waiting for the turn")

        with monkeypatch.context() as patch:
            patch.setattr(engine.components.text_encoder, "encode", refuse)
            with pytest.raises(errors.Cancelled):
                session.set_prompt("someone else")
        snapshot = session.snapshot()
        session.end_audio()
        np.testing.assert_array_equal(joined([first, *session])[0], whole)
    with engine.restore_session(snapshot) as session:
        session.end_audio()
        np.testing.assert_array_equal(joined([first, *session])[0], whole)


def test_setting_what_is_there_changes_nothing(engine, whole):
    with opened(engine) as session:
        session.push_audio(SPEECH, RATE)
        first = next(session.frames())
        session.set_prompt("hello")
        session.set_image(PORTRAIT)
        session.end_audio()
        np.testing.assert_array_equal(joined([first, *session])[0], whole)


# ---------------------------------------------------------------------------- queue and its states


def test_a_full_queue_refuses_and_takes_nothing(engine, whole):
    with opened(engine, on_full="raise", max_ahead_s=2.0) as session:
        session.push_audio(SPEECH[: 2 * RATE], RATE)
        with pytest.raises(errors.QueueFull):
            session.push_audio(SPEECH[2 * RATE :], RATE)
        made = list(session.frames())
        session.push_audio(SPEECH[2 * RATE :], RATE)
        session.end_audio()
        np.testing.assert_array_equal(joined([*made, *session])[0], whole)


def test_a_full_queue_waits_for_the_consumer(engine, whole):
    with opened(engine, max_ahead_s=1.9) as session:
        highest = []

        def produce():
            for piece in np.split(SPEECH, 30):
                session.push_audio(piece, RATE)
                highest.append(session.buffered_s)
            session.end_audio()

        producer = threading.Thread(target=produce)
        producer.start()
        np.testing.assert_array_equal(joined(session)[0], whole)
        producer.join()
    assert max(highest) <= 1.9


def test_a_thread_never_waits_for_itself(engine, whole):
    with opened(engine, max_ahead_s=2.0) as session:
        session.push_audio(SPEECH[: 2 * RATE], RATE)
        list(session.frames())
        room = 2 * RATE - round(session.buffered_s * RATE)
        with pytest.raises(errors.QueueFull, match="thread"):
            session.push_audio(np.tile(SPEECH, 3), RATE)
        assert session.num_pushed == 2 * RATE + room


def test_less_audio_than_the_first_frames_need_is_refused(engine):
    with pytest.raises(errors.InvalidArgument, match="max_ahead_s"):
        opened(engine, max_ahead_s=0.2)


def test_closed_and_ended_sessions_say_so(engine):
    session = opened(engine)
    with pytest.raises(errors.SessionStateError, match="no audio"):
        session.end_audio()
    session.push_audio(SPEECH, RATE)
    session.end_audio()
    session.end_audio()
    with pytest.raises(errors.SessionStateError, match="ended"):
        session.push_audio(SPEECH, RATE)
    session.close()
    session.close()
    for call in (
        lambda: session.push_audio(SPEECH, RATE), session.end_audio, session.interrupt,
        session.snapshot, lambda: session.set_prompt("x"), lambda: session.set_image(PORTRAIT),
        lambda: next(session.frames()), lambda: next(iter(session)),
    ):  # fmt: skip
        with pytest.raises(errors.SessionStateError, match="closed"):
            call()


@pytest.mark.parametrize(
    ("pcm", "rate", "error"),
    [
        (np.zeros(8), RATE, errors.InvalidArgument),
        (np.full(8, np.nan, np.float32), RATE, errors.NonFinite),
        (np.zeros(8, np.float32), 10, errors.InvalidArgument),
        (np.zeros(8, np.float32), True, errors.InvalidArgument),
        (np.zeros(8, np.float32), 8_000, errors.InvalidArgument),
        (np.zeros((8, 2), np.float32), RATE, errors.InvalidArgument),
        (np.full(8, 3_000, np.float32), RATE, errors.InvalidArgument),
    ],
)
def test_a_bad_push_raises_and_takes_nothing(engine, whole, pcm, rate, error):
    with opened(engine) as session:
        session.push_audio(SPEECH[:100], RATE)
        with pytest.raises(error):
            session.push_audio(pcm, rate)
        np.testing.assert_array_equal(spoken(session, SPEECH[100:])[0], whole)


def test_closing_ends_a_consumer_that_waits(engine):
    session = opened(engine)
    caught = []

    def consume():
        try:
            list(session)
        except errors.SessionStateError as error:
            caught.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    session.close()
    consumer.join(timeout=30)
    assert not consumer.is_alive()
    assert len(caught) == 1


def test_no_more_sessions_than_allowed():
    engine = rt.Engine(tiny_components(SMALL), max_sessions=2)
    first, second = opened(engine), opened(engine)
    with pytest.raises(errors.AdmissionRefused):
        opened(engine)
    first.close()
    first.close()
    third = opened(engine)
    with pytest.raises(errors.AdmissionRefused):
        opened(engine)
    for session in (second, third):
        session.close()
    with pytest.raises(errors.InvalidArgument):
        opened(engine, max_ahead_s=0.0)  # a session that never opened holds no place
    for _ in range(3):
        opened(engine).close()


def test_idle_goes_on_in_silence(engine):
    with opened(engine, idle=True) as session:
        chunks = iter(session)
        made = [next(chunks) for _ in range(7)]
        assert not made[-1].audio.any()
        session.push_audio(SPEECH[:RATE], RATE)
        session.end_audio()
        frames, audio = joined([*made, *chunks])
    start = len(audio) - RATE
    np.testing.assert_array_equal(audio[start:, 0], SPEECH[:RATE])
    assert not audio[:start].any()
    assert len(frames) == -(-len(audio) * 25 // RATE)


@pytest.mark.parametrize("damage", ["cut", "no header", "other model", "not a file"])
def test_a_bad_snapshot_is_refused(engine, damage, tmp_path):
    with opened(engine) as session:
        session.push_audio(SPEECH, RATE)
        snapshot = session.snapshot()
    if damage == "cut":
        snapshot = snapshot[:-100]
    elif damage == "no header":
        snapshot = b"\xff" * 100
    elif damage == "other model":
        engine = rt.Engine(tiny_components(SMALL.with_generation(window=4)))
    else:
        snapshot = tmp_path / "missing"
    with pytest.raises(errors.InvalidArgument, match="snapshot"):
        engine.restore_session(snapshot)


# ---------------------------------------------------------------------------------------- asyncio


def test_asyncio_gives_the_same_bytes(engine, whole):
    async def talk():
        async with opened(engine, max_ahead_s=2.0) as session:

            async def produce():
                for piece in np.split(SPEECH, 50):
                    await session.push_audio(piece, RATE)
                await session.end_audio()

            producer = asyncio.create_task(produce())
            made = [chunk async for chunk in session]
            await producer
            return joined(made)[0]

    before = threading.active_count()
    np.testing.assert_array_equal(asyncio.run(talk()), whole)
    assert threading.active_count() == before


def test_a_cancelled_task_loses_no_chunk(engine, whole):
    async def talk():
        async with opened(engine) as session:
            await session.push_audio(SPEECH, RATE)
            await session.end_audio()
            made = []

            async def take():
                async for chunk in session:
                    made.append(chunk)

            while sum(len(chunk.frames) for chunk in made) < len(whole):
                task = asyncio.create_task(take())
                await asyncio.sleep(0.01)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            return joined(made)[0]

    np.testing.assert_array_equal(asyncio.run(talk()), whole)


def test_asyncio_interrupt_and_close(engine):
    async def talk():
        async with opened(engine, num_steps=30) as session:
            await session.push_audio(SPEECH, RATE)
            chunks = session.__aiter__()
            first = await anext(chunks)
            cut = await session.interrupt()
            assert cut.frame_index >= len(first.frames)
            await session.push_audio(SPEECH[:RATE], RATE)
            await session.end_audio()
            return cut.frame_index, [first, *[chunk async for chunk in chunks]]

    index, chunks = asyncio.run(talk())
    assert sum(len(chunk.frames) for chunk in chunks) == index + 25


def test_a_cancelled_close_closes(engine):
    async def talk():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        session = opened(engine)
        leaving = await session.__aenter__()
        free = threading.Event()
        loop.run_in_executor(None, free.wait)  # closing has to queue behind this
        task = asyncio.create_task(leaving.close())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        free.set()
        await loop.shutdown_default_executor()
        return session.is_closed

    assert asyncio.run(talk())


def test_leaving_early_stops_the_threads(engine):
    async def talk():
        async with opened(engine, num_steps=200) as session:
            await session.push_audio(SPEECH, RATE)
            chunks = session.__aiter__()
            task = asyncio.create_task(anext(chunks))
            await asyncio.sleep(0.05)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    before = threading.active_count()
    asyncio.run(talk())
    assert threading.active_count() == before


def test_warmup_makes_frames(engine, monkeypatch):
    vae, made = engine.components.vae, []
    decode = vae.decode_step

    def counted(*arguments):
        made.append(1)
        return decode(*arguments)

    monkeypatch.setattr(vae, "decode_step", counted)
    assert engine.warmup() > 0
    assert made
    assert engine.health().num_sessions == 0
