"""The one report format of ``generate`` and ``bench`` (docs/benchmarks.md)."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from skyreels_rt.errors import OutputError

SCHEMA = 1
PACKAGES = (
    "skyreels-rt", "torch", "numpy", "transformers", "av", "soxr", "diffusers", "triton", "onnx",
    "onnxscript", "onnxruntime", "tensorrt", "tensorrt-rtx",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One measured figure.

    Attributes
    ----------
    name : str
        Stable name, listed in docs/benchmarks.md.
    value : float
        The figure; a median where ``min`` and ``max`` are given.
    unit : str
        Unit of ``value``.
    target : float or None
        What it should reach; None where nothing is promised.
    better : {"lower", "higher"}
        Which way is good.
    min, max : float or None
        Spread over the repetitions.
    """

    name: str
    value: float
    unit: str
    target: float | None = None
    better: Literal["lower", "higher"] = "lower"
    min: float | None = None
    max: float | None = None

    @property
    def ok(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.target is None:
            return None
        return self.value <= self.target if self.better == "lower" else self.value >= self.target


@dataclass(frozen=True)
class Report:
    """A run's figures with what is needed to read them.

    Attributes
    ----------
    command : str
        The command line that made it.
    device : str
        Device the work ran on.
    threads : int
        CPU threads torch used.
    kernel_plan : dict
        Chosen implementation of every operator.
    rows : list of Row
        The figures.
    details : dict
        Further facts (seed, stages, shapes), JSON data.
    """

    command: str
    device: str
    threads: int
    kernel_plan: dict[str, Any]
    rows: list[Row]
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "commit": _commit(),
            "versions": versions(),
            "device": self.device,
            "threads": self.threads,
            "kernel_plan": self.kernel_plan,
            "rows": [{**asdict(row), "ok": row.ok} for row in self.rows],
            "details": self.details,
        }

    def write(self, path: Path) -> None:
        """Write the report to ``path``.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        try:
            path.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror}).") from error


def require_writable(path: Path) -> None:
    """Raise now what :meth:`Report.write` would raise after the work.

    Raises
    ------
    OutputError
        ``path`` is a folder, or its folder does not exist.
    """
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise OutputError(
            f"{path}: expected a file in an existing folder.",
            stage="output",
            hint="Make the folder first.",
        )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape a result, where installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """Commit of the source tree this package runs from; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
