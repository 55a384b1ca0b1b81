"""Specification of ``gate_residual_norm_modulate_quantize`` in plain torch."""

from __future__ import annotations

from torch import Tensor

from skyreels_rt.kernels.reference.gate_residual_norm_modulate import gate_residual_norm_modulate
from skyreels_rt.kernels.reference.quantize_rows import quantize_rows


def gate_residual_norm_modulate_quantize(
    x: Tensor, y: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, *, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See the operator."""
    total, normed = gate_residual_norm_modulate(x.float(), y.float(), gate, weight, bias, eps=eps)
    return total.to(x.dtype), *quantize_rows(normed)
