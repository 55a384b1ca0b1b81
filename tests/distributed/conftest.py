"""Real processes that talk over gloo: one launch runs many cases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "programs"
TIMEOUT_S = 300


def rank_environment() -> dict[str, str]:
    """This process's environment with one thread, so that all ranks multiply alike."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Launch:
    """Starts a program of ``programs/`` on every rank of a new process group."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, name: str, world_size: int, facts: object) -> list[subprocess.Popen[str]]:
        """Processes whose arguments are folder, rank, world size and ``facts`` as JSON."""
        arguments = [sys.executable, "-P", str(PROGRAMS / f"{name}.py"), str(self.folder)]
        return [
            subprocess.Popen(
                [*arguments, str(rank), str(world_size), json.dumps(facts)],
                env=rank_environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(world_size)
        ]

    def run(self, name: str, world_size: int, facts: object) -> list[dict]:
        """What every rank wrote to ``rank{n}.json``; each must end well."""
        processes = self.start(name, world_size, facts)
        try:
            outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        for process, output in zip(processes, outputs, strict=True):
            assert process.returncode == 0, output
        return [json.loads((self.folder / f"rank{n}.json").read_text()) for n in range(world_size)]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """A launcher with a folder of its own."""
    return Launch(tmp_path)


@pytest.fixture(scope="module")
def shared_launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """The same for one launch that all tests of a module look at."""
    return Launch(tmp_path_factory.mktemp("ranks"))
