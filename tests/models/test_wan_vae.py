"""Wan VAE: equal to diffusers, the same bytes in steps and whole, causal, finite, counted."""

from __future__ import annotations

import pytest
import torch

from skyreels_rt.config import WanVAEConfig
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models.vae import VAECache
from skyreels_rt.models.wan_vae import WanVAE
from skyreels_rt.runtime.peak_memory import peak_bytes

# fp32 parity: two orders of summation over 33 convolutions; measured 1e-6
# and 1.4e-7 of the output's largest value.
MAX_ERROR, MEAN_ERROR = 1e-4, 1e-5

PLAN = KernelPlan.choose("cpu", torch.float32)
SMALL = WanVAEConfig(base_dim=16)
UNEVEN = WanVAEConfig(base_dim=32, dim_mult=(1, 2, 2, 4), num_res_blocks=1)


def seeded(config: WanVAEConfig, plan: KernelPlan = PLAN) -> WanVAE:
    """A VAE whose random weights keep activations near unit size."""
    torch.manual_seed(0)
    vae = WanVAE(config, plan).eval().requires_grad_(False)
    for name, parameter in vae.named_parameters():
        fan_in = parameter[0].numel()
        if "gamma" in name:
            parameter.uniform_(0.5, 1.5)
        else:
            parameter.normal_(std=0.1 if name.endswith("bias") else fan_in**-0.5)
    return vae


def random_frames(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def random_latents(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def encode_in_steps(vae: WanVAE, frames: torch.Tensor) -> tuple[torch.Tensor, list[VAECache]]:
    parts, caches, cache = [], [], None
    for start in [0, *range(1, frames.shape[2], 4)]:
        stop = start + (4 if start else 1)
        latents, cache = vae.encode_step(frames[:, :, start:stop].clone(), cache)
        parts.append(latents)
        caches.append(cache)
    return torch.cat(parts, dim=2), caches


def decode_in_steps(vae: WanVAE, latents: torch.Tensor) -> tuple[torch.Tensor, list[VAECache]]:
    parts, caches, cache = [], [], None
    for part in latents.split(1, dim=2):
        frames, cache = vae.decode_step(part.clone(), cache)
        parts.append(frames)
        caches.append(cache)
    return torch.cat(parts, dim=2), caches


def is_equal_to_reference(ours: torch.Tensor, reference: torch.Tensor) -> bool:
    scale = reference.abs().max()
    error = (ours - reference).abs()
    return bool(error.max() <= MAX_ERROR * scale and error.mean() <= MEAN_ERROR * scale)


@pytest.fixture
def peer_of():
    diffusers = pytest.importorskip("diffusers")

    def build(vae: WanVAE):
        config = vae.config
        peer = diffusers.AutoencoderKLWan(
            base_dim=config.base_dim,
            z_dim=config.z_dim,
            dim_mult=list(config.dim_mult),
            num_res_blocks=config.num_res_blocks,
            attn_scales=list(config.attn_scales),
            temperal_downsample=list(config.temperal_downsample),
        )
        peer.load_state_dict(vae.state_dict(), strict=True)
        return peer.eval().requires_grad_(False)

    return build


@pytest.mark.peer
@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize(
    "config, size",
    # The last has frames so large that convolutions go through the operator.
    [(SMALL, (2, 3, 13, 24, 32)), (UNEVEN, (2, 3, 13, 24, 32)), (SMALL, (1, 3, 9, 40, 72))],
    ids=["small", "uneven", "large"],
)
def test_equals_diffusers(config, size, kernels, peer_of):
    vae = seeded(config, KernelPlan.choose("cpu", torch.float32, kernels))
    peer = peer_of(vae)
    vae.load_state_dict(peer.state_dict(), strict=True)
    frames = random_frames(*size)
    latents = vae.encode(frames)
    raw = latents * vae.latents_std + vae.latents_mean
    assert is_equal_to_reference(raw, peer.encode(frames).latent_dist.mode())
    expected = peer.decode(raw).sample
    assert 0.05 < expected.std() < 0.9  # neither constant nor clamped flat
    assert is_equal_to_reference(vae.decode(latents), expected)


@pytest.mark.peer
def test_attention_scales_have_the_names_of_diffusers(peer_of):
    # The peer builds this variant but cannot run it with caches, so only the names are compared.
    vae = WanVAE(WanVAEConfig(base_dim=16, attn_scales=(0.5,)), PLAN)
    peer = peer_of(vae)
    assert any(name.startswith("encoder.down_blocks.4.to_qkv") for name in peer.state_dict())
    assert vae.encode(random_frames(1, 3, 5, 8, 8)).isfinite().all()


@pytest.mark.peer
@pytest.mark.parametrize("fault", ["replicate_padding", "dropped_cache", "swapped_frames"])
def test_parity_rejects_a_planted_fault(fault, peer_of):
    vae = seeded(SMALL)
    latents = random_latents(1, 16, 3, 3, 4)
    raw = latents * vae.latents_std + vae.latents_mean
    expected = peer_of(vae).decode(raw).sample

    def tamper(cache: VAECache) -> VAECache:
        if fault == "replicate_padding":
            return tuple(c[:, :, -1:].expand_as(c) for c in cache)
        if fault == "swapped_frames":
            return tuple(c.flip(2) for c in cache)
        return (*cache[:-1], torch.zeros_like(cache[-1]))

    first, cache = vae.decode_step(latents[:, :, :1])
    second, cache = vae.decode_step(latents[:, :, 1:2], tamper(cache))
    third, _ = vae.decode_step(latents[:, :, 2:], cache)
    assert not is_equal_to_reference(torch.cat([first, second, third], dim=2), expected)


@pytest.mark.parametrize("size", [(1, 24, 32), (2, 16, 16), (1, 8, 8), (2, 40, 32)])
def test_steps_and_whole_clip_are_the_same_bytes(size):
    vae = seeded(SMALL)
    batch, height, width = size
    frames = random_frames(batch, 3, 13, height, width)
    latents = vae.encode(frames)
    assert latents.shape == (batch, 16, 4, height // 8, width // 8)
    assert torch.equal(encode_in_steps(vae, frames)[0], latents)
    decoded = vae.decode(latents)
    assert decoded.shape == frames.shape
    assert torch.equal(decode_in_steps(vae, latents)[0], decoded)


def test_caches_in_another_memory_order_give_the_same_bytes():
    vae = seeded(SMALL)
    latents = random_latents(1, 16, 2, 2, 3)
    _, cache = vae.decode_step(latents[:, :, :1])
    expected, _ = vae.decode_step(latents[:, :, 1:], cache)
    restored = tuple(c.contiguous().clone() for c in cache)
    assert torch.equal(vae.decode_step(latents[:, :, 1:], restored)[0], expected)


def test_a_step_leaves_its_inputs_alone_and_repeats():
    vae = seeded(SMALL)
    latents = random_latents(1, 16, 2, 2, 2)
    _, cache = vae.decode_step(latents[:, :, :1])
    before = [c.clone() for c in cache]
    one, _ = vae.decode_step(latents[:, :, 1:], cache)
    two, _ = vae.decode_step(latents[:, :, 1:], cache)
    assert torch.equal(one, two)
    assert all(torch.equal(a, b) for a, b in zip(before, cache, strict=True))


def test_later_input_never_changes_earlier_output():
    vae = seeded(SMALL)
    frames = random_frames(1, 3, 13, 16, 16)
    changed = frames.clone()
    changed[:, :, 9:] *= -1
    latents, other = vae.encode(frames), vae.encode(changed)
    assert torch.equal(latents[:, :, :3], other[:, :, :3])
    assert not torch.equal(latents[:, :, 3:], other[:, :, 3:])
    mixed = torch.cat([latents[:, :, :2], -latents[:, :, 2:]], dim=2)
    decoded, other = vae.decode(latents), vae.decode(mixed)
    assert torch.equal(decoded[:, :, :5], other[:, :, :5])
    assert not torch.equal(decoded[:, :, 5:], other[:, :, 5:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_caches_have_the_computed_size_after_every_step(dtype):
    vae = seeded(SMALL).to(dtype)
    _, encoder = encode_in_steps(vae, random_frames(1, 3, 9, 16, 24).to(dtype))
    _, decoder = decode_in_steps(vae, random_latents(1, 16, 3, 2, 3).to(dtype))
    for caches in zip(encoder, decoder, strict=True):
        held = [cache.untyped_storage().nbytes() for part in caches for cache in part]
        assert sum(held) == vae.cache_bytes(16, 24, dtype)
    assert vae.cache_bytes(16, 24, dtype) == vae.encoder_cache_bytes(
        16, 24, dtype
    ) + vae.decoder_cache_bytes(16, 24, dtype)


def test_full_width_decoder_caches_at_480p():
    with torch.device("meta"):
        vae = WanVAE(WanVAEConfig(), PLAN)
    shapes = vae.decoder_cache_shapes(480, 832)
    assert len(shapes) == 32
    assert vae.decoder_cache_bytes(480, 832, torch.bfloat16) == 1_888_573_440


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zeros_stay_finite(dtype):
    vae = seeded(SMALL, KernelPlan.choose("cpu", dtype)).to(dtype)
    for parameter in vae.parameters():
        if parameter.ndim == 1:
            parameter.zero_()  # without biases, zeros reach every norm
    vae.latents_mean.zero_()
    try:
        latents, encoder = vae.encode_step(torch.zeros(1, 3, 1, 16, 16, dtype=dtype))
    except RuntimeError as error:
        pytest.skip(f"{dtype} convolutions are not supported here: {error}")
    frames, decoder = vae.decode_step(torch.zeros_like(latents))
    more, _ = vae.encode_step(torch.zeros(1, 3, 4, 16, 16, dtype=dtype), encoder)
    later, _ = vae.decode_step(torch.zeros_like(latents), decoder)
    for output in (latents, frames, more, later):
        assert output.dtype == dtype
        assert torch.isfinite(output).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(16, 16), (32, 40)])
def test_zero_latents_on_zero_caches_stay_finite(dtype, size):
    vae = seeded(SMALL, KernelPlan.choose("cpu", dtype)).to(dtype)
    height, width = size
    cache = tuple(torch.zeros(1, *s, dtype=dtype) for s in vae.decoder_cache_shapes(*size))
    frames, following = vae.decode_step(
        torch.zeros(1, 16, 1, height // 8, width // 8, dtype=dtype), cache
    )
    assert all(torch.isfinite(one).all() for one in (frames, *following))
    cache = tuple(torch.zeros(1, *s, dtype=dtype) for s in vae.encoder_cache_shapes(*size))
    latents, following = vae.encode_step(torch.zeros(1, 3, 4, *size, dtype=dtype), cache)
    assert all(torch.isfinite(one).all() for one in (latents, *following))


def test_weights_in_another_order_give_the_same_bytes():
    vae, other = seeded(SMALL), seeded(SMALL).channels_last_weights()
    frames = random_frames(1, 3, 5, 40, 32)
    latents = vae.encode(frames)
    assert torch.equal(other.encode(frames), latents)
    assert torch.equal(other.decode(latents), vae.decode(latents))


def test_a_whole_clip_frees_the_caches_it_has_used():
    import weakref

    vae = seeded(SMALL)
    step, alive = vae._decode_raw, []

    def watched(latents, caches):
        given = [weakref.ref(cache) for cache in caches._unread]
        result = step(latents, caches)
        alive.append(sum(cache() is not None for cache in given))
        return result

    vae._decode_raw = watched
    vae.decode(random_latents(1, 16, 3, 2, 2))
    assert alive == [0, 0, 0]


@pytest.mark.slow
def test_memory_of_a_stream_does_not_grow_with_its_length():
    vae = seeded(SMALL)
    latents = random_latents(1, 16, 1, 8, 8)

    def decode(count):
        cache = None
        for _ in range(count):
            _, cache = vae.decode_step(latents, cache)

    with torch.inference_mode():
        decode(20)  # what is made once: threads, scratch, compiled primitives
        short = peak_bytes(lambda: decode(20))
        if short is None:
            pytest.skip("this system does not tell a process its peak memory")
        long = peak_bytes(lambda: decode(200))
    caches = vae.decoder_cache_bytes(64, 64, torch.float32)
    assert short > caches
    assert abs(long - short) < 2 * caches  # the allocator's rounding; 180 steps would leave more


def test_bfloat16_stays_near_fp32():
    vae = seeded(SMALL)
    latents = random_latents(1, 16, 3, 3, 3)
    expected = vae.decode(latents)
    error = (vae.to(torch.bfloat16).decode(latents).float() - expected).abs()
    assert error.mean() < 16 * torch.finfo(torch.bfloat16).eps * expected.abs().mean()


def test_real_latents_through_the_full_width(shared_data):
    from safetensors.torch import load_file

    stored = load_file(shared_data / "tensors" / "wan21_real_latents.safetensors")["latents"]
    assert stored.shape == (1, 16, 16, 40, 64)
    # The file holds normalised latents: raw ones have a standard deviation of about two.
    assert 0.8 < stored.float().std() < 1.1
    vae = seeded(WanVAEConfig())
    latents = stored[:, :, :5, 16:24, 28:36].float()
    with torch.inference_mode():
        frames = vae.decode(latents)
        stepped, _ = decode_in_steps(vae, latents)
    assert frames.shape == (1, 3, 17, 64, 64)
    assert torch.equal(frames, stepped)
    assert torch.isfinite(frames).all()
    assert frames.abs().max() <= 1
    assert frames.std() > 0.05


@pytest.mark.parametrize("num_frames", [0, 2, 4, 8])
def test_a_clip_of_another_length_is_refused(num_frames):
    with pytest.raises(InvalidArgument, match="frames"):
        seeded(SMALL).encode(torch.zeros(1, 3, num_frames, 16, 16))


def test_steps_refuse_what_does_not_fit():
    vae = seeded(SMALL)
    _, encoder = vae.encode_step(torch.zeros(1, 3, 1, 16, 16))
    _, decoder = vae.decode_step(torch.zeros(1, 16, 1, 2, 2))
    with pytest.raises(InvalidArgument, match="frames"):
        vae.encode_step(torch.zeros(1, 3, 4, 16, 16))
    with pytest.raises(InvalidArgument, match="frames"):
        vae.encode_step(torch.zeros(1, 3, 1, 16, 16), encoder)
    with pytest.raises(InvalidArgument, match="multiples of 8"):
        vae.encode(torch.zeros(1, 3, 1, 20, 16))
    with pytest.raises(InvalidArgument, match=r"cache\[0\]"):
        vae.encode_step(torch.zeros(1, 3, 4, 24, 16), encoder)
    with pytest.raises(InvalidArgument, match="cache: expected 32 tensors"):
        vae.decode_step(torch.zeros(1, 16, 1, 2, 2), decoder[1:])
    with pytest.raises(InvalidArgument, match="latents"):
        vae.decode_step(torch.zeros(1, 8, 1, 2, 2))
    with pytest.raises(InvalidArgument, match="latents"):
        vae.decode(torch.zeros(1, 16, 0, 2, 2))
    with pytest.raises(InvalidArgument, match="temperal_downsample"):
        WanVAE(WanVAEConfig(base_dim=16, temperal_downsample=(True, True, True)), PLAN)


def test_gradient_reaches_every_parameter():
    vae = seeded(SMALL).requires_grad_(True)
    vae.decode(vae.encode(random_frames(1, 3, 9, 8, 8)), clamp=False).square().mean().backward()
    # The log-variance half of the last encoder layer is not computed; the rest is.
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vae.parameters())
