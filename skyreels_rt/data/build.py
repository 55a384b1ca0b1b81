"""From sources to shards, manifest and report; killed at any moment, the same call goes on.

The folder grows parts (one source each) until all are there; then they are laid into shards. What
comes out depends on the sources' names and bytes and on the settings, not on the number of workers
or on how often the build was interrupted.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from skyreels_rt.data.manifest import ClipRow, write_manifest
from skyreels_rt.data.processes import run_in_processes
from skyreels_rt.data.report import BuildReport, write_report
from skyreels_rt.data.settings import DataSettings
from skyreels_rt.data.shards import Shard, ShardWriter
from skyreels_rt.data.tasks import Outcome, Parts, SourceTask, find_sources
from skyreels_rt.errors import InvalidArgument, OutputError

MANIFEST: Final = "manifest.parquet"
REPORT: Final = "report.html"
_RECORD: Final = "build.json"
SOURCE_TIMEOUT_S: Final = 7_200.0


class Runner(Protocol):
    """Processes sources somewhere."""

    def __call__(
        self, tasks: Sequence[SourceTask], settings: DataSettings, folder: Path
    ) -> Iterator[tuple[SourceTask, Mapping[str, Any], Path]]:
        """Yield (task, answer, tar file) as they finish, in any order."""


@dataclass(frozen=True)
class BuildSummary:
    """What a build made.

    Attributes
    ----------
    num_sources, num_clips, num_kept : int
        Counts; a source that could not be used counts as no clip.
    num_resumed : int
        Sources whose results lay there from a run before.
    num_shards : int
        Tar files.
    video_s : float
        Length of all pictures that were read.
    seconds : dict of str to float
        Core-seconds by stage, over all workers.
    peak_rss_mb : float
        Largest memory of a worker.
    """

    num_sources: int
    num_clips: int
    num_kept: int
    num_resumed: int
    num_shards: int
    video_s: float
    seconds: dict[str, float]
    peak_rss_mb: float


def build(
    sources: Sequence[Path],
    folder: Path,
    settings: DataSettings,
    *,
    workers: int | None = None,
    runner: Runner | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> BuildSummary:
    """Make shards, manifest and report of the sources in ``folder``.

    Parameters
    ----------
    sources : sequence of Path
        Files and folders.
    folder : Path
        Where to; made if absent. One that holds another build (other settings) is refused.
    settings : DataSettings
        How.
    workers : int, optional
        Processes; all cores by default. Without meaning if ``runner`` is given.
    runner : Runner, optional
        Where the sources are processed; local processes by default.
    on_progress : callable, optional
        Called with the number of finished sources and of all.

    Returns
    -------
    BuildSummary

    Raises
    ------
    InvalidArgument
        No sources, or the folder belongs to other settings or is being built.
    OutputError
        Something cannot be written.
    WorkerFailed
        No worker can start.
    """
    tasks = find_sources(sources)
    if workers is not None and workers < 1:
        raise InvalidArgument("workers", expected=">= 1", got=workers)
    count = workers or len(os.sched_getaffinity(0))
    run = runner or partial(run_in_processes, workers=count, timeout_s=SOURCE_TIMEOUT_S)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            return _build(tasks, folder, settings, run, on_progress or _no_progress)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{folder}: cannot be written ({error}).", stage="data") from error


def _no_progress(done: int, total: int) -> None:
    del done, total


def _build(
    tasks: Sequence[SourceTask],
    folder: Path,
    settings: DataSettings,
    run: Runner,
    on_progress: Callable[[int, int], None],
) -> BuildSummary:
    record = _Record(folder)
    record.require(settings)
    summary = record.finished(tasks)
    if summary is not None and (folder / MANIFEST).exists():
        shutil.rmtree(folder / "parts", ignore_errors=True)
        on_progress(len(tasks), len(tasks))
        return replace(summary, num_resumed=len(tasks))
    parts = Parts(folder / "parts")
    for left in parts.folder.glob("run-*"):
        shutil.rmtree(left, ignore_errors=True)
    missing = [task for task in tasks if parts.load(task) is None]
    done = len(tasks) - len(missing)
    on_progress(done, len(tasks))
    with tempfile.TemporaryDirectory(dir=parts.folder, prefix="run-") as work:
        for task, answer, samples in run(missing, settings, Path(work)):
            parts.save(task, _result(task, answer), samples)
            done += 1
            on_progress(done, len(tasks))
    summary = _assemble(tasks, parts, folder, settings, len(tasks) - len(missing))
    record.finish(tasks, summary)
    shutil.rmtree(parts.folder)
    return summary


def _result(task: SourceTask, answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Result of an answer; a crash becomes a row with the reason."""
    if "result" in answer:
        result: Mapping[str, Any] = answer["result"]
        return result
    outcome = Outcome.crashed(task, str(answer.get("crashed", "no answer")))
    rows = [row.to_json() for row in outcome.rows]
    return {"rows": rows, "seconds": {}, "video_s": 0.0, "thumbnails": {}}


def _assemble(
    tasks: Sequence[SourceTask],
    parts: Parts,
    folder: Path,
    settings: DataSettings,
    num_resumed: int,
) -> BuildSummary:
    """Lay the parts into shards, in the order of the sources; the manifest comes last."""
    (folder / MANIFEST).unlink(missing_ok=True)  # it must not name shards that are gone
    for old in folder.glob("shard-*.tar*"):
        old.unlink()
    rows: list[ClipRow] = []
    first_of: dict[str, str] = {}
    shards = _ShardSeries(folder, settings.output.samples_per_shard)
    report = BuildReport(settings)
    for task in tasks:
        outcome = parts.load(task)
        if outcome is None:
            raise OutputError(
                f"{task.name} changed while it was processed.", stage="data", hint="Run it again."
            )
        digest = next((row.sha256 for row in outcome.rows if row.sha256), "")
        twin = first_of.setdefault(digest, task.name) if digest else task.name
        if twin != task.name:
            outcome = replace(outcome, rows=(_duplicate(task, digest, twin),), thumbnails={})
        placed = shards.place(outcome.rows, parts.shard(task))
        rows.extend(placed)
        report.add(placed, outcome)
    shards.close()
    summary = BuildSummary(
        num_sources=len(tasks),
        num_clips=sum(row.num_frames > 0 for row in rows),
        num_kept=sum(row.kept for row in rows),
        num_resumed=num_resumed,
        num_shards=shards.num_shards,
        video_s=report.video_s,
        seconds=dict(report.seconds),
        peak_rss_mb=report.peak_rss_mb,
    )
    write_report(folder / REPORT, report)
    write_manifest(folder / MANIFEST, rows, settings.digest)
    return summary


def _duplicate(task: SourceTask, digest: str, twin: str) -> ClipRow:
    return ClipRow(
        digest[:16], task.name, digest, reason="duplicate", detail=f"The same bytes as {twin}."
    )


class _ShardSeries:
    """Shards of at most so many samples, one after the other."""

    def __init__(self, folder: Path, samples_per_shard: int) -> None:
        self._folder = folder
        self._most = samples_per_shard
        self._writer: ShardWriter | None = None
        self.num_shards = 0

    def place(self, rows: Sequence[ClipRow], part: Path) -> list[ClipRow]:
        """Copy the samples of kept rows; the rows with the names of their shards."""
        if not any(row.kept for row in rows):
            return list(rows)
        held = Shard(part)
        indices = {key: index for index, key in enumerate(held.keys)}
        placed = []
        for row in rows:
            if not row.kept:
                placed.append(row)
                continue
            writer = self._open()
            writer.add(*held.files(indices[row.key]))
            placed.append(replace(row, shard=writer.path.name))
        return placed

    def close(self) -> None:
        """Complete the last shard."""
        if self._writer is not None:
            self._writer.__exit__(None, None, None)
            self._writer = None

    def _open(self) -> ShardWriter:
        if self._writer is not None and self._writer.num_samples == self._most:
            self.close()
        if self._writer is None:
            self._writer = ShardWriter(self._folder / f"shard-{self.num_shards:06d}.tar")
            self.num_shards += 1
        return self._writer


class _Record:
    """``build.json``: the settings of a folder, and what a finished build was made from."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _RECORD
        self._data: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            self._data = json.loads(self._path.read_text(encoding="utf-8"))

    def require(self, settings: DataSettings) -> None:
        """Raise if the folder was begun with other settings; write down these if it is new."""
        held = self._data.get("digest")
        if held is not None and held != settings.digest:
            raise InvalidArgument(
                "folder",
                expected=f"a folder built with settings {settings.digest}",
                got=f"one built with {held}",
                hint="Choose another folder, or delete this one.",
            )
        if held is None:
            self._data = {"digest": settings.digest, "settings": settings.to_json()}
            self._write()

    def finished(self, tasks: Sequence[SourceTask]) -> BuildSummary | None:
        """Summary of a finished build of these files as they are now, else None."""
        if self._data.get("sources") != _digest_of(tasks):
            return None
        try:
            return BuildSummary(**self._data["summary"])
        except (KeyError, TypeError):
            return None

    def finish(self, tasks: Sequence[SourceTask], summary: BuildSummary) -> None:
        """Write down that the build is complete."""
        self._data["sources"] = _digest_of(tasks)
        self._data["summary"] = dict(vars(summary))
        self._write()

    def _write(self) -> None:
        partial_path = self._path.with_suffix(".partial")
        partial_path.write_text(json.dumps(self._data, indent=1) + "\n", encoding="utf-8")
        partial_path.replace(self._path)


def _digest_of(tasks: Sequence[SourceTask]) -> str:
    listed = [[task.name, *task.stamp] for task in tasks]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one build at a time; a killed one lets go of it."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidArgument(
                "folder", expected="a folder nobody builds in", got=f"{folder}, in use"
            ) from error
        yield
