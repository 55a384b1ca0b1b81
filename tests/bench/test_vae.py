"""The VAE benchmark measures two models that agree, and says when it cannot."""

import pytest

from skyreels_rt.bench import vae as bench
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
    models = bench._models

    def changed(config):
        theirs, ours = models(config)
        ours.decoder.conv_out.weight.mul_(1.01)
        return theirs, ours

    monkeypatch.setattr(bench, "_models", changed)
    with pytest.raises(ModelError, match="differs"):
        measure()


def test_bad_calls_are_refused():
    with pytest.raises(InvalidArgument, match="peer"):
        measure(peer="somebody")
    with pytest.raises(InvalidArgument, match="repeats"):
        measure(repeats=2)
