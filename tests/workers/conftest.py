"""What the tests with processes share: a small model folder, and looking after processes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

GONE_WITHIN_S = 10.0
"""What is promised of a group of workers; timing is the behaviour under test."""


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rsplit(")", 1)[1].split()[0] != "Z"


@pytest.fixture
def assert_gone():
    """Wait until none of some processes runs, and fail if that takes too long."""

    def check(pids):
        end = time.monotonic() + GONE_WITHIN_S
        while any(is_running(pid) for pid in pids):
            assert time.monotonic() < end, "worker processes are left"
            time.sleep(0.05)

    return check


@pytest.fixture
def raised():
    """The error that a call raises, once it came in time."""

    def caught_in_time(call, kind, within=5.0):
        begin = time.monotonic()
        with pytest.raises(kind) as caught:
            call()
        assert time.monotonic() - begin < within
        return caught.value

    return caught_in_time


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """Folder of a small random model: 32 x 48 pixels, windows of 5 latents."""
    from skyreels_rt.testing.tiny import TinyModel, write_tiny_model

    folder = tmp_path_factory.mktemp("models") / "small"
    tiny = TinyModel().with_generation(height=32, width=48, window=5, overlap=2, num_steps=2)
    write_tiny_model(folder, tiny)
    return folder
