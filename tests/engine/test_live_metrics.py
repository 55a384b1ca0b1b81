"""What live sessions tell the outside: metrics and health."""

import numpy as np
import pytest

import skyreels_rt as rt
from skyreels_rt import errors
from skyreels_rt.testing.tiny import TinyModel, tiny_components

RATE = 16_000
SMALL = TinyModel().with_generation(height=32, width=32, window=5, overlap=2, num_steps=2)
SPEECH = 0.1 * np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32)
PORTRAIT = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def opened(engine, **options):
    return engine.open_session(**{"image": PORTRAIT, "prompt": "hello", **options})


def samples_of(engine):
    """Every sample of the engine's metrics by name and labels."""
    lines = [line for line in engine.metrics().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_metrics_tell_what_happened():
    engine = rt.Engine(tiny_components(SMALL), max_sessions=1)
    assert engine.health() == rt.Health(0, 1, 0, None)
    with opened(engine) as session:
        assert not engine.health().has_room
        with pytest.raises(errors.AdmissionRefused):
            opened(engine)
        session.push_audio(SPEECH, RATE)
        assert samples_of(engine)["skyreels_rt_audio_backlog_seconds"] == 3.0
        made = [next(session.frames()) for _ in range(3)]
        session.interrupt()
        session.push_audio(SPEECH[:RATE], RATE)
        session.end_audio()
        made.extend(session)
    found = samples_of(engine)
    frames = sum(len(chunk.frames) for chunk in made)
    assert found["skyreels_rt_frames_total"] == frames == 9 + 25
    assert found["skyreels_rt_frames_dropped_total"] == 75 - 9
    assert found["skyreels_rt_chunk_seconds_count"] == len(made)
    assert found["skyreels_rt_first_frame_seconds_count"] == 1
    assert found["skyreels_rt_cancel_seconds_count"] == 1
    assert found["skyreels_rt_sessions_active"] == 0
    assert found['skyreels_rt_sessions_total{outcome="finished"}'] == 1
    assert found['skyreels_rt_sessions_total{outcome="refused"}'] == 1
    assert found['skyreels_rt_stage_seconds_count{stage="decode"}'] == len(made)
    assert engine.health().seconds_since_chunk >= 0


def test_a_failure_is_counted_and_the_session_can_be_closed(monkeypatch):
    engine = rt.Engine(tiny_components(SMALL))
    with opened(engine) as session:
        session.push_audio(SPEECH, RATE)
        bias = engine.components.transformer.head.head.bias
        before = bias.data.clone()
        bias.data.fill_(float("nan"))
        with pytest.raises(errors.NonFinite):
            next(session.frames())
        bias.data.copy_(before)
        session.end_audio()
        assert sum(len(chunk.frames) for chunk in session) == 75  # nothing was lost
    assert samples_of(engine)['skyreels_rt_faults_total{code="non_finite"}'] == 1
