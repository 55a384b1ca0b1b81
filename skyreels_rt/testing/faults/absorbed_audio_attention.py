"""Faulty versions of :func:`skyreels_rt.kernels.absorbed_audio_attention`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from skyreels_rt.kernels import AudioFold
from skyreels_rt.kernels.reference.absorbed_audio_attention import (
    absorbed_audio_attention,
    logits,
    project,
)
from skyreels_rt.testing.faults.corruptions import gain

Bias = Tensor | None


def _right(x: Tensor, fold: AudioFold, bias: Bias, residual: Tensor) -> Tensor:
    return absorbed_audio_attention(x, fold.m, fold.c, fold.u, bias, residual, tokens=fold.tokens)


def _no_query_bias(x: Tensor, fold: AudioFold, bias: Bias, residual: Tensor) -> Tensor:
    return _right(x, replace(fold, c=torch.zeros_like(fold.c)), bias, residual)


def _one_softmax_for_all_heads(x: Tensor, fold: AudioFold, bias: Bias, residual: Tensor) -> Tensor:
    return _right(x, replace(fold, tokens=fold.m.shape[-1]), bias, residual)


def _rounded_logits(x: Tensor, fold: AudioFold, bias: Bias, residual: Tensor) -> Tensor:
    rounded = logits(x, fold.m).to(x.dtype).float() + fold.c.flatten(0, 1)[:, None]
    groups = rounded.unflatten(-1, (-1, fold.tokens))
    return project(groups.softmax(-1).flatten(-2).to(x.dtype), fold.u, bias, residual)


def _next_frame(x: Tensor, fold: AudioFold, bias: Bias, residual: Tensor) -> Tensor:
    return _right(x, replace(fold, m=fold.m.roll(1, 1)), bias, residual)


def _next_head(x: Tensor, fold: AudioFold, bias: Bias, residual: Tensor) -> Tensor:
    return _right(x, replace(fold, u=fold.u.roll(fold.tokens, 2)), bias, residual)


def _wrong_scale(x: Tensor, fold: AudioFold, bias: Bias, residual: Tensor) -> Tensor:
    return _right(x, replace(fold, m=(fold.m.double() * 1.02).to(x.dtype)), bias, residual)


def _gain(x: Tensor, fold: AudioFold, bias: Bias, residual: Tensor) -> Tensor:
    return gain(_right(x, fold, bias, residual))


FAULTS: dict[str, Callable[[Tensor, AudioFold, Bias, Tensor], Tensor]] = {
    "no_query_bias": _no_query_bias,
    "one_softmax_for_all_heads": _one_softmax_for_all_heads,
    "rounded_logits": _rounded_logits,
    "next_frame": _next_frame,
    "next_head": _next_head,
    "wrong_scale": _wrong_scale,
    "gain": _gain,
}
"""Faulty versions of ``absorbed_audio_attention``, called like it."""
