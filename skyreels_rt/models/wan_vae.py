"""The causal VAE of Wan2.1 as two step functions with explicit caches.

Reference: ``AutoencoderKLWan`` of diffusers, the variant without residual resampling; its state
dict loads unchanged. Latents are its mode, normalised by the statistics in the configuration.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from skyreels_rt.config import WanVAEConfig
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models.tiled_encoder import NearPart, run_in_tiles
from skyreels_rt.models.vae import CacheShape, StepCaches, TorchVAE
from skyreels_rt.models.vae_blocks import (
    TIME_CONTEXT,
    AttentionBlock,
    CausalConv3d,
    Conv3d,
    Downsample,
    ResidualBlock,
    RMSNorm,
    Upsample,
)
from skyreels_rt.models.vae_pieces import DecoderPiece, run_pieces
from skyreels_rt.models.video_conv import conv3d

Block = ResidualBlock | AttentionBlock | Downsample | Upsample


class MidBlock(nn.Module):
    """Residual block, attention, residual block, at the lowest resolution.

    Parameters
    ----------
    dim : int
        Width.
    plan : KernelPlan
        Kernel implementations to use.
    """

    def __init__(self, dim: int, plan: KernelPlan) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([AttentionBlock(dim, plan)])
        self.resnets = nn.ModuleList(ResidualBlock(dim, dim, plan) for _ in range(2))

    def blocks(self) -> list[Block]:
        """List the three blocks in the order in which they run."""
        return [cast(Block, b) for b in (self.resnets[0], self.attentions[0], self.resnets[1])]


class UpBlock(nn.Module):
    """Residual blocks of one level and, except at the last, the way up to the next.

    Parameters
    ----------
    in_dim, out_dim : int
        Widths before and inside.
    num_resnets : int
        Residual blocks.
    plan : KernelPlan
        Kernel implementations to use.
    upsample : bool
        Double height and width at the end (and halve the width).
    double_time : bool
        Double time there too.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        num_resnets: int,
        plan: KernelPlan,
        *,
        upsample: bool,
        double_time: bool,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(out_dim if i else in_dim, out_dim, plan) for i in range(num_resnets)
        )
        self.upsamplers = nn.ModuleList(
            [Upsample(out_dim, plan, double_time=double_time)] if upsample else []
        )

    def blocks(self) -> list[Block]:
        """List the blocks in the order in which they run."""
        return [cast(Block, b) for b in (*self.resnets, *self.upsamplers)]


class Encoder(nn.Module):
    """Frames to the raw moments of the latents.

    Parameters
    ----------
    config : WanVAEConfig
        Widths and levels.
    plan : KernelPlan
        Kernel implementations to use.
    """

    def __init__(self, config: WanVAEConfig, plan: KernelPlan) -> None:
        super().__init__()
        widths = [config.base_dim * multiple for multiple in (1, *config.dim_mult)]
        self.conv_in = CausalConv3d(3, widths[0], plan)
        self.down_blocks = nn.ModuleList()
        scale = 1.0
        for level, (in_dim, out_dim) in enumerate(itertools.pairwise(widths)):
            for index in range(config.num_res_blocks):
                self.down_blocks.append(ResidualBlock(out_dim if index else in_dim, out_dim, plan))
                if scale in config.attn_scales:
                    self.down_blocks.append(AttentionBlock(out_dim, plan))
            if level < len(config.dim_mult) - 1:
                halve_time = config.temperal_downsample[level]
                self.down_blocks.append(Downsample(out_dim, halve_time=halve_time))
                scale /= 2
        self.mid_block = MidBlock(widths[-1], plan)
        self.norm_out = RMSNorm(widths[-1], plan)
        self.conv_out = CausalConv3d(widths[-1], config.z_dim * 2, plan)

    def forward(self, frames: Tensor, caches: StepCaches, tile: int | None = None) -> Tensor:
        """Moments (B, 2 C, 1, h, w) of ``frames``, shape (B, 3, 1 or 4, H, W).

        With ``tile``, what comes before the attention runs in tiles of at most that many pixels.
        """
        near, rest = self.near_and_rest()
        x = near.run(frames, caches) if tile is None else run_in_tiles(near, frames, caches, tile)
        for block in rest:
            x = block(x, caches)
        return self.conv_out.step(self.norm_out.before(self.conv_out, x, caches), caches)

    def near_and_rest(self) -> tuple[NearPart, list[Block]]:
        """Blocks up to the last halving before any attention, and those behind it."""
        blocks = self.blocks()
        attends = next(i for i, block in enumerate(blocks) if isinstance(block, AttentionBlock))
        halves = [i for i, block in enumerate(blocks[:attends]) if isinstance(block, Downsample)]
        count = halves[-1] + 1 if halves else 0
        stride, reach, cache_strides = 1, 1, [1]
        for block in blocks[:count]:
            reach += stride * (1 if isinstance(block, Downsample) else 2)  # rows its kernels look
            stride *= 2 if isinstance(block, Downsample) else 1
            cache_strides += [stride] * len(block.cache_shapes(2, 2))

        def run(frames: Tensor, caches: StepCaches) -> Tensor:
            x = self.conv_in.step(frames, caches)
            for block in blocks[:count]:
                x = block(x, caches)
            return x

        return NearPart(run, stride, reach, tuple(cache_strides)), blocks[count:]

    def blocks(self) -> list[Block]:
        """Every block between the first and the last convolution, in order."""
        return [cast(Block, block) for block in self.down_blocks] + self.mid_block.blocks()


class Decoder(nn.Module):
    """Raw latents to frames.

    Parameters
    ----------
    config : WanVAEConfig
        Widths and levels.
    plan : KernelPlan
        Kernel implementations to use.
    """

    def __init__(self, config: WanVAEConfig, plan: KernelPlan) -> None:
        super().__init__()
        widths = [config.base_dim * multiple for multiple in reversed(config.dim_mult)]
        double_time = (*reversed(config.temperal_downsample), False)
        self.conv_in = CausalConv3d(config.z_dim, widths[0], plan)
        self.mid_block = MidBlock(widths[0], plan)
        self.up_blocks = nn.ModuleList()
        in_dim = widths[0]
        for level, out_dim in enumerate(widths):
            is_last = level == len(widths) - 1
            self.up_blocks.append(
                UpBlock(
                    in_dim,
                    out_dim,
                    config.num_res_blocks + 1,
                    plan,
                    upsample=not is_last,
                    double_time=double_time[level],
                )
            )
            in_dim = out_dim // 2
        self.norm_out = RMSNorm(widths[-1], plan)
        self.conv_out = CausalConv3d(widths[-1], 3, plan)

    def pieces(self) -> list[DecoderPiece]:
        """First convolution, blocks, and last convolution: frames (B, 3, 1 or 4, H, W)."""
        places = 1
        pieces = [_piece(self.conv_in.step, 1, self.conv_in, 1)]
        for block in self.blocks():
            if isinstance(block, Upsample):
                places *= 8 if block.double_time else 4
            pieces.append(_piece(block, len(block.cache_shapes(1, 1)), block, places))
        return [*pieces, _piece(self._to_pixels, 1, self.conv_out, places)]

    def _to_pixels(self, x: Tensor, caches: StepCaches) -> Tensor:
        return self.conv_out.step(self.norm_out.before(self.conv_out, x, caches), caches)

    def blocks(self) -> list[Block]:
        """Every block between the first and the last convolution, in order."""
        ups = (cast(UpBlock, block).blocks() for block in self.up_blocks)
        return [*self.mid_block.blocks(), *itertools.chain.from_iterable(ups)]


class WanVAE(TorchVAE):
    """Wan2.1's VAE: 8 x 8 pixels and 4 frames a latent, two cached frames per convolution.

    Parameters
    ----------
    config : WanVAEConfig
        Widths, levels and latent statistics.
    plan : KernelPlan
        Kernel implementations to use.

    Raises
    ------
    InvalidArgument
        The levels do not make a stride of 8 in space and 4 in time.
    """

    def __init__(self, config: WanVAEConfig, plan: KernelPlan) -> None:
        super().__init__(config.z_dim, config.latents_mean, config.latents_std)
        if len(config.dim_mult) != 4:
            raise InvalidArgument("dim_mult", expected="4 levels", got=config.dim_mult)
        if len(config.temperal_downsample) != 3 or sum(config.temperal_downsample) != 2:
            raise InvalidArgument(
                "temperal_downsample",
                expected="3 flags, two of them true",
                got=config.temperal_downsample,
            )
        self.config = config
        self.encoder = Encoder(config, plan)
        self.quant_conv = Conv3d(config.z_dim * 2, config.z_dim * 2, 1)
        self.post_quant_conv = Conv3d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config, plan)

    def encoder_cache_shapes(self, height: int, width: int) -> tuple[CacheShape, ...]:
        """Shapes of the encoder's caches for frames of ``height`` x ``width`` pixels."""
        return _cache_shapes(self.encoder, height, width)

    def decoder_cache_shapes(self, height: int, width: int) -> tuple[CacheShape, ...]:
        """Shapes of the decoder's caches for frames of ``height`` x ``width`` pixels."""
        stride = self.spatial_stride
        return _cache_shapes(self.decoder, height // stride, width // stride)

    def _encode_raw(self, frames: Tensor, caches: StepCaches) -> Tensor:
        moments = self.encoder(frames, caches, self._tile_for(frames))
        # The mode is the mean, the first half of the moments: the log-variances are not computed.
        weight, bias = self.quant_conv.weight, cast(Tensor, self.quant_conv.bias)
        return conv3d(moments, weight[: self.latent_channels], bias[: self.latent_channels])

    def decoder_pieces(self) -> tuple[DecoderPiece, ...]:
        """Parts of the decoder that may run on different ranks."""
        first, *pieces = self.decoder.pieces()

        def run_first(x: Tensor, latents: Tensor, caches: StepCaches) -> Tensor:
            return first.run(self.post_quant_conv(x), latents, caches)

        return (replace(first, run=run_first), *pieces)

    def _decode_raw(self, latents: Tensor, caches: StepCaches) -> Tensor:
        return run_pieces(self.decoder_pieces(), latents, latents, caches)


def _piece(
    run: Callable[[Tensor, StepCaches], Tensor], num_caches: int, module: nn.Module, places: int
) -> DecoderPiece:
    return DecoderPiece(lambda x, _, caches: run(x, caches), num_caches, (module,), places)


def _cache_shapes(network: Encoder | Decoder, height: int, width: int) -> tuple[CacheShape, ...]:
    """Shapes of ``network``'s caches for an input of ``height`` x ``width``, in step order."""
    shapes = [(network.conv_in.in_channels, TIME_CONTEXT, height, width)]
    for block in network.blocks():
        shapes += block.cache_shapes(height, width)
        if isinstance(block, Downsample):
            height, width = height // 2, width // 2
        elif isinstance(block, Upsample):
            height, width = height * 2, width * 2
    return (*shapes, (network.conv_out.in_channels, TIME_CONTEXT, height, width))
