"""Convolutions of video that torch has no direct way for: fp32 on the CPU, behind a doubling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyreels_rt.models.vae_options import Upsampling

MIN_SUBPIXEL_PLACES = 512
"""Pixels (of all frames, before doubling) from which sub-pixel convolution was measured to be
faster on the CPU; below, making its weights takes longer than it saves."""


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int, int] = (0, 0, 0),
) -> Tensor:
    """``F.conv3d``, without torch's detour for fp32 on the CPU.

    There ``F.conv3d`` unfolds the input (27 copies of it for a 3 x 3 x 3 kernel: 16 GB for the
    last level at 480p) and returns another memory order. oneDNN's own convolution does neither.
    Compiled and exported graphs keep the plain operator.

    Parameters
    ----------
    x : Tensor, shape (B, C, F, H, W)
        Input in channels-last order.
    weight : Tensor, shape (D, C, kernel frames, kernel rows, kernel columns)
        Kernel.
    bias : Tensor, shape (D,), or None
        Bias.
    stride, padding : tuple of int
        Along frames, rows and columns.

    Returns
    -------
    Tensor, shape (B, D, F', H', W')
    """
    direct = x.is_cpu and x.dtype is torch.float32 and torch.backends.mkldnn.is_available()
    if direct and not torch.compiler.is_compiling():
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1, 1), 1)
    return F.conv3d(x, weight, bias, stride=stride, padding=padding)


class Doubling(nn.Module):
    """A convolution behind a doubling of each side.

    Attributes
    ----------
    upsampling : str
        How, as in :class:`.vae_options.VAEOptions`.
    """

    upsampling: Upsampling = "auto"

    def takes_subpixel(self, x: Tensor, weight: Tensor) -> bool:
        """Whether ``x``, shape (B, C, F, H, W), is convolved before it is doubled."""
        if self.upsampling != "auto":
            return self.upsampling == "subpixel"
        places = x.shape[0] * x.shape[2] * x.shape[3] * x.shape[4]
        return (
            x.is_cpu
            and not torch.compiler.is_compiling()
            and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
            and places >= MIN_SUBPIXEL_PLACES
        )


def subpixel_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Double each side by repetition and convolve by 3 x 3, computed on the small grid.

    Each of the four pixels that one becomes sees two rows and two columns of the small grid, so a
    2 x 2 kernel of sums of taps does: 16 instead of 36 multiplications. (Shi et al., "Is the
    deconvolution layer the same as a convolutional layer?", 2016.)

    Parameters
    ----------
    x : Tensor, shape (B, C, F, H, W)
        Input in channels-last order.
    weight : Tensor, shape (D, C, 3, 3)
        Kernel, of each frame by itself.
    bias : Tensor, shape (D,), or None
        Bias.

    Returns
    -------
    Tensor, shape (B, D, F, 2 H, 2 W)
        In channels-last order.
    """
    batch, _, frames, height, width = x.shape
    kernel = fold_phases(weight).unsqueeze(2)
    all_biases = None if bias is None else bias.repeat(4)
    # A row and a column more than the grid: the upper pixel sees the row above, the lower its own.
    y = conv3d(x, kernel.contiguous(memory_format=torch.channels_last_3d), all_biases,
               padding=(0, 1, 1)).permute(0, 2, 3, 4, 1)  # fmt: skip
    channels = weight.shape[0]
    large = y.new_empty((batch, frames, height, 2, width, 2, channels))
    for phase in range(4):
        row, column = divmod(phase, 2)
        part = y[:, :, row : row + height, column : column + width]
        large[:, :, :, row, :, column] = part[..., phase * channels : (phase + 1) * channels]
    return large.view(batch, frames, 2 * height, 2 * width, channels).permute(0, 4, 1, 2, 3)


def fold_phases(weight: Tensor) -> Tensor:
    """Kernels (4 D, C, 2, 2) of the four pixels, row by row, from one of shape (D, C, 3, 3)."""
    top, middle, bottom = weight.unbind(-2)
    kernels = []
    for upper, lower in ((top, middle + bottom), (top + middle, bottom)):
        rows = torch.stack([upper, lower], dim=-2)
        left, centre, right = rows.unbind(-1)
        kernels.append(torch.stack([left, centre + right], dim=-1))
        kernels.append(torch.stack([left + centre, right], dim=-1))
    return torch.cat(kernels)
