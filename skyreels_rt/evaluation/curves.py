"""Curves, bars and strips as inline SVG: no library, no script, no file beside the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 14, 46
_STRIP_LEFT, _STRIP_ROW = 140, 20
_COLOURS = ("#1f6feb", "#d1661b", "#2d8a4e", "#8a4fbf", "#6b7280", "#b3261e")


@dataclass(frozen=True)
class Series:
    """One line of a plot.

    Attributes
    ----------
    label : str
        Shown in the legend.
    x, y : sequence of float
        Points, equally many; points that are not finite are left out.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Curve:
    """A plot of lines.

    Attributes
    ----------
    title, x_label, y_label : str
        Words on it.
    series : tuple of Series
        The lines.
    target : float or None
        A dashed horizontal line.
    marks : tuple of float
        Dashed vertical lines at these x.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    target: float | None = None
    marks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Bars:
    """A bar chart.

    Attributes
    ----------
    title, x_label, y_label : str
        Words on it.
    labels : tuple of str
        Under the bars.
    values : tuple of float
        Their heights, >= 0.
    """

    title: str
    x_label: str
    y_label: str
    labels: tuple[str, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Strip:
    """Rows of cells, filled or not: which steps were computed.

    Attributes
    ----------
    title : str
        Words on it.
    labels : tuple of str
        Beside the rows.
    rows : tuple of tuple of bool
        The cells of each.
    """

    title: str
    labels: tuple[str, ...]
    rows: tuple[tuple[bool, ...], ...]


def curve_svg(curve: Curve) -> str:
    """Draw a :class:`Curve`.

    Returns
    -------
    str
        An ``<svg>`` element that needs nothing outside itself.
    """
    lines = [
        [(x, y) for x, y in zip(s.x, s.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
        for s in curve.series
    ]
    xs = [x for line in lines for x, _ in line] + list(curve.marks)
    ys = [y for line in lines for _, y in line]
    ys += [] if curve.target is None else [curve.target]
    frame = _Frame(_range(xs), _range(ys))
    parts = frame.axes(curve.x_label, curve.y_label)
    parts += [
        f'<line x1="{frame.x(x):.1f}" x2="{frame.x(x):.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" '
        'stroke="#c9ced6" stroke-dasharray="2 3"/>'
        for x in curve.marks
    ]
    if curve.target is not None:
        height = f"{frame.y(curve.target):.1f}"
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height}" y2="{height}" '
            'stroke="#b3261e" stroke-dasharray="6 4"/>'
        )
    for index, (series, line) in enumerate(zip(curve.series, lines, strict=True)):
        colour = _COLOURS[index % len(_COLOURS)]
        points = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in line)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        if len(line) <= 12:
            parts += [
                f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3" fill="{colour}"/>'
                for x, y in line
            ]
        parts.append(
            f'<text x="{_LEFT + 8}" y="{_TOP + 14 + 15 * index}" fill="{colour}">'
            f"{escape(series.label)}</text>"
        )
    return _svg(curve.title, parts)


def bars_svg(bars: Bars) -> str:
    """Draw :class:`Bars`.

    Returns
    -------
    str
        An ``<svg>`` element that needs nothing outside itself.
    """
    frame = _Frame((0.0, max(len(bars.values), 1)), (0.0, _range([0.0, *bars.values])[1]))
    parts = frame.axes(bars.x_label, bars.y_label, has_x_ticks=False)
    for index, (label, value) in enumerate(zip(bars.labels, bars.values, strict=True)):
        left, right = frame.x(index + 0.12), frame.x(index + 0.88)
        top, bottom = frame.y(value), frame.y(0.0)
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{bottom - top:.1f}" fill="{_COLOURS[0]}"/>'
        )
        parts.append(
            f'<text x="{(left + right) / 2:.1f}" y="{_HEIGHT - _BOTTOM + 16}" '
            f'text-anchor="middle">{escape(label)}</text>'
        )
    return _svg(bars.title, parts)


def strip_svg(strip: Strip) -> str:
    """Draw a :class:`Strip`.

    Returns
    -------
    str
        An ``<svg>`` element that needs nothing outside itself.
    """
    cell = min(16.0, (_WIDTH - _STRIP_LEFT - _RIGHT) / max(map(len, strip.rows), default=1))
    parts: list[str] = []
    for index, (label, flags) in enumerate(zip(strip.labels, strip.rows, strict=True)):
        top = _TOP + index * _STRIP_ROW
        parts.append(
            f'<text x="{_STRIP_LEFT - 8}" y="{top + 12}" text-anchor="end">{escape(label)}</text>'
        )
        parts += [
            f'<rect x="{_STRIP_LEFT + place * cell:.1f}" y="{top}" width="{cell - 1:.1f}" '
            f'height="{_STRIP_ROW - 4}" fill="{_COLOURS[0] if flag else "#e3e7ed"}"/>'
            for place, flag in enumerate(flags)
        ]
    return _svg(strip.title, parts, height=2 * _TOP + _STRIP_ROW * len(strip.rows))


def _svg(title: str, parts: list[str], height: int = _HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}" '
        'font-family="sans-serif" font-size="12">' + "".join(parts) + "</svg>"
    )


def _range(values: list[float]) -> tuple[float, float]:
    """Least and greatest with a little room, never empty."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or max(abs(high) * 0.1, 0.1)
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from ``low`` to ``high``."""
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if (high - low) / (factor * power) <= 6)
    first = math.ceil(low / step)
    return [step * k for k in range(first, math.floor(high / step) + 1)]


@dataclass(frozen=True)
class _Frame:
    """Maps data to pixels and draws the axes."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self, x_label: str, y_label: str, *, has_x_ticks: bool = True) -> list[str]:
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        parts = [
            f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="#6b7280"/>',
            f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">'
            f"{escape(x_label)}</text>",
            f'<text transform="translate(14 {(_TOP + bottom) / 2}) rotate(-90)" '
            f'text-anchor="middle">{escape(y_label)}</text>',
        ]
        for value in _ticks(*self.y_range):
            height = f"{self.y(value):.1f}"
            parts.append(
                f'<line x1="{_LEFT}" x2="{right}" y1="{height}" y2="{height}" stroke="#eceff3"/>'
                f'<text x="{_LEFT - 6}" y="{height}" dy="4" text-anchor="end">{value:.4g}</text>'
            )
        if has_x_ticks:
            parts += [
                f'<text x="{self.x(value):.1f}" y="{bottom + 16}" text-anchor="middle">'
                f"{value:.4g}</text>"
                for value in _ticks(*self.x_range)
            ]
        return parts
