"""The video diffusion transformer: Wan2.1's backbone with an audio adapter in every block.

Source of the backbone: Wan-Video/Wan2.1 ``wan/modules/model.py``, whose parameter names are used
here; of the audio adapter: see :mod:`skyreels_rt.models.audio_adapter`.
Legend: B batch, C channels, F H W latent frames, rows, columns, L tokens, S context tokens,
D width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyreels_rt.config import TransformerConfig
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.kernels import (
    KernelPlan,
    gate_residual_norm_modulate,
    gate_residual_norm_modulate_quantize,
    norm_modulate,
    norm_modulate_quantize,
    residual_apply,
    residual_store,
)
from skyreels_rt.models.attention import CrossAttention, KeysValues, SelfAttention, SharedQueryAudio
from skyreels_rt.models.audio_adapter import (
    AudioContext,
    AudioCrossAttention,
    OwnQueryAudio,
    SegmentedAudio,
    build_packer,
)
from skyreels_rt.models.embeddings import ImageEmbedding, sinusoid
from skyreels_rt.models.feed_forward import FeedForward
from skyreels_rt.models.fp8_linear import QuantizedRows, join_rows, multiply_rows
from skyreels_rt.models.rope import rope_tables
from skyreels_rt.models.token_shard import FrameSegment, TokenShard, frame_segments
from skyreels_rt.runtime.offload import BlockOffload

SIGMA_FLOOR = 1e-3
"""Least noise level that a clean prediction is divided by."""

RESIDUAL_VARIANCE = 0.3
"""Expected square of clean latents minus reference, where a face moves."""


@dataclass(frozen=True)
class ContextCache:
    """Keys and values of everything a window attends to, one entry per block.

    They depend on prompt, portrait and audio but not on the step, so they are computed once.

    Attributes
    ----------
    text : tuple of KeysValues
        Prompt, (B, N, S, K) each.
    image : tuple of KeysValues or None
        Portrait tokens of the image branch.
    audio : tuple of AudioContext or None
        Audio tokens; None runs the blocks without their audio part. Cut into segments where a rank
        holds only some of the video tokens.
    """

    text: tuple[KeysValues, ...]
    image: tuple[KeysValues, ...] | None = None
    audio: tuple[AudioContext | SegmentedAudio, ...] | None = None


@dataclass(frozen=True)
class Affine:
    """What follows a LayerNorm's statistics: ``normalised * weight + bias``.

    Attributes
    ----------
    weight, bias : Tensor, shape (B or 1, 1, D), float32
        From the modulation (adaLN) or a norm's own parameters.
    quantized : bool
        Whether what reads the result multiplies in 8 bits, and gets it so.
    """

    weight: Tensor
    bias: Tensor
    quantized: bool = False

    @classmethod
    def of_rows(cls, modulation: Tensor, first: int, *readers: nn.Module) -> Affine:
        """Rows ``first`` (shift) and ``first + 1`` (1 + scale) of a modulation (B, rows, D)."""
        shift, scale = modulation[:, first : first + 1], modulation[:, first + 1 : first + 2]
        return cls(scale, shift, bool(readers) and multiply_rows(*readers))

    @classmethod
    def of_norm(cls, norm: nn.LayerNorm, *readers: nn.Module) -> Affine:
        """A LayerNorm's own parameters."""
        weight, bias = norm.weight.float()[None, None], norm.bias.float()[None, None]
        return cls(weight, bias, bool(readers) and multiply_rows(*readers))


def normalised(x: Tensor, norm: Affine, eps: float, plan: KernelPlan) -> Tensor | QuantizedRows:
    """Tokens (B, L, D) normalised, in 8 bits where ``norm`` says so."""
    if norm.quantized:
        impl = plan.norm_modulate_quantize
        return QuantizedRows(*norm_modulate_quantize(x, norm.weight, norm.bias, eps=eps, impl=impl))
    return norm_modulate(x, norm.weight, norm.bias, eps=eps, impl=plan.norm_modulate)


class TransformerBlock(nn.Module):
    """Self-attention, text (and image) cross-attention, audio cross-attention, feed-forward.

    Parameters
    ----------
    config : TransformerConfig
        Sizes.
    plan : KernelPlan
        Kernel implementations to use.
    """

    def __init__(self, config: TransformerConfig, plan: KernelPlan) -> None:
        super().__init__()
        dim = config.dim
        self.eps = config.eps
        self.self_attn = SelfAttention(config, plan)
        self.norm3 = nn.LayerNorm(dim, eps=config.eps)
        self.cross_attn = CrossAttention(config, plan)
        if config.audio is not None and config.audio.kind == "own_query":
            self.norm_x = nn.LayerNorm(dim, eps=config.eps)
            self.audio_cross_attn = AudioCrossAttention(config, plan)
        self.ffn = FeedForward(dim, config.ffn_dim, plan)
        self.modulation = nn.Parameter(torch.empty(1, 6, dim))
        self.plan = plan

    def forward(
        self,
        x_BLD: Tensor,
        normed_BLD: Tensor | QuantizedRows,
        modulation_B6D: Tensor,
        following: Affine,
        rope: tuple[Tensor, Tensor],
        context: ContextCache,
        index: int,
        shard: TokenShard | None = None,
    ) -> tuple[Tensor, Tensor | QuantizedRows]:
        """Tokens after this block, and the same normalised for what follows, (B, L, D) each.

        Every residual addition is fused with the norm after it, also across blocks.

        Parameters
        ----------
        x_BLD, normed_BLD : Tensor, shape (B, L, D)
            Video tokens, and the same normalised by this block's modulation, or that in 8 bits.
        modulation_B6D : Tensor, shape (B, 6, D), float32
            This block's rows, as :meth:`SkyReelsTransformer.modulation` gives them.
        following : Affine
            Norm of what comes after this block.
        rope : tuple of Tensor
            Cosines and sines.
        context : ContextCache
            Keys and values of all blocks.
        index : int
            This block's entry in ``context``.
        shard : TokenShard, optional
            The tokens' place among those of other ranks.
        """
        gate, ffn_gate = modulation_B6D[:, 2:3], modulation_B6D[:, 5:6]
        ffn_norm = Affine.of_rows(modulation_B6D, 3, self.ffn[0])
        y = self.self_attn(normed_BLD, *rope, shard)
        text_norm = Affine.of_norm(self.norm3, self.cross_attn.q)
        x, normed = self._add_and_norm(x_BLD, y, gate, text_norm)
        image = context.image[index] if context.image is not None else None
        audio = context.audio[index] if context.audio is not None else None
        if audio is None or isinstance(audio, SharedQueryAudio):
            y = self.cross_attn(normed, context.text[index], image, audio)
            x, normed = self._add_and_norm(x, y, None, ffn_norm)
            return self._add_and_norm(x, self.ffn(normed), ffn_gate, following)
        y = self.cross_attn(normed, context.text[index], image)
        x, normed = self._add_and_norm(x, y, None, Affine.of_norm(self.norm_x))
        x, heard = self._hear(x, normed, audio, ffn_norm)
        return self._add_and_norm(x, self.ffn(heard), ffn_gate, following)

    def _hear(
        self,
        x: Tensor,
        normed: Tensor | QuantizedRows,
        audio: OwnQueryAudio | SegmentedAudio,
        norm: Affine,
    ) -> tuple[Tensor, Tensor | QuantizedRows]:
        assert isinstance(normed, Tensor)  # norm_x names no readers
        if isinstance(audio, SegmentedAudio):
            runs = (x.split(audio.lengths, dim=1), normed.split(audio.lengths, dim=1))
            heard = [self._hear(*run, norm) for run in zip(*runs, audio.contexts, strict=True)]
            xs, norms = zip(*heard, strict=True)
            return torch.cat(xs, dim=1), join_rows(norms)
        attention = self.audio_cross_attn
        fold = attention.fold(audio)
        if fold is None:
            return self._add_and_norm(x, attention(normed, audio), None, norm)
        x = attention.add(x, normed, fold)  # the matrix product adds for nothing
        return x, normalised(x, norm, self.eps, self.plan)

    def _add_and_norm(
        self, x: Tensor, y: Tensor, gate: Tensor | None, norm: Affine
    ) -> tuple[Tensor, Tensor | QuantizedRows]:
        if norm.quantized:
            x, values, scales = gate_residual_norm_modulate_quantize(
                x, y, gate, norm.weight, norm.bias,
                eps=self.eps, impl=self.plan.gate_residual_norm_modulate_quantize,
            )  # fmt: skip
            return x, QuantizedRows(values, scales)
        return gate_residual_norm_modulate(
            x, y, gate, norm.weight, norm.bias,
            eps=self.eps, impl=self.plan.gate_residual_norm_modulate,
        )  # fmt: skip


class Head(nn.Module):
    """Final modulated norm and projection to patches.

    Parameters
    ----------
    config : TransformerConfig
        Sizes.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.head = nn.Linear(config.dim, config.out_channels * math.prod(config.patch_size))
        self.modulation = nn.Parameter(torch.empty(1, 2, config.dim))

    def norm(self, time_BD: Tensor) -> Affine:
        """Affine part of the norm before the projection, from the time embedding (B, D)."""
        shift, scale = (self.modulation.float() + time_BD.float().unsqueeze(1)).split(1, dim=1)
        return Affine(1 + scale, shift)

    def forward(self, normed_BLD: Tensor) -> Tensor:
        """(B, L, D), normalised, -> (B, L, patch volume x out_channels)."""
        out: Tensor = self.head(normed_BLD)
        return out


class SkyReelsTransformer(nn.Module):
    """Predicts the flow velocity of a window of latents.

    Parameters
    ----------
    config : TransformerConfig
        Sizes; ``config.audio`` None builds a plain Wan transformer.
    plan : KernelPlan
        Kernel implementations to use; fixed for the model's life.
    """

    def __init__(self, config: TransformerConfig, plan: KernelPlan) -> None:
        super().__init__()
        self.config = config
        self.plan = plan
        dim = config.dim
        patch_volume = math.prod(config.patch_size)
        # A patch embedding is a linear map of each patch; Wan stores it as a convolution.
        self.patch_embedding = nn.Conv3d(
            config.in_channels, dim, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.patch_values = config.in_channels * patch_volume
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        if config.image_dim is not None:
            self.img_emb = ImageEmbedding(config.image_dim, dim)
        if config.audio is not None:
            self.audio_proj = build_packer(config.audio)
        self.blocks = nn.ModuleList(
            TransformerBlock(config, plan) for _ in range(config.num_layers)
        )
        self.head = Head(config)
        self.offload: BlockOffload | None = None
        """What keeps the blocks' weights in host memory, where they do not fit the device."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the tokens and of all weights but the time path's."""
        return self.patch_embedding.weight.dtype

    def to_compute_dtype(self, dtype: torch.dtype) -> Self:
        """Cast the weights to ``dtype``, but keep the time path in float32, as Wan does.

        Time embedding and modulation scale every token of every block; they run once per step, and
        their rounding in a low precision is a systematic error.
        """
        self.to(dtype)
        self.time_embedding.float()
        self.time_projection.float()
        for name, parameter in self.named_parameters():
            if name.endswith("modulation"):
                parameter.data = parameter.data.float()
        return self

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.patch_embedding.weight.device

    def text_context(self, prompt_embeds: Tensor) -> tuple[KeysValues, ...]:
        """Keys and values of a prompt for every block.

        Parameters
        ----------
        prompt_embeds : Tensor, shape (B, S, text_dim)
            Padded with zeros to ``config.text_length``; the padding is attended, as in Wan.
        """
        context = self.text_embedding(prompt_embeds.to(self.device, self.dtype))
        blocks = self._each_block("cross_attn.")
        return tuple(block.cross_attn.text_keys_values(context) for block in blocks)

    def image_context(self, image_embeds: Tensor) -> tuple[KeysValues, ...]:
        """Keys and values of portrait tokens (B, S, image_dim) for every block.

        Raises
        ------
        InvalidArgument
            The model was built without an image branch.
        """
        if self.config.image_dim is None:
            raise InvalidArgument(
                "image_embeds", expected="a model with image_dim set", got="a model without one"
            )
        context = self.img_emb(image_embeds.to(self.device, self.dtype))
        blocks = self._each_block("cross_attn.")
        return tuple(block.cross_attn.image_keys_values(context) for block in blocks)

    def audio_context(
        self, tokens_BFMC: Tensor, shard: TokenShard | None = None
    ) -> tuple[AudioContext | SegmentedAudio, ...]:
        """What every block attends to of audio tokens (B, F, M, C); with a shard, of its frames.

        Raises
        ------
        InvalidArgument
            The model was built without an audio adapter.
        """
        if self.config.audio is None:
            raise InvalidArgument(
                "audio", expected="a model with an audio adapter", got="a model without one"
            )
        tokens = tokens_BFMC.to(self.device, self.dtype)
        cuts: tuple[FrameSegment, ...] = ()
        if shard is not None:
            cuts = frame_segments(shard.start, shard.stop, shard.num_tokens // tokens.shape[1])
            tokens = tokens[:, cuts[0].first_frame : cuts[-1].stop_frame]
        if self.config.audio.kind == "shared_query":
            blocks = self._each_block("cross_attn.")
            return tuple(block.cross_attn.audio_keys_values(tokens, cuts) for block in blocks)
        blocks = self._each_block("audio_cross_attn.")
        if shard is None:
            return tuple(block.audio_cross_attn.context(tokens) for block in blocks)
        contexts = (block.audio_cross_attn.context(tokens) for block in blocks)
        return tuple(SegmentedAudio.of_frames(context, cuts) for context in contexts)

    def rope(self, frames: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Rotary tables for a window of ``frames x height x width`` latents."""
        patch_t, patch_h, patch_w = self.config.patch_size
        return rope_tables(
            frames // patch_t,
            height // patch_h,
            width // patch_w,
            self.config.head_dim,
            device=self.device,
        )

    def forward(
        self,
        latents_BCFHW: Tensor,
        timestep: Tensor,
        context: ContextCache,
        rope: tuple[Tensor, Tensor] | None = None,
        *,
        reuse: Tensor | None = None,
        keep: Tensor | None = None,
        shard: TokenShard | None = None,
    ) -> Tensor:
        """Velocity of a window.

        Parameters
        ----------
        latents_BCFHW : Tensor, shape (B, in_channels, F, H, W)
            Noisy latents followed by the condition channels.
        timestep : Tensor, shape (B,), float
            ``1000 * sigma``.
        context : ContextCache
            Keys and values of :meth:`text_context`, :meth:`image_context`, :meth:`audio_context`.
        rope : tuple of Tensor, optional
            Tables of :meth:`rope` for this shape, to save making them again.
        reuse : Tensor, shape (B, L, D), optional
            Added to the patch embedding in place of running the blocks, which then see neither
            ``context`` nor ``rope``.
        keep : Tensor, shape (B, L, D), the model's dtype, optional
            Overwritten with what the blocks added, for a later ``reuse``.
        shard : TokenShard, optional
            Tokens that this rank computes; ``context``, ``reuse`` and ``keep`` are of those alone.
            Every rank gets the whole velocity.

        Returns
        -------
        Tensor, shape (B, out_channels, F, H, W)
            In the model's dtype.
        """
        _, _, frames, height, width = latents_BCFHW.shape
        x_BLD = self._embed_inputs(latents_BCFHW, timestep, shard)
        time_BD = self._embed_time(timestep)
        if reuse is not None:
            x_BLD = residual_apply(x_BLD, reuse, impl=self.plan.residual_apply)
            normed = self._norm(x_BLD, self.head.norm(time_BD))
        else:
            cos, sin = self.rope(frames, height, width) if rope is None else rope
            own = slice(None) if shard is None else slice(shard.start, shard.stop)
            if keep is not None:
                keep.copy_(x_BLD)  # the blocks overwrite their input
            x_BLD, normed = self._run_blocks(x_BLD, time_BD, context, (cos[own], sin[own]), shard)
            if keep is not None:
                residual_store(keep, x_BLD, keep, impl=self.plan.residual_store)
        patches = self.head(normed)
        if shard is not None:
            patches = shard.gather(patches)
        output = self._join_patches(patches, frames, height, width)
        if self.config.prediction == "velocity":
            return output
        return self._velocity_from_residual(output, latents_BCFHW, timestep)

    def time_signal(self, timestep: Tensor, *, projected: bool = False) -> Tensor:
        """Time embedding (B, D) of timesteps (B,), or its projection (B, 6 D), as a step has it."""
        time: Tensor = self._embed_time(timestep)
        return self.time_projection(time) if projected else time

    def time_digest(self) -> str:
        """Digest of the time path's weights: equal for equal weights, stored in any one type."""
        digest = hashlib.sha256()
        for module in (self.time_embedding, self.time_projection):
            for _, value in sorted(module.state_dict().items()):
                digest.update(value.float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def modulated_input(self, latents_BCFHW: Tensor, timestep: Tensor) -> Tensor:
        """What enters the first block's attention, (B, L, D); arguments as in :meth:`forward`."""
        first = self.modulation(self.time_projection(self._embed_time(timestep)))[0]
        return self._norm(self._embed_inputs(latents_BCFHW, timestep), Affine.of_rows(first, 0))

    def num_tokens(self, frames: int, height: int, width: int) -> int:
        """Tokens L of a window of ``frames x height x width`` latents."""
        return frames * height * width // math.prod(self.config.patch_size)

    def _run_blocks(
        self,
        x_BLD: Tensor,
        time_BD: Tensor,
        context: ContextCache,
        rope: tuple[Tensor, Tensor],
        shard: TokenShard | None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens behind all blocks, and the same normalised for the head."""
        modulations = self.modulation(self.time_projection(time_BD))
        norms = [
            Affine.of_rows(rows, 0, block.self_attn.q, block.self_attn.k, block.self_attn.v)
            for rows, block in zip(modulations, self._blocks(), strict=True)
        ]
        norms.append(self.head.norm(time_BD))
        normed = normalised(x_BLD, norms[0], self.config.eps, self.plan)
        for index, block in enumerate(self._each_block()):
            x_BLD, normed = block(
                x_BLD, normed, modulations[index], norms[index + 1], rope, context, index, shard
            )
        assert isinstance(normed, Tensor)  # the head names no readers
        return x_BLD, normed

    def _embed_inputs(
        self, latents: Tensor, timestep: Tensor, shard: TokenShard | None = None
    ) -> Tensor:
        """Tokens (B, L, D) that enter the blocks; with a shard, its own."""
        if self.config.prediction == "reference_residual":
            latents = self._with_residual_estimate(latents, timestep)
        return self._embed_patches(latents.to(self.dtype), shard)

    def _embed_time(self, timestep: Tensor) -> Tensor:
        time = sinusoid(timestep.to(self.device), self.config.freq_dim)
        out: Tensor = self.time_embedding(time.to(next(self.time_embedding.parameters()).dtype))
        return out

    def _norm(self, x: Tensor, norm: Affine) -> Tensor:
        return norm_modulate(
            x, norm.weight, norm.bias, eps=self.config.eps, impl=self.plan.norm_modulate
        )

    def modulation(self, projected_time: Tensor) -> tuple[Tensor, ...]:
        """Every block's rows (B, 6, D), float32: shift, 1 + scale, gate of attention, then of FFN.

        Parameters
        ----------
        projected_time : Tensor, shape (B, 6 D)
            Output of the time projection.
        """
        rows = projected_time.float().unflatten(-1, (6, -1))
        is_scale = torch.arange(6, device=rows.device) % 3 == 1  # made there: no copy from the host
        rows = rows + is_scale.to(rows.dtype)[:, None]
        own = torch.stack([block.modulation.float() for block in self._blocks()])
        every: tuple[Tensor, ...] = (own + rows).unbind(0)
        return every

    def _with_residual_estimate(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """Noisy channels replaced by the best linear guess of ``clean - reference`` from them.

        Near pure noise the guess is zero: what tells nothing does not enter. After the
        preconditioning of Karras et al. 2022 (arXiv 2206.00364).
        """
        channels = self.config.out_channels
        noisy, reference = latents[:, :channels].float(), latents[:, -channels:].float()
        sigma = (timestep.to(latents.device, torch.float32) / 1000).view(-1, 1, 1, 1, 1)
        signal = (1 - sigma) * RESIDUAL_VARIANCE
        weight = signal / ((1 - sigma) * signal + sigma.square())
        guess = weight * (noisy - (1 - sigma) * reference)
        return torch.cat([guess.to(latents.dtype), latents[:, channels:]], dim=1)

    def _velocity_from_residual(self, output: Tensor, latents: Tensor, timestep: Tensor) -> Tensor:
        """Velocity that leads to the clean latents ``reference + output``, in float32 inside."""
        channels = self.config.out_channels
        noisy, reference = latents[:, :channels].float(), latents[:, -channels:].float()
        sigma = (timestep.to(latents.device, torch.float32) / 1000).clamp_min(SIGMA_FLOOR)
        velocity = (noisy - reference - output.float()) / sigma.view(-1, 1, 1, 1, 1)
        return velocity.to(output.dtype)

    def _each_block(self, *parts: str) -> Iterator[TransformerBlock]:
        """Every block in turn, its weights (or those of some ``parts``) on the model's device."""
        if self.offload is None:
            yield from self._blocks()
        else:
            blocks = self._blocks()
            yield from (blocks[index] for index in self.offload.resident(*parts))

    def _blocks(self) -> list[TransformerBlock]:
        return [block for block in self.blocks if isinstance(block, TransformerBlock)]

    def _embed_patches(self, latents: Tensor, shard: TokenShard | None) -> Tensor:
        """(B, C, F, H, W) -> tokens (B, L, D) in (frame, row, column) order."""
        batch, channels, frames, height, width = latents.shape
        patch_t, patch_h, patch_w = self.config.patch_size
        patches = latents.reshape(
            batch,
            channels,
            frames // patch_t,
            patch_t,
            height // patch_h,
            patch_h,
            width // patch_w,
            patch_w,
        ).permute(0, 2, 4, 6, 1, 3, 5, 7)
        patches = patches.reshape(batch, -1, self.patch_values)
        if shard is not None:
            patches = patches[:, shard.start : shard.stop]
        return F.linear(patches, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)

    def _join_patches(self, x: Tensor, frames: int, height: int, width: int) -> Tensor:
        """Tokens (B, L, patch volume x C) -> (B, C, F, H, W)."""
        patch_t, patch_h, patch_w = self.config.patch_size
        grid = x.reshape(
            x.shape[0],
            frames // patch_t,
            height // patch_h,
            width // patch_w,
            patch_t,
            patch_h,
            patch_w,
            self.config.out_channels,
        )
        return grid.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(
            x.shape[0], self.config.out_channels, frames, height, width
        )


def offload_blocks(transformer: SkyReelsTransformer, device: torch.device) -> None:
    """Leave the blocks' weights in host memory and bring everything else to ``device``."""
    blocks = [block for block in transformer.blocks if isinstance(block, TransformerBlock)]
    transformer.offload = BlockOffload(blocks, device)
    for name, part in transformer.named_children():
        if name != "blocks":
            part.to(device)
