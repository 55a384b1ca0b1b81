"""The step benchmark measures two models that agree, and says when it cannot."""

import dataclasses
import json

import pytest
import torch

from skyreels_rt.bench import step
from skyreels_rt.errors import InvalidArgument, ModelError

SHAPE = step.StepShape(
    "small",
    {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 16, "ffn_dim": 64,
        "num_layers": 1, "text_dim": 24, "freq_dim": 32,
    },
    (2, 4, 4),
    8,
    target=1.0,
)  # fmt: skip


@pytest.mark.peer
def test_rows_of_a_run(tmp_path):
    pytest.importorskip("diffusers")
    seen = []
    report = step.measure_steps(
        peer="diffusers", repeats=5, command="test", on_row=seen.append, shapes=(SHAPE,)
    )
    report.write(tmp_path / "report.json")
    data = json.loads((tmp_path / "report.json").read_text())
    rows = {row["name"]: row for row in data["rows"]}
    assert [row.name for row in seen] == list(rows)
    for dtype in ("float32", "bfloat16"):
        ratio = rows[f"step.small.{dtype}.ratio"]
        assert ratio["min"] <= ratio["value"] <= ratio["max"]
        assert ratio["target"] == SHAPE.target
        assert ratio["ok"] == (ratio["value"] <= SHAPE.target)
        assert data["kernel_plan"][dtype]["dtype"] == dtype
        assert (
            data["details"][f"step.small.{dtype}.difference"]
            <= step.AGREEMENT[getattr(torch, dtype)]
        )


@pytest.mark.peer
def test_models_that_differ_are_not_timed(monkeypatch):
    pytest.importorskip("diffusers")
    models = step._models

    def changed(shape, dtype):
        theirs, ours = models(shape, dtype)
        with torch.no_grad():
            ours.head.head.weight.mul_(1.01)
        return theirs, ours

    monkeypatch.setattr(step, "_models", changed)
    with pytest.raises(ModelError, match="differs"):
        step.measure_steps(
            peer="diffusers", repeats=5, command="t", shapes=(SHAPE,), dtypes=(torch.float32,)
        )


def test_unknown_peer_and_too_few_repeats():
    with pytest.raises(InvalidArgument, match="peer"):
        step.measure_steps(peer="other", repeats=5, command="t")
    with pytest.raises(InvalidArgument, match="repeats"):
        step.measure_steps(peer="diffusers", repeats=4, command="t")


def test_a_missed_target_is_not_ok():
    from skyreels_rt.report import Row

    row = Row("x", 1.2, "ours / peer", 1.0)
    assert row.ok is False
    assert dataclasses.replace(row, value=0.9).ok is True
    assert dataclasses.replace(row, better="higher").ok is True
    assert dataclasses.replace(row, target=None).ok is None
