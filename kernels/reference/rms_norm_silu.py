"""Reference of :func:`skyreels_rt.kernels.rms_norm_silu`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_NORM_FLOOR = 1e-12


def rms_norm_silu(x_BCTHW: Tensor, gamma_C: Tensor, *, silu: bool = True) -> Tensor:
    """``x / max(|x|, 1e-12) * sqrt(C) * gamma`` over the channels, then SiLU where asked.

    Parameters
    ----------
    x_BCTHW : Tensor, shape (B, C, T, H, W), floating
        Activations; computed in fp32 (fp64 stays fp64).
    gamma_C : Tensor, shape (C)
        Gain.
    silu : bool
        Apply SiLU to the result.

    Returns
    -------
    Tensor, shape (B, C, T, H, W), dtype and memory order of the activations
        A new tensor; differentiable.
    """
    compute = torch.promote_types(x_BCTHW.dtype, torch.float32)
    x = x_BCTHW.to(compute)
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    scale = x.shape[1] ** 0.5 / norm.clamp_min(_NORM_FLOOR)
    y = x * scale * gamma_C.to(compute).view(-1, 1, 1, 1)
    return (F.silu(y) if silu else y).to(x_BCTHW.dtype)
