"""Reference of :func:`skyreels_rt.kernels.audio_cross_attention`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def audio_cross_attention(
    q_BLD: Tensor, k_BFMD: Tensor, v_BFMD: Tensor, *, num_heads: int
) -> Tensor:
    """Attention of the P queries of each latent frame over the M keys of the same frame.

    Parameters
    ----------
    q_BLD : Tensor, shape (B, F*P, N*K), floating
        Queries, frame after frame.
    k_BFMD, v_BFMD : Tensor, shape (B, F, M, N*K)
        Keys and values of each frame.
    num_heads : int
        N.

    Returns
    -------
    Tensor, shape (B, F*P, N*K)
        Attended values; differentiable.
    """
    batch, frames = k_BFMD.shape[:2]
    if q_BLD.numel() == 0:
        return q_BLD.clone()
    q = q_BLD.unflatten(1, (frames, -1)).flatten(0, 1).unflatten(-1, (num_heads, -1))
    k = k_BFMD.flatten(0, 1).unflatten(-1, (num_heads, -1))
    v = v_BFMD.flatten(0, 1).unflatten(-1, (num_heads, -1))
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    merged: Tensor = out.transpose(1, 2).flatten(2).unflatten(0, (batch, frames)).flatten(1, 2)
    return merged
