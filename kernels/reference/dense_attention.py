"""Reference of dense attention: the matrices multiplied out; also what training runs on the CPU."""

from __future__ import annotations

from torch import Tensor


def dense_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of all queries over all keys.

    Parameters
    ----------
    q : Tensor, shape (B, N, L, K), floating
        Queries.
    k, v : Tensor, shape (B, N, S, K)
        Keys and values.

    Returns
    -------
    Tensor, shape (B, N, L, K)
        Attended values; differentiable.
    """
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    attended: Tensor = scores.softmax(-1).to(v.dtype) @ v
    return attended
