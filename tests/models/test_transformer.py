"""The transformer: equal to diffusers' Wan transformer, and its audio path to a naive fp64 loop."""

import math

import pytest
import torch
import torch.nn.functional as F

from skyreels_rt.config import AudioAdapterConfig, TransformerConfig
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models.audio_adapter import AudioPacker
from skyreels_rt.models.rope import rope_tables
from skyreels_rt.models.transformer import Affine, ContextCache, SkyReelsTransformer
from skyreels_rt.testing.tiny import TinyModel, randomise, tiny_components
from skyreels_rt.types import Timeline
from skyreels_rt.weights.diffusers_layout import transformer_config_from_diffusers
from skyreels_rt.weights.key_maps import diffusers_wan_key

# Relative to the largest output: fp32 sums in another order over a few blocks.
PARITY_MAX, PARITY_MEAN = 1e-4, 1e-5
NAIVE_MAX = 1e-5

T2V = {
    "num_attention_heads": 3, "attention_head_dim": 32, "in_channels": 16, "ffn_dim": 256,
    "num_layers": 3, "text_dim": 48, "freq_dim": 64,
}  # fmt: skip
I2V = T2V | {"in_channels": 36, "image_dim": 80, "added_kv_proj_dim": 96}
WIDE = {
    "num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 36, "ffn_dim": 8960,
    "num_layers": 2, "text_dim": 256, "freq_dim": 256,
}  # fmt: skip


def wan_pair(sizes, plan_kernels="auto"):
    """diffusers' model with random weights, and ours with the same."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.WanTransformer3DModel(**sizes).eval()
    randomise(theirs, seed=1)
    config = transformer_config_from_diffusers(dict(theirs.config), where="test")
    plan = KernelPlan.choose("cpu", torch.float32, plan_kernels)
    ours = SkyReelsTransformer(config, plan).eval()
    ours.load_state_dict({diffusers_wan_key(k): v for k, v in theirs.state_dict().items()})
    return theirs, ours


def assert_parity(ours, theirs):
    error = (ours - theirs).abs()
    scale = theirs.abs().max()
    assert error.max() <= PARITY_MAX * scale
    assert error.mean() <= PARITY_MEAN * scale


@pytest.mark.peer
@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize(
    ("sizes", "batch", "shape", "image_tokens"),
    [
        (T2V, 2, (3, 6, 8), None),
        (T2V, 1, (1, 2, 2), None),
        (I2V, 1, (5, 4, 6), 9),
        (I2V, 2, (2, 4, 4), 9),
        (WIDE, 1, (2, 4, 6), None),
    ],
    ids=["t2v-batch2", "t2v-one-patch", "i2v-image", "i2v-image-batch2", "1.3b-width"],
)
def test_equals_diffusers(sizes, batch, shape, image_tokens, kernels):
    theirs, ours = wan_pair(sizes, kernels)
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(batch, sizes["in_channels"], *shape, generator=generator)
    # diffusers finds the image tokens by assuming 512 prompt tokens behind them.
    num_prompt_tokens = 12 if image_tokens is None else 512
    prompt = torch.randn(batch, num_prompt_tokens, sizes["text_dim"], generator=generator)
    timestep = torch.tensor([917.0, 31.5])[:batch]
    image = None
    if image_tokens is not None:
        image = torch.randn(batch, image_tokens, sizes["image_dim"], generator=generator)
    with torch.inference_mode():
        expected = theirs(latents, timestep, prompt, image, return_dict=False)[0]
        context = ContextCache(
            ours.text_context(prompt), None if image is None else ours.image_context(image)
        )
        actual = ours(latents, timestep, context)
    assert_parity(actual, expected)


@pytest.mark.peer
@pytest.mark.parametrize(
    "fault", ["time_projection.1.bias", "blocks.1.self_attn.norm_k.weight", "head.modulation"]
)
def test_parity_rejects_one_changed_tensor(fault):
    theirs, ours = wan_pair(T2V)
    with torch.no_grad():
        dict(ours.named_parameters())[fault].mul_(1.01)
    latents, prompt = torch.randn(1, 16, 2, 4, 4), torch.randn(1, 8, 48)
    with torch.inference_mode():
        expected = theirs(latents, torch.tensor([500.0]), prompt, return_dict=False)[0]
        actual = ours(latents, torch.tensor([500.0]), ContextCache(ours.text_context(prompt)))
    with pytest.raises(AssertionError):
        assert_parity(actual, expected)


def test_gradient_mode_gives_the_same_velocity():
    model = tiny_components().transformer
    context = tiny_context(model, frames=3)
    latents = torch.randn(1, 36, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        inferred = model(latents, torch.tensor([300.0]), context)
    recorded = model(latents.clone(), torch.tensor([300.0]), context)
    torch.testing.assert_close(recorded, inferred)


def test_every_parameter_gets_a_gradient():
    model = tiny_components().transformer.requires_grad_(True)
    adapter = model.config.audio
    features = torch.randn(40, 2, adapter.feature_layers, adapter.feature_dim)
    tokens = model.audio_proj.pack(
        lambda first, stop: features[torch.arange(first, stop).clamp(min=0)], 0, 4, Timeline()
    )
    context = ContextCache(
        model.text_context(torch.randn(1, 64, 64)), None, model.audio_context(tokens[None])
    )
    model(torch.randn(1, 36, 4, 4, 4), torch.tensor([300.0]), context).square().mean().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def tiny_context(model, frames, seed=0, with_audio=True):
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    prompt = torch.randn(1, config.text_length, config.text_dim, generator=generator)
    tokens = torch.randn(
        1, frames, config.audio.num_tokens, config.audio.token_dim, generator=generator
    )
    return ContextCache(
        model.text_context(prompt), None, model.audio_context(tokens) if with_audio else None
    )


def test_audio_attention_stays_inside_its_frame():
    """With self-attention cut, changing one frame's tokens changes that frame only."""
    model = tiny_components().transformer
    with torch.no_grad():
        for block in model.blocks:
            block.self_attn.o.weight.zero_()
    tokens = torch.randn(1, 4, model.config.audio.num_tokens, model.config.audio.token_dim)
    changed = tokens.clone()
    changed[:, 2] += 1
    latents = torch.randn(1, 36, 4, 4, 4)
    text = tiny_context(model, 4).text
    outputs = []
    for value in (tokens, changed):
        with torch.inference_mode():
            context = ContextCache(text, None, model.audio_context(value))
            outputs.append(model(latents, torch.tensor([500.0]), context))
    differs = (outputs[0] != outputs[1]).flatten(3).any(-1).any(1)[0]
    assert differs.tolist() == [False, False, True, False]


def test_audio_block_equals_naive_loop():
    config = TransformerConfig(
        in_channels=16, dim=48, ffn_dim=96, num_heads=3, num_layers=1, freq_dim=32, text_dim=24,
        text_length=5, audio=AudioAdapterConfig(feature_dim=16, num_tokens=7, token_dim=20),
    )  # fmt: skip
    model = SkyReelsTransformer(config, KernelPlan.choose("cpu", torch.float32))
    randomise(model, 3)
    attention = model.blocks[0].audio_cross_attn
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 3 * 10, 48, generator=generator)
    tokens = torch.randn(2, 3, 7, 20, generator=generator)
    with torch.inference_mode():
        actual = attention.add(torch.zeros_like(x), x, attention.context(tokens)).double()
        plain = attention(x, attention.kv_linear(tokens).chunk(2, -1)).double()
    weights = {name: value.double() for name, value in attention.state_dict().items()}
    expected = torch.zeros(2, 30, 48, dtype=torch.float64)
    for sample in range(2):
        for token in range(30):
            q = weights["q_linear.weight"] @ x[sample, token].double() + weights["q_linear.bias"]
            heard = tokens[sample, token // 10].double()
            k, v = (heard @ weights["kv_linear.weight"].T + weights["kv_linear.bias"]).chunk(2, -1)
            out = torch.cat(
                [
                    torch.softmax(k[:, h] @ q[h] / math.sqrt(16), 0) @ v[:, h]
                    for h in (slice(0, 16), slice(16, 32), slice(32, 48))
                ]
            )
            expected[sample, token] = weights["proj.weight"] @ out + weights["proj.bias"]
    for made in (actual, plain):
        assert (made - expected).abs().max() <= NAIVE_MAX * expected.abs().max()


def test_audio_is_added_after_text_without_a_gate():
    model = tiny_components().transformer
    block, config = model.blocks[1], model.config
    for part in block.ffn[2].parameters():
        part.zero_()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 12, config.dim, generator=generator)
    normed, modulation, weight, bias = (
        torch.randn(1, rows, config.dim, generator=generator) for rows in (12, 6, 1, 1)
    )
    rest = modulation, Affine(weight, bias), model.rope(3, 4, 4)
    context = tiny_context(model, frames=3)
    with torch.inference_mode():
        deaf, _ = block(x.clone(), normed, *rest, ContextCache(context.text), 1)
        made, following = block(x.clone(), normed, *rest, context, 1)
        nothing = torch.zeros_like(deaf)
        heard = block.audio_cross_attn.add(nothing, block.norm_x(deaf), context.audio[1])
    assert heard.abs().max() > 0.1
    torch.testing.assert_close(made, deaf + heard)
    plain = F.layer_norm(made, (config.dim,), eps=config.eps)
    torch.testing.assert_close(following, plain * weight + bias)


@pytest.mark.parametrize("primed", [False, True])
def test_packer_equals_naive_loop(primed):
    config = AudioAdapterConfig(
        feature_layers=3, feature_dim=8, features_per_frame=2, window=5, num_tokens=4, token_dim=6,
        hidden_dim=16,
    )  # fmt: skip
    packer = AudioPacker(config)
    randomise(packer, 5)
    features = torch.randn(40, 2, 3, 8, generator=torch.Generator().manual_seed(6))

    def read(first, stop):
        return features[torch.arange(first, stop).clamp(min=0)]

    timeline = Timeline(4, primed=primed)
    with torch.inference_mode():
        actual = packer.pack(read, 0, 6, timeline).double()
    weights = {name: value.double() for name, value in packer.state_dict().items()}
    for latent in range(6):
        if primed:
            frames = range(4 * latent, 4 * latent + 4)
        else:
            frames = range(1) if latent == 0 else range(4 * latent - 3, 4 * latent + 1)
        entries = [features[max(f, 0)] for f in range(frames[0] - 2, frames[-1] + 3)]
        flat = torch.stack(entries).double().reshape(-1)
        name = "proj1" if len(frames) == 1 else "proj1_vf"
        hidden = (weights[f"{name}.weight"] @ flat + weights[f"{name}.bias"]).clamp(min=0)
        hidden = (weights["proj2.weight"] @ hidden + weights["proj2.bias"]).clamp(min=0)
        tokens = (weights["proj3.weight"] @ hidden + weights["proj3.bias"]).reshape(4, 6)
        expected = F.layer_norm(tokens, (6,), weights["norm.weight"], weights["norm.bias"])
        assert (actual[latent] - expected).abs().max() <= NAIVE_MAX * expected.abs().max()


def test_rope_splits_time_height_and_width():
    cos, sin = rope_tables(3, 2, 4, 32)
    assert cos.shape == sin.shape == (24, 16)
    angles = torch.atan2(sin.double(), cos.double()).reshape(3, 2, 4, 16)
    # 32 channels: 6 pairs of time, then 5 of height and 5 of width.
    for size, axis, pairs in ((12, 0, slice(0, 6)), (10, 1, slice(6, 11)), (10, 2, slice(11, 16))):
        frequencies = 10_000.0 ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
        for position in range((3, 2, 4)[axis]):
            found = angles.select(axis, position)[..., pairs]
            expected = (position * frequencies).expand_as(found)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_model_without_branch_refuses_its_condition():
    model = tiny_components(TinyModel().with_transformer(audio=None)).transformer
    with pytest.raises(InvalidArgument, match="image_embeds"):
        model.image_context(torch.zeros(1, 3, 8))
    with pytest.raises(InvalidArgument, match="audio"):
        model.audio_context(torch.zeros(1, 3, 8, 64))


def residual_model():
    tiny = TinyModel().with_transformer(prediction="reference_residual")
    model = tiny_components(tiny).transformer
    return model, ContextCache(text=model.text_context(torch.zeros(1, 64, 64)))


def test_a_residual_model_without_output_leads_to_its_reference():
    """Its velocity brings any noisy latents, from any level, to the reference latents at once."""
    model, context = residual_model()
    torch.nn.init.zeros_(model.head.head.weight)
    torch.nn.init.zeros_(model.head.head.bias)
    inputs = torch.randn(1, 36, 2, 4, 6)
    for sigma in (1.0, 0.4, 0.05):
        velocity = model(inputs, torch.tensor([1000 * sigma]), context)
        arrived = inputs[:, :16] - sigma * velocity
        torch.testing.assert_close(arrived, inputs[:, -16:], atol=1e-5, rtol=1e-5)


def test_a_residual_model_adds_its_output_to_the_reference():
    """The blocks see the best linear guess of the residual instead of the noisy latents."""
    model, context = residual_model()
    inputs, sigma, variance = torch.randn(1, 36, 2, 4, 6), 0.5, 0.3
    noisy, reference = inputs[:, :16], inputs[:, -16:]
    # Least squares of y from (1 - sigma) y + sigma z, where y has this variance and z has 1.
    slope = (1 - sigma) * variance / ((1 - sigma) ** 2 * variance + sigma**2)
    guessed = torch.cat([slope * (noisy - (1 - sigma) * reference), inputs[:, 16:]], dim=1)
    velocity = model(inputs, torch.tensor([1000 * sigma]), context)
    object.__setattr__(model.config, "prediction", "velocity")
    expected = reference + model(guessed, torch.tensor([1000 * sigma]), context)
    torch.testing.assert_close(noisy - sigma * velocity, expected, atol=1e-5, rtol=1e-5)


def test_a_residual_model_does_not_look_at_pure_noise():
    model, context = residual_model()
    inputs = torch.randn(1, 36, 2, 4, 6)
    other = torch.cat([torch.randn(1, 16, 2, 4, 6), inputs[:, 16:]], dim=1)
    for sigma, same in ((1.0, True), (0.9, False)):
        time = torch.tensor([1000 * sigma])
        one, two = (x[:, :16] - sigma * model(x, time, context) for x in (inputs, other))
        assert torch.allclose(one, two, atol=1e-5) == same


def test_a_residual_needs_a_reference():
    with pytest.raises(InvalidArgument, match="prediction"):
        TransformerConfig(in_channels=16, prediction="reference_residual")
