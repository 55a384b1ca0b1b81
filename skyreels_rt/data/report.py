"""The report of a build: one HTML page without scripts, without files beside it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from skyreels_rt.errors import OutputError

if TYPE_CHECKING:
    from skyreels_rt.data.filters import Filter
    from skyreels_rt.data.manifest import ClipRow
    from skyreels_rt.data.settings import DataSettings
    from skyreels_rt.data.tasks import Outcome

_SAMPLES = 6  # thumbnails of each reason
_BINS = 40
_WIDTH, _HEIGHT = 420, 110
_STYLE = """
body{font:15px/1.5 sans-serif;color:#282c34;max-width:1100px;margin:2em auto;padding:0 1em}
h1{font-size:1.6em}h2{font-size:1.25em;margin-top:2em;border-bottom:1px solid #d8dce2}
table{border-collapse:collapse;margin:.8em 0}td,th{padding:.2em .8em;text-align:left}
th{border-bottom:1px solid #b6bcc6}td.n{text-align:right;font-variant-numeric:tabular-nums}
figure{display:inline-block;margin:.5em 1em .5em 0;vertical-align:top}
figcaption{font-size:.85em;color:#545b66}.bar{background:#4c72b0;height:.8em}
"""


class BuildReport:
    """Gathers what the page shows, one source after the other.

    Parameters
    ----------
    settings : DataSettings
        Of the build.
    """

    def __init__(self, settings: DataSettings) -> None:
        self.settings = settings
        self.reasons: Counter[str] = Counter()
        """Clips and sources by reason; the empty one is that of kept clips."""
        self.scores: dict[str, list[float]] = defaultdict(list)
        """Scores by filter."""
        self.pictures: dict[str, list[tuple[str, str]]] = defaultdict(list)
        """Key and JPEG of a few clips by reason."""
        self.seconds: Counter[str] = Counter()
        """Core-seconds by stage."""
        self.video_s = 0.0
        """Length of all pictures that were read."""
        self.kept_s = 0.0
        """Length of the kept clips."""
        self.peak_rss_mb = 0.0
        """Largest memory of a worker."""
        self.unusable: list[tuple[str, str, str]] = []
        """Name, reason and sentence of sources that gave no clip."""

    def add(self, rows: Sequence[ClipRow], outcome: Outcome) -> None:
        """Take the rows of a source and how they came about."""
        for row in rows:
            self.reasons[row.reason] += 1
            self.kept_s += row.num_frames / 25 if row.kept else 0.0
            for name, score in row.scores.items():
                if score is not None:
                    self.scores[name].append(score)
            shown = self.pictures[row.reason]
            if row.key in outcome.thumbnails and len(shown) < _SAMPLES:
                shown.append((row.key, outcome.thumbnails[row.key]))
            if row.num_frames == 0:
                self.unusable.append((row.source, row.reason, row.detail))
        self.seconds.update(outcome.seconds)
        self.video_s += outcome.video_s
        self.peak_rss_mb = max(self.peak_rss_mb, outcome.peak_rss_mb)


def write_report(path: Path, report: BuildReport) -> None:
    """Write the page.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    parts = [
        f"<!doctype html><meta charset=utf-8><title>Data build</title><style>{_STYLE}</style>",
        "<h1>Data build</h1>",
        f"<p>{report.video_s / 60:.1f} minutes read, {report.kept_s / 60:.1f} minutes kept. "
        f"Settings {report.settings.digest}, version {report.settings.version}.</p>",
        _funnel(report),
        _seconds(report),
        _histograms(report),
        _pictures(report),
        _unusable(report),
    ]
    try:
        path.write_text("\n".join(parts), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}).") from error


def _funnel(report: BuildReport) -> str:
    """Counts by reason in the order of the funnel: what is left after each filter."""
    ordered = [f.name for f in report.settings.filters]
    others = sorted(set(report.reasons) - {"", *ordered})
    total = left = sum(report.reasons.values())
    lines = []
    for name in [*others, *ordered]:
        lost = report.reasons.get(name, 0)
        left -= lost
        share = left / total if total else 0.0
        lines.append(
            f"<tr><td>{escape(name)}<td class=n>{lost}<td class=n>{left}"
            f'<td><div class=bar style="width:{300 * share:.0f}px"></div>'
        )
    head = "<tr><th>reason<th>rejected<th>left<th>"
    return f"<h2>Funnel</h2><table>{head}{''.join(lines)}</table>"


def _seconds(report: BuildReport) -> str:
    hours = report.video_s / 3600
    lines = []
    for stage, seconds in report.seconds.items():
        rate = hours / (seconds / 3600) if seconds else 0.0
        lines.append(f"<tr><td>{escape(stage)}<td class=n>{seconds:.2f}<td class=n>{rate:.1f}")
    head = "<tr><th>stage<th>core-seconds<th>hours of video per core-hour"
    note = f"<p>Largest worker: {report.peak_rss_mb:.0f} MB.</p>"
    return f"<h2>Core-seconds by stage</h2><table>{head}{''.join(lines)}</table>{note}"


def _histograms(report: BuildReport) -> str:
    figures = [
        _histogram(f, report.scores[f.name]) for f in report.settings.filters
        if report.scores.get(f.name)
    ]  # fmt: skip
    return f"<h2>Scores</h2>{''.join(figures)}"


def _histogram(of: Filter, scores: Sequence[float]) -> str:
    """Bars of the scores, and a line at each bound."""
    bounds = of.bounds()
    values = np.array([*scores, *bounds.values()])
    low, high = float(values.min()), float(values.max())
    span = (high - low) or 1.0
    counts, _ = np.histogram(np.array(scores), bins=_BINS, range=(low, low + span))
    tallest = max(1, int(counts.max()))
    step = _WIDTH / _BINS
    bars = [
        f'<rect x="{i * step:.1f}" y="{_HEIGHT * (1 - c / tallest):.1f}" width="{step - 1:.1f}" '
        f'height="{_HEIGHT * c / tallest:.1f}" fill="#4c72b0"/>'
        for i, c in enumerate(counts)
        if c
    ]
    lines = [
        f'<line x1="{(b - low) / span * _WIDTH:.1f}" x2="{(b - low) / span * _WIDTH:.1f}" y1="0" '
        f'y2="{_HEIGHT}" stroke="#b3261e" stroke-width="2"/>'
        for b in bounds.values()
    ]
    limits = ", ".join(f"{name} {value:g}" for name, value in bounds.items())
    unit = f" {of.unit}" if of.unit else ""
    doc = escape((type(of).__doc__ or "").strip())
    drawing = f'<svg width="{_WIDTH}" height="{_HEIGHT}">{"".join(bars + lines)}</svg>'
    facts = f"<b>{escape(of.name)}</b> ({limits}{unit}), {low:.3g} to {high:.3g}<br>{doc}"
    return f"<figure>{drawing}<figcaption>{facts}</figcaption></figure>"


def _pictures(report: BuildReport) -> str:
    sections = []
    for reason, pictures in sorted(report.pictures.items()):
        if not pictures:
            continue
        images = [
            f'<figure><img src="data:image/jpeg;base64,{data}" alt=""><figcaption>{escape(key)}'
            "</figcaption></figure>"
            for key, data in pictures
        ]
        title = f"Rejected: {escape(reason)}" if reason else "Kept"
        sections.append(f"<h2>{title}</h2>{''.join(images)}")
    return "".join(sections)


def _unusable(report: BuildReport) -> str:
    lines = [
        f"<tr><td>{escape(name)}<td>{escape(reason)}<td>{escape(detail)}"
        for name, reason, detail in report.unusable[:1000]
    ]
    if not lines:
        return ""
    head = "<tr><th>source<th>reason<th>detail"
    return f"<h2>Sources without clips</h2><table>{head}{''.join(lines)}</table>"
