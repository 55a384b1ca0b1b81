"""``torchrun -m skyreels_rt generate``: the same file as one process, written by one rank."""

import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from PIL import Image

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Speech for two windows, and a portrait."""
    folder = tmp_path_factory.mktemp("inputs")
    draw = np.random.default_rng(0)
    soundfile.write(folder / "a.wav", 0.1 * draw.standard_normal(int(16_000 * 3.6)), 16_000)
    Image.fromarray(draw.integers(0, 255, (128, 128, 3), dtype=np.uint8)).save(folder / "a.png")
    return folder


def generate(inputs, output, launcher, *options):
    command = [
        sys.executable, "-P", *launcher, "-m", "skyreels_rt", "generate", "--model", "tiny-random",
        "--audio", str(inputs / "a.wav"), "--image", str(inputs / "a.png"), "--steps", "1",
        "--horizon", "2", "-o", str(output), *options,
    ]  # fmt: skip
    return subprocess.run(
        command, env={**os.environ, **ONE_THREAD}, capture_output=True, text=True, timeout=300,
        check=False, cwd=inputs,
    )  # fmt: skip


def test_torchrun_writes_the_file_of_one_process(inputs, tmp_path):
    alone = generate(inputs, tmp_path / "one.mp4", [])
    assert alone.returncode == 0, alone.stderr
    report = tmp_path / "two.json"
    spread = generate(
        inputs, tmp_path / "two.mp4", TORCHRUN, "--parallel", "window=2", "--json", str(report)
    )
    assert spread.returncode == 0, spread.stderr
    assert (tmp_path / "two.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()
    assert spread.stderr.count(" frames in ") == 1  # only one rank speaks
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.mp4", "two.json", "two.mp4"]
