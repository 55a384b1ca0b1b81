"""Faulty versions of :func:`skyreels_rt.kernels.norm_modulate`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from skyreels_rt.kernels.reference.norm_modulate import norm_modulate
from skyreels_rt.testing.faults.corruptions import dropped_tail, gain


def _wrong_eps(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    return norm_modulate(x, weight, bias, eps=10 * eps)


def _missing_one(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    return norm_modulate(x, weight - 1, bias, eps=eps)


def _mean_kept(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    mean = x.double().mean(-1, keepdim=True)
    centred = x.double() - mean
    scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    per_token = x.shape[1] // weight.shape[1]
    rows = (weight.repeat_interleave(per_token, 1), bias.repeat_interleave(per_token, 1))
    return (x.double() * scale * rows[0] + rows[1]).to(x.dtype)


def _shifted_segment(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    return norm_modulate(x, weight.roll(1, 1), bias.roll(1, 1), eps=eps)


def _rounded_twice(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    normed = norm_modulate(x, torch.ones_like(weight), torch.zeros_like(bias), eps=eps)
    per_token = x.shape[1] // weight.shape[1]
    rows = (weight.repeat_interleave(per_token, 1), bias.repeat_interleave(per_token, 1))
    return (normed * rows[0] + rows[1]).to(x.dtype)


def _gain(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    return gain(norm_modulate(x, weight, bias, eps=eps))


def _dropped_tail(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    return dropped_tail(norm_modulate(x, weight, bias, eps=eps))


FAULTS: dict[str, Callable[..., Tensor]] = {
    "wrong_eps": _wrong_eps,
    "missing_one": _missing_one,
    "mean_kept": _mean_kept,
    "shifted_segment": _shifted_segment,
    "rounded_twice": _rounded_twice,
    "gain": _gain,
    "dropped_tail": _dropped_tail,
}
"""Faulty versions of ``norm_modulate``, called like its reference."""
