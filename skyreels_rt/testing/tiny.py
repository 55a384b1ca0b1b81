"""Seeded random models of the real topology, small enough for a laptop and for tests.

They show noise: nothing in them is trained. Their shapes, classes and data flow are those of the
native family, so everything but the picture's content is real.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from skyreels_rt.audio.whisper import WhisperFeatures, build_whisper_encoder
from skyreels_rt.components import Components
from skyreels_rt.config import (
    AudioAdapterConfig,
    AudioFeatureConfig,
    ByteTextConfig,
    GenerationConfig,
    TinyVAEConfig,
    TransformerConfig,
)
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.model_folder import save_components
from skyreels_rt.models.text_encoder import ByteTextEncoder
from skyreels_rt.models.tiny_vae import TinyVAE
from skyreels_rt.models.transformer import SkyReelsTransformer

WHISPER_CONFIG: dict[str, Any] = {
    "model_type": "whisper",
    "d_model": 64,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 128,
    "num_mel_bins": 80,
    "max_source_positions": 128,
}


@dataclass(frozen=True)
class TinyModel:
    """Sizes of a tiny model; the defaults are ``"tiny-random"``.

    Attributes
    ----------
    transformer, vae, text, audio_features, generation
        Component configurations.
    seed : int
        Seed of the weights.
    """

    transformer: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(
            in_channels=36,
            dim=96,
            ffn_dim=256,
            num_heads=3,
            num_layers=3,
            freq_dim=64,
            text_dim=64,
            text_length=64,
            audio=AudioAdapterConfig(
                feature_layers=3, feature_dim=64, num_tokens=8, token_dim=64, hidden_dim=64
            ),
        )
    )
    vae: TinyVAEConfig = field(
        default_factory=lambda: TinyVAEConfig(
            encoder_dims=(16, 32, 32, 48), decoder_dims=(48, 32, 32, 16), num_blocks=(1, 1, 1)
        )
    )
    text: ByteTextConfig = field(default_factory=lambda: ByteTextConfig(dim=64, max_bytes=63))
    audio_features: AudioFeatureConfig = field(
        default_factory=lambda: AudioFeatureConfig(
            past=72, step=32, lookahead=24, layers=((0,), (1,), (2,))
        )
    )
    generation: GenerationConfig = field(
        default_factory=lambda: GenerationConfig(height=128, width=128, num_steps=4)
    )
    seed: int = 0

    def with_generation(self, **changes: Any) -> TinyModel:  # noqa: ANN401 - fields of GenerationConfig
        """The same model with other generation defaults."""
        return replace(self, generation=replace(self.generation, **changes))

    def with_transformer(self, **changes: Any) -> TinyModel:  # noqa: ANN401 - fields of TransformerConfig
        """The same model with other transformer sizes."""
        return replace(self, transformer=replace(self.transformer, **changes))


def tiny_components(
    tiny: TinyModel | None = None,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    plan: KernelPlan | None = None,
) -> Components:
    """Build a tiny model in memory.

    Parameters
    ----------
    tiny : TinyModel, optional
        Sizes; ``"tiny-random"`` by default.
    device : torch.device, optional
        The CPU by default.
    dtype : torch.dtype
        Type of transformer, VAE and text encoder.
    plan : KernelPlan, optional
        Chosen automatically by default.
    """
    tiny = tiny or TinyModel()
    device = device or torch.device("cpu")
    plan = plan or KernelPlan.choose(device, dtype)
    transformer, vae, text, whisper = _modules(tiny, plan)
    transformer.to(device).to_compute_dtype(dtype)
    for module in (vae, text):
        module.to(device, dtype)
    audio = None
    if tiny.transformer.audio is not None:
        num_mel_bins = WHISPER_CONFIG["num_mel_bins"]
        audio = WhisperFeatures(whisper.to(device), tiny.audio_features, num_mel_bins)
    return Components(
        name="tiny-random",
        transformer=transformer,
        vae=vae,
        audio_encoder=audio,
        audio_features=tiny.audio_features,
        text_encoder=text,
        image_encoder=None,
        generation=tiny.generation,
        device=device,
        dtype=dtype,
        plan=plan,
    )


def write_tiny_model(
    folder: Path, tiny: TinyModel | None = None, *, max_shard_bytes: float = 5e9
) -> None:
    """Write a tiny model as a model folder, larger components in shards.

    Raises
    ------
    OutputError
        A file cannot be written.
    """
    tiny = tiny or TinyModel()
    plan = KernelPlan.choose(torch.device("cpu"), torch.float32)
    transformer, vae, text, whisper = _modules(tiny, plan)
    save_components(
        folder,
        transformer=transformer,
        vae=vae,
        text_encoder=text,
        audio_encoder=whisper if tiny.transformer.audio is not None else None,
        audio_config=WHISPER_CONFIG,
        audio_features=tiny.audio_features,
        generation=tiny.generation,
        max_shard_bytes=max_shard_bytes,
    )


def randomise(module: nn.Module, seed: int) -> None:
    """Fill every parameter of ``module`` with the values of :func:`random_tensors`."""
    shapes = {name: tuple(value.shape) for name, value in module.named_parameters()}
    values = random_tensors(shapes, seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(values[name])


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Seeded weights that keep activations near unit size, float32.

    Weights get variance 1 / fan-in; norm gains stay near 1; biases, modulation tables and other
    vectors are small but never zero, so that no path of the model is dead. The global random state
    is not touched.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Names and shapes; the names tell what a tensor is for.
    seed : int
        The same seed gives the same values, in whatever order the names come.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in sorted(shapes.items()):
        values = torch.randn(shape, generator=generator)
        if len(shape) >= 2 and "modulation" not in name:
            values /= math.sqrt(math.prod(shape[1:]))
        elif name.endswith(("weight", "gamma")):
            values = 1 + 0.1 * values
        else:
            values *= 0.1
        tensors[name] = values
    return tensors


def _modules(
    tiny: TinyModel, plan: KernelPlan
) -> tuple[SkyReelsTransformer, TinyVAE, ByteTextEncoder, nn.Module]:
    with torch.random.fork_rng(devices=[]):  # torch's own initialisation draws random numbers
        transformer = SkyReelsTransformer(tiny.transformer, plan)
        vae = TinyVAE(tiny.vae)
        text = ByteTextEncoder(tiny.text)
        whisper = build_whisper_encoder(WHISPER_CONFIG)
    for offset, module in enumerate((transformer, vae, text, whisper)):
        randomise(module, tiny.seed + offset)
        module.eval().requires_grad_(False)
    return transformer, vae, text, whisper
