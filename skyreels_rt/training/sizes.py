"""Sizes of a model that the recipe trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from skyreels_rt.config import (
    AudioAdapterConfig,
    AudioFeatureConfig,
    ByteTextConfig,
    GenerationConfig,
    TinyVAEConfig,
    TransformerConfig,
)


def whisper_sizes(
    d_model: int, num_layers: int, num_heads: int, context: int, num_mel_bins: int = 80
) -> dict[str, Any]:
    """Whisper ``config.json`` of an encoder of these sizes."""
    return {
        "model_type": "whisper",
        "d_model": d_model,
        "encoder_layers": num_layers,
        "encoder_attention_heads": num_heads,
        "encoder_ffn_dim": 4 * d_model,
        "num_mel_bins": num_mel_bins,
        "max_source_positions": context,
    }


@dataclass(frozen=True)
class ModelSizes:
    """Configuration of every component; the defaults are the embedded model's.

    Attributes
    ----------
    transformer, vae, text, audio_features, generation
        Component configurations.
    whisper : dict
        Whisper ``config.json`` of the audio encoder.
    """

    transformer: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(
            patch_size=(1, 2, 2),
            in_channels=36,
            dim=192,
            ffn_dim=448,
            num_heads=3,
            num_layers=6,
            freq_dim=128,
            text_dim=64,
            text_length=144,
            prediction="reference_residual",
            audio=AudioAdapterConfig(
                feature_layers=1, feature_dim=96, num_tokens=8, token_dim=64, hidden_dim=128
            ),
        )
    )
    vae: TinyVAEConfig = field(
        default_factory=lambda: TinyVAEConfig(
            patch_size=2,
            encoder_dims=(24, 48, 64, 128),
            decoder_dims=(128, 96, 48, 48),
            num_blocks=(1, 1, 2),
        )
    )
    text: ByteTextConfig = field(
        default_factory=lambda: ByteTextConfig(dim=64, num_heads=2, num_layers=2, max_bytes=143)
    )
    audio_features: AudioFeatureConfig = field(
        default_factory=lambda: AudioFeatureConfig(past=72, step=32, lookahead=24, layers=((2,),))
    )
    whisper: dict[str, Any] = field(
        default_factory=lambda: whisper_sizes(d_model=96, num_layers=2, num_heads=2, context=128)
    )
    generation: GenerationConfig = field(
        default_factory=lambda: GenerationConfig(
            height=256,
            width=256,
            window=9,
            overlap=3,
            num_steps=8,
            shift=40.0,
            audio_guidance_scale=1.5,
        )
    )
