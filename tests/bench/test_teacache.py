"""The curve of step caches: its rows, its page, what it refuses. The picture here is noise."""

from dataclasses import replace

import numpy as np
import pytest

import skyreels_rt as rt
from skyreels_rt.bench.teacache import CurveSize, mean_interval, measure_step_caches
from skyreels_rt.errors import InvalidArgument, ModelError
from skyreels_rt.evaluation.clips import EvalClip
from skyreels_rt.evaluation.page import render_page
from skyreels_rt.runtime.step_cache import (
    CalibrationRun,
    ChangeFit,
    MagnitudeFit,
    StepCalibration,
)
from skyreels_rt.testing.tiny import TinyModel, tiny_components

SIDE = 64
CLIP = EvalClip(
    name="noise",
    frames=np.random.default_rng(0).integers(0, 256, (33, SIDE, SIDE, 3), dtype=np.uint8),
    audio=0.1 * np.random.default_rng(1).standard_normal(2 * 16_000).astype(np.float32),
    sample_rate=16_000,
    caption="x",
    opening_px=np.random.default_rng(2).random(33).astype(np.float32),
    mouth_box=(24, 40, 40, 52),
    face_box=(12, 8, 52, 60),
    eye_boxes=((18, 20, 28, 26), (36, 20, 46, 26)),
    edit_mask=np.ones((33, SIDE, SIDE), np.bool_),
    hair=None,
    background="blue",
)


@pytest.fixture(scope="module")
def engine():
    tiny = TinyModel().with_generation(height=SIDE, width=SIDE, window=5, overlap=2)
    fit = ChangeFit((0.0, 0.0, 0.0, 1.0, 0.0), 1.0, 0.0, 9.0, 0.0)
    calibration = StepCalibration(
        fit, fit, fit, MagnitudeFit((1000.0, 1.0), (0.0, 0.1), 0.05),
        CalibrationRun((10,), 5.0, "euler", "", 1, 1, "none", ()),
    )  # fmt: skip
    return rt.Engine(replace(tiny_components(tiny), calibration=calibration))


def windows(num_frames):
    return [(0, 17), (9, num_frames)] if num_frames > 17 else [(0, num_frames)]


OTHERS = [
    replace(CLIP, name=f"noise{k}", audio=CLIP.audio[::-1] * (1 - 0.1 * k)) for k in range(1, 5)
]
SIZE = CurveSize(num_steps=(8,), clips=3, latents=5, border_latents=8, factors=(0.5, 1.0))


@pytest.fixture(scope="module")
def measured(engine):
    seen, runs = [], []
    report, sections = measure_step_caches(
        engine, [CLIP, *OTHERS], windows, command="test", size=SIZE, on_row=seen.append,
        on_run=runs.append,
    )  # fmt: skip
    assert seen == report.rows
    return report, sections, runs


def rows_of(report):
    return {row.name.removeprefix("teacache.8."): row for row in report.rows}


def test_rows_and_page(measured):
    report, sections, _ = measured
    rows = rows_of(report)
    for rule in ("teacache", "magcache"):
        for label in ("half", "default"):
            point = f"{rule}.{label}"
            assert rows[f"{point}.computed"].value <= 1
            assert rows[f"{point}.psnr"].value > 0
            changed = rows[f"{point}.seam"].value - rows["off.seam"].value
            assert rows[f"{point}.seam_change"].value == pytest.approx(changed)
    lost = rows["off.sync"].value - rows["teacache.default.sync"].value  # means over all clips
    assert rows["teacache.default.sync_loss"].value == pytest.approx(lost)
    judged = {name for name, row in rows.items() if row.target is not None}
    assert judged == {f"teacache.default.{m}" for m in ("speedup", "sync_loss", "seam_change")}
    assert report.details["thresholds"]["teacache.half"] == 0.5
    steps = report.details["steps"]["steps-8"]
    assert steps["off"] == ["########"]
    assert steps["teacache.default"][0].count("#") < 8
    page = render_page("Step caches", {}, sections)
    assert page.count("<svg") == 5


def test_pairs_take_turns_over_the_clips_and_the_curve_takes_the_first(measured):
    _, _, runs = measured
    pairs = [run.split(", ")[::2] for run in runs if run.endswith(("off", "teacache.default"))]
    clips = ["noise", "noise", "noise1", "noise1", "noise2"]  # five pairs over three clips
    off, on = "off", "teacache.default"
    expected = []
    for turn, clip in enumerate(clips):
        expected += [[clip, side] for side in ((off, on) if turn % 2 == 0 else (on, off))]
    assert pairs == expected
    others = [run.split(", ")[0] for run in runs if "half" in run or "magcache" in run]
    assert others == ["noise"] * 3


def test_the_interval_of_the_loss_is_students(measured):
    rows = rows_of(measured[0])
    point = rows["teacache.default.sync_loss"]
    low, high = (rows[f"teacache.default.sync_loss_{side}95"].value for side in ("lower", "upper"))
    assert low <= point.value <= high
    assert high - point.value == pytest.approx(point.value - low)
    assert "magcache.default.sync_loss_upper95" not in rows  # of one clip there is none
    values = [0.01, 0.03, -0.02, 0.05, 0.0, 0.02, 0.01, 0.04]
    low, high = mean_interval(values)
    reach = 2.365 * np.std(values, ddof=1) / 8**0.5
    assert (low, high) == pytest.approx((np.mean(values) - reach, np.mean(values) + reach))
    assert mean_interval([0.0, 1.0])[1] == pytest.approx(0.5 + 12.706 * 0.5)
    with pytest.raises(InvalidArgument, match="values"):
        mean_interval([1.0])


def test_what_is_refused(engine):
    with pytest.raises(InvalidArgument, match="pairs"):
        CurveSize(pairs=4)
    with pytest.raises(InvalidArgument, match="factors"):
        CurveSize(factors=(2.0,))
    with pytest.raises(InvalidArgument, match="curve_clips"):
        CurveSize(clips=2, curve_clips=3)
    bare = rt.Engine(replace(engine.components, calibration=None))
    with pytest.raises(ModelError, match="no calibration"):
        measure_step_caches(bare, [CLIP], windows, command="test")
