"""A session that has run for ten years: counters past 2^32 give the frames and the exact times of
one that has just begun."""

import json
from fractions import Fraction

import numpy as np
import pytest

import skyreels_rt as rt
from skyreels_rt import group_run
from skyreels_rt.live.snapshot import pack_snapshot, unpack_snapshot
from skyreels_rt.testing.tiny import TinyModel, tiny_components
from skyreels_rt.types import PartState

RATE = 16_000
LATENTS = 2**31  # 2^33 frames, 5.5e12 samples
FRAMES, SAMPLES = 4 * LATENTS, 4 * LATENTS * RATE // 25
SMALL = TinyModel().with_generation(height=32, width=32, window=5, overlap=2, num_steps=2)
SPEECH = 0.1 * np.random.default_rng(0).standard_normal(5 * RATE).astype(np.float32)
PORTRAIT = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def engine():
    return rt.Engine(tiny_components(SMALL))


def moved(engine, state):
    """The state of a session that has been through ``LATENTS`` latents more."""
    facts = json.loads(json.dumps(state.facts))
    for name, by in {"planned": LATENTS, "decoded": LATENTS, "first_kept": LATENTS,
                     "frame_index": FRAMES}.items():  # fmt: skip
        facts[name] += by
    facts["speech"]["num_samples"] += SAMPLES
    facts["speech"]["first_sample"] += SAMPLES
    tokens = facts["tokens"]
    tokens["first"] += LATENTS
    for name in ("num_in", "num_out", "first"):
        tokens["resampler"][name] += SAMPLES
    tokens["features"]["num_samples"] += SAMPLES
    tokens["features"]["first_frame"] += FRAMES
    grid = engine.components.audio_features
    steps, rest = divmod(SAMPLES, grid.step * grid.hop)
    assert rest == 0
    tensors = {}
    for name, tensor in state.tensors.items():
        head, _, index = name.rpartition(".")
        on_grid = head in ("tokens.features.page", "tokens.features.step")
        tensors[f"{head}.{int(index) + steps}" if on_grid else name] = tensor
    return PartState(facts, tensors)


def rest_of(session):
    chunks = []
    for piece in np.array_split(SPEECH[2 * RATE :], 7):
        session.push_audio(piece, RATE)
        chunks.extend(session.frames())
    session.end_audio()
    return [*chunks, *session]


def test_ten_years_on(engine, monkeypatch):
    parts, original = engine.components, group_run.timeline_noise
    with engine.open_session(image=PORTRAIT) as session:
        session.push_audio(SPEECH[: 2 * RATE], RATE)
        begun = list(session.frames())
        snapshot = session.snapshot()
        expected = rest_of(session)
        size = len(session.snapshot())
    # Noise is another one everywhere; here it repeats, so that the rest can be compared.
    asked = []

    def repeated(seed, first, count, shape):
        asked.append(first)
        return original(seed, first % LATENTS, count, shape)

    monkeypatch.setattr(group_run, "timeline_noise", repeated)
    late = pack_snapshot(parts, moved(engine, unpack_snapshot(parts, snapshot)))
    with engine.restore_session(late) as session:
        got = rest_of(session)
        assert len(session.snapshot()) <= size + 200  # digits
    assert len(got) == len(expected) > 10
    index = sum(len(chunk.frames) for chunk in begun) + FRAMES
    assert index > 2**32
    for far, near in zip(got, expected, strict=True):
        np.testing.assert_array_equal(far.frames, near.frames)
        np.testing.assert_array_equal(far.audio, near.audio)
        assert (far.index, far.pts) == (index, Fraction(index, 25))
        assert far.index == near.index + FRAMES
        index += len(far.frames)
    assert min(asked) > 2**31 - 10
