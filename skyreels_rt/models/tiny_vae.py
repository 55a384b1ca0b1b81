"""A small causal VAE of our own: 8 x 8 pixels and 4 frames a latent, one remembered frame a block.

The idea of a per-block memory of the frame before, and of merging and growing time in convolutions
without attention or norms, is that of TAEHV (madebyollin/taehv). Blocks are pre-activation
residual with SiLU: with ReLU behind the sum, training was measured to stall. The first three latent
channels also carry each cell's mean colour past all weights, so training starts from a coarse
picture (22 dB) and spends itself on detail.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyreels_rt.config import TinyVAEConfig
from skyreels_rt.models.tiled_encoder import NearPart, run_in_tiles
from skyreels_rt.models.vae import CacheShape, StepCaches, TorchVAE
from skyreels_rt.models.vae_blocks import split_time
from skyreels_rt.models.vae_pieces import DecoderPiece, run_pieces
from skyreels_rt.models.video_conv import Doubling, subpixel_conv

HALVES_TIME = (False, True, True)
"""Whether each of the three spatial halvings, from the pixel side, also halves time."""


_CELL = 8

INITIAL_GAIN = 1.0
"""Standard deviation of what a convolution starts with, for inputs of unit size."""


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


class DoublingFrameConv(FrameConv, Doubling):
    """Doubling of each side by repetition, then a 3 x 3 :class:`FrameConv`.

    Parameters
    ----------
    in_channels, out_channels : int
        Widths.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        """Double and convolve ``input``, shape (B, C, F, H, W)."""
        if self.takes_subpixel(input, self.weight):
            return subpixel_conv(input, self.weight, self.bias)
        large = F.interpolate(_fold(input), scale_factor=2.0, mode="nearest")
        return super().forward(_unfold(large, input.shape[0]))


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
        room = caches.room(x, 1)
        active = F.silu(x) if room is None else torch.ops.aten.silu.out(x, out=room)
        # Before the first frame stands itself: a still picture has the same latents throughout.
        before = caches.prepend(active, 1, repeat_first=True)[:, :, :-1]
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
        self.patch_size = config.patch_size
        self.conv_in = FrameConv(3 * config.patch_size**2, dims[0])
        self.downs = nn.ModuleList()
        self.levels = nn.ModuleList()
        strides = (1 if config.patch_size == 2 else 2, 2, 2)
        widths = zip(itertools.pairwise(dims), HALVES_TIME, strides, config.num_blocks, strict=True)
        for (in_dim, out_dim), halves, stride, depth in widths:
            self.downs.append(FrameConv(in_dim * (2 if halves else 1), out_dim, stride=stride))
            self.levels.append(_blocks(out_dim, depth))
        self.conv_out = FrameConv(dims[-1], config.z_dim)

    def forward(self, frames: Tensor, caches: StepCaches) -> Tensor:
        """Raw latents (B, C, 1, h, w) of ``frames``, shape (B, 3, 4, H, W)."""
        pixels = _merge_pixels(frames, self.patch_size)
        x = self.conv_in(pixels)
        for down, level, halves in zip(self.downs, self.levels, HALVES_TIME, strict=True):
            if halves:
                x = torch.cat([x[:, :, 0::2], x[:, :, 1::2]], dim=1)
            conv = cast(FrameConv, down)
            x = conv(F.silu(x))
            for block in cast(nn.ModuleList, level):
                x = block(x, caches)
        latents = cast(Tensor, self.conv_out(F.silu(x)))
        coarse = _unfold(F.avg_pool2d(_fold(frames.mean(2, keepdim=True)), _CELL), x.shape[0])
        return torch.cat([latents[:, :3] + coarse, latents[:, 3:]], dim=1)


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
        self.patch_size = config.patch_size
        self.conv_in = FrameConv(config.z_dim, dims[0])
        self.levels = nn.ModuleList()
        self.grows = nn.ModuleList()
        self.ups = nn.ModuleList()
        levels = zip(reversed(HALVES_TIME), reversed(config.num_blocks), strict=True)
        for (in_dim, out_dim), (doubles, depth) in zip(
            itertools.pairwise(dims), levels, strict=True
        ):
            self.levels.append(_blocks(in_dim, depth))
            # Time grows before space: a quarter of the work.
            grow = FrameConv(in_dim, in_dim * 2, kernel_size=1) if doubles else nn.Identity()
            self.grows.append(grow)
            # With folded pixels the last way up keeps the size: unfolding will double it.
            stays = config.patch_size == 2 and len(self.ups) == 2
            self.ups.append((FrameConv if stays else DoublingFrameConv)(in_dim, out_dim))
        self.conv_out = FrameConv(dims[-1], 3 * config.patch_size**2)

    def pieces(self) -> list[DecoderPiece]:
        """Blocks and the ways up between levels; frames (B, 3, 4, H, W) come out of the last."""
        pieces = [DecoderPiece(lambda x, _, __: self.conv_in(x), 0, (self.conv_in,), 1)]
        frames, places = 1, 1
        for level, grow, up in zip(self.levels, self.grows, self.ups, strict=True):
            for block in cast(nn.ModuleList, level):
                pieces.append(_block_piece(cast(MemoryBlock, block), frames * places))
            frames *= 2 if isinstance(grow, FrameConv) else 1
            places *= 4 if isinstance(up, DoublingFrameConv) else 1
            pieces.append(_way_up(grow, cast(FrameConv, up), frames * places))
        return [*pieces, DecoderPiece(self._to_pixels, 0, (self.conv_out,), frames * places)]

    def _to_pixels(self, x: Tensor, latents: Tensor, caches: StepCaches) -> Tensor:  # noqa: ARG002
        y = _split_pixels(self.conv_out(F.silu(x)), self.patch_size)
        coarse = F.interpolate(_fold(latents[:, :3]), scale_factor=float(_CELL), mode="nearest")
        return y + _unfold(coarse, latents.shape[0])


class TinyVAE(TorchVAE):
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
        _start_small(self)

    def encoder_cache_shapes(self, height: int, width: int) -> tuple[CacheShape, ...]:
        """Shapes of the encoder's caches for frames of ``height`` x ``width`` pixels."""
        dims, depths = self.config.encoder_dims, self.config.num_blocks
        shapes = [(dims[n], 1, height >> n, width >> n) for n in (1, 2, 3)]
        levels = zip(shapes, depths, strict=True)
        return tuple(shape for shape, depth in levels for _ in range(depth))

    def decoder_cache_shapes(self, height: int, width: int) -> tuple[CacheShape, ...]:
        """Shapes of the decoder's caches for frames of ``height`` x ``width`` pixels."""
        dims, depths = self.config.decoder_dims, reversed(self.config.num_blocks)
        shapes = [(dims[3 - n], 1, height >> n, width >> n) for n in (3, 2, 1)]
        levels = zip(shapes, depths, strict=True)
        return tuple(shape for shape, depth in levels for _ in range(depth))

    def _encode_raw(self, frames: Tensor, caches: StepCaches) -> Tensor:
        if caches.is_first:
            frames = frames.expand(-1, -1, self.temporal_stride, -1, -1)
            frames = frames.contiguous(memory_format=torch.channels_last_3d)
        tile = self._tile_for(frames)
        if tile is not None:
            return run_in_tiles(self.near_encoder(), frames, caches, tile)
        latents: Tensor = self.encoder(frames, caches)
        return latents

    def near_encoder(self) -> NearPart:
        """The encoder, none of whose parts looks far."""
        scales = (2, 4, 8)
        folded = self.config.patch_size == 2
        reach = 2 if folded else 1  # first convolution
        cache_strides: list[int] = []
        for scale, depth in zip(scales, self.config.num_blocks, strict=True):
            # The way down looks one cell of the level before; each block two of its own.
            before = 2 if folded and scale == 2 else scale // 2
            reach += before + 2 * scale * depth
            cache_strides += [scale] * depth
        reach += scales[-1]  # last convolution
        return NearPart(self.encoder, scales[-1], reach, tuple(cache_strides))

    def decoder_pieces(self) -> tuple[DecoderPiece, ...]:
        """Parts of the decoder that may run on different ranks."""
        *pieces, last = self.decoder.pieces()

        def run_last(x: Tensor, latents: Tensor, caches: StepCaches) -> Tensor:
            frames = last.run(x, latents, caches)
            return frames[:, :, -1:] if caches.is_first else frames

        return (*pieces, replace(last, run=run_last))

    def _decode_raw(self, latents: Tensor, caches: StepCaches) -> Tensor:
        return run_pieces(self.decoder_pieces(), latents, latents, caches)


def _block_piece(block: MemoryBlock, places: int) -> DecoderPiece:
    return DecoderPiece(lambda x, _, caches: block(x, caches), 1, (block,), places)


def _way_up(grow: nn.Module, up: FrameConv, places: int) -> DecoderPiece:
    """From one level of the decoder to the next."""

    def run(x: Tensor, latents: Tensor, caches: StepCaches) -> Tensor:  # noqa: ARG001
        x = F.silu(x)
        if isinstance(grow, FrameConv):
            x = split_time(grow(x))
        return cast(Tensor, up(x))

    return DecoderPiece(run, 0, (up,), places)


def _start_small(vae: nn.Module) -> None:
    """Initial weights of unit gain; the blocks start as identity."""
    for module in vae.modules():
        if isinstance(module, FrameConv):
            nn.init.normal_(module.weight, std=INITIAL_GAIN / math.sqrt(module.weight[0].numel()))
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    for module in vae.modules():
        if isinstance(module, MemoryBlock):
            nn.init.zeros_(module.conv2.weight)


def _blocks(dim: int, count: int) -> nn.ModuleList:
    """``count`` memory blocks of width ``dim``."""
    return nn.ModuleList(MemoryBlock(dim) for _ in range(count))


def _merge_pixels(x: Tensor, patch: int) -> Tensor:
    """Squares of pixels to channels: (B, C, F, H, W) to (B, C p p, F, H / p, W / p)."""
    return x if patch == 1 else _unfold(F.pixel_unshuffle(_fold(x), patch), x.shape[0])


def _split_pixels(x: Tensor, patch: int) -> Tensor:
    """Undo :func:`_merge_pixels`."""
    return x if patch == 1 else _unfold(F.pixel_shuffle(_fold(x), patch), x.shape[0])


def _fold(x: Tensor) -> Tensor:
    """Fold frames into the batch: (B, C, F, H, W) to (B * F, C, H, W)."""
    # Channels go last before the fold: else a single frame gets strides that hide the order.
    return x.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)


def _unfold(x: Tensor, batch: int) -> Tensor:
    """Undo :func:`_fold`: (B * F, C, H, W) to (B, C, F, H, W)."""
    _, channels, height, width = x.shape
    y = x.permute(0, 2, 3, 1).reshape(batch, -1, height, width, channels)
    return y.permute(0, 4, 1, 2, 3)
