"""The trained parts together: audio encoder, text encoder, transformer, and heads for training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skyreels_rt.audio.whisper import build_whisper_encoder
from skyreels_rt.config import AudioFeatureConfig, GenerationConfig
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.model_folder import save_components
from skyreels_rt.models.text_encoder import PAD, ByteTextEncoder
from skyreels_rt.models.tiny_vae import TinyVAE
from skyreels_rt.models.transformer import ContextCache, SkyReelsTransformer
from skyreels_rt.training.audio_windows import SpeechBatch
from skyreels_rt.training.sizes import ModelSizes

_MAX_SHARD_BYTES = 7e6
_FRAMES, _MOUTH_PARAMETERS = 4, 5
_LOOKS = 19  # classes of text_stage.LOOKS
_ENGINE_STEP = 8  # features: 160 ms


class PortraitModel(nn.Module):
    """Audio encoder, text encoder and transformer, trained jointly.

    Parameters
    ----------
    sizes : ModelSizes
        Of all components.
    """

    def __init__(self, sizes: ModelSizes) -> None:
        super().__init__()
        assert sizes.transformer.audio is not None
        audio = sizes.transformer.audio
        # The reference operators have gradients and run on any device.
        plan = KernelPlan.choose(torch.device("cpu"), torch.float32, "reference")
        self.sizes = sizes
        self.transformer = SkyReelsTransformer(sizes.transformer, plan)
        self.text_encoder = ByteTextEncoder(sizes.text)
        self.audio_encoder = build_whisper_encoder(sizes.whisper)
        for parameter in self.audio_encoder.parameters():
            parameter.requires_grad_(True)
        self.audio_encoder.embed_positions.requires_grad_(False)
        # Only for training. What a linear map reads from the mean of a latent's tokens is what a
        # cross-attention that does not yet look anywhere hands to every patch.
        self.mouth_head = nn.Linear(audio.token_dim, _FRAMES * _MOUTH_PARAMETERS)
        self.caption_head = nn.Linear(sizes.text.dim, _LOOKS)
        _initialise(self)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.device

    def audio_tokens(self, batch: SpeechBatch) -> Tensor:
        """Tokens (B, W, M, C) of a batch, silent where the audio is left out."""
        grid = self.sizes.audio_features
        count, steps = batch.mels.shape[:2]
        states = self.audio_encoder(
            batch.mels.flatten(0, 1), output_hidden_states=True
        ).hidden_states
        groups = [
            torch.stack([states[layer][:, grid.past : grid.past + grid.step] for layer in group])
            .float()
            .mean(0)
            for group in grid.layers
        ]
        features = torch.stack(groups, dim=2).unflatten(0, (count, steps)).flatten(1, 2)
        features = features * batch.hears.view(-1, 1, 1, 1)
        rows = batch.frame_features.flatten(1)
        index = rows[..., None, None].expand(-1, -1, *features.shape[2:])
        windows = features.gather(1, index).unflatten(1, batch.frame_features.shape[1:])
        packer = self.transformer.audio_proj
        tokens = packer(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])
        single = packer(windows[:, 0, : packer.config.window])
        first = torch.where(batch.starts_clip.view(-1, 1, 1), single, tokens[:, 0])
        out: Tensor = torch.cat([first.unsqueeze(1), tokens[:, 1:]], dim=1)
        return out

    def context(self, prompts: list[str], tokens: Tensor) -> ContextCache:
        """Keys and values of prompts and audio tokens."""
        prompt = self.text_encoder(self.text_encoder.tokenize(prompts))
        return ContextCache(
            text=self.transformer.text_context(prompt),
            audio=self.transformer.audio_context(tokens),
        )

    def velocity(
        self, noisy: Tensor, channels: Tensor, sigma: Tensor, context: ContextCache
    ) -> Tensor:
        """Velocity (B, C, W, h, w), float32."""
        inputs = torch.cat([noisy, channels], dim=1)
        out: Tensor = self.transformer(inputs, 1000 * sigma, context)
        return out.float()

    def mouth(self, tokens: Tensor) -> Tensor:
        """Mouth parameters (B, W, 4, 5) read from audio tokens."""
        out: Tensor = self.mouth_head(tokens.mean(2))
        parameters: Tensor = out.unflatten(-1, (_FRAMES, _MOUTH_PARAMETERS))
        return parameters

    def looks(self, prompts: list[str]) -> Tensor:
        """Scores (B, 19) of the looks that captions name, class after class."""
        tokens = self.text_encoder.tokenize(prompts)
        rows = self.text_encoder(tokens)
        named = (tokens != PAD).sum(1, keepdim=True)
        out: Tensor = self.caption_head(rows.sum(1) / named)
        return out

    def write(
        self, folder: Path, vae: TinyVAE, generation: GenerationConfig, weights: dict[str, Tensor]
    ) -> None:
        """Write a model folder with ``weights`` (names of this module's parameters), in bfloat16.

        The module's own weights are left as they are.
        """
        shipped = PortraitModel(self.sizes)
        shipped.load_state_dict({**self.state_dict(), **weights})
        save_components(
            folder,
            transformer=shipped.transformer,
            vae=vae,
            text_encoder=shipped.text_encoder,
            audio_encoder=shipped.audio_encoder,
            audio_config=self.sizes.whisper,
            audio_features=engine_grid(self.sizes.audio_features),
            generation=generation,
            dtype=torch.bfloat16,
            max_shard_bytes=_MAX_SHARD_BYTES,
        )


def engine_grid(trained: AudioFeatureConfig) -> AudioFeatureConfig:
    """Grid that the engine runs: finer steps of the same context, so that speech waits less.

    Its features are the last ones of a training step, with the same look-ahead.
    """
    step = min(_ENGINE_STEP, trained.step)
    return replace(trained, past=trained.past + trained.step - step, step=step)


def _initialise(model: PortraitModel) -> None:
    """Initial weights, after DiT (arXiv 2212.09748): gates and output start at zero."""
    transformer = model.transformer
    for module in transformer.modules():
        if isinstance(module, nn.Linear | nn.Conv3d):
            nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in transformer.named_parameters():
        if name.endswith("modulation"):
            nn.init.zeros_(parameter)
    projection: Any = transformer.time_projection[1]
    nn.init.zeros_(projection.weight)
    blocks: Any = transformer.blocks
    for block in blocks:
        # The cross-attentions have no gates: the text's output starts at zero, the audio's small.
        nn.init.zeros_(block.cross_attn.o.weight)
        nn.init.normal_(block.audio_cross_attn.proj.weight, std=0.05)
    nn.init.zeros_(transformer.head.head.weight)
