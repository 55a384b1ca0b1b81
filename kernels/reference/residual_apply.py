"""Reference of :func:`skyreels_rt.kernels.residual_apply`."""

from __future__ import annotations

import torch
from torch import Tensor


def residual_apply(x: Tensor, residual: Tensor) -> Tensor:
    """``x + residual``, rounded once.

    Parameters
    ----------
    x, residual : Tensor, any one shape, floating
        Computed in fp32 (fp64 stays fp64).

    Returns
    -------
    Tensor, same shape and dtype
        A new tensor; differentiable.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    return (x.to(compute) + residual.to(compute)).to(x.dtype)
