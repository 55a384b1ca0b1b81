"""Audio adapters of the transformer: packers, and cross-attention per latent frame.

Source of the first kind (``own_query``): MeiGen-AI/MultiTalk ``wan/modules/multitalk_model.py``
(``AudioProjModel``, ``SingleStreamAttention``), which SkyReels-V3-A2V shares. The parameter names
are theirs. Source of the second (``shared_query``): Fantasy-AMAP/fantasy-talking ``model.py``; its
attention is part of :class:`skyreels_rt.models.attention.CrossAttention`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyreels_rt.config import AudioAdapterConfig, TransformerConfig
from skyreels_rt.kernels import (
    AudioFold,
    Impl,
    KernelPlan,
    absorbed_audio_attention,
    audio_cross_attention,
    fold_audio_projections,
)
from skyreels_rt.models.attention import SharedQueryAudio
from skyreels_rt.models.fp8_linear import is_quantized
from skyreels_rt.models.token_shard import FrameSegment
from skyreels_rt.runtime.memory import keeps_audio_fold
from skyreels_rt.types import Timeline

OwnQueryAudio = tuple[Tensor, Tensor] | AudioFold
"""Keys and values (B, F, M, D), or the projections folded into them."""

AudioContext = OwnQueryAudio | SharedQueryAudio
"""What a block attends to, by the adapter's kind."""


@dataclass(frozen=True)
class SegmentedAudio:
    """What a block attends to where a rank holds only some of a window's tokens.

    Attributes
    ----------
    lengths : tuple of int
        Tokens of each segment (:func:`skyreels_rt.models.token_shard.frame_segments`).
    contexts : tuple of OwnQueryAudio
        Audio of each segment's frames.
    """

    lengths: tuple[int, ...]
    contexts: tuple[OwnQueryAudio, ...]

    @classmethod
    def of_frames(cls, context: OwnQueryAudio, segments: Sequence[FrameSegment]) -> SegmentedAudio:
        """Cut the context of the frames that ``segments`` touch; views."""
        first = segments[0].first_frame
        frames = [slice(s.first_frame - first, s.stop_frame - first) for s in segments]
        cuts: tuple[OwnQueryAudio, ...]
        if isinstance(context, AudioFold):
            m, c, u = context.m, context.c, context.u
            cuts = tuple(AudioFold(m[:, f], c[:, f], u[:, f], context.tokens) for f in frames)
        else:
            keys, values = context
            cuts = tuple((keys[:, f], values[:, f]) for f in frames)
        return cls(tuple(s.num_tokens for s in segments), cuts)


_LONG_ROW = 8192

FeatureReader = Callable[[int, int], Tensor]
"""``read(first_frame, stop_frame)`` -> features (n, S, L, D); frames before 0 repeat frame 0."""


class Packer(nn.Module, ABC):
    """Turns the features around each latent frame into its M audio tokens.

    Parameters
    ----------
    config : AudioAdapterConfig
        Sizes of features and tokens.
    """

    def __init__(self, config: AudioAdapterConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def pack_latent(self, read: FeatureReader, first_frame: int, stop_frame: int) -> Tensor:
        """Tokens (1, M, C) of a latent that stands for the frames ``[first_frame, stop_frame)``."""

    def pack(self, read: FeatureReader, start: int, stop: int, timeline: Timeline) -> Tensor:
        """Tokens of the latents ``[start, stop)`` of the timeline.

        One latent is packed at a time, so that its bytes do not depend on the range asked for.

        Parameters
        ----------
        read : callable
            Source of frame features (see :data:`FeatureReader`).
        start, stop : int
            Latent indices on the global timeline.
        timeline : Timeline
            Conversion from latents to frames.

        Returns
        -------
        Tensor, shape (stop - start, M, C)
        """
        return torch.cat(
            [
                self.pack_latent(read, timeline.first_frame(n), timeline.first_frame(n + 1))
                for n in range(start, stop)
            ]
        )

    def pack_leading(self, read: FeatureReader, frame: int) -> Tensor:
        """Tokens of a leading slot (one frame) in front of frame ``frame``, shape (1, M, C)."""
        return self.pack_latent(read, frame, frame + 1)

    def lookahead_frames(self) -> int:
        """Frames after a latent's last one that its tokens depend on."""
        return self.config.window // 2

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device


class AudioPacker(Packer):
    """Packer of the kind ``own_query``: one small network per latent frame.

    A latent that stands for frames ``[a, b)`` sees the frames ``[a - w, b + w)`` with
    ``w = window // 2``. (For four frames and ``window=5`` these are MultiTalk's eight entries.)

    Parameters
    ----------
    config : AudioAdapterConfig
        Sizes of features and tokens.
    temporal_stride : int
        Frames of a latent after the first.
    """

    def __init__(self, config: AudioAdapterConfig, temporal_stride: int = 4) -> None:
        super().__init__(config)
        self.temporal_stride = temporal_stride
        entry = config.features_per_frame * config.feature_layers * config.feature_dim
        self.proj1 = nn.Linear(config.window * entry, config.hidden_dim)
        self.proj1_vf = nn.Linear((temporal_stride + config.window - 1) * entry, config.hidden_dim)
        self.proj2 = nn.Linear(config.hidden_dim, config.hidden_dim)
        self.proj3 = nn.Linear(config.hidden_dim, config.num_tokens * config.token_dim)
        self.norm = nn.LayerNorm(config.token_dim) if config.norm_output else nn.Identity()

    def forward(self, windows: Tensor) -> Tensor:
        """Tokens of latents whose feature windows are equally long.

        Parameters
        ----------
        windows : Tensor, shape (n, E, S, L, D)
            E = ``window`` entries for a latent of one frame, else
            ``temporal_stride + window - 1``.

        Returns
        -------
        Tensor, shape (n, M, C)
        """
        is_single = windows.shape[1] == self.config.window
        first = self.proj1 if is_single else self.proj1_vf
        hidden = F.relu(_summed_by_parts(first, windows))
        hidden = F.relu(self.proj2(hidden))
        tokens = self.proj3(hidden).unflatten(-1, (self.config.num_tokens, self.config.token_dim))
        packed: Tensor = self.norm(tokens)
        return packed

    def pack_latent(self, read: FeatureReader, first_frame: int, stop_frame: int) -> Tensor:
        """Tokens (1, M, C) of a latent that stands for the frames ``[first_frame, stop_frame)``."""
        reach = self.config.window // 2
        tokens: Tensor = self(read(first_frame - reach, stop_frame + reach).unsqueeze(0))
        return tokens


def _summed_by_parts(layer: nn.Linear, windows: Tensor) -> Tensor:
    """``layer`` of windows (n, E, S, L, D) as rows, (n, H).

    Of MultiTalk's sizes a row has 46,080 entries. Added in one run, as a product of one row is on a
    CPU, they lose a digit in float32; so each feature's D are added on their own. Sums of narrower
    types are wider than their type anyway.
    """
    rows = windows.flatten(1, -2).to(layer.weight.dtype)
    if rows.dtype != torch.float32 or layer.in_features <= _LONG_ROW:
        return cast("Tensor", layer(rows.flatten(1)))
    weights = layer.weight.unflatten(1, rows.shape[1:]).permute(1, 2, 0)
    return torch.bmm(rows.transpose(0, 1), weights).sum(0) + layer.bias


class FeatureProjection(Packer):
    """Packer of the kind ``shared_query``: each feature becomes a token.

    A latent sees the ``num_tokens`` features that end ``window // 2`` frames after its own. (At two
    features a frame, 17 tokens and ``window=5`` these are FantasyTalking's at 25 fps.) Features
    before the start of the speech, and features of zeros, which stand for no audio, become tokens
    of zeros, which are not attended.

    Parameters
    ----------
    config : AudioAdapterConfig
        Sizes of features and tokens.
    """

    def __init__(self, config: AudioAdapterConfig) -> None:
        super().__init__(config)
        self.proj = nn.Linear(
            config.feature_layers * config.feature_dim, config.token_dim, bias=False
        )
        self.norm = nn.LayerNorm(config.token_dim)

    def pack_latent(
        self,
        read: FeatureReader,
        first_frame: int,  # noqa: ARG002 - the end tells
        stop_frame: int,
    ) -> Tensor:
        """Tokens (1, M, C) of a latent that stands for the frames ``[first_frame, stop_frame)``."""
        per_frame, count = self.config.features_per_frame, self.config.num_tokens
        stop = stop_frame + self.lookahead_frames()
        first = stop * per_frame - count  # of the features
        features = read(first // per_frame, stop).flatten(0, 1)[-count:].flatten(1)
        tokens: Tensor = self.norm(self.proj(features.to(self.proj.weight.dtype)))
        absent = ~features.any(dim=-1)
        absent[: max(0, -first)] = True
        return tokens.masked_fill(absent[:, None], 0).unsqueeze(0)


def build_packer(config: AudioAdapterConfig) -> Packer:
    """Build the packer that an adapter's kind needs."""
    return FeatureProjection(config) if config.kind == "shared_query" else AudioPacker(config)


class AudioCrossAttention(nn.Module):
    """Cross-attention whose queries see only the audio tokens of their own latent frame.

    There is neither norm nor rotation between projection and attention, so where M < K the
    projections can be folded into the keys and values (``absorbed_audio_attention``). A small fold
    is kept over the steps (:func:`skyreels_rt.runtime.memory.keeps_audio_fold`); a large one is
    made anew in each block, M / P of the ordinary products for P patches a frame, which was
    measured not to pay in bf16 on the CPU. The plan's ``absorbed_audio_attention="reference"``,
    and a gradient, take the ordinary path.

    Parameters
    ----------
    config : TransformerConfig
        With ``config.audio`` set.
    plan : KernelPlan
        Kernel implementations to use.
    """

    def __init__(self, config: TransformerConfig, plan: KernelPlan) -> None:
        super().__init__()
        assert config.audio is not None
        self.num_heads = config.num_heads
        self.plan = plan
        worthwhile = config.audio.num_tokens < config.head_dim
        self.absorbs = worthwhile and plan.absorbed_audio_attention is not Impl.REFERENCE
        itemsize = getattr(torch, plan.dtype).itemsize
        self.keeps_fold = self.absorbs and keeps_audio_fold(config, itemsize)
        self.absorbs &= self.keeps_fold or (plan.device, plan.dtype) != ("cpu", "bfloat16")
        self.q_linear = nn.Linear(config.dim, config.dim)
        self.kv_linear = nn.Linear(config.audio.token_dim, 2 * config.dim)
        self.proj = nn.Linear(config.dim, config.dim)

    def stop_folding_quantized(self) -> None:
        """Take the ordinary path where a projection is no plain linear layer any more."""
        if is_quantized(self.q_linear) or is_quantized(self.proj):
            self.absorbs = self.keeps_fold = False

    def context(self, tokens_BFMC: Tensor) -> tuple[Tensor, Tensor] | AudioFold:
        """Keys and values of the audio tokens, or their fold; constant over the steps."""
        keys, values = self.kv_linear(tokens_BFMC).chunk(2, dim=-1)
        fold = self.fold((keys, values)) if self.keeps_fold else None
        return (keys, values) if fold is None else fold

    def fold(self, context: tuple[Tensor, Tensor] | AudioFold) -> AudioFold | None:
        """The fold that :meth:`add` takes, None where :meth:`forward` is the way."""
        if isinstance(context, AudioFold):
            return context
        keys, values = context
        records = torch.is_grad_enabled() and (
            keys.requires_grad or self.q_linear.weight.requires_grad
        )
        if not self.absorbs or records:
            return None
        return fold_audio_projections(
            self.q_linear.weight, self.q_linear.bias, keys, values, self.proj.weight,
            num_heads=self.num_heads, o_bias=self.proj.bias,
        )  # fmt: skip

    def add(self, residual_BLD: Tensor, x_BLD: Tensor, fold: AudioFold) -> Tensor:
        """``residual`` plus the attention output for tokens ``x``, shape (B, L, D)."""
        return absorbed_audio_attention(
            x_BLD, fold, None, residual_BLD, impl=self.plan.absorbed_audio_attention
        )

    def forward(self, x_BLD: Tensor, keys_values: tuple[Tensor, Tensor]) -> Tensor:
        """Attention output before the residual, shape (B, L, D); L is frames times patches."""
        attended = audio_cross_attention(
            self.q_linear(x_BLD),
            *keys_values,
            num_heads=self.num_heads,
            impl=self.plan.audio_cross_attention,
        )
        out: Tensor = self.proj(attended)
        return out
