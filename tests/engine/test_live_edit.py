"""Live sessions that edit a source video: interrupt and snapshot."""

import numpy as np
import pytest

import skyreels_rt as rt
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.testing.tiny import TinyModel, tiny_components

RATE = 16_000
SMALL = TinyModel().with_generation(height=32, width=32, window=4, overlap=2, num_steps=2)
SPEECH = 0.1 * np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32)
VIDEO = np.random.default_rng(1).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)
MASK = np.zeros((32, 32), np.uint8)
MASK[8:24, 8:24] = 255
SCENE = {"video": VIDEO, "edit_mask": MASK}


@pytest.fixture(scope="module")
def engine():
    return rt.Engine(tiny_components(SMALL))


def finished(session, speech=SPEECH):
    if len(speech):
        session.push_audio(speech, RATE)
    session.end_audio()
    return list(session)


def frames_of(chunks):
    return np.concatenate([chunk.frames for chunk in chunks])


@pytest.fixture(scope="module")
def whole(engine):
    with engine.open_session(**SCENE) as session:
        return frames_of(finished(session))


def test_the_source_ends_the_session_and_keeps_its_bytes_outside_the_mask(whole):
    assert len(whole) == 70
    outside = np.ones((32, 32), bool)
    outside[8:24, 8:24] = False
    np.testing.assert_array_equal(whole[:, outside], VIDEO[:, outside])


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_after_an_interrupt_the_source_goes_on_where_it_was(engine, whole, count):
    results = []
    for seed in (7, 8):
        dropped = 0.3 * np.random.default_rng(seed).standard_normal(RATE).astype(np.float32)
        with engine.open_session(**SCENE) as session:
            session.push_audio(SPEECH[: 2 * RATE], RATE)
            chunks = session.frames()
            made = [next(chunks) for _ in range(count)]
            session.push_audio(dropped, RATE)
            cut = session.interrupt()
            results.append(frames_of([*made, *finished(session)]))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0][: cut.frame_index], whole[: cut.frame_index])
    outside = np.ones((32, 32), bool)
    outside[8:24, 8:24] = False
    np.testing.assert_array_equal(results[0][:, outside], VIDEO[: len(results[0]), outside])
    assert len(results[0]) == 70


def test_a_snapshot_at_every_chunk_goes_on_with_the_same_bytes(engine, whole):
    snapshots, made = [], []
    with engine.open_session(**SCENE) as session:
        snapshots.append((0, session.num_pushed, session.snapshot()))
        for piece in np.split(SPEECH, range(0, len(SPEECH), 3_001)):
            session.push_audio(piece, RATE)
            for chunk in session.frames():
                made.append(chunk)
                snapshots.append((len(made), session.num_pushed, session.snapshot()))
    assert len(snapshots) > 10
    for count, pushed, snapshot in snapshots:
        with engine.restore_session(snapshot, **SCENE) as session:
            rest = finished(session, SPEECH[pushed:])
        np.testing.assert_array_equal(frames_of(made[:count] + rest), whole)


def test_another_video_or_none_is_refused(engine):
    with engine.open_session(**SCENE) as session:
        session.push_audio(SPEECH[: 2 * RATE], RATE)
        assert list(session.frames())
        snapshot = session.snapshot()
    for video in (None, VIDEO[::-1].copy(), VIDEO[:2]):
        scene = {} if video is None else {**SCENE, "video": video}
        with pytest.raises(InvalidArgument, match="video"):
            engine.restore_session(snapshot, **scene)
    assert engine.health().num_sessions == 0
    with engine.open_session(image=VIDEO[0]) as session:
        plain = session.snapshot()
    with pytest.raises(InvalidArgument, match="video"):
        engine.restore_session(plain, **SCENE)
