"""Specification of :func:`skyreels_rt.kernels.quantize_rows` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

FP8_MAX = 448.0
"""Largest finite e4m3 number."""

LEAST_SCALE = 1e-12
"""Of rows of zeros."""


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """See the operator."""
    wide = x.float().contiguous()
    scales = wide.abs().amax(dim=-1, keepdim=True).div(FP8_MAX).clamp_min(LEAST_SCALE)
    # The quotient of the largest value may round up past the range, which has no infinity.
    values = (wide / scales).clamp_(-FP8_MAX, FP8_MAX)
    return values.to(torch.float8_e4m3fn), scales
