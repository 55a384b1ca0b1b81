"""A small causal VAE of our own: 8 x 8 pixels and 4 frames a latent, one remembered frame a block.

The idea of a per-block memory of the frame before, and of merging and growing time in convolutions
without attention or norms, is that of TAEHV (madebyollin/taehv). Blocks are pre-activation
residual with SiLU: with ReLU behind the sum, training was measured to stall.
"""

from __future__ import annotations

import itertools
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyreels_rt.config import TinyVAEConfig
from skyreels_rt.models.vae import CacheShape, StepCaches, VideoVAE
from skyreels_rt.models.vae_blocks import split_time

HALVES_TIME = (False, True, True)
"""Whether each of the three spatial halvings, from the pixel side, also halves time."""


class FrameConv(nn.Conv2d):
    """Square convolution of every frame by itself, over activations (B, C, F, H, W).

    Frames are folded into the batch, which is a view in channels-last order: at 16 to 48 channels
    the CPU's fp32 ``conv3d``, which unfolds its input, was measured 6-18 times slower.

    Parameters
    ----------
    in_channels, out_channels : int
        Widths.
    kernel_size : int
        Odd.
    stride : int
        In space.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: int = 3, stride: int = 1
    ) -> None:
        padding = kernel_size // 2
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        """Convolve ``input``, shape (B, C, F, H, W)."""
        return _unfold(super().forward(_fold(input)), input.shape[0])


class MemoryBlock(nn.Module):
    """Residual block that sees each frame together with the one before.

    Parameters
    ----------
    dim : int
        Width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = FrameConv(dim * 2, dim)
        self.conv2 = FrameConv(dim, dim)

    def forward(self, x: Tensor, caches: StepCaches) -> Tensor:
        """Activations of ``x``, both (B, C, F, H, W)."""
        active = F.silu(x)
        before = caches.prepend(active, 1)[:, :, :-1]
        y = self.conv1(torch.cat([active, before], dim=1))
        y = self.conv2(F.silu(y, inplace=True))
        y += x
        return cast(Tensor, y)


class Encoder(nn.Module):
    """Groups of four frames to raw latents.

    Parameters
    ----------
    config : TinyVAEConfig
        Widths and depth.
    """

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        dims = config.encoder_dims
        self.conv_in = FrameConv(3, dims[0])
        self.downs = nn.ModuleList()
        self.levels = nn.ModuleList()
        for (in_dim, out_dim), halves in zip(itertools.pairwise(dims), HALVES_TIME, strict=True):
            self.downs.append(FrameConv(in_dim * (2 if halves else 1), out_dim, stride=2))
            self.levels.append(_blocks(out_dim, config.num_blocks))
        self.conv_out = FrameConv(dims[-1], config.z_dim)

    def forward(self, frames: Tensor, caches: StepCaches) -> Tensor:
        """Raw latents (B, C, 1, h, w) of ``frames``, shape (B, 3, 4, H, W)."""
        x = self.conv_in(frames)
        for down, level, halves in zip(self.downs, self.levels, HALVES_TIME, strict=True):
            x = F.silu(x)
            if halves:
                x = torch.cat([x[:, :, 0::2], x[:, :, 1::2]], dim=1)
            x = down(x)
            for block in cast(nn.ModuleList, level):
                x = block(x, caches)
        return cast(Tensor, self.conv_out(F.silu(x)))


class Decoder(nn.Module):
    """Raw latents to groups of four frames.

    Parameters
    ----------
    config : TinyVAEConfig
        Widths and depth.
    """

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        dims = config.decoder_dims
        self.conv_in = FrameConv(config.z_dim, dims[0])
        self.levels = nn.ModuleList()
        self.grows = nn.ModuleList()
        self.ups = nn.ModuleList()
        doubles_time = reversed(HALVES_TIME)
        for (in_dim, out_dim), doubles in zip(itertools.pairwise(dims), doubles_time, strict=True):
            self.levels.append(_blocks(in_dim, config.num_blocks))
            # Time grows before space: a quarter of the work.
            grow = FrameConv(in_dim, in_dim * 2, kernel_size=1) if doubles else nn.Identity()
            self.grows.append(grow)
            self.ups.append(FrameConv(in_dim, out_dim))
        self.conv_out = FrameConv(dims[-1], 3)

    def forward(self, latents: Tensor, caches: StepCaches) -> Tensor:
        """Frames (B, 3, 4, H, W) of ``latents``, shape (B, C, 1, h, w)."""
        x = self.conv_in(latents)
        for level, grow, up in zip(self.levels, self.grows, self.ups, strict=True):
            for block in cast(nn.ModuleList, level):
                x = block(x, caches)
            x = F.silu(x)
            if isinstance(grow, FrameConv):
                x = split_time(grow(x))
            large = F.interpolate(_fold(x), scale_factor=2.0, mode="nearest")
            x = up(_unfold(large, x.shape[0]))
        return cast(Tensor, self.conv_out(F.silu(x)))


class TinyVAE(VideoVAE):
    """Small causal VAE for small models and previews; trainable through ``encode`` and ``decode``.

    A lone first frame is encoded as a group of four equal frames; of the first decoded group only
    the last frame is kept.

    Parameters
    ----------
    config : TinyVAEConfig
        Widths, depth and latent statistics.
    """

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__(config.z_dim, config.latents_mean, config.latents_std)
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encoder_cache_shapes(self, height: int, width: int) -> tuple[CacheShape, ...]:
        """Shapes of the encoder's caches for frames of ``height`` x ``width`` pixels."""
        dims, depth = self.config.encoder_dims, self.config.num_blocks
        shapes = [(dims[n], 1, height >> n, width >> n) for n in (1, 2, 3)]
        return tuple(shape for shape in shapes for _ in range(depth))

    def decoder_cache_shapes(self, height: int, width: int) -> tuple[CacheShape, ...]:
        """Shapes of the decoder's caches for frames of ``height`` x ``width`` pixels."""
        dims, depth = self.config.decoder_dims, self.config.num_blocks
        shapes = [(dims[3 - n], 1, height >> n, width >> n) for n in (3, 2, 1)]
        return tuple(shape for shape in shapes for _ in range(depth))

    def _encode_raw(self, frames: Tensor, caches: StepCaches) -> Tensor:
        if caches.is_first:
            frames = frames.expand(-1, -1, self.temporal_stride, -1, -1)
            frames = frames.contiguous(memory_format=torch.channels_last_3d)
        latents: Tensor = self.encoder(frames, caches)
        return latents

    def _decode_raw(self, latents: Tensor, caches: StepCaches) -> Tensor:
        frames: Tensor = self.decoder(latents, caches)
        return frames[:, :, -1:] if caches.is_first else frames


def _blocks(dim: int, count: int) -> nn.ModuleList:
    """``count`` memory blocks of width ``dim``."""
    return nn.ModuleList(MemoryBlock(dim) for _ in range(count))


def _fold(x: Tensor) -> Tensor:
    """Fold frames into the batch: (B, C, F, H, W) to (B * F, C, H, W)."""
    # Channels go last before the fold: else a single frame gets strides that hide the order.
    return x.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)


def _unfold(x: Tensor, batch: int) -> Tensor:
    """Undo :func:`_fold`: (B * F, C, H, W) to (B, C, F, H, W)."""
    _, channels, height, width = x.shape
    y = x.permute(0, 2, 3, 1).reshape(batch, -1, height, width, channels)
    return y.permute(0, 4, 1, 2, 3)
