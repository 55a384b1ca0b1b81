"""The quantisation report: a row for every kind of layer and policy. The picture here is noise."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from skyreels_rt.bench.quantization import measure_quantization, student_t
from skyreels_rt.cli import app
from skyreels_rt.evaluation.clips import EvalClip
from skyreels_rt.testing.tiny import TinyModel, write_tiny_model

SIDE, FRAMES = 128, 17
CLIP = EvalClip(
    name="noise",
    frames=np.random.default_rng(0).integers(0, 256, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8),
    audio=0.1 * np.random.default_rng(1).standard_normal(16_000).astype(np.float32),
    sample_rate=16_000,
    caption="x",
    opening_px=np.random.default_rng(2).random(FRAMES).astype(np.float32),
    mouth_box=(48, 80, 80, 104),
    face_box=(24, 16, 104, 120),
    eye_boxes=((40, 40, 56, 48), (72, 40, 88, 48)),
    edit_mask=np.zeros((FRAMES, SIDE, SIDE), dtype=np.float32),
    hair=None,
    background="x",
)
OTHER = replace(CLIP, name="louder", audio=2 * CLIP.audio)


@pytest.fixture(scope="module")
def report():
    return measure_quantization("tiny-random", [CLIP, OTHER], command="test", latents=5)


def test_every_layer_has_an_error_of_e4m3s_size(report):
    rows = {row.name: row for row in report.rows if ".layer." in row.name}
    kinds = {name.removeprefix("quantization.layer.").rsplit(".", 1)[0] for name in rows}
    assert {"self_attn.q", "cross_attn.v", "ffn.0", "audio_cross_attn.proj"} <= kinds
    assert len(rows) == 2 * len(kinds) == 2 * 13
    for kind in kinds:
        both, weight = (rows[f"quantization.layer.{kind}.{m}"] for m in ("fp8", "fp8_weight"))
        assert 0.005 < weight.min <= weight.value < both.value <= both.max < 0.08


def test_every_policy_is_compared_with_the_full_video(report):
    rows = {row.name: row.value for row in report.rows}
    for policy in ("fp8", "fp8_weight"):
        assert 0.25 < rows[f"quantization.{policy}.transformer_bytes"] < 0.8
        assert 15 < rows[f"quantization.{policy}.psnr"] < 100
        assert rows[f"quantization.{policy}.ssim"] <= 1
        assert np.isfinite(rows[f"quantization.{policy}.sync_loss"])
    assert rows["quantization.fp8_weight.psnr"] > rows["quantization.fp8.psnr"]
    assert report.to_json()["details"]["latents"] == 5


def test_a_loss_comes_with_the_interval_of_its_mean(report):
    rows = {row.name: row for row in report.rows}
    for policy in ("fp8", "fp8_weight"):
        loss = rows[f"quantization.{policy}.sync_loss"]
        low, high = (
            rows[f"quantization.{policy}.sync_loss.{end}"].value for end in ("low", "high")
        )
        # Of two clips, whose mean is the middle of what they differ by.
        assert high - low == pytest.approx(12.706 * (loss.max - loss.min))
        assert (low + high) / 2 == pytest.approx(loss.value)


@pytest.mark.parametrize(("freedom", "tabled"), [(3, 3.182), (7, 2.365), (23, 2.069), (47, 2.012)])
def test_the_quantiles_are_those_of_students_tables(freedom, tabled):
    assert student_t(freedom) == pytest.approx(tabled, rel=0.01)


@pytest.fixture(scope="module")
def folder_of_sizes(tmp_path_factory):
    """A model folder whose weights are gone."""
    folder = tmp_path_factory.mktemp("sizes")
    write_tiny_model(folder, TinyModel())
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    return folder


def test_an_estimate_needs_no_weights(folder_of_sizes):
    found = {}
    for flags in ((), ("--quantization", "fp8"), ("--offload",)):
        result = CliRunner().invoke(
            app,
            ["estimate", "--model", str(folder_of_sizes), "--memory", "0.0001", *flags],
        )
        assert result.exit_code == 0, result.output
        lines = dict(line.split("  ", 1) for line in result.output.splitlines() if "GiB" in line)
        assert "does not fit" in result.output
        found[flags] = float(lines["weights"].split()[0])
        assert ("host weights" in result.output) == ("--offload" in flags)
    assert found["--offload",] < found[()]


def test_an_unknown_policy_ends_the_command_with_one_sentence(folder_of_sizes):
    result = CliRunner().invoke(
        app, ["estimate", "--model", str(folder_of_sizes), "--quantization", "int3"]
    )
    assert result.exit_code == 2
    assert "quantization" in result.output
    assert json.dumps("fp8")[1:-1] in result.output
