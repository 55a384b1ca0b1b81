"""Our transformer against the official classes: same names, same shapes, same numbers.

``skyreels_v3_a2v_keys.json`` is the state dict of SkyworkAI/SkyReels-V3's ``WanModel`` on the meta
device; ``official_outputs.safetensors`` holds what the official classes return for seeded weights
and inputs. Both name their origin.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from skyreels_rt.config import AudioAdapterConfig, TransformerConfig
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models.transformer import (
    ContextCache,
    SkyReelsTransformer,
    offload_blocks,
)
from skyreels_rt.testing.tiny import randomise
from skyreels_rt.types import Timeline
from skyreels_rt.weights.families import detect_family
from skyreels_rt.weights.loader import weights_fingerprint
from skyreels_rt.weights.official_layout import transformer_config_from_official

# 12 layers of width 768 and 1280-wide image tokens are constants of the official class.
V3_A2V = TransformerConfig(
    dim=64, ffn_dim=96, num_heads=4, num_layers=2, freq_dim=32, text_dim=40, text_length=20,
    image_dim=1280,
    audio=AudioAdapterConfig(
        feature_layers=12, feature_dim=768, features_per_frame=1, num_tokens=5, token_dim=24,
        hidden_dim=16,
    ),
)  # fmt: skip
FANTASY = TransformerConfig(
    dim=64, ffn_dim=96, num_heads=4, num_layers=2, freq_dim=32, text_dim=40, text_length=20,
    image_dim=1280,
    audio=AudioAdapterConfig(
        kind="shared_query", feature_layers=1, feature_dim=48, features_per_frame=2, num_tokens=17,
        token_dim=24,
    ),
)  # fmt: skip
FRAMES, GRID = 17, (5, 8, 6)


def model_of(config, seed=3):
    """Seeded weights."""
    plan = KernelPlan.choose(torch.device("cpu"), torch.float32)
    with torch.random.fork_rng():
        model = SkyReelsTransformer(config, plan)
    randomise(model, seed)
    return model.eval().requires_grad_(False)


def weights_digest(config):
    """Tells a change of torch's random numbers from a change of the model."""
    return weights_fingerprint(model_of(config))


def inputs_of(config, seed=11):
    """Seeded latents (36, F, h, w), prompt (13, text_dim), image (257, D), features."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    audio = config.audio
    sizes = (audio.features_per_frame, audio.feature_layers, audio.feature_dim)
    return {
        "latents": draw(36, *GRID),
        "timestep": 640.0,
        "prompt": draw(13, config.text_dim),
        "image": draw(257, config.image_dim),
        "features": draw(FRAMES, *sizes),
    }


@dataclass
class Reader:
    """Features of a clip as a session's token track reads them."""

    features: torch.Tensor
    after: str = "repeat"

    def __call__(self, first, stop):
        index = torch.arange(first, stop)
        read = self.features[index.clamp(0, len(self.features) - 1)]
        if self.after == "zeros":
            read[index >= len(self.features)] = 0
        return read


def run(model, config):
    """Velocity of the seeded inputs, and the audio tokens."""
    i = inputs_of(config)
    after = "zeros" if config.audio.kind == "shared_query" else "repeat"
    tokens = model.audio_proj.pack(Reader(i["features"], after), 0, GRID[0], Timeline())
    prompt = torch.zeros(1, config.text_length, config.text_dim)
    prompt[0, : len(i["prompt"])] = i["prompt"]
    context = ContextCache(
        model.text_context(prompt),
        model.image_context(i["image"][None]),
        model.audio_context(tokens[None]),
    )
    return model(i["latents"][None], torch.tensor([i["timestep"]]), context), tokens


HERE = Path(__file__).parent
MODELS = {"skyreels_v3_a2v": V3_A2V, "fantasy_talking": FANTASY}


def table():
    """Shapes of the official 19B class by name, and the arguments it was made with."""
    data = json.loads((HERE / "skyreels_v3_a2v_keys.json").read_text())
    shapes = {name: tuple(shape) for name, shape in data["top"].items()}
    for index in range(data["num_blocks"]):
        shapes |= {f"blocks.{index}.{name}": tuple(s) for name, s in data["block"].items()}
    return shapes, data


def agrees(found, expected):
    """No value is further than 1e-5 from the official one."""
    return bool((found.double() - expected.double()).abs().max() <= 1e-5)


def golden(name):
    with safe_open(HERE / "official_outputs.safetensors", framework="pt") as file:
        return file.get_tensor(name), file.metadata()


@pytest.fixture(scope="module")
def full_model():
    shapes, data = table()
    family = detect_family(shapes, where="table")
    config = transformer_config_from_official(data["arguments"], shapes, family, where="table")
    with torch.device("meta"):
        plan = KernelPlan.choose(torch.device("cpu"), torch.float32)
        return SkyReelsTransformer(config, plan)


def test_the_full_layout_has_the_official_names_and_shapes(full_model):
    shapes, data = table()
    ours = {name: tuple(value.shape) for name, value in full_model.state_dict().items()}
    assert ours == shapes
    assert all(parameter.is_meta for parameter in full_model.parameters())
    assert data["num_blocks"] == 40


def test_the_full_layout_has_as_many_parameters_as_published(full_model):
    count = sum(parameter.numel() for parameter in full_model.parameters())
    assert count == table()[1]["num_parameters"]
    assert abs(count / 1e9 - 18.88) < 0.01


def test_the_official_arguments_give_the_published_sizes(full_model):
    assert full_model.config == TransformerConfig(
        in_channels=36, dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, image_dim=1280,
        audio=AudioAdapterConfig(feature_layers=12, feature_dim=768, features_per_frame=1),
    )  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_official_class_returns_the_same_velocity(name):
    expected, metadata = golden(name)
    config = MODELS[name]
    assert weights_digest(config) == metadata[f"{name}_weights"], "torch draws other numbers now"
    with torch.inference_mode():
        velocity, _ = run(model_of(config), config)
    assert agrees(velocity, expected)


@pytest.mark.parametrize("name", MODELS)
def test_offloaded_blocks_return_the_same_bytes(name):
    with torch.inference_mode():
        expected, _ = run(model_of(MODELS[name]), MODELS[name])
        offloaded = model_of(MODELS[name])
        offload_blocks(offloaded, torch.device("cpu"))
        velocity, _ = run(offloaded, MODELS[name])
    assert torch.equal(velocity, expected)


def test_the_official_packer_returns_the_same_tokens():
    expected, _ = golden("skyreels_v3_a2v_tokens")
    with torch.inference_mode():
        _, tokens = run(model_of(V3_A2V), V3_A2V)
    assert agrees(tokens, expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fault", ["norm_k_img", "k_audio|kv_linear", "audio_proj.norm"])
def test_the_comparison_sees_a_planted_fault(name, fault):
    config = MODELS[name]
    model = model_of(config)
    hit = [p for n, p in model.named_parameters() if any(f in n for f in fault.split("|"))]
    assert hit
    with torch.inference_mode():
        hit[-1].mul_(1.001)
        velocity, _ = run(model, config)
    assert not agrees(velocity, golden(name)[0])


def test_absent_audio_tokens_say_nothing():
    """Zero features are no audio: the velocity is that of a model without its audio part."""
    model = model_of(FANTASY)
    with torch.inference_mode():
        silence = Reader(torch.zeros(FRAMES, 2, 1, 48))
        tokens = model.audio_proj.pack(silence, 0, GRID[0], Timeline())
        context = model.audio_context(tokens[None])
        assert not any(block.present.any() for block in context)
        x = torch.randn(1, 30, FANTASY.dim, generator=torch.Generator().manual_seed(0))
        text = model.text_context(torch.zeros(1, FANTASY.text_length, FANTASY.text_dim))
        block = model.blocks[0].cross_attn
        assert torch.equal(block(x, text[0], None, context[0]), block(x, text[0], None))
