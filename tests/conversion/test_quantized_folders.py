"""Model folders in 8 bits: written once, loaded as they are, told otherwise by a policy."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import skyreels_rt as rt
from skyreels_rt.conversion.convert import convert
from skyreels_rt.errors import InvalidArgument, ModelError
from skyreels_rt.models.fp8_linear import Fp8Linear
from skyreels_rt.testing.tiny import write_tiny_model


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "model"
    write_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def small(plain):
    """The same model with its layers in 8 bits."""
    target = plain.parent / "small"
    convert(plain, target, quantization="fp8")
    return target


def transformer(folder, **options):
    return rt.Engine.from_pretrained(folder, **options).components.transformer


def same_bits(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        mine[name].dtype == theirs[name].dtype and torch.equal(mine[name].float(), value.float())
        for name, value in theirs.items()
    )


def modes(model):
    return {n: m.mode for n, m in model.named_modules() if isinstance(m, Fp8Linear)}


def test_a_folder_in_8_bits_loads_as_if_quantised_now(plain, small):
    expected = transformer(plain, quantization="fp8")
    for found in (transformer(small), transformer(small, offload=True)):
        assert same_bits(found, expected)
        assert modes(found) == modes(expected)
    assert same_bits(transformer(small, dtype="bfloat16"), transformer(small, dtype="bfloat16"))
    sizes = [
        sum(file.stat().st_size for file in (folder / "transformer").iterdir())
        for folder in (small, plain)
    ]
    assert sizes[0] < 0.75 * sizes[1]
    assert (small / "vae/model.safetensors").samefile(plain / "vae/model.safetensors")


def test_a_policy_overrules_what_is_stored(plain, small):
    weight_only = transformer(small, quantization="fp8_weight")
    assert set(modes(weight_only).values()) == {"fp8_weight"}
    full = transformer(small, quantization=rt.QuantPolicy((("blocks.*", "full"),)))
    assert modes(full) == {}
    exact = transformer(plain)
    for name, layer in transformer(small).named_modules():
        if isinstance(layer, Fp8Linear):
            product = layer.weight.float() * layer.weight_scale
            assert torch.equal(full.get_submodule(name).weight, product)
            assert not torch.equal(exact.get_submodule(name).weight, product)


def test_shapes_alone_know_the_8_bits(plain, small):
    from skyreels_rt.pretrained import load_shapes

    sizes = [load_shapes(folder, dtype="float32").num_bytes for folder in (small, plain)]
    assert sizes[0] < 0.8 * sizes[1]
    assert sizes[0] == rt.Engine.from_pretrained(small).components.num_bytes


def test_a_quantised_release_talks(releases, tmp_path):
    source, adapter = releases("skyreels-v3-a2v")
    made = convert(source, tmp_path / "model", adapter=adapter, quantization="fp8")
    engine = rt.Engine.from_pretrained(made.folder)
    assert "fp8" in engine.describe() and made.preset == "skyreels-v3-a2v"
    speech = 0.1 * np.random.default_rng(1).standard_normal(8000).astype(np.float32)
    portrait = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    video = engine.generate(
        speech, sample_rate=16_000, image=portrait, height=32, width=32, num_steps=1
    )
    assert np.ptp(video.frames) > 0
    listed = (made.folder / "SHA256SUMS").read_text()
    assert "transformer/quantization.json" in listed


def test_a_file_published_in_8_bits_keeps_its_layers(plain, small, tmp_path):
    """One scale a weight and a marker, as ComfyUI writes them; no policy beside it."""
    folder = tmp_path / "model"
    shutil.copytree(small, folder)
    (folder / "transformer/quantization.json").unlink()
    file = folder / "transformer/model-00001-of-00001.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if name.endswith(".weight_scale")]:
        scale = tensors.pop(name).mean()
        tensors[name.replace("weight_scale", "scale_weight")] = scale
    tensors["scaled_fp8"] = torch.empty(2, dtype=torch.float8_e4m3fn)
    file.unlink()
    (folder / "transformer/model.safetensors.index.json").unlink()
    save_file(tensors, folder / "transformer/model.safetensors")
    model = transformer(folder)
    assert modes(model) == dict.fromkeys(modes(transformer(small)), "fp8_weight")
    layer = model.blocks[0].ffn.get_submodule("0")
    assert torch.equal(layer.weight_scale, layer.weight_scale[:1].expand_as(layer.weight_scale))
    again = convert(folder, tmp_path / "again", quantization="fp8").folder
    found = transformer(again)
    assert same_bits(found, model)
    assert set(modes(found).values()) == {"fp8", "fp8_weight"}


def test_faults_are_told_and_leave_nothing(plain, small, tmp_path):
    with pytest.raises(InvalidArgument, match="int4"):
        convert(plain, tmp_path / "a", quantization="int4")
    with pytest.raises(InvalidArgument, match="fits_none"):
        convert(plain, tmp_path / "a", quantization=rt.QuantPolicy((("fits_none", "fp8"),)))
    with pytest.raises(ModelError, match="already a model folder"):
        convert(plain, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    folder = tmp_path / "model"
    shutil.copytree(small, folder)
    for rules in ({}, [["blocks.*"]], [["blocks.*", "int4"]], [[1, "fp8"]]):
        text = json.dumps({"rules": rules})
        (folder / "transformer/quantization.json").write_text(text)
        with pytest.raises(ModelError, match=r"quantization\.json"):
            transformer(folder)


def test_the_command_quantises_an_embedded_model(tmp_path):
    from typer.testing import CliRunner

    from skyreels_rt.cli import app

    command = ["convert", "demo-fast", str(tmp_path / "small"), "--quantize", "fp8_weight"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    found = transformer(tmp_path / "small")
    assert same_bits(found, transformer("demo-fast", quantization="fp8_weight"))
