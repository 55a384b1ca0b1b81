"""ONNX graphs of a VAE: equal to torch over a stream, told apart, refused where they do not fit."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from skyreels_rt.engine import Engine
from skyreels_rt.errors import InvalidArgument, MissingDependency, ModelError, NonFinite
from skyreels_rt.export.exported_vae import load_exported_vae
from skyreels_rt.export.facts import GRAPHS, model_hash
from skyreels_rt.export.onnx import export_vae
from skyreels_rt.export.tensorrt import read_onnx_facts
from skyreels_rt.export.verify import verify_stream

onnx = pytest.importorskip("onnx", reason="onnx is not installed: nothing is exported")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: no graph is run")
HEIGHT, WIDTH = SIZE = (16, 24)


@pytest.mark.parametrize("kind", ["wan", pytest.param("tiny", marks=pytest.mark.slow)])
def test_a_stream_equals_torch(kind, vae_of, exported):
    vae = vae_of(kind)
    onnx_vae = load_exported_vae(vae, "onnx", exported(kind))
    for part in verify_stream(vae, onnx_vae, height=HEIGHT, width=WIDTH, num_steps=12):
        assert part.num_steps == 12
        assert part.ok, part
        assert part.limit == 1e-4


@pytest.mark.parametrize("kind", ["wan", pytest.param("tiny", marks=pytest.mark.slow)])
def test_a_half_precision_stream_is_within_the_budget(kind, vae_of, exported):
    vae = vae_of(kind)
    onnx_vae = load_exported_vae(vae, "onnx", exported(kind, torch.float16))
    assert onnx_vae.dtype == torch.float16
    for part in verify_stream(vae, onnx_vae, height=HEIGHT, width=WIDTH):
        assert part.ok, part
        assert part.limit < 0.1


@pytest.mark.parametrize("kind", ["wan", pytest.param("tiny", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_zeros_stay_finite(dtype, kind, vae_of, exported):
    onnx_vae = load_exported_vae(vae_of(kind), "onnx", exported(kind, dtype))
    cache = tuple(torch.zeros(1, *s) for s in onnx_vae.decoder_cache_shapes(*SIZE))
    latents = torch.zeros(1, onnx_vae.latent_channels, 1, 2, 3)
    frames, following = onnx_vae.decode_step(latents, cache)
    assert torch.isfinite(frames).all()
    assert all(torch.isfinite(one).all() for one in following)
    cache = tuple(torch.zeros(1, *s) for s in onnx_vae.encoder_cache_shapes(*SIZE))
    latents, _ = onnx_vae.encode_step(torch.zeros(1, 3, 4, *SIZE), cache)
    assert torch.isfinite(latents).all()


def test_parity_rejects_a_forgotten_cache(vae_of, exported):
    vae = vae_of("wan")

    class Forgetful(type(vae)):
        def decode_step(self, latents, cache=None, *, clamp=True):
            frames, following = super().decode_step(latents, cache, clamp=clamp)
            return frames, (*following[:-1], torch.zeros_like(following[-1]))

    faulty = vae_of("wan")
    faulty.__class__ = Forgetful
    _, decode = verify_stream(vae, faulty, height=HEIGHT, width=WIDTH, num_steps=2)
    assert not decode.ok
    assert decode.worst_step > 0


def test_parity_rejects_nan(vae_of):
    vae, broken = vae_of("tiny"), vae_of("tiny")
    next(broken.decoder.parameters()).fill_(float("nan"))
    with pytest.raises(NonFinite, match="decode, step 0"):
        verify_stream(vae, broken, height=HEIGHT, width=WIDTH, num_steps=1)


def test_files_say_what_they_are_and_are_valid(vae_of, exported):
    vae, folder = vae_of("wan"), exported("wan")
    for graph in GRAPHS:
        path = folder / f"{graph}.onnx"
        model = onnx.load(path)
        onnx.checker.check_model(model)
        assert model.opset_import[0].version >= 18
        steady = graph.endswith("steady")
        names = [value.name for value in model.graph.input]
        assert names[0] == ("frames" if graph.startswith("encode") else "latents")
        assert len(names) == 1 + steady * (len(model.graph.output) - 1)
        facts = read_onnx_facts(path)
        assert facts.model_hash == model_hash(vae)
        assert (facts.graph, facts.height, facts.width) == (graph, *SIZE)
        assert any(version.startswith("torch==") for version in facts.versions)


def test_bfloat16_graphs_are_valid(exported):
    folder = exported("wan", torch.bfloat16, graphs=("decode_steady",))
    model = onnx.load(folder / "decode_steady.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16


def test_large_weights_go_beside_the_graph(vae_of, tmp_path):
    vae = vae_of("tiny")
    (path,) = export_vae(vae, tmp_path, size=SIZE, graphs=("decode_first",), external_above=1000)
    beside = tmp_path / "decode_first.onnx.data"
    assert beside.stat().st_size > 1000
    assert read_onnx_facts(path).model_hash == model_hash(vae)
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    latents = torch.randn(1, 8, 1, 2, 3)
    frames, _ = vae.decode_step(latents)
    ours = session.run(["frames"], {"latents": latents.numpy()})[0]
    assert np.abs(ours - frames.numpy()).max() < 1e-4


def test_files_of_another_model_are_refused(vae_of, exported, tmp_path):
    with pytest.raises(ModelError, match="exported from another model"):
        load_exported_vae(vae_of("wan", seed=1), "onnx", exported("wan"))
    with pytest.raises(ModelError, match="another model"):
        load_exported_vae(vae_of("tiny"), "onnx", exported("wan"))
    mixed = shutil.copytree(exported("wan"), tmp_path / "mixed")
    shutil.copy(mixed / "encode_first.onnx", mixed / "encode_steady.onnx")
    with pytest.raises(ModelError, match="holds encode_first, expected encode_steady"):
        load_exported_vae(vae_of("wan"), "onnx", mixed)
    (mixed / "encode_steady.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelError, match="cannot open"):
        load_exported_vae(vae_of("wan"), "onnx", mixed)
    (mixed / "encode_steady.onnx").unlink()
    with pytest.raises(ModelError, match="no such file"):
        load_exported_vae(vae_of("wan"), "onnx", mixed)


def test_graphs_of_different_types_are_refused(vae_of, exported, tmp_path):
    mixed = shutil.copytree(exported("wan"), tmp_path / "mixed")
    half = exported("wan", torch.float16)
    shutil.copy(half / "decode_steady.onnx", mixed / "decode_steady.onnx")
    with pytest.raises(ModelError, match="different types or sizes"):
        load_exported_vae(vae_of("wan"), "onnx", mixed)


def test_a_foreign_onnx_file_is_refused(vae_of, exported, tmp_path):
    foreign = shutil.copytree(exported("wan"), tmp_path / "foreign")
    model = onnx.load(foreign / "encode_first.onnx")
    del model.metadata_props[:]
    onnx.save(model, foreign / "encode_first.onnx")
    with pytest.raises(ModelError, match="not a file that skyreels-rt exported"):
        load_exported_vae(vae_of("wan"), "onnx", foreign)


def test_what_does_not_fit_the_graphs_is_refused(vae_of, exported):
    onnx_vae = load_exported_vae(vae_of("wan"), "onnx", exported("wan"))
    with pytest.raises(InvalidArgument, match="size: expected 16 x 24"):
        onnx_vae.decode_step(torch.zeros(1, 16, 1, 4, 4))
    with pytest.raises(InvalidArgument, match="batch"):
        onnx_vae.decode_step(torch.zeros(2, 16, 1, 2, 3))
    with pytest.raises(InvalidArgument, match="clamp"):
        onnx_vae.decode_step(torch.zeros(1, 16, 1, 2, 3), clamp=False)


def test_arguments_out_of_range_are_refused(vae_of, tmp_path):
    vae = vae_of("tiny")
    with pytest.raises(InvalidArgument, match="opset"):
        export_vae(vae, tmp_path, size=SIZE, opset=17)
    with pytest.raises(InvalidArgument, match="opset: expected 22"):
        export_vae(vae, tmp_path, size=SIZE, opset=20, dtype=torch.bfloat16)
    with pytest.raises(InvalidArgument, match="size"):
        export_vae(vae, tmp_path, size=(20, 16))
    with pytest.raises(InvalidArgument, match="dtype"):
        export_vae(vae, tmp_path, size=SIZE, dtype=torch.float64)


def test_the_engine_says_what_is_missing(tmp_path):
    with pytest.raises(InvalidArgument, match="vae: expected one of torch, onnx, tensorrt"):
        Engine.from_pretrained("tiny-random", vae="openvino")
    with pytest.raises(InvalidArgument, match=r"vae_folder: .*skyreels-rt export vae"):
        Engine.from_pretrained("tiny-random", vae="onnx")
    with pytest.raises(InvalidArgument, match="vae_folder"):
        Engine.from_pretrained("tiny-random", vae_folder=tmp_path)
    with pytest.raises(ModelError, match="no such file"):
        Engine.from_pretrained("tiny-random", vae="onnx", vae_folder=tmp_path)
    with pytest.raises(InvalidArgument, match="device: expected cuda"):
        Engine.from_pretrained("tiny-random", vae="tensorrt", vae_folder=tmp_path)


def test_a_missing_onnxruntime_is_named(vae_of, exported, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match="onnxruntime is not installed"):
        load_exported_vae(vae_of("wan"), "onnx", exported("wan"))


def test_the_engine_makes_the_same_video(tmp_path):
    engine = Engine.from_pretrained("tiny-random", device="cpu", dtype="float32")
    generation = engine.components.generation
    export_vae(engine.components.vae, tmp_path, size=(generation.height, generation.width))
    other = Engine.from_pretrained(
        "tiny-random", device="cpu", dtype="float32", vae="onnx", vae_folder=tmp_path
    )
    speech = np.sin(np.arange(16_000) / 20).astype(np.float32)
    job = {"sample_rate": 16_000, "num_steps": 1, "on_progress": lambda _: None}
    image = np.full((generation.height, generation.width, 3), 100, np.uint8)
    one = engine.generate(speech, image=image, **job)
    two = other.generate(speech, image=image, **job)
    assert one.frames.std() > 1
    assert np.abs(one.frames.astype(int) - two.frames.astype(int)).max() <= 1
    assert other.components.num_bytes == engine.components.num_bytes
    assert other.components.vae.runner != engine.components.vae.runner


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wan", "tiny"])
def test_open_dimensions_take_any_size(kind, vae_of, exported):
    vae = vae_of(kind)
    onnx_vae = load_exported_vae(vae, "onnx", exported(kind, size=None))
    for height, width in ((16, 24), (40, 16)):
        for part in verify_stream(vae, onnx_vae, height=height, width=width):
            assert part.ok, part
