"""Reference of :func:`skyreels_rt.kernels.qk_norm_rope`."""

from __future__ import annotations

import torch
from torch import Tensor


def qk_norm_rope(
    q_BLD: Tensor,
    k_BLD: Tensor,
    weight_q_D: Tensor,
    weight_k_D: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    num_heads: int,
) -> tuple[Tensor, Tensor]:
    """RMSNorm over the full width, then RoPE on interleaved pairs, one rounding at the end.

    Parameters
    ----------
    q_BLD, k_BLD : Tensor, shape (B, L, N*K), floating
        Queries and keys.
    weight_q_D, weight_k_D : Tensor, shape (N*K)
        Norm weights.
    cos, sin : Tensor, shape (L, K/2)
        Rotation of each pair.
    eps : float
        Added to the mean square.
    num_heads : int
        N.

    Returns
    -------
    tuple of Tensor, shape (B, L, N*K), dtype of the inputs
        New tensors; differentiable.
    """
    return (
        _norm_rotate(q_BLD, weight_q_D, cos, sin, eps, num_heads),
        _norm_rotate(k_BLD, weight_k_D, cos, sin, eps, num_heads),
    )


def _norm_rotate(
    x_BLD: Tensor, weight_D: Tensor, cos: Tensor, sin: Tensor, eps: float, num_heads: int
) -> Tensor:
    compute = torch.promote_types(x_BLD.dtype, torch.float32)
    x = x_BLD.to(compute)
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight_D.to(compute)
    x0, x1 = normed.unflatten(-1, (num_heads, -1, 2)).unbind(-1)
    c, s = cos.to(compute)[:, None], sin.to(compute)[:, None]
    rotated = torch.stack((x0 * c - x1 * s, x0 * s + x1 * c), dim=-1)
    return rotated.flatten(-3).to(x_BLD.dtype)
