"""Reference of :func:`skyreels_rt.kernels.gate_residual_norm_modulate`."""

from __future__ import annotations

import torch
from torch import Tensor

from skyreels_rt.kernels.reference.norm_modulate import norm_modulate


def gate_residual_norm_modulate(
    x_BLD: Tensor,
    y_BLD: Tensor,
    gate_BSD: Tensor | None,
    weight_BSD: Tensor,
    bias_BSD: Tensor,
    *,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """``x + gate * y``, and the modulated LayerNorm of that sum before it is rounded.

    Parameters
    ----------
    x_BLD, y_BLD : Tensor, shape (B, L, D), floating
        Residual stream and a branch's output; computed in fp32 (fp64 stays fp64).
    gate_BSD : Tensor, shape (B or 1, S, D), or None
        Row ``l // (L / S)`` belongs to token ``l``; None adds the branch as it is.
    weight_BSD, bias_BSD : Tensor, shape (B or 1, S', D)
        Of the norm.
    eps : float
        Added to the variance.

    Returns
    -------
    tuple of Tensor, shape (B, L, D), dtype of the inputs
        The new stream and its norm: new tensors; differentiable.
    """
    compute = torch.promote_types(x_BLD.dtype, torch.float32)
    y = y_BLD.to(compute)
    if gate_BSD is not None:
        segments = gate_BSD.shape[1]
        parts = y.unflatten(1, (segments, y.shape[1] // segments))
        y = (gate_BSD[:, :, None] * parts).flatten(1, 2)
    total = x_BLD.to(compute) + y
    normed = norm_modulate(total, weight_BSD, bias_BSD, eps=eps)
    return total.to(x_BLD.dtype), normed.to(x_BLD.dtype)
