"""Corruptions that any operator can suffer."""

from __future__ import annotations

import torch
from torch import Tensor


def gain(x: Tensor) -> Tensor:
    """0.4 % too loud."""
    return (x.double() * 1.004).to(x.dtype)


def dropped_tail(x: Tensor) -> Tensor:
    """Last column missing: an unmasked vector tail."""
    out = x.clone()
    out[..., -1] = 0
    return out


def truncated(x: Tensor, exact: Tensor) -> Tensor:
    """``exact`` (fp32 or fp64) cut to the dtype of ``x`` instead of rounded to nearest even.

    Parameters
    ----------
    x : Tensor, bf16
        Right output, for its dtype.
    exact : Tensor, same shape
        The same before its last rounding.
    """
    bits = exact.float().contiguous().view(torch.int32) & -0x10000
    return bits.view(torch.float32).to(x.dtype)
