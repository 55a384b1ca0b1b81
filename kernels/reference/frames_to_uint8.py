"""Reference of :func:`skyreels_rt.kernels.frames_to_uint8`."""

from __future__ import annotations

import torch
from torch import Tensor


def frames_to_uint8(frames_CFHW: Tensor) -> Tensor:
    """``round_half_even(clamp((x + 1) * 127.5, 0, 255))``, NaN as 0, channels last.

    Parameters
    ----------
    frames_CFHW : Tensor, shape (3, F, H, W), floating
        Frames in [-1, 1]; computed in fp32 (fp64 stays fp64).

    Returns
    -------
    Tensor, shape (F, H, W, 3), uint8, contiguous
        RGB frames.
    """
    x = frames_CFHW.to(torch.promote_types(frames_CFHW.dtype, torch.float32))
    levels = ((x + 1.0) * 127.5).nan_to_num(nan=0.0).clamp(0.0, 255.0).round()
    return levels.to(torch.uint8).permute(1, 2, 3, 0).contiguous()
