"""Blocks of the Wan2.1 VAE, each a pure function of its input and the step's caches.

Reference: ``AutoencoderKLWan`` of diffusers (the variant without residual resampling) and
Wan-Video/Wan2.1 ``wan/modules/vae.py``; parameter names are those of diffusers. Time is padded
with zeros on the past side only; space is padded inside the convolutions.

Every block has two straight paths: the *first* step sees one frame and nothing before it, a
*steady* step sees its frames behind two cached ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyreels_rt.kernels import Impl, KernelPlan, causal_conv3d, rms_norm_silu
from skyreels_rt.models.vae import CacheShape, StepCaches, last_frames
from skyreels_rt.models.video_conv import Doubling, conv3d, subpixel_conv

TIME_CONTEXT = 2
"""Frames that a time kernel of 3 looks back."""


MIN_OPERATOR_AREA = 32 * 32
"""Pixels of a frame from which convolutions go through the operator ``causal_conv3d``.

Below, there are too few tiles for the larger weight that it makes and reads.
"""


class Conv3d(nn.Conv3d):
    """``nn.Conv3d`` through :func:`conv3d`; no padding, dilation or groups."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        """Convolve ``input``, shape (B, C, F, H, W)."""
        stride = (self.stride[0], self.stride[1], self.stride[2])
        return conv3d(input, self.weight, self.bias, stride=stride)


class RMSNorm(nn.Module):
    """Channel-wise RMS norm with gain, followed by SiLU where asked: ``rms_norm_silu``.

    Parameters
    ----------
    dim : int
        Channels C.
    plan : KernelPlan
        Kernel implementations to use.
    gain_dims : int
        Trailing dimensions of size 1 in the stored gain (3, or 2 in attention blocks).
    silu : bool
        Apply SiLU to the result.
    """

    def __init__(
        self, dim: int, plan: KernelPlan, *, gain_dims: int = 3, silu: bool = True
    ) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *(1,) * gain_dims))
        self.plan = plan
        self.silu = silu

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Normalise ``x``, shape (B, C, F, H, W), over its channels, into ``out`` if given."""
        impl = self.plan.rms_norm_silu
        return rms_norm_silu(x, self.gamma, silu=self.silu, out=out, impl=impl)

    def before(self, conv: CausalConv3d, x: Tensor, caches: StepCaches) -> Tensor:
        """Normalise ``x`` into the place where ``conv``, which is next, remembers it."""
        return self.forward(x, caches.room(x, conv.kernel_size[0] - 1))


def through_operator(x: Tensor, weight: Tensor, impl: Impl, area: int) -> bool:
    """Whether a convolution of ``x`` to frames of ``area`` pixels is faster by the operator.

    Parameters
    ----------
    x : Tensor, shape (B, C, F, H, W)
        Input.
    weight : Tensor, shape (D, C, ...)
        Kernel.
    impl : Impl
        ``plan.causal_conv3d``.
    area : int
        Rows times columns of the output.
    """
    return (
        impl is Impl.CPP
        and area >= MIN_OPERATOR_AREA
        and x.dtype is torch.float32
        and x.is_cpu
        and weight.shape[0] % 16 == 0
        and weight.shape[1] % 16 == 0
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not torch.compiler.is_compiling()
    )


class CausalConv3d(nn.Conv3d):
    """3 x 3 x 3 convolution that looks two frames back.

    Parameters
    ----------
    in_channels, out_channels : int
        Widths.
    plan : KernelPlan
        Kernel implementations to use.
    """

    def __init__(self, in_channels: int, out_channels: int, plan: KernelPlan) -> None:
        super().__init__(in_channels, out_channels, 3, padding=(0, 1, 1))
        self.impl = plan.causal_conv3d

    def step(self, x: Tensor, caches: StepCaches, residual: Tensor | None = None) -> Tensor:
        """Convolve the new frames ``x``, shape (B, C, F, H, W); F is 1 on the first step.

        ``residual``, of the result's shape, is added.
        """
        if through_operator(x, self.weight, self.impl, x.shape[3] * x.shape[4]):
            return causal_conv3d(
                x,
                self.weight,
                self.bias,
                past=caches.exchange(x, TIME_CONTEXT),
                residual=residual,
                impl=self.impl,
            )
        if caches.is_first:
            caches.exchange(x, TIME_CONTEXT)
            # The frames before the first are zeros, so only the last tap of the kernel counts.
            y = conv3d(x, self.weight[:, :, -1:], self.bias, padding=(0, 1, 1))
        else:
            joined = caches.prepend(x, TIME_CONTEXT)
            y = conv3d(joined, self.weight, self.bias, padding=(0, 1, 1))
        if residual is not None:
            y += residual
        return y


class ResidualBlock(nn.Module):
    """Norm, SiLU, causal convolution, twice, plus a shortcut.

    Parameters
    ----------
    in_dim, out_dim : int
        Widths before and after.
    plan : KernelPlan
        Kernel implementations to use.
    """

    def __init__(self, in_dim: int, out_dim: int, plan: KernelPlan) -> None:
        super().__init__()
        self.norm1 = RMSNorm(in_dim, plan)
        self.conv1 = CausalConv3d(in_dim, out_dim, plan)
        self.norm2 = RMSNorm(out_dim, plan)
        self.conv2 = CausalConv3d(out_dim, out_dim, plan)
        self.conv_shortcut = Conv3d(in_dim, out_dim, 1) if in_dim != out_dim else nn.Identity()

    def forward(self, x: Tensor, caches: StepCaches) -> Tensor:
        """Activations (B, out_dim, F, H, W) of ``x``, shape (B, in_dim, F, H, W)."""
        y = self.conv1.step(self.norm1.before(self.conv1, x, caches), caches)
        y = self.norm2.before(self.conv2, y, caches)
        return self.conv2.step(y, caches, residual=self.conv_shortcut(x))

    def cache_shapes(self, height: int, width: int) -> list[CacheShape]:
        """Shapes of the two caches at ``height`` x ``width`` activations."""
        return [
            (conv.in_channels, TIME_CONTEXT, height, width) for conv in (self.conv1, self.conv2)
        ]


class AttentionBlock(nn.Module):
    """Self-attention within each frame, one head, plus the input.

    Parameters
    ----------
    dim : int
        Width.
    plan : KernelPlan
        Kernel implementations to use.
    """

    def __init__(self, dim: int, plan: KernelPlan) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, plan, gain_dims=2, silu=False)
        self.to_qkv = nn.Conv2d(dim, dim * 3, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, caches: StepCaches) -> Tensor:  # noqa: ARG002 - blocks share a form
        """Attended activations of ``x``, both (B, C, F, H, W)."""
        batch, channels, num_frames, height, width = x.shape
        # Channels-last order makes this a view: frames as batch, positions as tokens.
        tokens = self.norm(x).permute(0, 2, 3, 4, 1).reshape(batch * num_frames, -1, channels)
        qkv = F.linear(tokens, self.to_qkv.weight.flatten(1), self.to_qkv.bias)
        q, k, v = qkv.unsqueeze(1).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        y = F.linear(attended, self.proj.weight.flatten(1), self.proj.bias)
        y = y.reshape(batch, num_frames, height, width, channels).permute(0, 4, 1, 2, 3)
        return y + x

    def cache_shapes(self, height: int, width: int) -> list[CacheShape]:  # noqa: ARG002
        """No caches: attention stays within a frame."""
        return []


class HalvingConv2d(nn.Conv2d):
    """3 x 3 convolution of every frame by itself that halves each side (both even).

    The reference halves with one row and column of zeros at the bottom and right. Here the
    convolution pads two on every side and the first row and column of the result are dropped,
    which is the same sum without copying the input.

    Parameters
    ----------
    dim : int
        Width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        """Convolve ``input``, shape (B, C, F, H, W)."""
        weight = self.weight.unsqueeze(2)
        y = conv3d(input, weight, self.bias, stride=(1, 2, 2), padding=(0, 2, 2))
        return y[..., 1:, 1:]


class DoublingConv2d(nn.Conv2d, Doubling):
    """Doubling of each side by repetition, then a 3 x 3 convolution of every frame by itself.

    Parameters
    ----------
    in_channels, out_channels : int
        Widths.
    plan : KernelPlan
        Kernel implementations to use.
    """

    def __init__(self, in_channels: int, out_channels: int, plan: KernelPlan) -> None:
        super().__init__(in_channels, out_channels, 3)
        self.impl = plan.causal_conv3d

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        """Double and convolve ``input``, shape (B, C, F, H, W)."""
        weight = self.weight.unsqueeze(2)
        area = 4 * input.shape[3] * input.shape[4]
        if self.upsampling == "auto" and through_operator(input, self.weight, self.impl, area):
            return causal_conv3d(input, weight, self.bias, doubled=True, impl=self.impl)
        if self.takes_subpixel(input, self.weight):
            return subpixel_conv(input, self.weight, self.bias)
        large = F.interpolate(input, scale_factor=(1.0, 2.0, 2.0), mode="nearest")
        return conv3d(large, weight, self.bias, padding=(0, 1, 1))


class Downsample(nn.Module):
    """Halve height and width, and time where asked.

    Parameters
    ----------
    dim : int
        Width.
    halve_time : bool
        Also halve time: the first step's frame passes, later frames merge in pairs.
    """

    def __init__(self, dim: int, *, halve_time: bool) -> None:
        super().__init__()
        self.dim = dim
        self.halve_time = halve_time
        self.resample = nn.Sequential(nn.Identity(), HalvingConv2d(dim))
        if halve_time:
            self.time_conv = Conv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1))

    def forward(self, x: Tensor, caches: StepCaches) -> Tensor:
        """Activations (B, C, F or F // 2, H // 2, W // 2) of ``x``, shape (B, C, F, H, W)."""
        x = self.resample(x)
        if not self.halve_time:
            return x
        if caches.is_first:
            caches.write(last_frames(x, 1))
            return x
        y: Tensor = self.time_conv(caches.prepend(x, 1))
        return y

    def cache_shapes(self, height: int, width: int) -> list[CacheShape]:
        """Shapes of the caches for an input of ``height`` x ``width``."""
        return [(self.dim, 1, height // 2, width // 2)] if self.halve_time else []


class Upsample(nn.Module):
    """Double height and width while halving the channels, and double time where asked.

    Parameters
    ----------
    dim : int
        Width before; ``dim // 2`` after.
    plan : KernelPlan
        Kernel implementations to use.
    double_time : bool
        Also double time: the first step's frame passes, later frames become two each.
    """

    def __init__(self, dim: int, plan: KernelPlan, *, double_time: bool) -> None:
        super().__init__()
        self.dim = dim
        self.double_time = double_time
        # The reference's names: its first part, which doubles, has no weights.
        self.resample = nn.Sequential(nn.Identity(), DoublingConv2d(dim, dim // 2, plan))
        if double_time:
            self.time_conv = Conv3d(dim, dim * 2, (3, 1, 1))

    def forward(self, x: Tensor, caches: StepCaches) -> Tensor:
        """Activations (B, C // 2, F or 2 F, 2 H, 2 W) of ``x``, shape (B, C, F, H, W)."""
        if self.double_time and caches.is_first:
            # The reference forgets the first frame here: the second step starts from zeros.
            past = torch.cat([torch.zeros_like(x)] * TIME_CONTEXT, dim=2)
            caches.write(past)
        elif self.double_time:
            x = split_time(self.time_conv(caches.prepend(x, TIME_CONTEXT)))
        y: Tensor = self.resample(x)
        return y

    def cache_shapes(self, height: int, width: int) -> list[CacheShape]:
        """Shapes of the caches for an input of ``height`` x ``width``."""
        return [(self.dim, TIME_CONTEXT, height, width)] if self.double_time else []


def split_time(x: Tensor) -> Tensor:
    """Turn each frame of 2 C channels into two of C: (B, 2 C, F, H, W) to (B, C, 2 F, H, W).

    The first C channels are the earlier frame.
    """
    batch, channels, num_frames, height, width = x.shape
    channels //= 2
    pairs = x.permute(0, 2, 3, 4, 1).reshape(batch, num_frames, height, width, 2, channels)
    # Contiguous first: as a view, a single frame would lose its channels-last order.
    frames = pairs.permute(0, 1, 4, 2, 3, 5).contiguous()
    frames = frames.view(batch, num_frames * 2, height, width, channels)
    return frames.permute(0, 4, 1, 2, 3)
