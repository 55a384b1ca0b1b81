"""Reference of :func:`skyreels_rt.kernels.norm_modulate`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def norm_modulate(x_BLD: Tensor, weight_BSD: Tensor, bias_BSD: Tensor, *, eps: float) -> Tensor:
    """LayerNorm over the last dimension, then ``y * weight + bias`` of each token's segment.

    Parameters
    ----------
    x_BLD : Tensor, shape (B, L, D), floating
        Tokens; computed in fp32 (fp64 stays fp64).
    weight_BSD, bias_BSD : Tensor, shape (B or 1, S, D)
        Row ``l // (L / S)`` belongs to token ``l``.
    eps : float
        Added to the variance.

    Returns
    -------
    Tensor, shape (B, L, D), dtype of the tokens, contiguous
        A new tensor; differentiable.
    """
    compute = torch.promote_types(x_BLD.dtype, torch.float32)
    segments = weight_BSD.shape[1]
    normed = F.layer_norm(x_BLD.to(compute), x_BLD.shape[-1:], eps=eps)
    parts = normed.unflatten(1, (segments, x_BLD.shape[1] // segments))
    modulated = torch.addcmul(bias_BSD[:, :, None], parts, weight_BSD[:, :, None])
    return modulated.flatten(1, 2).to(x_BLD.dtype)
