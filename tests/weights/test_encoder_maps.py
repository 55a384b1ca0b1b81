"""Official encoders and VAE, renamed: the libraries' models give the official classes' numbers.

``official_encoder_shapes.json`` holds names and shapes of SkyworkAI/SkyReels-V3's tiny instances,
``official_encoder_outputs.safetensors`` what they return for seeded weights and inputs; both name
their origin.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from skyreels_rt.config import WanVAEConfig
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models.image_encoder import build_clip_vision
from skyreels_rt.models.text_encoder import build_umt5
from skyreels_rt.models.wan_vae import WanVAE
from skyreels_rt.testing.tiny import random_tensors
from skyreels_rt.weights.encoder_maps import TENSOR_MAPS

HERE = Path(__file__).parent
SEEDS = {"umt5": 5, "clip": 6, "vae": 7}


def official_state(kind):
    """Seeded weights under the official names."""
    shapes = json.loads((HERE / "official_encoder_shapes.json").read_text())[kind]
    shapes = {name: tuple(shape) for name, shape in shapes.items()}
    if kind != "clip":
        return random_tensors(shapes, SEEDS[kind])
    # The text tower and the temperature were no part of the instance that was run.
    visual = {n.removeprefix("visual."): s for n, s in shapes.items() if n.startswith("visual.")}
    state = {f"visual.{n}": v for n, v in random_tensors(visual, SEEDS[kind]).items()}
    return state | {name: torch.zeros(shapes[name]) for name in shapes.keys() - state.keys()}


def expected(name):
    with safe_open(HERE / "official_encoder_outputs.safetensors", framework="pt") as file:
        return file.get_tensor(name)


def renamed(kind):
    pairs = [
        pair for name, value in official_state(kind).items()
        for pair in TENSOR_MAPS[kind](name, value)
    ]  # fmt: skip
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def difference(actual, name):
    return (actual - expected(name)).abs().max()


@torch.no_grad()
def test_umt5():
    sizes = {"vocab_size": 40, "d_model": 48, "d_kv": 16, "d_ff": 80, "num_layers": 2}
    model = build_umt5({"model_type": "umt5", "num_heads": 4, **sizes})
    state = renamed("umt5")
    model.load_state_dict(state | {"encoder.embed_tokens.weight": state["shared.weight"]})
    ids = torch.tensor([[3, 9, 22, 38, 1]])
    assert difference(model(input_ids=ids).last_hidden_state[0], "umt5") <= 1e-5


@torch.no_grad()
def test_clip():
    model = build_clip_vision(
        {
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
            "num_attention_heads": 16, "image_size": 28, "patch_size": 14,
        }
    )  # fmt: skip
    model.load_state_dict(renamed("clip"))
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    states = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    assert difference(states[-2][0], "clip") <= 1e-5


@torch.no_grad()
def test_vae():
    model = WanVAE(WanVAEConfig(base_dim=8), KernelPlan.choose(torch.device("cpu"), torch.float32))
    model.load_state_dict(renamed("vae"))
    latents = torch.randn(1, 16, 3, 2, 3, generator=torch.Generator().manual_seed(2))
    assert difference(model.eval().decode(latents)[0], "vae_frames") <= 1e-5
    assert difference(model.encode(expected("vae_frames")[None])[0], "vae_latents") <= 1e-5


@pytest.mark.parametrize("kind", ["umt5", "clip", "vae"])
def test_unknown_names_are_kept_for_the_strict_check(kind):
    names = ["blocks.0.other.weight", "decoder.upsamples.x.weight", "zzz"]
    for name in names:
        assert [n for n, _ in TENSOR_MAPS[kind](name, torch.zeros(2, 2))] == [name]
