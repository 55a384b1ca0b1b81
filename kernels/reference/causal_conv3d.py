"""Reference of :func:`skyreels_rt.kernels.causal_conv3d`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv3d(
    x_BCFHW: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    past: Tensor | None = None,
    residual: Tensor | None = None,
    doubled: bool = False,
) -> Tensor:
    """Convolve the frames behind ``past``, space padded with zeros, and add ``residual``.

    Parameters
    ----------
    x_BCFHW : Tensor, shape (B, C, F, H, W), floating
        New frames.
    weight : Tensor, shape (D, C, taps, 3, 3)
        Kernel.
    bias : Tensor, shape (D,), or None
        Bias.
    past : Tensor, shape (B, C, taps - 1, H, W), or None
        Frames before the new ones; None: zeros.
    residual : Tensor, shape of the result, or None
        Added to the result.
    doubled : bool
        Double rows and columns first, each pixel repeated.

    Returns
    -------
    Tensor, shape (B, D, F, H, W), or (B, D, F, 2 H, 2 W) where doubled
    """
    taps = weight.shape[2]
    if past is None:
        frames = F.pad(x_BCFHW, (0, 0, 0, 0, taps - 1, 0))
    else:
        frames = torch.cat([past, x_BCFHW], dim=2)
    if doubled:
        frames = frames.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    y = F.conv3d(frames, weight, bias, padding=(0, 1, 1))
    return y if residual is None else y + residual
