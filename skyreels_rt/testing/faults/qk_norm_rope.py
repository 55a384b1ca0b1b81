"""Faulty versions of :func:`skyreels_rt.kernels.qk_norm_rope`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from skyreels_rt.kernels.reference.qk_norm_rope import qk_norm_rope
from skyreels_rt.testing.faults.corruptions import dropped_tail, gain

Pair = tuple[Tensor, Tensor]


def _wrong_eps(*tensors: Tensor, eps: float, num_heads: int) -> Pair:
    return qk_norm_rope(*tensors, eps=10 * eps, num_heads=num_heads)


def _per_head_norm(
    q: Tensor,
    k: Tensor,
    wq: Tensor,
    wk: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    num_heads: int,
) -> Pair:
    def renormed(x: Tensor) -> Tensor:
        heads: Tensor = x.double().unflatten(-1, (num_heads, -1))
        scale = heads.square().mean((-2, -1), keepdim=True) / heads.square().mean(-1, keepdim=True)
        return (heads * scale.sqrt()).flatten(-2).to(x.dtype)

    return qk_norm_rope(renormed(q), renormed(k), wq, wk, cos, sin, eps=eps, num_heads=num_heads)


def _shifted_position(
    q: Tensor,
    k: Tensor,
    wq: Tensor,
    wk: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    num_heads: int,
) -> Pair:
    return qk_norm_rope(q, k, wq, wk, cos.roll(1, 0), sin.roll(1, 0), eps=eps, num_heads=num_heads)


def _half_split(
    q: Tensor,
    k: Tensor,
    wq: Tensor,
    wk: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    num_heads: int,
) -> Pair:
    def permuted(x: Tensor) -> Tensor:
        mixed: Tensor = x.unflatten(-1, (num_heads, 2, -1)).transpose(-1, -2).flatten(-3)
        return mixed

    q, k, wq, wk = permuted(q), permuted(k), permuted(wq), permuted(wk)
    return qk_norm_rope(q, k, wq, wk, cos, sin, eps=eps, num_heads=num_heads)


def _rounded_twice(
    q: Tensor,
    k: Tensor,
    wq: Tensor,
    wk: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    num_heads: int,
) -> Pair:
    still = torch.ones_like(cos), torch.zeros_like(sin)
    q, k = qk_norm_rope(q, k, wq, wk, *still, eps=eps, num_heads=num_heads)

    def rotated(x: Tensor) -> Tensor:
        heads: Tensor = x.float().unflatten(-1, (num_heads, -1, 2))
        x0, x1 = heads.unbind(-1)
        c, s = cos[:, None], sin[:, None]
        return torch.stack((x0 * c - x1 * s, x0 * s + x1 * c), -1).flatten(-3).to(x.dtype)

    return rotated(q), rotated(k)


def _gain(*tensors: Tensor, eps: float, num_heads: int) -> Pair:
    q, k = qk_norm_rope(*tensors, eps=eps, num_heads=num_heads)
    return gain(q), gain(k)


def _dropped_tail(*tensors: Tensor, eps: float, num_heads: int) -> Pair:
    q, k = qk_norm_rope(*tensors, eps=eps, num_heads=num_heads)
    return dropped_tail(q), dropped_tail(k)


FAULTS: dict[str, Callable[..., Pair]] = {
    "wrong_eps": _wrong_eps,
    "per_head_norm": _per_head_norm,
    "shifted_position": _shifted_position,
    "half_split_pairs": _half_split,
    "rounded_twice": _rounded_twice,
    "gain": _gain,
    "dropped_tail": _dropped_tail,
}
"""Faulty versions of ``qk_norm_rope``, called like its reference."""
