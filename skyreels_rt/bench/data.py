"""How well the data pipeline sorts: planted faults found, good clips kept, and at what cost."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from skyreels_rt.bench.data_corpus import (
    PLANTS,
    PlantedClip,
    TalkingClip,
    write_clip,
    write_corpus,
)
from skyreels_rt.data.build import MANIFEST, BuildSummary, build
from skyreels_rt.data.manifest import read_manifest
from skyreels_rt.data.settings import DataSettings, load_settings
from skyreels_rt.data.shards import FPS, SAMPLE_RATE
from skyreels_rt.media.video_file import open_video
from skyreels_rt.report import Report, Row

MIN_RECALL: Final = 0.95
MIN_KEPT: Final = 0.90
MIN_DELAYS_FOUND: Final = 0.90
MAX_RSS_MB: Final = 1_024.0
_ROLL_S = 2
_OUTPUT_SIZE = 128  # of the samples: only scores and verdicts are measured here

ClipRows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class FaultCount:
    """What became of the files with one fault.

    Attributes
    ----------
    fault : str
        Its name.
    filters : str
        Filters made for it.
    planted, found, by_filter : int
        Files; those of which nothing bad was kept; those that such a filter rejected.
    """

    fault: str
    filters: str
    planted: int
    found: int
    by_filter: int


def measure_data(
    folder: Path,
    *,
    num_good: int,
    num_each: int,
    workers: int | None,
    real: Path | None,
    command: str,
    on_step: Callable[[str], None] | None = None,
) -> Report:
    """Draw a corpus of held-out people and voices, build it, and compare with what was planted.

    Parameters
    ----------
    folder : Path
        Empty folder for corpus and build.
    num_good, num_each : int
        Files without a fault, and with each of them.
    workers : int, optional
        Processes; all cores by default.
    real : Path, optional
        A recording that must pass, and whose sound rolled by 2 s must not.
    command : str
        For the report.
    on_step : callable, optional
        Told what is being done.

    Returns
    -------
    Report
        Rows ``data.*`` of docs/benchmarks.md.
    """
    tell = on_step or _silent
    settings = load_settings()
    settings = replace(settings, output=replace(settings.output, size=_OUTPUT_SIZE))
    corpus: list[PlantedClip] = []
    for planted in write_corpus(
        folder / "corpus", "held_out", num_good=num_good, num_each=num_each
    ):
        corpus.append(planted)
        tell(f"drawing: {planted.name}")
    if real is not None:
        write_rolled(real, folder / "corpus")
    summary = build(
        [folder / "corpus"],
        folder / "build",
        settings,
        workers=workers,
        on_progress=lambda done, total: tell(f"building: {done} of {total}"),
    )
    by_file: dict[str, list[Mapping[str, Any]]] = {}
    for row in read_manifest(folder / "build" / MANIFEST):
        by_file.setdefault(Path(row["source"]).name, []).append(row)
    counts = count_faults(corpus, by_file)
    rows = [*_verdict_rows(corpus, by_file, counts, settings), *_cost_rows(summary)]
    if real is not None:
        rows.extend(_real_rows(by_file))
    table = [vars(count) for count in counts]
    return Report(
        command=command,
        device="cpu",
        threads=workers or len(os.sched_getaffinity(0)),
        kernel_plan={},
        rows=rows,
        details={"faults": table, "settings": settings.digest},
    )


def _silent(step: str) -> None:
    del step


def count_faults(
    corpus: Sequence[PlantedClip], by_file: Mapping[str, ClipRows]
) -> list[FaultCount]:
    """Count what was found of every kind of fault.

    Parameters
    ----------
    corpus : sequence of PlantedClip
        What was planted.
    by_file : mapping of str to sequence of mapping
        Rows of the manifest by the name of their file.

    Returns
    -------
    list of FaultCount
        In the order of the corpus; good clips are left out.
    """
    counts: dict[str, FaultCount] = {}
    for planted in corpus:
        if planted.fault == "good":
            continue
        found, by_filter = _is_found(planted, by_file.get(planted.name, ()))
        filters = _FILTERS_OF.get(planted.fault, "")
        held = counts.get(planted.fault) or FaultCount(planted.fault, filters, 0, 0, 0)
        counts[planted.fault] = replace(
            held,
            planted=held.planted + 1,
            found=held.found + found,
            by_filter=held.by_filter + by_filter,
        )
    return list(counts.values())


_FILTERS_OF = {
    **{fault: ", ".join(sorted(filters)) for fault, (_, filters) in PLANTS.items()},
    "delay": "sync (found and corrected)",
    "cuts": "shots, duration",
}


def _is_found(planted: PlantedClip, rows: ClipRows) -> tuple[bool, bool]:
    """Whether nothing bad was kept, and whether the filter made for it says so."""
    if planted.fault == "delay":
        found = any(row["kept"] and abs(row["lag_frames"] + planted.delay) <= 1 for row in rows)
        return found, found
    if any(row["reason"] == "crashed" for row in rows):
        return False, False
    kept = [row for row in rows if row["kept"]]
    if planted.fault == "cuts":
        found = not any(_spans(row, cut) for row in kept for cut in planted.cuts)
        starts = {row["start_frame"] for row in rows}
        return found, found and set(planted.cuts) <= starts
    first, last = planted.bad
    spoilt = [row for row in rows if _overlaps(row, first, last)]
    own = PLANTS[planted.fault][1]
    found = bool(rows) and not any(row["kept"] for row in spoilt)
    return found, found and any(own & set(row["failed"]) for row in spoilt)


def _spans(row: Mapping[str, Any], cut: int) -> bool:
    return bool(row["start_frame"] < cut < row["start_frame"] + row["num_frames"])


def _overlaps(row: Mapping[str, Any], first: int, last: int) -> bool:
    return bool(row["start_frame"] < last and first < row["start_frame"] + row["num_frames"])


def _verdict_rows(
    corpus: Sequence[PlantedClip],
    by_file: Mapping[str, ClipRows],
    counts: Sequence[FaultCount],
    settings: DataSettings,
) -> list[Row]:
    shortest = settings.clips.min_s * FPS
    good = [
        row
        for planted in corpus
        if planted.fault == "good"
        for row in by_file.get(planted.name, ())
        if row["num_frames"] >= shortest
    ]
    planted = sum(count.planted for count in counts)
    found = sum(count.found for count in counts)
    delays = next((count for count in counts if count.fault == "delay"), None)
    rows = [
        Row("data.kept", _share(sum(r["kept"] for r in good), len(good)), "", MIN_KEPT, "higher"),
        Row("data.recall", _share(found, planted), "", MIN_RECALL, "higher"),
    ]
    if delays is not None:
        share = _share(delays.found, delays.planted)
        rows.append(Row("data.delays_found", share, "", MIN_DELAYS_FOUND, "higher"))
    rows.extend(
        Row(f"data.recall.{c.fault}", _share(c.found, c.planted), "", None, "higher")
        for c in counts
    )
    return rows


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _cost_rows(summary: BuildSummary) -> list[Row]:
    """Hours of video per core-hour, by stage and in all, and memory."""
    unit = "h / core-hour"
    rows = [
        Row(f"data.throughput.{stage}", summary.video_s / seconds, unit, None, "higher")
        for stage, seconds in summary.seconds.items()
        if seconds > 0
    ]
    total = sum(summary.seconds.values())
    rows.append(Row("data.throughput", _share(summary.video_s, total), unit, None, "higher"))
    rows.append(Row("data.peak_rss", summary.peak_rss_mb, "MB", MAX_RSS_MB, "lower"))
    return rows


def _real_rows(by_file: Mapping[str, ClipRows]) -> list[Row]:
    rows = by_file["real.mp4"]
    rolled = by_file["rolled.mp4"]
    lags = [row["lag_frames"] for row in rows if row["lag_frames"] is not None]
    sync = {"sync_peak", "sync_margin", "sync_lag"}
    out_of_sync = [bool(sync & set(row["failed"])) for row in rolled]
    return [
        Row("data.real.kept", _share(sum(r["kept"] for r in rows), len(rows)), "", 1.0, "higher"),
        Row("data.real.lag", float(np.median(lags)) if lags else 0.0, "frames", None, "lower"),
        Row("data.real.rolled_rejected", float(all(out_of_sync)), "", 1.0, "higher"),
    ]


def write_rolled(real: Path, folder: Path) -> None:
    """Write a recording as ``real.mp4``, and with its sound rolled by 2 s as ``rolled.mp4``.

    Parameters
    ----------
    real : Path
        A talking clip of less than a minute, with sound.
    folder : Path
        Where to.

    Raises
    ------
    MediaError
        It cannot be read.
    """
    from skyreels_rt.data.soundtrack import SoundTrack

    frames = np.stack(list(open_video(real).frames(FPS)))
    samples = len(frames) * SAMPLE_RATE // FPS
    audio = SoundTrack(real, 0.0).cut(0, samples)
    write_clip(folder / "real.mp4", TalkingClip(frames, audio))
    rolled = np.roll(audio, _ROLL_S * SAMPLE_RATE)
    write_clip(folder / "rolled.mp4", TalkingClip(frames, rolled))
