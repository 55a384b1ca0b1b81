"""Triton implementation of :func:`skyreels_rt.kernels.rms_norm_silu`.

One program takes a tile of channels x positions: all channels, so the tile is read once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CONFIGS = {32: (128, 4), 64: (64, 4), 128: (64, 8), 256: (32, 8), 512: (16, 8), 1024: (8, 8)}
"""Positions of a tile and warps by padded channels: chosen by inspection of registers, not yet
measured on a GPU."""


@triton.jit
def _rms_norm_silu_kernel(
    x, gamma, y, positions, CHANNELS: tl.constexpr, ROOT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, SILU: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # The faster axis of the tile is the one that is dense in memory.
    tile = tl.cast(tl.program_id(0), tl.int64) * TILE
    start = tl.cast(tl.program_id(1), tl.int64) * positions * CHANNELS
    channel = tl.arange(0, BLOCK)
    position = tile + tl.arange(0, TILE)
    if CHANNELS_LAST:
        mask = (position < positions)[:, None] & (channel < CHANNELS)[None, :]
        offset = start + position[:, None] * CHANNELS + channel[None, :]
        v = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
        norm = tl.sqrt(tl.sum(v * v, 1))[:, None]
        gain = tl.load(gamma + channel, mask=channel < CHANNELS, other=0.0)[None, :]
    else:
        mask = (channel < CHANNELS)[:, None] & (position < positions)[None, :]
        offset = start + channel[:, None] * positions + position[None, :]
        v = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
        norm = tl.sqrt(tl.sum(v * v, 0))[None, :]
        gain = tl.load(gamma + channel, mask=channel < CHANNELS, other=0.0)[:, None]
    out = v * (ROOT / tl.where(norm < 1e-12, 1e-12, norm)) * gain
    if SILU:
        out = out / (1.0 + tl.exp(-out))
    tl.store(y + offset, out.to(y.dtype.element_ty), mask=mask)


def launch(
    x: Tensor,
    gamma: Tensor,
    out: Tensor,
    sizes: tuple[int, int, int],
    channels_last: bool,
    silu: bool,
) -> None:
    """Fill ``out``, of the memory order of ``x``; ``sizes`` are B, C and T * H * W."""
    batch, channels, positions = sizes
    if out.numel() == 0:
        return
    block = max(triton.next_power_of_2(channels), min(CONFIGS))
    tile, num_warps = CONFIGS.get(block, (4, 8))
    with torch.cuda.device_of(x):
        _rms_norm_silu_kernel[(triton.cdiv(positions, tile), batch)](
            x, gamma, out, positions, CHANNELS=channels, ROOT=channels**0.5,
            CHANNELS_LAST=channels_last, SILU=silu, BLOCK=block, TILE=tile, num_warps=num_warps,
        )  # fmt: skip


AOT = [
    (
        _rms_norm_silu_kernel,
        {"x": f"*{dtype}", "gamma": "*fp32", "y": f"*{dtype}", "positions": "i64"},
        {
            "CHANNELS": block * 3 // 4, "ROOT": (block * 3 // 4) ** 0.5,
            "CHANNELS_LAST": channels_last, "SILU": True, "BLOCK": block, "TILE": tile,
        },
        num_warps,
    )
    for dtype in ("bf16", "fp32")
    for channels_last in (True, False)
    for block, (tile, num_warps) in CONFIGS.items()
]  # fmt: skip
"""Kernel, signature, constants and warps of every configuration, to compile ahead of time."""
