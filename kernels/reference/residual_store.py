"""Reference of :func:`skyreels_rt.kernels.residual_store`."""

from __future__ import annotations

import torch
from torch import Tensor


def residual_store(before: Tensor, after: Tensor) -> Tensor:
    """``after - before``, rounded once.

    Parameters
    ----------
    before, after : Tensor, any one shape, floating
        Computed in fp32 (fp64 stays fp64).

    Returns
    -------
    Tensor, same shape and dtype
        A new tensor; differentiable.
    """
    compute = torch.promote_types(before.dtype, torch.float32)
    return (after.to(compute) - before.to(compute)).to(before.dtype)
