"""Faulty versions of :func:`skyreels_rt.kernels.rms_norm_silu`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from skyreels_rt.kernels.reference.rms_norm_silu import rms_norm_silu
from skyreels_rt.testing.faults.corruptions import gain


def _missing_root(x: Tensor, gamma: Tensor) -> Tensor:
    return rms_norm_silu(x, gamma / x.shape[1] ** 0.5)


def _added_eps(x: Tensor, gamma: Tensor) -> Tensor:
    wide = x.double()
    normed = wide * (wide.square().mean(1, keepdim=True) + 1e-6).rsqrt()
    return F.silu(normed * gamma.double().view(-1, 1, 1, 1)).to(x.dtype)


def _next_position(x: Tensor, gamma: Tensor) -> Tensor:
    norm = x.double().norm(dim=1, keepdim=True).roll(1, -1)
    normed = x.double() / norm * x.shape[1] ** 0.5
    return F.silu(normed * gamma.double().view(-1, 1, 1, 1)).to(x.dtype)


def _rounded_twice(x: Tensor, gamma: Tensor) -> Tensor:
    return F.silu(rms_norm_silu(x, gamma, silu=False).float()).to(x.dtype)


def _gelu(x: Tensor, gamma: Tensor) -> Tensor:
    normed = rms_norm_silu(x.double(), gamma.double(), silu=False)
    return F.gelu(normed, approximate="tanh").to(x.dtype)


def _gain(x: Tensor, gamma: Tensor) -> Tensor:
    return gain(rms_norm_silu(x, gamma))


def _dropped_channel(x: Tensor, gamma: Tensor) -> Tensor:
    kept = torch.ones_like(gamma)
    kept[-1] = 0
    return rms_norm_silu(x, gamma * kept)


FAULTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "missing_root": _missing_root,
    "added_eps": _added_eps,
    "next_position": _next_position,
    "rounded_twice": _rounded_twice,
    "gelu": _gelu,
    "gain": _gain,
    "dropped_channel": _dropped_channel,
}
"""Faulty versions of ``rms_norm_silu``, called like its reference."""
