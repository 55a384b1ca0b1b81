"""Reference of :func:`skyreels_rt.kernels.teacache_gate`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def teacache_gate(
    signal: Tensor,
    previous: Tensor,
    accumulated: Tensor,
    coefficients: Sequence[float],
    threshold: float,
    forced: bool,
) -> tuple[Tensor, Tensor]:
    """One step of TeaCache's rule.

    Parameters
    ----------
    signal, previous : Tensor, any one shape, floating
        Differences are taken in fp32 (fp64 stays fp64).
    accumulated : Tensor, shape (1,), float32 or float64
        Not written to.
    coefficients : sequence of float
        Highest power first.
    threshold : float
        Accumulated change from which a step is computed.
    forced : bool
        The step is computed in any case.

    Returns
    -------
    accumulated : Tensor, shape (1,), dtype of ``accumulated``
        Its new value.
    skip : Tensor, shape (1,), bool
        The decision.
    """
    if forced:
        return torch.zeros_like(accumulated), torch.zeros_like(accumulated, dtype=torch.bool)
    compute = torch.promote_types(signal.dtype, torch.float32)
    before = previous.to(compute)
    change = (signal.to(compute) - before).abs().sum(dtype=torch.float64)
    ratio = change / before.abs().sum(dtype=torch.float64)  # of sums: the means have one divisor
    estimate = torch.zeros_like(ratio)
    for coefficient in coefficients:
        estimate = estimate * ratio + coefficient
    total = (accumulated.double() + estimate).to(accumulated.dtype)
    skip = (total < threshold) & torch.isfinite(total)
    return torch.where(skip, total, torch.zeros_like(total)), skip
