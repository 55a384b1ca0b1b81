"""The VAE benchmark measures two models that agree, and says when it cannot."""

import pytest
import torch

from skyreels_rt.bench import vae as bench
from skyreels_rt.bench.vae_stream import measure_decode_streams
from skyreels_rt.config import WanVAEConfig
from skyreels_rt.errors import InvalidArgument, ModelError

SMALL = WanVAEConfig(base_dim=16, num_res_blocks=1)
CLIP = bench.ClipShape(16, 16, 5)


def measure(**changed):
    arguments = {
        "peer": "diffusers", "repeats": 5, "command": "test", "shapes": (CLIP,), "config": SMALL
    }  # fmt: skip
    return bench.measure_vae(**(arguments | changed))


@pytest.mark.peer
def test_rows_of_a_run():
    pytest.importorskip("diffusers")
    seen = []
    report = measure(on_row=seen.append)
    assert report.rows == seen
    rows = {row.name: row for row in report.rows}
    for part, target in bench.TARGETS.items():
        ratio = rows[f"vae.{part}.16x16x5.ratio"]
        assert ratio.target == target
        assert ratio.min <= ratio.value <= ratio.max
        assert report.details[f"vae.{part}.16x16x5.difference"] <= bench.AGREEMENT


@pytest.mark.peer
def test_models_that_differ_are_not_timed(monkeypatch):
    pytest.importorskip("diffusers")
    models = bench.build_models

    def changed(config, plan):
        theirs, ours = models(config, plan)
        ours.decoder.conv_out.weight.mul_(1.01)
        return theirs, ours

    monkeypatch.setattr(bench, "build_models", changed)
    with pytest.raises(ModelError, match="differs"):
        measure()


def test_bad_calls_are_refused():
    with pytest.raises(InvalidArgument, match="peer"):
        measure(peer="somebody")
    with pytest.raises(InvalidArgument, match="repeats"):
        measure(repeats=2)


def measure_streams(device, **changed):
    arguments = {
        "device": torch.device(device), "peer": "diffusers", "repeats": 5, "command": "test",
        "sizes": ((16, 24),), "lengths": (2, 4), "config": SMALL, "compiles": False,
    }  # fmt: skip
    return measure_decode_streams(**(arguments | changed))


@pytest.mark.peer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_streams(dtype):
    pytest.importorskip("diffusers")
    seen = []
    report = measure_streams("cpu", dtype=dtype, on_row=seen.append)
    assert report.rows == seen
    rows = {row.name.removeprefix("vae.stream.16x24."): row for row in report.rows}
    assert {"values.fps", "buffers.fps", "peer.fps"} <= set(rows)
    assert all(row.value > 0 for name, row in rows.items() if name.endswith("fps"))
    assert rows["convolution_share"].value > 0
    # Two in each of 10 residual blocks, the first and the last, and those between levels.
    assert report.details["vae.stream.16x24.convolutions"] > 22
    with pytest.raises(InvalidArgument, match="repeats"):
        measure_streams("cpu", repeats=1)


@pytest.mark.gpu
@pytest.mark.peer
def test_rows_of_streams_on_the_gpu():
    pytest.importorskip("diffusers")
    report = measure_streams("cuda", sizes=((64, 64),), lengths=(5, 20))
    growth = next(row for row in report.rows if row.name.endswith("peak_growth"))
    assert growth.ok, growth
