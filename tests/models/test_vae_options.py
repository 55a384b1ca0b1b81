"""Tiled encoding equals whole encoding, sub-pixel doubling equals nearest; faults are rejected."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from skyreels_rt.config import TinyVAEConfig, WanVAEConfig
from skyreels_rt.engine import Engine
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models.tiled_encoder import run_in_tiles
from skyreels_rt.models.tiny_vae import TinyVAE
from skyreels_rt.models.vae import StepCaches
from skyreels_rt.models.vae_options import VAEOptions
from skyreels_rt.models.video_conv import subpixel_conv
from skyreels_rt.models.wan_vae import WanVAE
from skyreels_rt.pretrained import load_facts, load_options
from skyreels_rt.runtime.peak_memory import peak_bytes
from skyreels_rt.testing.tiny import randomise

WAN = WanVAEConfig(base_dim=8, dim_mult=(1, 1, 1, 1), num_res_blocks=1)
TINY = TinyVAEConfig(
    z_dim=8, encoder_dims=(8, 12, 16, 20), decoder_dims=(20, 16, 12, 8), num_blocks=(1, 1, 1)
)
KINDS = {"wan": WAN, "tiny": TINY, "folded": replace(TINY, patch_size=2)}
TILE = 32
HEIGHT, WIDTH = 144, 64  # the middle tile of a column is cut on both sides


def build(kind: str, dtype: torch.dtype = torch.float64):
    config = KINDS[kind]
    plan = KernelPlan.choose("cpu", torch.float32, "reference")
    vae = WanVAE(config, plan) if isinstance(config, WanVAEConfig) else TinyVAE(config)
    randomise(vae, 0)
    return vae.eval().requires_grad_(False).to(dtype)


def random_frames(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1


def equal(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal to float64 rounding: a cut that is seen at all is many orders above."""
    return bool((actual - expected).abs().max() <= 1e-12 * expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_give_the_latents_and_caches_of_the_whole(kind):
    vae = build(kind)
    frames = random_frames(1, 3, 5, HEIGHT, WIDTH)
    caches = {}
    for tile in (None, TILE):
        vae.configure(VAEOptions(encode_tile=tile))
        first, cache = vae.encode_step(frames[:, :, :1])
        second, cache = vae.encode_step(frames[:, :, 1:], cache)
        assert torch.equal(vae.encode_picture(frames[:, :, :1]), first)
        caches[tile] = (first, second, *cache)
    for whole, tiled in zip(caches[None], caches[TILE], strict=True):
        assert equal(tiled, whole)


@pytest.mark.parametrize("fault", ["short_reach", "forgotten_caches"])
def test_faulty_tiles_are_told_from_the_whole(fault):
    vae = build("wan")
    part, _ = vae.encoder.near_and_rest()
    frames = random_frames(1, 3, 5, HEIGHT, WIDTH)
    first, second = (x.contiguous(memory_format=torch.channels_last_3d)
                     for x in frames.split([1, 4], dim=2))  # fmt: skip
    caches = StepCaches(None)
    part.run(first, caches)
    previous = list(caches.finish())
    expected = part.run(second, StepCaches(list(previous)))
    assert equal(run_in_tiles(part, second, StepCaches(list(previous)), TILE), expected)
    if fault == "short_reach":
        part = replace(part, reach=part.reach - 20)
    else:
        previous = [torch.zeros_like(one) for one in previous]
    assert not equal(run_in_tiles(part, second, StepCaches(previous), TILE), expected)


def test_the_reach_is_tight():
    """A change just inside it reaches the cell, one just outside does not."""
    for kind in KINDS:
        vae = build(kind)
        part = vae.encoder.near_and_rest()[0] if kind == "wan" else vae.near_encoder()
        frames = random_frames(1, 3, 1, 2 * HEIGHT, 16)
        cell = HEIGHT // part.stride
        changes = []
        for outside in (0, part.stride):
            changed = frames.clone()
            changed[..., : HEIGHT - part.reach - outside + part.stride, :] *= -1
            inputs = (x.contiguous(memory_format=torch.channels_last_3d) for x in (frames, changed))
            one, two = (encode_first(vae, part, x)[..., cell, :] for x in inputs)
            changes.append(not torch.equal(one, two))
        assert changes == [True, False], kind


def encode_first(vae, part, frames):
    whole = frames.expand(-1, -1, 4, -1, -1) if isinstance(vae, TinyVAE) else frames
    whole = whole.contiguous(memory_format=torch.channels_last_3d)
    return part.run(whole, StepCaches(None, keep=False))


def test_a_large_portrait_needs_less_memory_in_tiles():
    vae = build("wan", torch.float32)
    picture = random_frames(1, 3, 1, 768, 512).float()

    def encode(tile):
        vae.configure(VAEOptions(encode_tile=tile))
        return peak_bytes(lambda: vae.encode_picture(picture))

    with torch.inference_mode():
        encode(64)
        whole, tiled = encode(None), encode(64)
    if whole is None or tiled is None:
        pytest.skip("this system does not tell a process its peak memory")
    assert tiled < 0.5 * whole


@pytest.mark.parametrize("shape", [(1, 6, 2, 5, 7), (2, 3, 1, 1, 4)])
def test_subpixel_equals_nearest(shape):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, shape[1], 3, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(4, generator=generator, dtype=torch.float64)
    large = x.repeat_interleave(2, 3).repeat_interleave(2, 4)
    expected = torch.conv3d(large, weight.unsqueeze(2), bias, padding=(0, 1, 1))
    assert equal(subpixel_conv(x, weight, bias), expected)


def test_swapped_phases_are_rejected(monkeypatch):
    from skyreels_rt.models import video_conv

    vae = build("wan")
    latents = torch.randn(1, 16, 2, 2, 3, dtype=torch.float64)
    expected = vae.configure(VAEOptions(upsampling="nearest")).decode(latents, clamp=False)
    vae.configure(VAEOptions(upsampling="subpixel"))
    assert equal(vae.decode(latents, clamp=False), expected)
    fold = video_conv.fold_phases

    def swapped(weight):
        return fold(weight).unflatten(0, (2, 2, -1)).transpose(0, 1).flatten(0, 2)

    monkeypatch.setattr(video_conv, "fold_phases", swapped)
    assert not equal(vae.decode(latents, clamp=False), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_upsampling_is_a_choice_of_speed_alone(kind):
    vae = build(kind)
    latents = torch.randn(1, vae.latent_channels, 2, 4, 6, dtype=torch.float64)
    found = [
        vae.configure(VAEOptions(upsampling=form)).decode(latents, clamp=False)
        for form in ("nearest", "subpixel", "auto")
    ]
    assert all(equal(one, found[0]) for one in found)
    assert not torch.equal(found[0], found[1])  # the option is taken
    # So a snapshot made with one is refused by the other.
    runners = {vae.configure(VAEOptions(upsampling=form)).runner for form in ("nearest", "auto")}
    assert len(runners) == 2


def test_the_engine_takes_the_options():
    options = VAEOptions(encode_tile=64, upsampling="subpixel")
    engine = Engine.from_pretrained("tiny-random", vae_options=options)
    assert engine.components.vae.options == options
    facts = json.loads(json.dumps(load_facts({"vae_options": options})))
    assert load_options(facts)["vae_options"] == options
    with pytest.raises(InvalidArgument, match="encode_tile"):
        VAEOptions(encode_tile=40)
    with pytest.raises(InvalidArgument, match="upsampling"):
        VAEOptions(upsampling="bilinear")
