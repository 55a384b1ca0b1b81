"""The report of a build: one HTML page without scripts, without files beside it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
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
figcaption{font-size:.85em;color:#545b66;max-width:420px}.bar{background:#4c72b0;height:.8em}
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
        """Sentence in HTML and JPEG of a few clips by reason."""
        self.failed: Counter[str] = Counter()
        """Clips by filter that they fail, whether or not it is the first."""
        self.num_sources = 0
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
        self.num_sources += 1
        for row in rows:
            self.reasons[row.reason] += 1
            self.failed.update(row.failed)
            self.kept_s += row.num_frames / 25 if row.kept else 0.0
            for name, score in row.scores.items():
                if score is not None:
                    self.scores[name].append(score)
            shown = self.pictures[row.reason]
            if row.key in outcome.thumbnails and len(shown) < _SAMPLES:
                shown.append((self._described(row), outcome.thumbnails[row.key]))
            if row.num_frames == 0:
                self.unusable.append((row.source, row.reason, row.detail))
        self.seconds.update(outcome.seconds)
        self.video_s += outcome.video_s
        self.peak_rss_mb = max(self.peak_rss_mb, outcome.peak_rss_mb)

    def _described(self, row: ClipRow) -> str:
        """Where a clip comes from, and the score that it was rejected for."""
        place = f"{escape(row.source)}, {row.start_frame / 25:.1f} s"
        judge = next((f for f in self.settings.filters if f.name == row.reason), None)
        score = row.scores.get(row.reason)
        if judge is None or score is None:
            return place
        return f"{place}<br>{judge.name} {score:.3g}, passes {_passing(judge)}"


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
        f"<p>{report.num_sources} sources, {sum(report.reasons.values())} clips (or sources "
        f"without any), {report.reasons.get('', 0)} kept; {report.video_s / 60:.1f} minutes read, "
        f"{report.kept_s / 60:.1f} minutes kept. "
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
    filters = {f.name: f for f in report.settings.filters}
    others = sorted(set(report.reasons) - {"", *filters})
    total = left = sum(report.reasons.values())
    lines = [f"<tr><td>all<td><td><td><td class=n>{total}<td>{_bar(1.0)}"]
    for name in [*others, *filters]:
        lost = report.reasons.get(name, 0)
        left -= lost
        of = filters.get(name)
        bound = _passing(of) if of else ""
        # A filter without any score was never asked: SyncNet when it is off.
        is_off = of is not None and not report.scores.get(name)
        anyhow = "not measured" if is_off else report.failed.get(name, lost)
        lines.append(
            f"<tr><td>{escape(name)}<td>{bound}<td class=n>{lost}<td class=n>{anyhow}"
            f"<td class=n>{left}<td>{_bar(left / total if total else 0.0)}"
        )
    head = "<tr><th>reason<th>passes<th>rejected here<th>failed in all<th>left<th>"
    note = (
        "<p>A clip counts as rejected by the first filter that it fails, from top to bottom; "
        "<i>failed in all</i> counts it at every one. Reasons without a bound concern files.</p>"
    )
    return f"<h2>Funnel</h2>{note}<table>{head}{''.join(lines)}</table>"


def _bar(share: float) -> str:
    return f'<div class=bar style="width:{300 * share:.0f}px"></div>'


def _passing(of: Filter) -> str:
    """Scores that pass, for people."""
    signs = {"minimum": "&ge;", "maximum": "&le;"}
    bounds = " and ".join(f"{signs[name]} {value:g}" for name, value in of.bounds().items())
    return f"{bounds} {of.unit}".strip()


def _seconds(report: BuildReport) -> str:
    hours = report.video_s / 3600
    lines = []
    for stage, seconds in report.seconds.items():
        rate = hours / (seconds / 3600) if seconds else 0.0
        lines.append(f"<tr><td>{escape(stage)}<td class=n>{seconds:.2f}<td class=n>{rate:.1f}")
    head = "<tr><th>stage<th>core-seconds<th>hours of video per core-hour"
    note = (
        "<p>Seconds of all cores together, without starting workers; the rate is what one core "
        f"would do if it did nothing else. Largest worker: {report.peak_rss_mb:.0f} MB.</p>"
    )
    return f"<h2>Core-seconds by stage</h2><table>{head}{''.join(lines)}</table>{note}"


def _histograms(report: BuildReport) -> str:
    figures = [
        _histogram(f, report.scores[f.name]) for f in report.settings.filters
        if report.scores.get(f.name)
    ]  # fmt: skip
    note = (
        "<p>How many clips (upwards, the tallest bar marked) have which score. Red lines are the "
        "bounds of the settings, red ground is what they reject.</p>"
    )
    return f"<h2>Scores</h2>{note}{''.join(figures)}"


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
    ground = [
        f'<rect x="{at:.1f}" y="0" width="{width:.1f}" height="{_HEIGHT}" '
        'fill="#b3261e" opacity="0.12"/>'
        for at, width in _rejected(bounds, low, span)
    ]
    labels = (
        f'<text x="0" y="{_HEIGHT + 14}">{low:.3g}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 14}" text-anchor="end">{low + span:.3g} {of.unit}</text>'
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 14}" text-anchor="middle">tallest: {tallest}</text>'
    )
    doc = escape(" ".join((type(of).__doc__ or "").split()))
    drawing = (
        f'<svg width="{_WIDTH}" height="{_HEIGHT + 18}" font-size="11" fill="#545b66">'
        f"{''.join(ground + bars + lines)}{labels}</svg>"
    )
    facts = f"<b>{escape(of.name)}</b> passes {_passing(of)}<br>{doc}"
    return f"<figure>{drawing}<figcaption>{facts}</figcaption></figure>"


def _rejected(bounds: Mapping[str, float], low: float, span: float) -> list[tuple[float, float]]:
    """Where a histogram is out of bounds: left edges and widths in pixels."""
    at = {name: (value - low) / span * _WIDTH for name, value in bounds.items()}
    left = [(0.0, at["minimum"])] if "minimum" in at else []
    return [*left, (at["maximum"], _WIDTH - at["maximum"])] if "maximum" in at else left


def _pictures(report: BuildReport) -> str:
    sections = []
    order = ["", *(f.name for f in report.settings.filters)]
    for reason in [*order, *sorted(set(report.pictures) - set(order))]:
        pictures = report.pictures.get(reason)
        if not pictures:
            continue
        images = [
            f'<figure><img src="data:image/jpeg;base64,{data}" alt=""><figcaption>{text}'
            "</figcaption></figure>"
            for text, data in pictures
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
