"""The transformer with its audio projections folded into the keys and values."""

import dataclasses

import pytest
import torch

from skyreels_rt import Engine
from skyreels_rt.config import AudioAdapterConfig, TransformerConfig
from skyreels_rt.kernels import AudioFold, KernelPlan
from skyreels_rt.models.transformer import ContextCache, SkyReelsTransformer
from skyreels_rt.runtime.memory import audio_context_bytes
from skyreels_rt.testing.numerics import assert_bitwise_equal
from skyreels_rt.testing.tiny import randomise

SMALL = TransformerConfig(
    in_channels=16, dim=96, ffn_dim=128, num_heads=3, num_layers=2, freq_dim=32, text_dim=24,
    text_length=5, audio=AudioAdapterConfig(feature_dim=16, num_tokens=8, token_dim=20),
)  # fmt: skip
LARGE = TransformerConfig(  # more than is kept of a latent
    in_channels=16, dim=512, ffn_dim=64, num_heads=16, num_layers=2, freq_dim=32, text_dim=24,
    text_length=5, audio=AudioAdapterConfig(feature_dim=16, num_tokens=16, token_dim=20),
)  # fmt: skip
MANY_TOKENS = dataclasses.replace(SMALL, audio=dataclasses.replace(SMALL.audio, num_tokens=32))
OFF = {"absorbed_audio_attention": "reference"}
FRAMES = 3
# Relative to the largest velocity: the products are added in another order (fp32), or rounded
# between other products (bf16), over two blocks.
SAME = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def model_of(config, kernels="auto", dtype=torch.float32):
    model = SkyReelsTransformer(config, KernelPlan.choose("cpu", dtype, kernels)).eval()
    randomise(model, seed=0)
    return model.requires_grad_(False).to_compute_dtype(dtype)


def velocity(model, audio_shift=0.0):
    generator = torch.Generator().manual_seed(1)
    config = model.config
    latents = torch.randn(1, 16, FRAMES, 8, 8, generator=generator)
    prompt = torch.randn(1, config.text_length, config.text_dim, generator=generator)
    tokens = torch.randn(
        1, FRAMES, config.audio.num_tokens, config.audio.token_dim, generator=generator
    )
    context = ContextCache(
        model.text_context(prompt), None, model.audio_context(tokens + audio_shift)
    )
    return model(latents, torch.tensor([400.0]), context), context


def relative(actual, expected):
    return float((actual.double() - expected.double()).abs().max() / expected.abs().max())


@pytest.mark.parametrize("dtype", SAME)
@pytest.mark.parametrize("config", [SMALL, LARGE], ids=["kept", "folded-in-the-block"])
def test_folded_equals_ordinary(config, dtype):
    with torch.inference_mode():
        folded, _ = velocity(model_of(config, "auto", dtype))
        ordinary, _ = velocity(model_of(config, OFF, dtype))
        other, _ = velocity(model_of(config, OFF, dtype), audio_shift=1.0)
    assert relative(folded, ordinary) <= SAME[dtype] < relative(other, ordinary)


def test_bf16_is_as_exact_as_the_ordinary_path():
    """Mean error against fp64, over the tokens of a block that hears."""
    blocks = [model_of(SMALL, kernels, torch.bfloat16).blocks[0] for kernels in ("auto", OFF)]
    exact = model_of(SMALL, "reference", torch.float64).blocks[0]
    generator = torch.Generator().manual_seed(3)
    x, tokens = (
        torch.randn(1, length, *shape, generator=generator)
        for length, *shape in ((1536, 96), (6, 8, 20))
    )
    x, tokens = x.bfloat16(), tokens.bfloat16()
    with torch.inference_mode():
        exact.load_state_dict(blocks[0].state_dict())
        attention = exact.audio_cross_attn
        wanted = x.double() + attention(x.double(), attention.context(tokens.double()))
        folded, ordinary = (block.audio_cross_attn for block in blocks)
        absorbed = folded.add(x, x, folded.context(tokens))
        plain = x + ordinary(x, ordinary.context(tokens))
    errors = [(made.double() - wanted).abs().mean() for made in (absorbed, plain)]
    assert errors[0] <= 1.05 * errors[1]


def test_which_context_is_kept():
    kinds = {}
    with torch.inference_mode():
        for name, config in (("small", SMALL), ("large", LARGE)):
            for kernels in ("auto", OFF, "reference"):
                _, context = velocity(model_of(config, kernels))
                kinds[name, str(kernels)] = {type(entry) for entry in context.audio}
    assert kinds.pop(("small", "auto")) == {AudioFold}
    assert all(kind == {tuple} for kind in kinds.values())


def test_not_folded_where_it_does_not_pay():
    """As many audio tokens as channels of a head: the fold would be as large as the weights."""
    with torch.inference_mode():
        _, context = velocity(model_of(MANY_TOKENS))
    assert all(isinstance(entry, tuple) for entry in context.audio)
    attention = model_of(LARGE, "auto", torch.bfloat16).blocks[0].audio_cross_attn
    assert attention.fold((torch.zeros(1, 1, 16, 512, dtype=torch.bfloat16),) * 2) is None


def test_a_fold_kept_and_one_made_anew_give_the_same_bytes():
    attention = model_of(SMALL).blocks[0].audio_cross_attn
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, 48, 96, generator=generator)
    tokens = torch.randn(1, FRAMES, 8, 20, generator=generator)
    with torch.inference_mode():
        kept = attention.context(tokens)
        anew = attention.fold(attention.kv_linear(tokens).chunk(2, -1))
        assert_bitwise_equal(attention.add(x, x, anew), attention.add(x, x, kept))


def test_gradients_take_the_ordinary_path():
    model = model_of(SMALL).requires_grad_(True)
    made, context = velocity(model)
    assert all(isinstance(entry, tuple) for entry in context.audio)
    made.square().mean().backward()
    weights = model.blocks[0].audio_cross_attn.q_linear.weight
    assert weights.grad is not None and weights.grad.any()


@pytest.mark.parametrize("config", [SMALL, LARGE, MANY_TOKENS], ids=["kept", "large", "no-use"])
def test_context_bytes_are_counted(config):
    with torch.inference_mode():
        _, context = velocity(model_of(config))
    held = 0
    for entry in context.audio:
        keys = entry[0] if isinstance(entry, tuple) else None
        held += entry.nbytes if keys is None else keys.untyped_storage().nbytes()
    assert held == FRAMES * audio_context_bytes(config, itemsize=4)


def test_engine_makes_the_same_frames():
    sound = torch.randn(16_000, generator=torch.Generator().manual_seed(0)).numpy() * 0.1
    videos = []
    for kernels in ("auto", OFF):
        engine = Engine.from_pretrained("tiny-random", device="cpu", kernels=kernels)
        video = engine.generate(sound, sample_rate=16_000, prompt="a face", seed=3, num_steps=2)
        videos.append(torch.from_numpy(video.frames).int())
    difference = (videos[0] - videos[1]).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 1e-2
