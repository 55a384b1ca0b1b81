"""A family is told by its tensors' names; what is known and not run is said by name."""

import json

import pytest
import torch

from skyreels_rt.config import AudioAdapterConfig, TransformerConfig
from skyreels_rt.errors import ModelError
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models.transformer import SkyReelsTransformer
from skyreels_rt.weights.families import FAMILIES, detect_family
from skyreels_rt.weights.key_maps import fantasy_talking_key, official_key
from skyreels_rt.weights.official_layout import transformer_config_from_official

AUDIO = {"feature_layers": 12, "feature_dim": 16, "features_per_frame": 1, "hidden_dim": 8}
CONFIGS = {
    "multitalk": {
        "image_dim": 32,
        "audio": AudioAdapterConfig(num_tokens=4, token_dim=24, **AUDIO),
    },
    "fantasy-talking": {
        "image_dim": 32,
        "audio": AudioAdapterConfig(
            kind="shared_query", feature_layers=1, feature_dim=16, num_tokens=17, token_dim=24
        ),
    },
    "wan-i2v": {"image_dim": 32},
    "wan-t2v": {"in_channels": 16},
}


def config_of(name):
    sizes = {"dim": 24, "ffn_dim": 40, "num_heads": 2, "num_layers": 2, "freq_dim": 8}
    return TransformerConfig(text_dim=16, text_length=8, **sizes, **CONFIGS[name])


def shapes_of(name):
    with torch.device("meta"):
        plan = KernelPlan.choose(torch.device("cpu"), torch.float32)
        state = SkyReelsTransformer(config_of(name), plan).state_dict()
    return {key: tuple(value.shape) for key, value in state.items()}


def official_json(config):
    return {
        "_class_name": "WanModel", "model_type": "i2v" if config.image_dim else "t2v",
        "dim": config.dim, "ffn_dim": config.ffn_dim, "freq_dim": config.freq_dim,
        "in_dim": config.in_channels, "out_dim": 16, "num_heads": 2, "num_layers": 2,
        "text_len": 8, "eps": 1e-6,
    }  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_supported_family_is_told_and_its_sizes_read(name):
    shapes, config = shapes_of(name), config_of(name)
    family = detect_family(shapes, where="x")
    assert family.name == name
    read = transformer_config_from_official(official_json(config), shapes, family, where="x")
    assert read == config


@pytest.mark.parametrize("name", CONFIGS)
def test_the_order_of_names_does_not_matter(name):
    assert detect_family(sorted(shapes_of(name), reverse=True), where="x").name == name


def test_diffusers_names_belong_to_the_same_families():
    names = ["patch_embedding.weight", "blocks.0.attn1.to_q.weight"]
    assert detect_family(names, where="x").name == "wan-t2v"
    names.append("blocks.0.attn2.add_k_proj.weight")
    assert detect_family(names, where="x").name == "wan-i2v"


@pytest.mark.parametrize("name", ["multitalk", "fantasy-talking"])
def test_an_adapter_without_its_base_is_told(name):
    marks = ("audio_", "norm_x", "k_audio", "v_audio")
    names = [key for key in shapes_of(name) if any(mark in key for mark in marks)]
    family = detect_family(names, where="x")
    assert family.name == f"{name}-adapter"
    assert family.is_adapter


FOREIGN = {
    "liveact": ["blocks.0.self_attn.memory_proj_k.weight"],
    "longcat-avatar": ["blocks.0.adaLN_modulation.1.weight", "blocks.0.attn.qkv.weight"],
    "wan2.2-s2v": ["casual_audio_encoder.weights", "audio_injector.injector.0.q.weight"],
    "omniavatar": ["audio_cond_projs.0.weight", "audio_proj.proj.weight"],
    "echomimic-v3": ["blocks.0.cross_attn.norm_k_audio.weight"],
    "stableavatar": ["blocks.0.cross_attn.k_vocal.weight", "vocal_projector.x"],
    "sekotalk": ["ca.0.to_q.weight"],
    "hunyuan-avatar": ["audio_adapter_blocks.0.to_q.weight"],
    "vace": ["vace_blocks.0.before_proj.weight"],
    "flashhead": ["audio_proj.proj1_vf.weight", "audio_proj.proj1.weight"],
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_known_family_that_does_not_run_is_named(name):
    (family,) = [f for f in FAMILIES if f.name == name]
    without = dict.fromkeys(["hunyuan-avatar", "longcat-avatar", "sekotalk"])
    bases = {"liveact": "multitalk"} | without
    base = bases.get(name, "wan-i2v")
    names = [*FOREIGN[name], *(shapes_of(base) if base else ())]
    with pytest.raises(ModelError) as caught:
        detect_family(names, where="model.safetensors")
    assert family.title in str(caught.value)
    assert "does not run" in str(caught.value)
    assert "SkyReels-V3-A2V" in str(caught.value)


@pytest.mark.parametrize("names", [[], ["x.weight"], ["patch_embedding.weight"]])
def test_unknown_tensors_are_no_family(names):
    with pytest.raises(ModelError, match="no model family"):
        detect_family(names, where="x")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("audio_processor.blocks.39.cross_attn.processor.k_proj.weight",
         "blocks.39.cross_attn.k_audio.weight"),
        ("audio_processor.blocks.0.cross_attn.processor.v_proj.weight",
         "blocks.0.cross_attn.v_audio.weight"),
        ("proj_model.proj.weight", "audio_proj.proj.weight"),
        ("proj_model.norm.bias", "audio_proj.norm.bias"),
        ("audio_processor.blocks.0.cross_attn.processor.q_proj.weight",
         "audio_processor.blocks.0.cross_attn.processor.q_proj.weight"),
    ],
)  # fmt: skip
def test_fantasy_talking_names(theirs, ours):
    assert fantasy_talking_key(theirs) == ours
    assert official_key(theirs) == ours


def test_our_own_names_are_official():
    for name in CONFIGS:
        assert {official_key(key) for key in shapes_of(name)} == set(shapes_of(name))


# ---------------------------------------------------------------- configuration files


def read(changes, drop=(), name="multitalk", shapes=None):
    shapes = shapes_of(name) if shapes is None else shapes
    data = {k: v for k, v in (official_json(config_of(name)) | changes).items() if k not in drop}
    family = detect_family(shapes_of(name), where="x")
    return transformer_config_from_official(json.loads(json.dumps(data)), shapes, family, where="x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "vace"}, "model_type"), ({"qk_norm": False}, "qk_norm"),
        ({"patch_size": [1, 4, 4]}, "patch_size"), ({"vae_scale": 8}, "vae_scale"),
        ({"dim": "24"}, "dim"), ({"num_heads": 5}, "num_heads"), ({"audio_window": 4}, "window"),
        ({"audio_window": "5"}, "audio_window"), ({"audio_window": 0}, "audio_window"),
        ({"norm_output_audio": 1}, "norm_output"),
    ],
)  # fmt: skip
def test_values_that_the_family_does_not_use_are_refused(changes, message):
    with pytest.raises(ModelError, match=message):
        read(changes)


def test_missing_sizes_are_named():
    with pytest.raises(ModelError, match=r"dim, num_layers missing"):
        read({}, drop=("dim", "num_layers"))


@pytest.mark.parametrize("name", ["text_embedding.0.weight", "audio_proj.proj3.weight"])
def test_a_tensor_that_tells_a_width_must_be_there(name):
    shapes = {key: shape for key, shape in shapes_of("multitalk").items() if key != name}
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        read({}, shapes=shapes)


def test_the_output_norm_may_be_absent():
    assert not read({"norm_output_audio": False}).audio.norm_output
