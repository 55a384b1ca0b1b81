"""The sources of a build, in a fixed order, and where each one's results are kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from skyreels_rt.data.manifest import ClipRow
from skyreels_rt.errors import InvalidArgument

VIDEO_SUFFIXES: Final = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"})


@dataclass(frozen=True)
class SourceTask:
    """One source to process.

    Attributes
    ----------
    path : Path
        The file.
    name : str
        What the manifest calls it: its path below what was named.
    """

    path: Path
    name: str

    @property
    def id(self) -> str:
        """Name of its results: a digest of its name."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:20]

    @property
    def stamp(self) -> list[int]:
        """Size and time of change of the file, by which finished work is known to be current."""
        try:
            status = self.path.stat()
        except OSError:
            return [0, 0]
        return [status.st_size, status.st_mtime_ns]


def find_sources(sources: Sequence[Path]) -> list[SourceTask]:
    """List the files of a build, sorted by name.

    Parameters
    ----------
    sources : sequence of Path
        Files, taken whatever they are called, and folders, searched for files with the suffix of
        a video (hidden ones and links to folders left out).

    Raises
    ------
    InvalidArgument
        Nothing is found, a path does not exist, or two files would have one name.
    """
    found: dict[str, Path] = {}
    for source in sources:
        if not os.path.lexists(source):
            raise InvalidArgument("sources", expected="existing files and folders", got=source)
        for path, name in _below(source):
            if name in found and found[name] != path:
                raise InvalidArgument(
                    "sources", expected="one file for every name", got=f"{found[name]} and {path}"
                )
            found[name] = path
    if not found:
        raise InvalidArgument(
            "sources", expected=f"at least one file ending in {sorted(VIDEO_SUFFIXES)}", got="none"
        )
    return [SourceTask(found[name], name) for name in sorted(found)]


def _below(source: Path) -> list[tuple[Path, str]]:
    if not source.is_dir():
        return [(source, source.name)]
    root = source.resolve().name
    files = []
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if path.suffix.lower() in VIDEO_SUFFIXES and not name.startswith("."):
                files.append((path, f"{root}/{path.relative_to(source).as_posix()}"))
    return files


@dataclass(frozen=True)
class Outcome:
    """What a runner brings back for one source.

    Attributes
    ----------
    rows : tuple of ClipRow
        Never empty, but for a source without any frame.
    seconds : mapping of str to float
        Core-seconds by stage.
    video_s : float
        Length of the picture that was read.
    thumbnails : mapping of str to str
        JPEG in base64 by key.
    peak_rss_mb : float
        Of the worker, so far.
    """

    rows: tuple[ClipRow, ...]
    seconds: Mapping[str, float]
    video_s: float
    thumbnails: Mapping[str, str]
    peak_rss_mb: float

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        """Build it from a worker's answer.

        Raises
        ------
        KeyError, TypeError
            ``data`` is no such answer.
        """
        return cls(
            rows=tuple(ClipRow.from_json(row) for row in data["rows"]),
            seconds=dict(data["seconds"]),
            video_s=float(data["video_s"]),
            thumbnails=dict(data["thumbnails"]),
            peak_rss_mb=float(data.get("peak_rss_mb", 0.0)),
        )

    @classmethod
    def crashed(cls, task: SourceTask, why: str) -> Outcome:
        """Outcome of a source whose worker died or failed on it."""
        row = ClipRow(task.id, task.name, reason="crashed", detail=why)
        return cls((row,), {}, 0.0, {}, 0.0)


class Parts:
    """Finished sources in a folder: ``<id>.json``, and ``<id>.tar`` where clips were kept.

    Parameters
    ----------
    folder : Path
        Where they are; made if absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def shard(self, task: SourceTask) -> Path:
        """Tar file of the task's samples."""
        return self.folder / f"{task.id}.tar"

    def load(self, task: SourceTask) -> Outcome | None:
        """Outcome of a task that was finished on the file as it is now, else None."""
        try:
            data = json.loads(self._record(task).read_text(encoding="utf-8"))
            if data["name"] != task.name or data["stamp"] != task.stamp:
                return None
            outcome = Outcome.from_json(data["outcome"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        is_whole = self.shard(task).exists() or not any(row.kept for row in outcome.rows)
        return outcome if is_whole else None

    def save(self, task: SourceTask, answer: Mapping[str, Any], samples: Path) -> None:
        """Keep a worker's answer, and its tar file if it wrote one; whole or not at all."""
        if samples.exists():
            samples.replace(self.shard(task))
        record = {"name": task.name, "stamp": task.stamp, "outcome": answer}
        partial = self._record(task).with_suffix(".partial")
        partial.write_text(json.dumps(record), encoding="utf-8")
        partial.replace(self._record(task))

    def _record(self, task: SourceTask) -> Path:
        return self.folder / f"{task.id}.json"
