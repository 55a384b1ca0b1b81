"""Key maps lead from foreign layouts to the official Wan2.1 names, completely and one to one."""

import re

import pytest
import torch

from skyreels_rt.weights.key_maps import clip_vision_key, diffusers_wan_key, uses_diffusers_names

BLOCK_STEMS = [
    *(f"self_attn.{part}" for part in ("q", "k", "v", "o", "norm_q", "norm_k")),
    *(f"cross_attn.{part}" for part in ("q", "k", "v", "o", "norm_q", "norm_k")),
    "norm3",
    "ffn.0",
    "ffn.2",
]
IMAGE_BLOCK_STEMS = [f"cross_attn.{part}" for part in ("k_img", "v_img", "norm_k_img")]
TOP_STEMS = [
    "patch_embedding",
    "text_embedding.0",
    "text_embedding.2",
    "time_embedding.0",
    "time_embedding.2",
    "time_projection.1",
    "head.head",
]
IMAGE_TOP_STEMS = [f"img_emb.proj.{i}" for i in (0, 1, 3, 4)]


def official_names(num_layers: int, with_image: bool) -> set[str]:
    """Parameter names of the official release, written down independently of the map."""
    block = BLOCK_STEMS + IMAGE_BLOCK_STEMS * with_image
    stems = TOP_STEMS + IMAGE_TOP_STEMS * with_image
    stems += [f"blocks.{i}.{stem}" for i in range(num_layers) for stem in block]
    names = {f"{stem}.weight" for stem in stems}
    names |= {f"{stem}.bias" for stem in stems if not re.search(r"\.norm_[qk]", stem)}
    return names | {f"blocks.{i}.modulation" for i in range(num_layers)} | {"head.modulation"}


def diffusers_state(with_image: bool) -> dict[str, torch.Tensor]:
    """State of a 12-block diffusers transformer on the meta device."""
    from diffusers import WanTransformer3DModel

    image = {"image_dim": 20, "added_kv_proj_dim": 24} if with_image else {}
    with torch.device("meta"):
        model = WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=36 if with_image else 16,
            text_dim=16,
            freq_dim=32,
            ffn_dim=40,
            num_layers=12,
            cross_attn_norm=True,
            pos_embed_seq_len=None,
            **image,
        )
    return model.state_dict()


@pytest.mark.peer
@pytest.mark.parametrize("with_image", [False, True], ids=["t2v", "i2v"])
def test_every_diffusers_name_maps_to_one_official_name(with_image):
    state = diffusers_state(with_image)
    mapped = [diffusers_wan_key(name) for name in state]
    assert len(set(mapped)) == len(mapped)
    assert set(mapped) == official_names(12, with_image)
    assert uses_diffusers_names(state)
    assert not uses_diffusers_names(mapped)


@pytest.mark.peer
def test_shapes_agree_with_what_the_names_promise():
    shapes = {diffusers_wan_key(k): tuple(v.shape) for k, v in diffusers_state(True).items()}
    assert shapes["head.modulation"] == (1, 2, 24)
    assert shapes["blocks.11.modulation"] == (1, 6, 24)
    assert shapes["head.head.weight"] == (64, 24)
    assert shapes["time_projection.1.weight"] == (144, 24)
    assert shapes["img_emb.proj.0.weight"] == (20,)
    assert shapes["img_emb.proj.1.weight"] == (20, 20)
    assert shapes["img_emb.proj.3.weight"] == (24, 20)
    assert shapes["img_emb.proj.4.weight"] == (24,)
    assert shapes["blocks.3.ffn.0.weight"] == (40, 24)
    assert shapes["blocks.3.cross_attn.k_img.weight"] == (24, 24)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("blocks.3.norm2.weight", "blocks.3.norm3.weight"),
        ("blocks.10.attn1.to_out.0.bias", "blocks.10.self_attn.o.bias"),
        ("blocks.0.attn2.norm_added_k.weight", "blocks.0.cross_attn.norm_k_img.weight"),
        ("blocks.39.scale_shift_table", "blocks.39.modulation"),
        ("scale_shift_table", "head.modulation"),
        ("patch_embedding.weight", "patch_embedding.weight"),
    ],
)
def test_single_names(theirs, ours):
    assert diffusers_wan_key(theirs) == ours


@pytest.mark.parametrize("name", ["", "weight", "blocks.x.norm2.weight", "audio_proj.proj1.weight"])
def test_unknown_names_come_back_unchanged(name):
    assert diffusers_wan_key(name) == name


def test_official_names_come_back_unchanged():
    names = official_names(3, with_image=True)
    assert {diffusers_wan_key(name) for name in names} == names


def test_clip_names_of_older_transformers_lose_their_wrapper():
    assert clip_vision_key("vision_model.encoder.layers.0.mlp.fc1.bias") == (
        "encoder.layers.0.mlp.fc1.bias"
    )
    assert clip_vision_key("post_layernorm.weight") == "post_layernorm.weight"
