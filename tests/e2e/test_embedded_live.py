"""Live sessions of the embedded model: the laws of tests/engine/test_live.py on a real voice."""

import hashlib
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import skyreels_rt as rt
from skyreels_rt.media.portraits import portrait_path

pytestmark = pytest.mark.slow

RESTORED = """
import hashlib, sys
import skyreels_rt as rt

engine = rt.Engine.from_pretrained("demo-fast")
with engine.restore_session(sys.argv[1]) as session:
    digest = hashlib.sha256()
    for chunk in session:
        digest.update(chunk.frames.tobytes() + chunk.audio.tobytes())
sys.stdout.write(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def engine():
    return rt.Engine.from_pretrained("demo-fast")


@pytest.fixture(scope="module")
def speech(shared_data):
    samples, rate = soundfile.read(shared_data / "speech" / "jfk_16k_11s.wav", dtype="float32")
    assert rate == 16_000
    return samples[: int(2.6 * rate)]


def digest(chunks):
    found = hashlib.sha256()
    for chunk in chunks:
        found.update(chunk.frames.tobytes() + chunk.audio.tobytes())
    return found.hexdigest()


def test_50_cuttings_give_the_bytes_of_generate(engine, speech):
    video = engine.generate(
        speech, sample_rate=16_000, image=portrait_path("ada"), horizon=1,
        on_progress=lambda progress: None,
    )  # fmt: skip
    for seed in range(50):
        rng = random.Random(seed)
        cuts = sorted(rng.sample(range(len(speech)), rng.randint(0, 200)))
        chunks = []
        with engine.open_session(image=portrait_path("ada")) as session:
            for piece in np.split(speech, cuts):
                session.push_audio(piece, 16_000)
                chunks.extend(session.frames())
            session.end_audio()
            chunks.extend(session)
        np.testing.assert_array_equal(
            np.concatenate([chunk.frames for chunk in chunks]), video.frames
        )
        np.testing.assert_array_equal(
            np.concatenate([chunk.audio for chunk in chunks]), video.audio
        )


def test_snapshots_go_on_in_another_process(engine, speech, tmp_path):
    snapshots, chunks = [], []
    with engine.open_session(image=portrait_path("ada")) as session:
        session.push_audio(speech, 16_000)
        session.end_audio()
        for chunk in session:
            chunks.append(chunk)
            snapshots.append(session.snapshot())
    for count, snapshot in enumerate(snapshots, start=1):
        path = tmp_path / "session"
        path.write_bytes(snapshot)
        command = [sys.executable, "-P", "-c", RESTORED, str(path)]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=Path(sys.prefix)
        )
        assert done.stdout == digest(chunks[count:]), count
