"""The page is one file, well formed and honest; sheets and plots show what they were given."""

import io
import re
from base64 import b64decode
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.evaluation.contact_sheet import contact_sheet
from skyreels_rt.evaluation.curves import Bars, Curve, Series, Strip, bars_svg, curve_svg, strip_svg
from skyreels_rt.evaluation.page import Picture, Section, render_page
from skyreels_rt.report import Row

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, attributes that load something, and text; checks that tags nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loaded, self.text, self._open = [], [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def assert_self_contained(text):
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(value.startswith("data:image/") for value in page.loaded)
    assert not re.search(r"url\(|@import", text)
    return page


PICTURE = np.full((20, 30, 3), (200, 10, 10), np.uint8)
SECTIONS = [
    Section(
        "sync",
        "Sync <of> mouths",
        (Row("eval.sync.mean", 0.5, "correlation", 0.93, "higher"), Row("other", 1.0, "s", 2.0)),
        (
            Curve(
                "c", "x", "y", (Series("<a>", [0, 1, 2], [1.0, float("nan"), 3.0]),), 2.0, (1.0,)
            ),
            Bars("b", "x", "y", ("1", "2"), (3.0, 0.0)),
            Picture("sheet & more", PICTURE),
        ),
        ("a note",),
    ),
    Section("long", "Long", skipped="no <model>"),
]


def test_page_is_self_contained_and_shows_every_part():
    page = assert_self_contained(render_page("Title & co", {"model": "<m>"}, SECTIONS))
    text = " ".join(page.text)
    assert "Title & co" in text and "<m>" in text and "Sync <of> mouths" in text
    assert "1 of 2 reached" in text
    assert "missed" in text and "Not measured: no <model>" in text
    assert page.tags.count("svg") == 2
    (uri,) = page.loaded
    shown = Image.open(io.BytesIO(b64decode(uri.split(",")[1])))
    assert shown.size == (30, 20)
    assert np.abs(np.asarray(shown).astype(int) - PICTURE).max() < 12


def test_a_remote_picture_would_be_noticed():
    with pytest.raises(AssertionError):
        assert_self_contained('<img src="https://example.com/x.png">')
    with pytest.raises(AssertionError):
        assert_self_contained("<script></script>")


def points(svg):
    found = re.findall(r'<polyline points="([^"]*)"', svg)
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in found]


def test_curve_maps_data_to_the_picture():
    (line,) = points(curve_svg(Curve("t", "x", "y", (Series("s", [0, 1, 4], [0.0, 1.0, 0.5]),))))
    (x0, y0), (x1, y1), (x2, y2) = line
    assert (x2 - x0) == pytest.approx(4 * (x1 - x0), abs=0.3)
    assert y1 < y2 < y0  # up is more
    assert (y0 - y2) == pytest.approx((y0 - y1) / 2, abs=0.3)


def test_curve_leaves_out_what_is_not_finite():
    lines = points(curve_svg(Curve("t", "x", "y", (Series("s", [0, 1, 2], [0, np.inf, 1]),))))
    assert [len(line) for line in lines] == [2]


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0], [0.0, 0.0], [-1e-9, 1e9]])
def test_degenerate_plots_are_drawn(values):
    svg = curve_svg(Curve("t", "x", "y", (Series("s", range(len(values)), values),)))
    assert "nan" not in svg and "inf" not in svg
    bars = bars_svg(Bars("t", "x", "y", tuple("ab"[: len(values)]), tuple(map(abs, values))))
    assert bars.count("<rect") == len(values)


def test_a_strip_fills_what_was_computed():
    drawn = strip_svg(Strip("t", ("<a>", "b"), ((True, False, True), (False, False))))
    fills = re.findall(r'<rect[^>]* fill="([^"]*)"', drawn)
    assert len(fills) == 5
    assert fills[0] == fills[2] != fills[1] == fills[3] == fills[4]
    assert "&lt;a&gt;" in drawn
    assert strip_svg(Strip("t", (), ())).startswith("<svg")


def test_bars_are_as_high_as_their_values():
    heights = re.findall(r'<rect[^>]* height="([^"]*)"', bars_svg(
        Bars("t", "x", "y", ("a", "b", "c"), (1.0, 2.0, 0.0))
    ))  # fmt: skip
    a, b, c = map(float, heights)
    assert b == pytest.approx(2 * a, abs=0.2)
    assert c == 0


def test_contact_sheet_shows_first_and_last_frames_of_every_video():
    videos = [np.zeros((9, 16, 32, 3), np.uint8), np.zeros((2, 16, 16, 3), np.uint8)]
    for video, base in zip(videos, (0, 100), strict=True):
        video[:] = (base + 10 * np.arange(len(video)))[:, None, None, None]
    sheet = contact_sheet(videos, ["one", "two"], 3, cell_height=16)
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    cells = [[sheet[4 + 18 + 8 + row * 38, 4 + col * (width + 4) + 4, 0] for col in range(3)]
             for row, width in enumerate((32, 16))]  # fmt: skip
    assert cells[0] == [0, 40, 80]
    assert cells[1][0] == 100 and cells[1][2] == 110


def test_contact_sheet_writes_its_labels():
    video = [np.zeros((1, 8, 8, 3), np.uint8)]
    plain, labelled = (contact_sheet(video, [text], 8) for text in ("", "label"))
    assert plain.shape == labelled.shape
    assert (plain != labelled).any()
    assert (plain[30:] == labelled[30:]).all()
    long = contact_sheet(video, ["word " * 500 + "\u4f60\U0001f600"], 1)
    assert long.shape == contact_sheet(video, [""], 1).shape


@pytest.mark.parametrize(
    ("videos", "labels", "columns"),
    [
        ([], [], 3),
        ([np.zeros((1, 8, 8, 3), np.uint8)], [], 3),
        ([np.zeros((1, 8, 8, 3), np.uint8)], ["a"], 0),
        ([np.zeros((0, 8, 8, 3), np.uint8)], ["a"], 1),
        ([np.zeros((1, 8, 8, 3), np.float32)], ["a"], 1),
    ],
)
def test_contact_sheet_refuses(videos, labels, columns):
    with pytest.raises(InvalidArgument):
        contact_sheet(videos, labels, columns)
