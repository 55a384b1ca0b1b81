"""The command `stream`: speech in as it comes, video out as it is made."""

import os
import signal
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
from PIL import Image
from typer.testing import CliRunner

import skyreels_rt as rt
from skyreels_rt.cli import app
from skyreels_rt.testing.tiny import TinyModel, write_tiny_model

SMALL = TinyModel().with_generation(height=32, width=32, window=3, overlap=1, num_steps=1)
SECONDS = 1.2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "small"
    write_tiny_model(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    samples = (0.1 * rng.standard_normal(int(SECONDS * 16_000)) * 32768).astype(np.int16)
    soundfile.write(folder / "speech.wav", samples, 16_000)
    picture = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(picture).save(folder / "face.png")
    return folder, samples


@pytest.fixture(scope="module")
def expected(model, inputs):
    """Frames of the offline job with the command's horizon."""
    folder, samples = inputs
    engine = rt.Engine.from_pretrained(model)
    return engine.generate(
        samples,
        sample_rate=16_000,
        image=folder / "face.png",
        horizon=1,
        on_progress=lambda _: None,
    )


def start(model, inputs, *flags, **pipes):
    command = [
        sys.executable, "-P", "-m", "skyreels_rt", "stream", "--model", str(model),
        "--image", str(inputs[0] / "face.png"), *map(str, flags),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, **pipes)


def raw_frames(data):
    return np.frombuffer(data, np.uint8).reshape(-1, 32, 32, 3)


def test_a_file_becomes_the_frames_of_the_offline_job(model, inputs, expected):
    flags = (inputs[0] / "speech.wav", "--pace", "fast", "--format", "rgb24", "-o", "-")
    out, errors = start(model, inputs, *flags, stdout=subprocess.PIPE).communicate(timeout=120)
    assert np.array_equal(raw_frames(out), expected.frames)
    assert b"30 frames" in errors


def test_samples_on_standard_input_become_a_fragmented_mp4(model, inputs, expected, tmp_path):
    _, samples = inputs
    target = tmp_path / "live.mp4"
    process = start(model, inputs, "-", "-o", target, stdin=subprocess.PIPE)
    _, errors = process.communicate(samples.astype("<i2").tobytes(), timeout=120)
    assert process.returncode == 0, errors
    assert target.read_bytes().count(b"moof") >= 2
    with av.open(str(target), format="mp4") as container:
        video = container.streams.video[0]
        assert video.average_rate == Fraction(25)
        assert sum(1 for _ in container.decode(video)) == len(expected.frames)
    with av.open(str(target), format="mp4") as container:
        heard = sum(frame.samples for frame in container.decode(container.streams.audio[0]))
    assert heard >= len(samples)


def test_ctrl_c_ends_with_a_video_that_plays(model, inputs, tmp_path):
    target = tmp_path / "live.mp4"
    process = start(model, inputs, "-", "-o", target, stdin=subprocess.PIPE)
    silence = bytes(2 * 16_000)
    with process.stdin:
        for _ in range(4):
            process.stdin.write(silence)
            process.stdin.flush()
        while not (target.exists() and b"moof" in target.read_bytes()):
            assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    errors = process.stderr.read()
    process.stderr.close()
    assert b"interrupted" in errors
    assert b"Traceback" not in errors
    with av.open(str(target), format="mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) > 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("SPEECH", "--format", "gif", "-o", "x"), "--format"),
        (("SPEECH", "--pace", "slow", "-o", "x"), "--pace"),
        (("-", "--sample-rate", "12345", "-o", "x"), "sample_rate"),
        (("missing.wav", "-o", "x"), "missing.wav"),
        (("SPEECH", "-o", "missing/x.mp4"), "missing/x.mp4"),
    ],
)
def test_refusals(model, inputs, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    speech = str(inputs[0] / "speech.wav")
    command = ["stream", "--model", str(model), "--image", str(inputs[0] / "face.png")]
    result = CliRunner().invoke(
        app, [*command, *(flag.replace("SPEECH", speech) for flag in flags)]
    )
    assert result.exit_code == 2, result.output
    assert words in result.output.replace("\n", "")
    assert list(tmp_path.iterdir()) == []


def test_a_stream_that_ends_inside_a_sample_is_named(model, inputs, tmp_path):
    process = start(model, inputs, "-", "-o", tmp_path / "x.mp4", stdin=subprocess.PIPE)
    _, errors = process.communicate(bytes(2 * 16_000 + 1), timeout=120)
    assert process.returncode == 2
    assert b"inside one" in errors.replace(b"\n", b" ")
