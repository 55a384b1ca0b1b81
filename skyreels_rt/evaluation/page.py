"""One HTML page that holds everything an evaluation found: no script, no file beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from skyreels_rt.evaluation.curves import Bars, Curve, Strip, bars_svg, curve_svg, strip_svg
from skyreels_rt.report import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

_JPEG_QUALITY = 88
_STYLE = """
body{font:15px/1.5 sans-serif;color:#282c34;max-width:1100px;margin:2em auto;padding:0 1em}
h1{font-size:1.6em}h2{font-size:1.25em;margin-top:2em;border-bottom:1px solid #d8dce2}
table{border-collapse:collapse;margin:.8em 0}td,th{padding:.2em .8em;text-align:left}
th{border-bottom:1px solid #b6bcc6}td.n{text-align:right;font-variant-numeric:tabular-nums}
tr.ok td.s{color:#2d8a4e}tr.no{background:#fdecea}tr.no td.s{color:#b3261e;font-weight:bold}
figure{display:inline-block;margin:.6em 1em .6em 0;max-width:100%;vertical-align:top}
figcaption{font-size:.9em;color:#545b66}svg{width:520px;max-width:100%;background:#fff}
img{max-width:100%;image-rendering:auto}p.why{color:#8a5a00}dl{display:grid;
grid-template-columns:max-content auto;gap:.1em 1em}dt{color:#545b66}dd{margin:0}
"""


@dataclass(frozen=True, eq=False)
class Picture:
    """An image of the page.

    Attributes
    ----------
    title : str
        Caption.
    pixels : ndarray, shape (H, W, 3), uint8
        RGB.
    """

    title: str
    pixels: NDArray[np.uint8]


Figure = Curve | Bars | Strip | Picture


@dataclass(frozen=True)
class Section:
    """One part of an evaluation.

    Attributes
    ----------
    name : str
        What ``--only`` calls it.
    title : str
        What the page calls it.
    rows : tuple of Row
        Figures for the report.
    figures : tuple of Figure
        Curves, bars and pictures for the page.
    notes : tuple of str
        Sentences that say how to read the figures.
    skipped : str or None
        Why there are no rows.
    details : dict
        Further facts, JSON data.
    """

    name: str
    title: str
    rows: tuple[Row, ...] = ()
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


def render_page(title: str, facts: Mapping[str, str], sections: Sequence[Section]) -> str:
    """Write the page.

    Parameters
    ----------
    title : str
        Heading.
    facts : mapping of str to str
        Shown below it: model, device, clips and the like.
    sections : sequence of Section
        In order.

    Returns
    -------
    str
        A complete HTML document; images are data URIs, plots are inline SVG.
    """
    rows = [row for section in sections for row in section.rows]
    judged = [row for row in rows if row.ok is not None]
    reached = sum(row.ok is True for row in judged)
    shown = {**facts, "targets": f"{reached} of {len(judged)} reached"}
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in shown.items())
    body = "".join(_section(section) for section in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1><dl>{listed}</dl>\n{body}</body></html>\n"
    )


def _section(section: Section) -> str:
    parts = [f'<section id="{escape(section.name)}"><h2>{escape(section.title)}</h2>']
    if section.skipped is not None:
        parts.append(f'<p class="why">Not measured: {escape(section.skipped)}</p>')
    if section.rows:
        parts.append(
            "<table><tr><th>row</th><th>value</th><th>unit</th><th>target</th>"
            "<th>from</th><th>to</th><th></th></tr>"
        )
        parts += [_table_row(row) for row in section.rows]
        parts.append("</table>")
    parts += [f"<p>{escape(note)}</p>" for note in section.notes]
    parts += [_figure(figure) for figure in section.figures]
    return "".join([*parts, "</section>\n"])


def _table_row(row: Row) -> str:
    kind = {None: "", True: "ok", False: "no"}[row.ok]
    state = {None: "", True: "reached", False: "missed"}[row.ok]
    sign = "&le;" if row.better == "lower" else "&ge;"
    target = "" if row.target is None else f"{sign} {row.target:g}"
    spread = "".join(
        f'<td class="n">{"" if value is None else f"{value:.4g}"}</td>'
        for value in (row.min, row.max)
    )
    return (
        f'<tr class="{kind}"><td>{escape(row.name)}</td><td class="n">{row.value:.4g}</td>'
        f'<td>{escape(row.unit)}</td><td class="n">{target}</td>{spread}'
        f'<td class="s">{state}</td></tr>'
    )


def _figure(figure: Figure) -> str:
    if isinstance(figure, Curve):
        drawn = curve_svg(figure)
    elif isinstance(figure, Bars):
        drawn = bars_svg(figure)
    elif isinstance(figure, Strip):
        drawn = strip_svg(figure)
    else:
        drawn = f'<img alt="{escape(figure.title)}" src="{_data_uri(figure.pixels)}">'
    return f"<figure>{drawn}<figcaption>{escape(figure.title)}</figcaption></figure>"


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    """A JPEG as a data URI; a sheet of 100 frames stays under half a megabyte."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
