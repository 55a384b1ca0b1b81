"""Reference of :func:`skyreels_rt.kernels.audio_cross_attention`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def audio_cross_attention(
    q_BLD: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int,
    ranges: Tensor | None = None,
    token_mask: Tensor | None = None,
    gate_BF: Tensor | None = None,
    norm_weight_D: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Attention of the P queries of each latent frame over the keys of the same frame.

    Parameters
    ----------
    q_BLD : Tensor, shape (B, F*P, N*K), floating
        Queries, frame after frame.
    k, v : Tensor, shape (B, F, M, N*K), or (B, T, N*K) with ``ranges``
        Keys and values.
    num_heads : int
        N.
    ranges : Tensor, shape (F, 2), integer, optional
        Start and count of each frame's tokens.
    token_mask : Tensor, shape (B, F, M) or (B, T), bool, optional
        False for tokens that are not attended.
    gate_BF : Tensor, shape (B, F), optional
        Factor of each frame's output.
    norm_weight_D : Tensor, shape (N*K), optional
        Weight of a full-width RMSNorm of the queries.
    eps : float
        Of that norm.

    Returns
    -------
    Tensor, shape (B, F*P, N*K)
        Attended values; differentiable.
    """
    if q_BLD.numel() == 0:
        return q_BLD.clone()
    dtype = q_BLD.dtype
    compute = torch.promote_types(dtype, torch.float32)
    if norm_weight_D is not None:
        x = q_BLD.to(compute)
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        q_BLD = (normed * norm_weight_D.to(compute)).to(dtype)
    attended = token_mask
    if ranges is not None:
        frames = ranges.shape[0]
        inside_FT = _inside(ranges.to(k.device), k.shape[1])
        attended = inside_FT & (True if token_mask is None else token_mask[:, None])
        attended = attended.expand(k.shape[0], -1, -1)
        k, v = (x[:, None].expand(-1, frames, -1, -1) for x in (k, v))
    batch, frames = k.shape[:2]
    q = q_BLD.unflatten(1, (frames, -1)).flatten(0, 1)
    q, k, v = (
        x.unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for x in (q, k.flatten(0, 1), v.flatten(0, 1))
    )
    any_attended = mask = None
    if attended is not None:
        any_attended = attended.any(-1).reshape(-1, 1, 1, 1)
        mask = attended.reshape(batch * frames, 1, 1, -1) | ~any_attended  # no softmax of nothing
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if any_attended is not None:
        out = out.where(any_attended, 0)
    if gate_BF is not None:
        out = (out.to(compute) * gate_BF.to(compute).reshape(-1, 1, 1, 1)).to(dtype)
    merged: Tensor = out.transpose(1, 2).flatten(2).unflatten(0, (batch, frames)).flatten(1, 2)
    return merged


def _inside(ranges: Tensor, tokens: int) -> Tensor:
    """Whether each of the T tokens lies in each frame's range, shape (F, T)."""
    start, count = ranges.to(torch.int64)[:, :, None].unbind(1)
    token = torch.arange(tokens, device=ranges.device)
    return (token >= start) & (token < start + count)
