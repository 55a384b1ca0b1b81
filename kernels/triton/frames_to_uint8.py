"""Triton implementation of :func:`skyreels_rt.kernels.frames_to_uint8`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, NUM_WARPS = 1024, 4
"""Pixels of a program and its warps: chosen by inspection of registers, not yet measured on a
GPU."""


@triton.jit
def _level(source, offset, mask):
    """Rounded level of one channel."""
    x = tl.load(source + offset, mask=mask, other=0.0).to(tl.float32)
    # Nothing here can become a fused multiply-add; the comparison makes a NaN zero.
    level = (x + 1.0) * 127.5
    level = tl.where(level > 0.0, level, 0.0)
    level = tl.where(level < 255.0, level, 255.0)
    # Adding 1.5 * 2^23 rounds half to even and leaves the integer in the low bits.
    bits = (level + 12582912.0).to(tl.int32, bitcast=True)
    return (bits & 0xFF).to(tl.uint8)


@triton.jit
def _frames_to_uint8_kernel(
    source, target, plane, stride_channel, stride_frame, BLOCK: tl.constexpr
):
    frame = tl.cast(tl.program_id(1), tl.int64)
    pixel = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < plane
    offset = frame * stride_frame + pixel
    place = target + (frame * plane + pixel) * 3
    for channel in tl.static_range(3):
        level = _level(source, offset + channel * stride_channel, mask)
        tl.store(place + channel, level, mask=mask)


def launch(frames: Tensor, out: Tensor) -> None:
    """Fill ``out`` (F, H, W, 3) from ``frames`` (3, F, H, W) with dense planes."""
    _, num_frames, height, width = frames.shape
    if out.numel() == 0:
        return
    plane = height * width
    with torch.cuda.device_of(frames):
        _frames_to_uint8_kernel[(triton.cdiv(plane, BLOCK), num_frames)](
            frames, out, plane, frames.stride(0), frames.stride(1), BLOCK=BLOCK, num_warps=NUM_WARPS
        )


AOT = [
    (
        _frames_to_uint8_kernel,
        {
            "source": f"*{dtype}", "target": "*u8", "plane": "i64",
            "stride_channel": "i64", "stride_frame": "i64",
        },
        {"BLOCK": BLOCK},
        NUM_WARPS,
    )
    for dtype in ("bf16", "fp32")
]  # fmt: skip
"""Kernel, signature, constants and warps of every configuration, to compile ahead of time."""
