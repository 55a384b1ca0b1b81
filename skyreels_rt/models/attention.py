"""Self-attention and text/image cross-attention of the Wan transformer.

Source: Wan-Video/Wan2.1 ``wan/modules/model.py`` (``WanSelfAttention``, ``WanT2VCrossAttention``,
``WanI2VCrossAttention``). RMSNorm of q and k runs over the whole width, not per head.
Legend: B batch, L tokens, S context tokens, D width, N heads, K head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyreels_rt.config import TransformerConfig
from skyreels_rt.kernels import (
    KernelPlan,
    audio_cross_attention,
    dense_attention,
    qk_norm_rope,
)
from skyreels_rt.models.fp8_linear import QuantizedRows, shared_rows
from skyreels_rt.models.token_shard import FrameSegment, TokenShard

KeysValues = tuple[Tensor, Tensor]
"""Keys and values ready for attention, shape (B, N, S, K) each."""


@dataclass(frozen=True)
class SharedQueryAudio:
    """Audio keys and values that the queries of the text attention see, per latent frame.

    Attributes
    ----------
    keys, values : Tensor, shape (B, F, M, D)
        Projected audio tokens.
    present : Tensor, shape (B, F, M), bool
        False for tokens that stand for no sound; they are not attended.
    segments : tuple of FrameSegment
        The video tokens' runs, where a rank holds only some; F are then the frames they touch.
        Empty for whole frames.
    """

    keys: Tensor
    values: Tensor
    present: Tensor
    segments: tuple[FrameSegment, ...] = ()

    def cuts(self) -> Iterator[tuple[int, SharedQueryAudio]]:
        """Number of tokens and audio of each segment; views."""
        for segment in self.segments:
            first = self.segments[0].first_frame
            frames = slice(segment.first_frame - first, segment.stop_frame - first)
            cut = SharedQueryAudio(
                self.keys[:, frames], self.values[:, frames], self.present[:, frames]
            )
            yield segment.num_tokens, cut


class RMSNorm(nn.RMSNorm):
    """``nn.RMSNorm`` that takes its gain in the input's type: autocast leaves the gain float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` over its last dimension."""
        assert self.weight is not None
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class SelfAttention(nn.Module):
    """Attention of all video tokens with each other, with rotary positions.

    Parameters
    ----------
    config : TransformerConfig
        Width and heads.
    plan : KernelPlan
        Kernel implementations to use.
    """

    def __init__(self, config: TransformerConfig, plan: KernelPlan) -> None:
        super().__init__()
        dim = config.dim
        self.num_heads = config.num_heads
        self.plan = plan
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps=config.eps)
        self.norm_k = RMSNorm(dim, eps=config.eps)
        self.eps = config.eps

    def forward(
        self,
        x_BLD: Tensor | QuantizedRows,
        cos: Tensor,
        sin: Tensor,
        shard: TokenShard | None = None,
    ) -> Tensor:
        """Attention output before gate and residual, shape (B, L, D).

        Parameters
        ----------
        x_BLD : Tensor, shape (B, L, D)
            Normalised and modulated tokens.
        cos, sin : Tensor, shape (L, K/2), float32
            Tables of :func:`skyreels_rt.models.rope.rope_tables`, of the same tokens.
        shard : TokenShard, optional
            The tokens' place among those of other ranks.
        """
        rows = shared_rows(x_BLD, self.q, self.k, self.v)
        q, k = qk_norm_rope(
            self.q(rows),
            self.k(rows),
            self.norm_q.weight,
            self.norm_k.weight,
            cos,
            sin,
            eps=self.eps,
            num_heads=self.num_heads,
            impl=self.plan.qk_norm_rope,
        )
        v, backend = self.v(rows), self.plan.attention
        if shard is not None:
            attended = shard.attend(q, k, v, self.num_heads, backend)
        else:
            heads = (_heads(x, self.num_heads) for x in (q, k, v))
            attended = _merge(dense_attention(*heads, backend=backend))
        out: Tensor = self.o(attended)
        return out


class CrossAttention(nn.Module):
    """Attention of the video tokens over the prompt, and over portrait and audio tokens if built.

    Parameters
    ----------
    config : TransformerConfig
        ``image_dim`` set builds the image branch (``k_img``, ``v_img``, ``norm_k_img``); an audio
        adapter of the kind ``shared_query`` builds ``k_audio`` and ``v_audio`` (source:
        Fantasy-AMAP/fantasy-talking ``model.py``, ``WanCrossAttentionProcessor``).
    plan : KernelPlan
        Kernel implementations to use.
    """

    def __init__(self, config: TransformerConfig, plan: KernelPlan) -> None:
        super().__init__()
        dim = config.dim
        self.plan = plan
        self.num_heads = config.num_heads
        self.has_image = config.image_dim is not None
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps=config.eps)
        self.norm_k = RMSNorm(dim, eps=config.eps)
        if self.has_image:
            self.k_img = nn.Linear(dim, dim)
            self.v_img = nn.Linear(dim, dim)
            self.norm_k_img = RMSNorm(dim, eps=config.eps)
        if config.audio is not None and config.audio.kind == "shared_query":
            self.k_audio = nn.Linear(config.audio.token_dim, dim, bias=False)
            self.v_audio = nn.Linear(config.audio.token_dim, dim, bias=False)

    def text_keys_values(self, context_BSD: Tensor) -> KeysValues:
        """Keys and values of the embedded prompt; constant over the steps."""
        keys = self.norm_k(self.k(context_BSD))
        return _heads(keys, self.num_heads), _heads(self.v(context_BSD), self.num_heads)

    def image_keys_values(self, context_BSD: Tensor) -> KeysValues:
        """Keys and values of the embedded portrait tokens; constant over the steps."""
        keys = self.norm_k_img(self.k_img(context_BSD))
        return _heads(keys, self.num_heads), _heads(self.v_img(context_BSD), self.num_heads)

    def audio_keys_values(
        self, tokens_BFMC: Tensor, segments: tuple[FrameSegment, ...] = ()
    ) -> SharedQueryAudio:
        """Keys and values of audio tokens; a token of zeros is absent. Constant over the steps."""
        return SharedQueryAudio(
            self.k_audio(tokens_BFMC), self.v_audio(tokens_BFMC), tokens_BFMC.any(dim=-1), segments
        )

    def forward(
        self,
        x_BLD: Tensor | QuantizedRows,
        text: KeysValues,
        image: KeysValues | None,
        audio: SharedQueryAudio | None = None,
    ) -> Tensor:
        """Attention output before the residual, (B, L, D): the sum over text, image and audio."""
        q_BLD = self.norm_q(self.q(x_BLD))
        q = _heads(q_BLD, self.num_heads)
        attended = dense_attention(q, *text, backend=self.plan.attention)
        if image is not None:
            attended = attended + dense_attention(q, *image, backend=self.plan.attention)
        merged = _merge(attended)
        if audio is not None:
            merged = merged + self._hear(q_BLD, audio)
        out: Tensor = self.o(merged)
        return out

    def _hear(self, q_BLD: Tensor, audio: SharedQueryAudio) -> Tensor:
        """What the queries find in the audio of their own frames, (B, L, D)."""
        if audio.segments:
            lengths, cuts = zip(*audio.cuts(), strict=True)
            runs = zip(q_BLD.split(lengths, dim=1), cuts, strict=True)
            return torch.cat([self._hear(*run) for run in runs], dim=1)
        return audio_cross_attention(
            q_BLD,
            audio.keys,
            audio.values,
            num_heads=self.num_heads,
            token_mask=audio.present,
            impl=self.plan.audio_cross_attention,
        )


def _heads(x_BLD: Tensor, num_heads: int) -> Tensor:
    """Split the width into heads: (B, L, D) -> (B, N, L, K), a view."""
    heads: Tensor = x_BLD.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    return heads


def _merge(x_BNLK: Tensor) -> Tensor:
    """Join the heads again: (B, N, L, K) -> (B, L, D)."""
    return x_BNLK.transpose(1, 2).flatten(2)
