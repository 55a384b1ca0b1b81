"""What every test shares: the installation check, the data folder, gating of slow and GPU tests."""

from __future__ import annotations

import faulthandler
import os
import sys
from pathlib import Path

import pytest

STACK_DUMP_S = 300
ROOT = Path(__file__).resolve().parents[1]
DATA_FOLDER = ROOT / ".." / "shared" / "data"

# `python -m pytest` puts the root on the path, where our folder kernels/ passes for the package of
# that name which transformers looks for; the installed package needs no such entry.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

_stderr_fd = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Stop with one sentence if the package is not installed; keep the terminal for stack dumps."""
    try:
        import torch

        if not torch.cuda.is_available():
            # Before Triton is imported, which torch does for our kernels: it runs them on the CPU.
            os.environ["TRITON_INTERPRET"] = "1"
        import skyreels_rt.kernels  # noqa: F401
    except ImportError as error:
        pytest.exit(
            f"skyreels_rt is not installed ({error}); run `pip install -e .[dev]` in the "
            "repository root first.",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )
    # Output is captured while a test runs, so the dump needs a descriptor of its own.
    config.stash[_stderr_fd] = os.dup(sys.__stderr__.fileno())


def pytest_unconfigure(config: pytest.Config) -> None:
    """Close the descriptor of :func:`pytest_configure`."""
    fd = config.stash.get(_stderr_fd, None)
    if fd is not None:
        os.close(fd)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip slow tests unless ``-m`` asks for a selection, and GPU tests where there is no GPU."""
    import torch

    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # one worker a core; two threads each would wait for each other
    slow = pytest.mark.skip(reason="slow: runs with -m slow (make soak)")
    no_gpu = pytest.mark.skip(reason="gpu: no CUDA device here")
    for item in items:
        if "slow" in item.keywords and not config.option.markexpr:
            item.add_marker(slow)
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(no_gpu)


@pytest.fixture(autouse=True)
def _dump_stacks_of_a_hanging_test(request: pytest.FixtureRequest):
    """Write every thread's stack to the terminal if a test takes longer than STACK_DUMP_S."""
    faulthandler.dump_traceback_later(STACK_DUMP_S, file=request.config.stash[_stderr_fd])
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real portraits, speech and video; the test is skipped where it is absent."""
    if not DATA_FOLDER.is_dir():
        pytest.skip("the folder of real test files (../shared/data) is not on this machine")
    return DATA_FOLDER.resolve()
