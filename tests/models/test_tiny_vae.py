"""Tiny VAE: shapes, the same bytes in steps and whole, causal, counted, trainable."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from skyreels_rt.config import TinyVAEConfig
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.models.tiny_vae import TinyVAE
from skyreels_rt.testing.tiny import randomise

SMALL = TinyVAEConfig(
    z_dim=8, encoder_dims=(8, 12, 16, 20), decoder_dims=(20, 16, 12, 8), num_blocks=(2, 1, 2)
)
FOLDED = replace(SMALL, patch_size=2)


def seeded(config: TinyVAEConfig = SMALL) -> TinyVAE:
    """As built, but no weight is zero: blocks start as identity, which would hide their faults."""
    vae = TinyVAE(config).eval()
    randomise(vae, 0)
    return vae


def random_frames(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("config", [SMALL, FOLDED], ids=["plain", "folded"])
@pytest.mark.parametrize("size", [(1, 24, 32), (2, 16, 16), (1, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_steps_and_whole_clip_are_the_same_bytes(size, dtype, config):
    vae = seeded(config).to(dtype)
    batch, height, width = size
    frames = random_frames(batch, 3, 13, height, width).to(dtype)
    latents, cache = [], None
    for part in frames.split([1, 4, 4, 4], dim=2):
        step, cache = vae.encode_step(part.clone(), cache)
        assert step.shape == (batch, 8, 1, height // 8, width // 8)
        latents.append(step)
    whole = vae.encode(frames)
    assert whole.dtype == dtype
    assert torch.equal(torch.cat(latents, dim=2), whole)
    decoded, cache = [], None
    for part in whole.split(1, dim=2):
        step, cache = vae.decode_step(part.clone(), cache)
        assert step.shape == (batch, 3, 4 if decoded else 1, height, width)
        decoded.append(step)
    assert torch.equal(torch.cat(decoded, dim=2), vae.decode(whole))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_zero_latents_on_zero_caches_stay_finite(dtype):
    vae = seeded().to(dtype)
    cache = tuple(torch.zeros(1, *s, dtype=dtype) for s in vae.decoder_cache_shapes(16, 24))
    frames, following = vae.decode_step(torch.zeros(1, 8, 1, 2, 3, dtype=dtype), cache)
    assert all(torch.isfinite(one).all() for one in (frames, *following))
    cache = tuple(torch.zeros(1, *s, dtype=dtype) for s in vae.encoder_cache_shapes(16, 24))
    latents, following = vae.encode_step(torch.zeros(1, 3, 4, 16, 24, dtype=dtype), cache)
    assert all(torch.isfinite(one).all() for one in (latents, *following))


@torch.inference_mode()
def test_later_input_never_changes_earlier_output():
    vae = seeded()
    frames = random_frames(1, 3, 13, 16, 16)
    changed = frames.clone()
    changed[:, :, 9:] *= -1
    latents, other = vae.encode(frames), vae.encode(changed)
    assert torch.equal(latents[:, :, :3], other[:, :, :3])
    assert not torch.equal(latents[:, :, 3:], other[:, :, 3:])
    decoded, other = vae.decode(latents), vae.decode(other)
    assert torch.equal(decoded[:, :, :9], other[:, :, :9])
    assert not torch.equal(decoded[:, :, 9:], other[:, :, 9:])


@torch.inference_mode()
def test_the_past_is_remembered():
    vae = seeded()
    latents = torch.randn(1, 8, 2, 2, 2)
    _, cache = vae.decode_step(latents[:, :, :1])
    expected, _ = vae.decode_step(latents[:, :, 1:], cache)
    for index in range(len(cache)):
        forgetful = list(cache)
        forgetful[index] = torch.zeros_like(cache[index])
        assert not torch.equal(vae.decode_step(latents[:, :, 1:], tuple(forgetful))[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_caches_have_the_computed_size_after_every_step(dtype):
    vae = seeded().to(dtype)
    encoder = decoder = None
    for frames in random_frames(1, 3, 9, 16, 24).split([1, 4, 4], dim=2):
        latents, encoder = vae.encode_step(frames, encoder)
        _, decoder = vae.decode_step(latents, decoder)
        held = sum(cache.untyped_storage().nbytes() for cache in encoder + decoder)
        assert held == vae.cache_bytes(16, 24, dtype)


def test_gradient_reaches_every_parameter_through_the_clip():
    vae = seeded()
    frames = random_frames(2, 3, 9, 16, 16)
    (vae.decode(vae.encode(frames), clamp=False) - frames).square().mean().backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.fixture
def one_thread():
    """Tensors this small lose more to thread barriers than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_few_steps_of_training_reduce_the_error(one_thread):
    vae = seeded().train()
    rows = torch.linspace(-1, 1, 16)
    frames = torch.stack([rows.roll(shift).expand(3, 16, 16) for shift in range(5)], dim=1)[None]
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = (vae.decode(vae.encode(frames), clamp=False) - frames).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@torch.inference_mode()
def test_latents_are_normalised_by_the_configured_statistics():
    plain = seeded()
    scaled = seeded(
        TinyVAEConfig(
            z_dim=8,
            encoder_dims=SMALL.encoder_dims,
            decoder_dims=SMALL.decoder_dims,
            num_blocks=SMALL.num_blocks,
            latents_mean=(0.5,),
            latents_std=(2.0,),
        )
    )
    frames = random_frames(1, 3, 5, 16, 16)
    assert torch.allclose(scaled.encode(frames), (plain.encode(frames) - 0.5) / 2)
    latents = plain.encode(frames)
    assert torch.allclose(scaled.decode((latents - 0.5) / 2), plain.decode(latents), atol=1e-6)


def test_built_without_weights_it_still_knows_its_statistics():
    with torch.device("meta"):
        vae = TinyVAE(SMALL)
    vae.load_state_dict(seeded().state_dict(), assign=True)
    frames = random_frames(1, 3, 5, 16, 16)
    assert torch.equal(vae.encode(frames), seeded().encode(frames))


@torch.inference_mode()
def test_frames_are_clamped_unless_asked_otherwise():
    vae = seeded()
    latents = 1000 * torch.randn(1, 8, 2, 2, 2)
    assert vae.decode(latents).abs().max() <= 1
    assert vae.decode(latents, clamp=False).abs().max() > 1


def test_what_does_not_fit_is_refused():
    vae = seeded()
    with pytest.raises(InvalidArgument, match="frames"):
        vae.encode(torch.zeros(1, 3, 6, 16, 16))
    with pytest.raises(InvalidArgument, match="multiples of 8"):
        vae.encode(torch.zeros(1, 3, 5, 12, 16))
    with pytest.raises(InvalidArgument, match="cache: expected 5 tensors, got 0"):
        vae.decode_step(torch.zeros(1, 8, 1, 2, 2), ())


@pytest.mark.parametrize("config", [SMALL, FOLDED], ids=["plain", "folded"])
@torch.inference_mode()
def test_a_still_picture_has_the_same_latents_throughout(config):
    """So the portrait's latents, encoded alone, are those of a background that stays."""
    still = random_frames(1, 3, 1, 16, 24).expand(-1, -1, 13, -1, -1)
    latents = seeded(config).encode(still)
    assert all(torch.equal(latents[:, :, 0], latent) for latent in latents.unbind(2))


@torch.inference_mode()
def test_mean_colours_pass_an_untrained_model():
    vae = seeded(replace(SMALL, z_dim=3))
    for module in (vae.encoder.conv_out, vae.decoder.conv_out):
        torch.nn.init.zeros_(module.weight)
        torch.nn.init.zeros_(module.bias)
    colours = random_frames(1, 3, 1, 2, 3)
    frames = colours.repeat_interleave(8, 3).repeat_interleave(8, 4).expand(-1, -1, 5, -1, -1)
    torch.testing.assert_close(vae.decode(vae.encode(frames)), frames.contiguous())


def test_impossible_sizes_are_refused():
    for name, value in (("patch_size", 4), ("num_blocks", (1, 0, 1)), ("z_dim", 2)):
        with pytest.raises(InvalidArgument, match=name):
            replace(SMALL, **{name: value})
