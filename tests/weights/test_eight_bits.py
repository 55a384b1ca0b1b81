"""Checkpoints in e4m3: every layout gives its rows, and none is unpacked on the way."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from skyreels_rt.errors import ModelError, NonFinite, WeightsMismatch
from skyreels_rt.kernels import quantize_rows
from skyreels_rt.models.fp8_linear import Fp8Linear
from skyreels_rt.testing.tiny import TinyModel, write_tiny_model
from skyreels_rt.weights.files import read_checkpoint, stored_dtype
from skyreels_rt.weights.loader import load_weights

ROWS, COLUMNS = 6, 32


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Model(nn.Module):
    """A layer that is stored in 8 bits, and one that is not."""

    def __init__(self, *, small):
        super().__init__()
        layer = nn.Linear(COLUMNS, ROWS)
        self.layer = Fp8Linear(layer.weight, layer.bias, "fp8") if small else layer
        self.head = nn.Linear(4, 2)


VALUES, SCALES = quantize_rows(numbers(ROWS, COLUMNS))
REST = {"layer.bias": numbers(ROWS, seed=1), "head.weight": numbers(2, 4), "head.bias": numbers(2)}
ONE = torch.tensor(0.25)
LAYOUTS = {
    "ours, LightX2V": ({"layer.weight": VALUES, "layer.weight_scale": SCALES}, SCALES),
    "ComfyUI": (
        {
            "layer.weight": VALUES, "layer.scale_weight": ONE, "layer.scale_input": ONE.clone(),
            "scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn),
        },
        ONE.expand(ROWS, 1),
    ),
    "optimum-quanto": (
        {
            "layer.weight._data": VALUES, "layer.weight._scale": SCALES.bfloat16(),
            "layer.input_scale": torch.ones(()), "layer.output_scale": torch.ones(()),
        },
        SCALES.bfloat16().float(),
    ),
    "a plain cast": ({"layer.weight": VALUES}, torch.ones(ROWS, 1)),
}  # fmt: skip


def loaded(folder, tensors, *, small, **options):
    folder.mkdir(exist_ok=True)
    save_file({**tensors, **REST}, folder / "model.safetensors")
    with torch.device("meta"):
        model = Model(small=small)
    load_weights(model, folder, device="cpu", dtype=None, **options)
    return model


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_its_rows_as_they_are(tmp_path, name):
    tensors, scales = LAYOUTS[name]
    model = loaded(tmp_path, tensors, small=True)
    assert torch.equal(model.layer.weight.view(torch.uint8), VALUES.view(torch.uint8))
    assert torch.equal(model.layer.weight_scale, scales)
    assert torch.equal(model.layer.bias, REST["layer.bias"])
    x = numbers(3, COLUMNS)
    expected = nn.functional.linear(x, VALUES.float() * scales, REST["layer.bias"])
    model.layer.mode = "fp8_weight"
    torch.testing.assert_close(model.layer(x), expected)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_full_layer_gets_the_product(tmp_path, name):
    tensors, scales = LAYOUTS[name]
    model = loaded(tmp_path, tensors, small=False)
    assert torch.equal(model.layer.weight, VALUES.float() * scales)


def test_a_full_weight_becomes_rows_on_the_way(tmp_path):
    weight = numbers(ROWS, COLUMNS)
    model = loaded(tmp_path, {"layer.weight": weight}, small=True)
    assert torch.equal(model.layer.weight.float(), VALUES.float())
    assert torch.equal(model.layer.weight_scale, SCALES)


def test_scales_may_lie_in_another_shard(tmp_path):
    from skyreels_rt.weights.loader import save_weights

    save_weights({**LAYOUTS["ours, LightX2V"][0], **REST}, tmp_path, max_shard_bytes=1)
    with torch.device("meta"):
        model = Model(small=True)
    load_weights(model, tmp_path, device="cpu", dtype=torch.bfloat16)
    assert torch.equal(model.layer.weight_scale, SCALES)
    assert model.layer.weight.dtype == torch.float8_e4m3fn
    assert model.layer.bias.dtype == torch.bfloat16


def test_additions_change_their_layer_and_leave_others_as_stored(tmp_path):
    tensors, scales = LAYOUTS["ComfyUI"]
    delta = numbers(ROWS, COLUMNS, seed=5)

    def merge(name, weight):
        return weight + delta if name == "layer.weight" else weight

    changed = loaded(tmp_path, tensors, small=True, merge=merge)
    values, rows = quantize_rows(VALUES.float() * scales + delta)
    assert torch.equal(changed.layer.weight.float(), values.float())
    assert torch.equal(changed.layer.weight_scale, rows)
    same = loaded(tmp_path, tensors, small=True, merge=lambda _, weight: weight)
    assert torch.equal(same.layer.weight.float(), VALUES.float())
    assert torch.equal(same.layer.weight_scale, scales)


def test_the_type_of_the_rest_is_the_models(tmp_path):
    rest = {name: value.bfloat16() for name, value in REST.items()}
    save_file({**LAYOUTS["ComfyUI"][0], **rest}, tmp_path / "model.safetensors")
    assert stored_dtype(tmp_path) == torch.bfloat16
    entry = read_checkpoint(tmp_path)["layer.weight"]
    assert entry.num_bytes == ROWS * COLUMNS + 4


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"layer.weight": VALUES, "layer.weight_scale": torch.ones(5)}, "layer.weight_scale"),
        (
            {"layer.weight": VALUES, "layer.weight_scale": torch.ones(1, dtype=torch.int32)},
            "layer.weight_scale",
        ),
        ({"layer.weight": numbers(ROWS, COLUMNS), "layer.scale_weight": ONE}, "layer.scale_weight"),
        (
            {"layer.weight._data": VALUES.view(torch.int8), "layer.weight._scale": SCALES},
            "layer.weight._data",
        ),
        ({"layer.weight": VALUES[:5], "layer.weight_scale": SCALES[:5]}, "layer.weight"),
        ({}, "layer.weight"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, tensors, named):
    with pytest.raises(WeightsMismatch, match=named):
        loaded(tmp_path, tensors, small=True)


def test_two_scales_and_numbers_that_are_none_are_refused(tmp_path):
    both = {"layer.weight": VALUES, "layer.scale_weight": ONE, "layer.weight_scale": SCALES}
    with pytest.raises(ModelError, match="two scales"):
        loaded(tmp_path, both, small=True)
    nan = {"layer.weight": VALUES, "layer.weight_scale": SCALES.clone().fill_(torch.nan)}
    with pytest.raises(NonFinite, match="weight_scale"):
        loaded(tmp_path, nan, small=True)
    damaged = VALUES.clone().view(torch.uint8).fill_(0x7F).view(torch.float8_e4m3fn)
    with pytest.raises(NonFinite, match="layer"):
        loaded(tmp_path, {"layer.weight": damaged}, small=True)


# ---------------------------------------------------------------- memory

PEAK = """
import resource, sys
from pathlib import Path
import skyreels_rt as rt

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) * 1024

rt.Engine.from_pretrained(sys.argv[1], quantization="fp8")  # imports, pools of threads
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = status("VmRSS")
engine = rt.Engine.from_pretrained(sys.argv[2], quantization=sys.argv[3] or None)
print(status("VmHWM") - before, engine.components.num_bytes)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peak_of_a_quantised_model_is_what_stays_and_one_shard(tmp_path):
    """In the large: a shard and 1 GB above what is placed. Here one of ten shards and 24 MB."""
    big = TinyModel().with_transformer(dim=512, ffn_dim=2048, num_heads=8, num_layers=10)
    write_tiny_model(tmp_path / "small")
    write_tiny_model(tmp_path / "big", big, max_shard_bytes=20e6)
    sizes = [path.stat().st_size for path in (tmp_path / "big/transformer").glob("*.safetensors")]
    assert len(sizes) >= 9

    def load(quantization):
        done = subprocess.run(
            [sys.executable, "-P", "-c", PEAK, tmp_path / "small", tmp_path / "big", quantization],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return map(int, done.stdout.split())

    peak, placed = load("fp8")
    assert placed < 0.5 * sum(sizes)
    assert placed / 2 < peak < placed + max(sizes) + 24e6 < 0.7 * sum(sizes)
