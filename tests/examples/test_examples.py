"""The examples run with the random model; the LiveKit adapter imports and works without LiveKit."""

import asyncio
import importlib.util
import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

import skyreels_rt as rt
from skyreels_rt.media.portraits import portrait_path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(*arguments):
    command = [sys.executable, "-P", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_live_file(tmp_path):
    assert "50 frames" in run(EXAMPLES / "live_file.py", portrait_audio(tmp_path),
                              tmp_path / "a.mp4", "tiny-random")  # fmt: skip
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 50


def test_asyncio_live():
    said = run(EXAMPLES / "asyncio_live.py", "tiny-random")
    assert "interrupted after" in said
    assert "frames" in said


def test_offline(tmp_path):
    said = run(EXAMPLES / "offline.py", portrait_audio(tmp_path), portrait_path("sam"),
               tmp_path / "b.mp4", "tiny-random")  # fmt: skip
    assert "50 frames" in said


def portrait_audio(folder):
    """Two seconds of noise as a WAV file."""
    import soundfile

    sound = np.random.default_rng(0).uniform(-0.3, 0.3, 32_000)
    soundfile.write(folder / "speech.wav", sound, 16_000)
    return folder / "speech.wav"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def adapter(monkeypatch):
    module = load("livekit_avatar")
    if module.rtc is None:
        frame = lambda *fields: ("frame", fields)  # noqa: E731
        module.rtc = SimpleNamespace(
            AudioFrame=frame, VideoFrame=frame, VideoBufferType=SimpleNamespace(RGB24=0)
        )
        module.AudioSegmentEnd = lambda: "end"
    return module


def test_livekit_adapter(adapter):
    def audio(seconds):
        count = int(seconds * 16_000)
        return SimpleNamespace(
            data=bytes(2 * count), samples_per_channel=count, num_channels=1, sample_rate=16_000
        )

    async def talk():
        engine, got = rt.Engine.from_pretrained("tiny-random"), []
        async with engine.open_session(image=portrait_path("mira")) as session:
            avatar = adapter.PortraitVideo(session)
            await avatar.push_audio(audio(5.0))
            await avatar.clear_buffer()
            await avatar.push_audio(audio(2.0))
            await avatar.push_audio("the end of a segment")
            await session.end_audio()
            async for item in avatar:
                got.append(item)
        return got

    got = asyncio.run(talk())
    assert got[-1] == "end" or type(got[-1]).__name__ == "AudioSegmentEnd"
    assert sum(1 for item in got if item != "end") >= 50


def test_ray_replica_without_ray(tmp_path):
    pytest.importorskip("starlette")

    async def answer(replica, portrait):
        async def body():
            return portrait_audio(tmp_path).read_bytes()

        request = SimpleNamespace(body=body, query_params={"portrait": portrait})
        response = await replica(request)
        if response.status_code != 200:
            return response.status_code, response.body
        return 200, b"".join([part async for part in response.body_iterator])

    replica = load("ray_serve").Portraits("tiny-random")
    replica.check_health()
    status, video = asyncio.run(answer(replica, "ada"))
    assert status == 200
    with av.open(io.BytesIO(video), format="mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == 50
    status, text = asyncio.run(answer(replica, "../ada"))
    assert status == 400
    assert b"ada, june" in text
