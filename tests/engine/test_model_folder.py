"""Model folders: what is written loads again, and every defect is named."""

import json
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import skyreels_rt as rt
from skyreels_rt import errors
from skyreels_rt.config import ByteTextConfig, GenerationConfig, config_from_dict
from skyreels_rt.testing.tiny import TinyModel, tiny_components, write_tiny_model
from skyreels_rt.weights.diffusers_layout import transformer_config_from_diffusers

SMALL = TinyModel().with_generation(height=32, width=32, window=5, overlap=2, num_steps=1)
SPEECH = 0.1 * np.random.default_rng(0).standard_normal(12_000).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    write_tiny_model(tmp_path / "model", SMALL)
    return tmp_path / "model"


def edit(path, **changes):
    data = json.loads(path.read_text())
    data.update(changes)
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not ...}))


def test_folder_equals_the_model_in_memory(folder):
    engines = [rt.Engine.from_pretrained(folder), rt.Engine(tiny_components(SMALL))]
    options = {"prompt": "hello", "sample_rate": 16_000}
    videos = [engine.generate(SPEECH, **options) for engine in engines]
    np.testing.assert_array_equal(videos[0].frames, videos[1].frames)


@pytest.mark.parametrize("native", ["auto", "reference"])
def test_no_pickle_and_no_socket_while_loading_and_running(folder, native):
    seen = []
    active = [True]

    def watch(event, arguments):
        if active[0] and event.startswith(("pickle.", "socket.", "subprocess.", "os.system")):
            seen.append((event, arguments))

    sys.addaudithook(watch)
    try:
        engine = rt.Engine.from_pretrained(folder, kernels=native)
        engine.generate(SPEECH, prompt="hello", sample_rate=16_000)
    finally:
        active[0] = False
    assert seen == []


@pytest.mark.parametrize(
    ("file", "changes", "named"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "FluxPipeline"),
        ("model_index.json", {"transformer": ["evil", "RunThis"]}, "RunThis"),
        ("model_index.json", {"vae": None}, "vae"),
        ("model_index.json", {"text_encoder": ...}, "text_encoder"),
        ("transformer/config.json", {"surprise": 1}, "surprise"),
        ("transformer/config.json", {"num_heads": 5}, "dim"),
        ("transformer/config.json", {"num_heads": "3"}, "num_heads"),
        ("transformer/config.json", {"num_layers": 4}, "blocks.3"),
        ("transformer/config.json", {"ffn_dim": 128}, "ffn"),
        ("generation_config.json", {"overlap": 5}, "overlap"),
        ("generation_config.json", {"shift": float("nan")}, "shift"),
        ("generation_config.json", {"shift": float("inf")}, "shift"),
        ("generation_config.json", {"shift": 10**400}, "shift"),
        ("transformer/config.json", {"eps": float("nan")}, "eps"),
        ("vae/config.json", {"latents_std": [0.0]}, "latents_std"),
        ("generation_config.json", {"reference_mode": "magic"}, "reference_mode"),
        ("audio_encoder/feature_config.json", {"past": 71}, "max_source_positions"),
        ("audio_encoder/config.json", {"model_type": "bert"}, "bert"),
        ("vae/config.json", {"z_dim": 8}, "vae"),
    ],
)  # fmt: skip
def test_every_defect_is_named(folder, file, changes, named):
    edit(folder / file, **changes)
    with pytest.raises(errors.ModelError, match=named):
        rt.Engine.from_pretrained(folder)


@pytest.mark.parametrize("content", ["", "[1, 2]", "{", "[" * 100_000])
def test_files_that_are_no_json_object(folder, content):
    (folder / "model_index.json").write_text(content)
    with pytest.raises(errors.ModelError, match="model_index"):
        rt.Engine.from_pretrained(folder)


def test_only_pickles_are_refused_with_the_way_out(folder):
    weights = folder / "vae" / "model.safetensors"
    weights.rename(weights.with_name("model.pth"))
    with pytest.raises(errors.ModelError, match="safetensors"):
        rt.Engine.from_pretrained(folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_folder_runs_in_every_cpu_dtype(folder, dtype):
    engine = rt.Engine.from_pretrained(folder, dtype=dtype)
    image = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    video = engine.generate(SPEECH, image=image, prompt="hello", sample_rate=16_000)
    assert video.num_frames == 19


def test_components_that_do_not_belong_together(folder):
    write_tiny_model(folder.parent / "other", replace(SMALL, text=ByteTextConfig(dim=32)))
    import shutil

    shutil.rmtree(folder / "text_encoder")
    shutil.copytree(folder.parent / "other" / "text_encoder", folder / "text_encoder")
    with pytest.raises(errors.ModelError, match="text encoder width is 32"):
        rt.Engine.from_pretrained(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"in_channels": "36"}, {"patch_size": 5}, {"patch_size": [1, 2]}, {"patch_size": [2, 2, 2]},
        {"patch_size": [1, 2, 4]}, {"num_layers": 1.5}, {"eps": "x"}, {"num_attention_heads": None},
        {"qk_norm": "layer_norm"}, {"ffn_dim": ...},
    ],
)  # fmt: skip
def test_unusable_diffusers_config(changes):
    data = {
        "patch_size": [1, 2, 2], "num_attention_heads": 2, "attention_head_dim": 32,
        "in_channels": 16, "out_channels": 16, "text_dim": 32, "freq_dim": 32, "ffn_dim": 64,
        "num_layers": 1, "eps": 1e-6, "qk_norm": "rms_norm_across_heads", "cross_attn_norm": True,
    }  # fmt: skip
    assert transformer_config_from_diffusers(data, where="t").dim == 64
    data = {k: v for k, v in (data | changes).items() if v is not ...}
    with pytest.raises(errors.ModelError, match=next(iter(changes))):
        transformer_config_from_diffusers(data, where="t")


def test_config_reader_keeps_types():
    config = config_from_dict(GenerationConfig, {"shift": 3, "_diffusers": "x"}, where="t")
    assert config.shift == 3.0
    with pytest.raises(errors.ModelError, match="num_steps"):
        config_from_dict(GenerationConfig, {"num_steps": True}, where="t")
    with pytest.raises(errors.ModelError, match="Known keys: dim"):
        config_from_dict(ByteTextConfig, {"wide": 3}, where="t")


def test_wan_vae_and_clip_free_model_runs():
    """The native family with Wan's own VAE instead of the tiny one."""
    from skyreels_rt.config import WanVAEConfig
    from skyreels_rt.models.wan_vae import WanVAE
    from skyreels_rt.testing.tiny import randomise

    parts = tiny_components(SMALL)
    with torch.random.fork_rng(devices=[]):
        vae = WanVAE(WanVAEConfig(base_dim=8), parts.plan)
    randomise(vae, 1)
    vae.eval().requires_grad_(False)
    engine = rt.Engine(replace(parts, vae=vae))
    image = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    video = engine.generate(SPEECH, image=image, sample_rate=16_000)
    assert video.frames.shape == (19, 32, 32, 3)
    assert video.frames.std() > 0


def share(folder, name="other", base="model"):
    """A second folder that has only a transformer of its own."""
    other = folder.parent / name
    shutil.copytree(folder, other)
    for part in ("vae", "audio_encoder", "text_encoder"):
        shutil.rmtree(other / part)
    edit(other / "model_index.json", _base=base)
    return other


def test_a_folder_may_take_components_from_the_one_beside_it(folder):
    options = {"prompt": "hello", "sample_rate": 16_000}
    videos = [rt.Engine.from_pretrained(f).generate(SPEECH, **options) for f in
              (folder, share(folder))]  # fmt: skip
    np.testing.assert_array_equal(videos[0].frames, videos[1].frames)


@pytest.mark.parametrize("base", ["../model", "/model", "..", "", 3])
def test_a_base_is_a_plain_name(folder, base):
    with pytest.raises(errors.ModelError, match="_base"):
        rt.Engine.from_pretrained(share(folder, base=base))


def test_a_base_that_lacks_a_component_too_is_named(folder):
    with pytest.raises(errors.ModelError, match="nowhere"):
        rt.Engine.from_pretrained(share(folder, base="nowhere"))


@pytest.mark.parametrize("component", ["vae", "text_encoder", "audio_encoder"])
def test_every_component_is_checked_before_a_weight_is_placed(folder, component):
    file = folder / component / "model.safetensors"
    tensors = load_file(file)
    lost = max(tensors)
    del tensors[lost]
    save_file(tensors, file)
    placed = []
    with pytest.raises(errors.WeightsMismatch, match=re.escape(lost)):
        rt.Engine.from_pretrained(folder, on_progress=placed.append)
    assert placed == []
