"""Reference of :func:`skyreels_rt.kernels.absorbed_audio_attention`, and its matrix products.

The products are torch's in every implementation; only the softmax between them differs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def absorbed_audio_attention(
    x_BLD: Tensor,
    m_BFDS: Tensor,
    c_BFS: Tensor,
    u_BFSD: Tensor,
    o_bias_D: Tensor | None,
    residual_BLD: Tensor | None,
    *,
    tokens: int,
) -> Tensor:
    """``residual + softmax_per_group(x @ m + c) @ u + o_bias``, S = N*M columns in groups of M.

    Parameters
    ----------
    x_BLD : Tensor, shape (B, F*P, D), floating
        Normalised tokens, frame after frame.
    m_BFDS, c_BFS, u_BFSD : Tensor
        The fold (:class:`skyreels_rt.kernels.AudioFold`).
    o_bias_D : Tensor, shape (D), optional
        Bias of the output projection.
    residual_BLD : Tensor, shape (B, F*P, D), optional
        Added to the result.
    tokens : int
        M.

    Returns
    -------
    Tensor, shape (B, F*P, D), dtype of x
        Differentiable.
    """
    shifted = logits(x_BLD, m_BFDS) + c_BFS.flatten(0, 1)[:, None]
    groups = shifted.unflatten(-1, (shifted.shape[-1] // tokens, tokens))
    probabilities = groups.softmax(-1).flatten(-2).to(x_BLD.dtype)
    return project(probabilities, u_BFSD, o_bias_D, residual_BLD)


def logits(x_BLD: Tensor, m_BFDS: Tensor) -> Tensor:
    """``x @ m`` of every frame in fp32 (fp64 for fp64), shape (B*F, P, S), contiguous."""
    m = m_BFDS.flatten(0, 1)
    frames = m_BFDS.shape[1]
    patches = x_BLD.shape[1] // frames if frames else 0
    x = x_BLD.reshape(m.shape[0], patches, x_BLD.shape[2])
    compute = torch.promote_types(x.dtype, torch.float32)
    if x.is_cuda and x.dtype != compute and not torch.is_grad_enabled():
        return torch.bmm(x, m, out_dtype=compute)  # tensor cores; no rounding of the sums
    return torch.bmm(x.to(compute), m.to(compute))


def project(
    probabilities: Tensor, u_BFSD: Tensor, o_bias_D: Tensor | None, residual_BLD: Tensor | None
) -> Tensor:
    """``residual + probabilities @ u + o_bias``, shape (B, L, D).

    One of bias and residual costs nothing, as the input of the product; beside a residual the bias
    costs a pass, and a rounding, of its own.
    """
    u = u_BFSD.flatten(0, 1)
    batch, length = u_BFSD.shape[0], u_BFSD.shape[1] * probabilities.shape[1]
    frames = (u.shape[0], probabilities.shape[1], u.shape[2])
    if o_bias_D is not None:
        out = torch.baddbmm(o_bias_D.expand(frames), probabilities, u)
        if residual_BLD is not None:
            out = out + residual_BLD.reshape(frames)
    elif residual_BLD is not None:
        out = torch.baddbmm(residual_BLD.reshape(frames), probabilities, u)
    else:
        out = torch.bmm(probabilities, u)
    return out.view(batch, length, u.shape[2])
