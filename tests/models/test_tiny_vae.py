"""Tiny VAE: shapes, the same bytes in steps and whole, causal, counted, trainable."""

from __future__ import annotations

import pytest
import torch

from skyreels_rt.config import TinyVAEConfig
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.models.tiny_vae import TinyVAE

SMALL = TinyVAEConfig(
    z_dim=8, encoder_dims=(8, 12, 16, 20), decoder_dims=(20, 16, 12, 8), num_blocks=2
)


def seeded(config: TinyVAEConfig = SMALL) -> TinyVAE:
    torch.manual_seed(0)
    return TinyVAE(config).eval()


def random_frames(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("size", [(1, 24, 32), (2, 16, 16), (1, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_steps_and_whole_clip_are_the_same_bytes(size, dtype):
    vae = seeded().to(dtype)
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
            num_blocks=2,
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
    with pytest.raises(InvalidArgument, match="cache: expected 6 tensors, got 0"):
        vae.decode_step(torch.zeros(1, 8, 1, 2, 2), ())
