"""The curve of step caches: its rows, its page, what it refuses. The picture here is noise."""

from dataclasses import replace

import numpy as np
import pytest

import skyreels_rt as rt
from skyreels_rt.bench.teacache import CurveSize, measure_step_caches
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
    return [(0, 17), (9, num_frames)]


def test_rows_and_page(engine):
    seen, size = [], CurveSize(num_steps=(8,), latents=8, factors=(0.5, 1.0))
    report, sections = measure_step_caches(
        engine, [CLIP], windows, command="test", size=size, on_row=seen.append
    )
    rows = {row.name.removeprefix("teacache.8."): row for row in report.rows}
    assert seen == report.rows
    for rule in ("teacache", "magcache"):
        for label in ("half", "default"):
            point = f"{rule}.{label}"
            assert rows[f"{point}.computed"].value <= 1
            assert rows[f"{point}.psnr"].value > 0
            lost = rows["off.sync"].value - rows[f"{point}.sync"].value
            assert rows[f"{point}.sync_loss"].value == pytest.approx(lost)
            changed = rows[f"{point}.seam"].value - rows["off.seam"].value
            assert rows[f"{point}.seam_change"].value == pytest.approx(changed)
    judged = {name for name, row in rows.items() if row.target is not None}
    assert judged == {f"teacache.default.{m}" for m in ("speedup", "sync_loss", "seam_change")}
    assert report.details["thresholds"]["teacache.half"] == 0.5
    steps = report.details["steps"]["steps-8"]
    assert steps["off"] == ["########"]
    assert steps["teacache.default"][0].count("#") < 8
    page = render_page("Step caches", {}, sections)
    assert page.count("<svg") == 5


def test_what_is_refused(engine):
    with pytest.raises(InvalidArgument, match="pairs"):
        CurveSize(pairs=4)
    with pytest.raises(InvalidArgument, match="factors"):
        CurveSize(factors=(2.0,))
    bare = rt.Engine(replace(engine.components, calibration=None))
    with pytest.raises(ModelError, match="no calibration"):
        measure_step_caches(bare, [CLIP], windows, command="test")
