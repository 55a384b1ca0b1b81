"""Triton implementation of :func:`skyreels_rt.kernels.blf_step`: one launch a window.

Launches of one stream run in order, so the windows add up in timeline order: the first that covers
a latent stores its share in the output, the others add theirs, the last takes the Euler step. Only
latents that windows share go through memory more than once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

CONFIGS: dict[str, int] = {"BLOCK": 1024, "num_warps": 4}
"""Chosen by inspection of registers, not yet measured on a GPU."""


@triton.jit(do_not_specialize=["start", "num_shared", "num_final", "num_pinned"])
def _blf_step_kernel(
    latents,
    velocity,
    weights,
    out,
    factor0,
    factor1,
    factor2,
    delta,
    start,
    num_shared,
    num_final,
    num_pinned,
    plane,
    latents_stride_channel,
    latents_stride_frame,
    stride_pass,
    stride_channel,
    stride_frame,
    out_stride_channel,
    PASSES: tl.constexpr,
    HAS_LATENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one plane; ``frame`` counts from the window's start."""
    inside = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    frame = tl.cast(tl.program_id(1), tl.int64)
    channel = tl.cast(tl.program_id(2), tl.int64)
    mask = inside < plane
    source = velocity + channel * stride_channel + frame * stride_frame + inside
    total = tl.load(source, mask=mask, other=0.0).to(tl.float32) * factor0
    if PASSES > 1:
        total += tl.load(source + stride_pass, mask=mask, other=0.0).to(tl.float32) * factor1
    if PASSES > 2:
        total += tl.load(source + 2 * stride_pass, mask=mask, other=0.0).to(tl.float32) * factor2
    total *= tl.load(weights + frame)
    target = out + channel * out_stride_channel + (start + frame) * plane + inside
    if frame < num_shared:
        total = tl.load(target, mask=mask, other=0.0) + total
    if HAS_LATENTS and frame < num_final:
        place = channel * latents_stride_channel + (start + frame) * latents_stride_frame
        before = tl.load(latents + place + inside, mask=mask, other=0.0)
        total = before if start + frame < num_pinned else before + total * delta
    tl.store(target, total, mask=mask)


def blf_step(
    latents: Tensor | None,
    velocities: Sequence[Tensor],
    starts: Sequence[int],
    weights: Tensor,
    guidance: Sequence[float],
    delta: float,
    num_pinned: int,
    out: Tensor,
) -> None:
    """Launch the kernel for every window.

    Parameters
    ----------
    latents : Tensor, shape (C, N, h, w), fp32, or None
        None writes the fused velocity.
    velocities : sequence of W Tensor, shape (P, C, n, h, w)
        Dense planes, the same strides.
    starts, guidance, delta, num_pinned
        As the operator's.
    weights : Tensor, shape (W, n), fp32, contiguous
        Fusion weights.
    out : Tensor, shape (C, N, h, w), fp32, contiguous
        Written.
    """
    passes, channels, window, height, width = velocities[0].shape
    plane = height * width
    factors = [*guidance, 0.0, 0.0][:3]
    latents_strides = (0, 0) if latents is None else latents.stride()[:2]
    grid = (triton.cdiv(plane, CONFIGS["BLOCK"]), window, channels)
    stops = [0, *(start + window for start in starts)]
    nexts = [*starts[1:], stops[-1]]
    for index, (start, velocity) in enumerate(zip(starts, velocities, strict=True)):
        _blf_step_kernel[grid](
            out if latents is None else latents, velocity, weights[index], out,
            *factors, delta, start, stops[index] - start, nexts[index] - start, num_pinned, plane,
            *latents_strides, *velocity.stride()[:3], out.stride(0),
            PASSES=passes, HAS_LATENTS=latents is not None, BLOCK=CONFIGS["BLOCK"],
            num_warps=CONFIGS["num_warps"],
            enable_fp_fusion=False,  # products and sums are rounded separately
        )  # fmt: skip


PLANE, LENGTH, WINDOW, CHANNELS = 60 * 104, 34, 21, 16  # latents of 480 x 832 pixels


def _aot(
    dtype: str, passes: int, has_latents: bool
) -> tuple[Any, dict[str, str], dict[str, Any], int]:
    pointers = {"latents": "*fp32", "velocity": f"*{dtype}", "weights": "*fp32", "out": "*fp32"}
    scalars = dict.fromkeys(("factor0", "factor1", "factor2", "delta"), "fp32")
    counts = dict.fromkeys(("start", "num_shared", "num_final", "num_pinned"), "i32")
    constants = {
        "plane": PLANE,
        "latents_stride_channel": LENGTH * PLANE,
        "latents_stride_frame": PLANE,
        "stride_pass": CHANNELS * WINDOW * PLANE,
        "stride_channel": WINDOW * PLANE,
        "stride_frame": PLANE,
        "out_stride_channel": LENGTH * PLANE,
        "PASSES": passes,
        "HAS_LATENTS": has_latents,
        "BLOCK": CONFIGS["BLOCK"],
    }
    signature = pointers | scalars | counts | dict.fromkeys(constants, "constexpr")
    return _blf_step_kernel, signature, constants, CONFIGS["num_warps"]


AOT = [
    _aot(dtype, passes, has_latents)
    for dtype in ("bf16", "fp32")
    for passes in (1, 2, 3)
    for has_latents in (True, False)
]
"""Kernel, signature, constants and warps of every configuration, for compile tests.

Sizes are constants there, because Triton specialises on their divisibility at run time, too.
"""
