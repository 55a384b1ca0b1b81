"""Specification of :func:`skyreels_rt.kernels.norm_modulate_quantize` in plain torch."""

from __future__ import annotations

from torch import Tensor

from skyreels_rt.kernels.reference.norm_modulate import norm_modulate
from skyreels_rt.kernels.reference.quantize_rows import quantize_rows


def norm_modulate_quantize(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """See the operator."""
    return quantize_rows(norm_modulate(x.float(), weight, bias, eps=eps))
