"""The VAE decodes on a lane beside the denoising; a caller sees what he would see without.

A CPU session decodes in place. Here it gets lanes that resemble a GPU's side stream: one whose work
is not done until it is waited for, and one whose work really runs in another thread meanwhile.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import skyreels_rt as rt
from skyreels_rt import errors, latent_decoder
from skyreels_rt.options import resolve_settings
from skyreels_rt.runtime.lanes import InPlace
from skyreels_rt.session import Session
from skyreels_rt.testing.tiny import TinyModel, tiny_components

RATE = 16_000
SMALL = TinyModel().with_generation(height=32, width=32, window=5, overlap=2, num_steps=2)
SPEECH = 0.1 * np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32)
PORTRAIT = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
OTHER = np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8)
FIRST_GROUP, LATENTS = 5, 20


class Late:
    """Work that is done when somebody waits for it."""

    def __init__(self, lane, work):
        self.lane, self.work = lane, work

    def is_done(self):
        return False

    def result(self):
        self.lane.log.append("take")
        return self.work()


class LateLane(InPlace):
    def __init__(self):
        self.log = []

    def start(self, work):
        self.log.append("begin")
        return Late(self, work)


class Elsewhere:
    """Work in another thread, never done before it is waited for: steps always run meanwhile."""

    def __init__(self, future):
        self.future = future

    def is_done(self):
        return False

    def result(self):
        return self.future.result()


class ThreadLane(InPlace):
    def __init__(self):
        self.pool = ThreadPoolExecutor(1)

    def start(self, work):
        return Elsewhere(self.pool.submit(work))


LANES = {"late": LateLane, "thread": ThreadLane}


@pytest.fixture(scope="module")
def engine():
    return rt.Engine(tiny_components(SMALL))


@pytest.fixture(params=list(LANES))
def beside(request, monkeypatch):
    """``beside(opens)`` opens a session whose decoder runs on a lane; the caller closes it."""

    def start(opens):
        with monkeypatch.context() as patch:
            patch.setattr(latent_decoder, "lane_for", lambda device: LANES[request.param]())
            return opens()

    return start


def opened(engine, **options):
    return engine.open_session(**{"image": PORTRAIT, "prompt": "hello", **options})


def core(engine, lane, **options):
    settings = resolve_settings(engine.components, {"prompt": "hello", "horizon": 1})
    return Session(engine.components, settings, portrait=PORTRAIT, lane=lane, **options)


def ended(session):
    session.push_audio(SPEECH, RATE)
    session.end_audio()
    return session


def pixels(chunks):
    return np.concatenate([chunk.frames for chunk in chunks])


def journal(engine, lane):
    """What happens in a whole session, in order: steps, decodes begun and taken, chunks."""
    log = lane.log if isinstance(lane, LateLane) else []
    with core(engine, lane, on_progress=lambda progress: log.append(progress.stage)) as session:
        ended(session)
        while session.next_chunk() is not None:
            log.append("chunk")
    return log


@pytest.fixture(scope="module")
def whole(engine):
    with ended(opened(engine)) as session:
        return pixels(session)


def test_the_next_group_is_denoised_while_a_latent_is_decoded(engine):
    log = journal(engine, LateLane())
    assert log.count("begin") == log.count("take") == log.count("chunk") == LATENTS
    steps = [index for index, what in enumerate(log) if what == "denoise"]
    ahead = [index for index in steps if log[:index].count("begin") > log[:index].count("take")]
    assert ahead == steps[2:], "only the first group has nothing to run beside"
    for index in range(len(log)):  # one latent at a time, and no chunk before it is taken
        begun, taken, given = (log[:index].count(what) for what in ("begin", "take", "chunk"))
        assert given <= taken <= begun <= taken + 1
    # A group's steps all run beside the first chunk of the group before: the others wait for none.
    assert log[: steps[2]].count("chunk") == 0
    assert log[: steps[4]].count("chunk") == FIRST_GROUP


def test_in_place_nothing_runs_ahead(engine):
    log = journal(engine, InPlace())
    groups = "".join({"denoise": "s", "chunk": "c"}[what] for what in log)
    assert groups.startswith("ss" + FIRST_GROUP * "c" + "ss")


def test_the_state_behind_every_chunk_is_that_of_one_after_another(engine):
    plain, late = (ended(core(engine, lane)) for lane in (InPlace(), LateLane()))
    with plain, late:
        for _ in range(LATENTS):
            np.testing.assert_array_equal(plain.next_chunk().frames, late.next_chunk().frames)
            expected, got = plain.state(), late.state()
            # The tokens of the group that was begun are packed already; nothing else is there.
            assert got.facts.pop("tokens")["first"] == expected.facts.pop("tokens")["first"]
            assert got.facts == expected.facts
            more = got.tensors.keys() - expected.tensors.keys()
            assert all(name.startswith("tokens.") for name in more)
            for name, tensor in expected.tensors.items():
                assert torch.equal(got.tensors[name], tensor), name
        assert late.next_chunk() is plain.next_chunk() is None
        assert late.steps == plain.steps


def test_speech_may_come_while_a_latent_is_decoded(engine, whole, beside):
    with beside(lambda: opened(engine)) as session:
        chunks = []
        for piece in np.split(SPEECH, range(0, len(SPEECH), 1_777)):
            session.push_audio(piece, RATE)
            if (chunk := session.next_chunk(wait=False)) is not None:
                chunks.append(chunk)
        session.end_audio()
        np.testing.assert_array_equal(pixels([*chunks, *session]), whole)


@pytest.mark.parametrize("count", [1, 4, 5, 6, 9])
@pytest.mark.parametrize("change", ["interrupt", "prompt", "image"])
def test_a_change_takes_effect_where_it_would_without(engine, beside, count, change):
    def run(session):
        with session:
            session.push_audio(SPEECH, RATE)
            chunks = session.frames()
            made = [next(chunks) for _ in range(count)]
            if change == "interrupt":
                assert session.interrupt().frame_index == sum(len(one.frames) for one in made)
                session.push_audio(SPEECH[::-1].copy()[:RATE], RATE)
            elif change == "prompt":
                session.set_prompt("someone else")
            else:
                session.set_image(OTHER)
            session.end_audio()
            return pixels([*made, *session])

    expected = run(opened(engine))
    np.testing.assert_array_equal(run(beside(lambda: opened(engine))), expected)


def test_snapshots_hold_no_trace_of_what_runs_ahead(engine, whole, beside):
    made, snapshots = [], []
    with ended(beside(lambda: opened(engine))) as session:
        for chunk in session:
            made.append(chunk)
            snapshots.append(session.snapshot())
    for count in (1, 4, 5, 6, LATENTS - 1):
        snapshot = snapshots[count - 1]
        with beside(lambda it=snapshot: engine.restore_session(it)) as session:
            np.testing.assert_array_equal(pixels([*made[:count], *session]), whole)


def test_closing_waits_for_what_is_computed(engine):
    lane = LateLane()
    session = ended(core(engine, lane))
    session.next_chunk()
    session._decoder.begin(session._kept)
    assert lane.log.count("begin") == lane.log.count("take") + 1
    session.close()
    assert lane.log.count("begin") == lane.log.count("take")
    with pytest.raises(errors.InvalidArgument, match="closed"):
        session.next_chunk()


def test_interrupted_between_steps_ahead_and_chunk(engine, monkeypatch):
    """The interruption finds a latent that is decoded and a group that is half done."""
    inside, go = threading.Event(), threading.Event()
    vae = engine.components.vae
    decode, calls = vae.decode_step, []

    def stuck(*arguments):
        calls.append(1)
        if len(calls) == 3:
            inside.set()
            go.wait()
        return decode(*arguments)

    monkeypatch.setattr(vae, "decode_step", stuck)
    lane, got = ThreadLane(), []
    monkeypatch.setattr(latent_decoder, "lane_for", lambda device: lane)
    with opened(engine) as session:
        session.push_audio(SPEECH, RATE)
        taker = threading.Thread(target=lambda: got.extend(session.frames()))
        taker.start()
        inside.wait()
        answers = []
        stopper = threading.Thread(target=lambda: answers.append(session.interrupt()))
        stopper.start()
        while not session._must_stop():
            pass
        go.set()
        stopper.join()
        taker.join()
        assert answers[0].frame_index == sum(len(chunk.frames) for chunk in got)
        rest = [*got, *ended(session)]
    monkeypatch.undo()
    with opened(engine) as session:
        session.push_audio(SPEECH, RATE)
        chunks = session.frames()
        made = [next(chunks) for _ in got]
        session.interrupt()
        np.testing.assert_array_equal(pixels([*made, *ended(session)]), pixels(rest))


@pytest.mark.parametrize("at", [0, 1, FIRST_GROUP - 1, FIRST_GROUP])
@pytest.mark.parametrize("fault", ["nan", "raises"])
def test_a_failed_decode_comes_out_at_its_chunk(engine, whole, beside, monkeypatch, at, fault):
    vae = engine.components.vae
    decode, calls = vae.decode_step, []

    def broken(*arguments):
        calls.append(1)
        if len(calls) != at + 1:
            return decode(*arguments)
        if fault == "raises":
            raise RuntimeError("out of something")
        video, cache = decode(*arguments)
        return torch.full_like(video, float("nan")), cache

    monkeypatch.setattr(vae, "decode_step", broken)
    with ended(beside(lambda: opened(engine))) as session:
        chunks = iter(session)
        made = [next(chunks) for _ in range(at)]
        with pytest.raises(errors.NonFinite if fault == "nan" else RuntimeError):
            next(chunks)
        np.testing.assert_array_equal(pixels([*made, *session]), whole)  # nothing was lost


def test_a_failed_group_comes_out_behind_the_chunks_before_it(engine, whole, beside):
    bias = engine.components.transformer.head.head.bias
    before = bias.data.clone()
    with ended(beside(lambda: opened(engine))) as session:
        made = [next(session.frames())]  # the second group has been begun, or not
        session.set_prompt("hello")  # it begins anew
        bias.data.fill_(float("nan"))
        try:
            chunks = session.frames()
            made.extend(next(chunks) for _ in range(FIRST_GROUP - 1))
            for _ in range(2):
                with pytest.raises(errors.NonFinite):
                    next(session.frames())
        finally:
            bias.data.copy_(before)
        np.testing.assert_array_equal(pixels([*made, *session]), whole)


def test_sessions_beside_each_other_on_lanes_change_nothing(engine, beside):
    def run(session):
        with ended(session):
            return pixels(session)

    serial = [run(opened(engine, seed=seed)) for seed in range(4)]
    sessions = [beside(lambda seed=seed: opened(engine, seed=seed)) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(run, sessions), serial, strict=True):
            np.testing.assert_array_equal(got, expected)


# --------------------------------------------------------------------------------------------- CUDA


@pytest.fixture(scope="module")
def on_gpu():
    return rt.Engine(tiny_components(SMALL, device=torch.device("cuda")))


@pytest.mark.gpu
def test_a_side_stream_gives_the_bytes_of_one_after_another(on_gpu):
    with ended(core(on_gpu, InPlace())) as session:
        expected = pixels(session.frames())
    for _ in range(20):
        with ended(opened(on_gpu)) as session:
            np.testing.assert_array_equal(pixels(session), expected)


@pytest.mark.gpu
def test_steps_run_while_the_side_stream_decodes(on_gpu, monkeypatch):
    """A decoder that keeps its stream busy: the whole next group passes it by."""
    with ended(core(on_gpu, InPlace())) as session:  # everything is compiled and loaded
        expected = pixels(session.frames())
    vae, log = on_gpu.components.vae, []
    decode = vae.decode_step

    def slow(*arguments):
        torch.cuda._sleep(2_000_000_000)
        return decode(*arguments)

    monkeypatch.setattr(vae, "decode_step", slow)
    with core(on_gpu, None, on_progress=lambda progress: log.append(progress.stage)) as session:
        first = ended(session).next_chunk()
    np.testing.assert_array_equal(first.frames, expected[: len(first.frames)])
    assert log == 4 * ["denoise"], "two steps of the first group and two of the next"


@pytest.mark.gpu
def test_interrupts_and_closings_find_the_side_stream_busy(on_gpu):
    with ended(core(on_gpu, InPlace())) as session:
        expected = pixels(session.frames())
    for count in range(1, 12):
        with opened(on_gpu) as session:
            session.push_audio(SPEECH, RATE)
            chunks = session.frames()
            made = [next(chunks) for _ in range(count)]
        np.testing.assert_array_equal(pixels(made), expected[: sum(len(c.frames) for c in made)])
