"""Triton implementation of ``norm_modulate_quantize``: one program per token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from skyreels_rt.kernels.reference.quantize_rows import FP8_MAX, LEAST_SCALE
from skyreels_rt.kernels.triton._rows import (
    CONFIGS,
    load_segment_row,
    row_config,
    segment_strides,
    store_quantized,
)
from skyreels_rt.kernels.triton.quantize_rows import MIN_CAPABILITY

__all__ = ["AOT", "MIN_CAPABILITY", "launch"]


@triton.jit
def _norm_modulate_quantize_kernel(
    x, values, scales, weight, bias, length, tokens, x_batch, x_row,
    weight_batch, weight_segment, bias_batch, bias_segment,
    WIDTH: tl.constexpr, EPS: tl.constexpr, LARGEST: tl.constexpr, LEAST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.cast(tl.program_id(0), tl.int64)
    batch = row // length
    token = row % length
    columns = tl.arange(0, BLOCK)
    mask = columns < WIDTH
    v = tl.load(
        x + batch * x_batch + token * x_row + columns,
        mask=mask, other=0.0, eviction_policy="evict_first",
    )  # fmt: skip
    v = v.to(tl.float32)
    centred = tl.where(mask, v - tl.sum(v, 0) / WIDTH, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / WIDTH + EPS)
    segment = token // tokens
    w = load_segment_row(weight, batch, segment, weight_batch, weight_segment, columns, mask)
    b = load_segment_row(bias, batch, segment, bias_batch, bias_segment, columns, mask)
    out = tl.where(mask, centred * scale * w + b, 0.0)
    store_quantized(out, values + row * WIDTH, scales + row, columns, mask, LARGEST, LEAST)


def launch(
    x: Tensor, weight: Tensor, bias: Tensor, values: Tensor, scales: Tensor, eps: float
) -> None:
    """Fill ``values`` and ``scales``, contiguous, from checked arguments of the operator."""
    batch, length, width = x.shape
    if values.numel() == 0:
        return
    block, num_warps = row_config(width)
    with torch.cuda.device_of(x):
        _norm_modulate_quantize_kernel[(batch * length,)](
            x, values, scales, weight, bias, length, length // weight.shape[1],
            x.stride(0), x.stride(1), *segment_strides(weight), *segment_strides(bias),
            WIDTH=width, EPS=eps, LARGEST=FP8_MAX, LEAST=LEAST_SCALE, BLOCK=block,
            num_warps=num_warps,
        )  # fmt: skip


AOT = [
    (
        _norm_modulate_quantize_kernel,
        {
            "x": f"*{dtype}", "values": "*fp8e4nv", "scales": "*fp32", "weight": "*fp32",
            "bias": "*fp32", "length": "i32", "tokens": "i32", "x_batch": "i64", "x_row": "i64",
            "weight_batch": "i64", "weight_segment": "i64",
            "bias_batch": "i64", "bias_segment": "i64",
        },
        {
            "WIDTH": block * 5 // 8, "EPS": 1e-6, "LARGEST": FP8_MAX, "LEAST": LEAST_SCALE,
            "BLOCK": block,
        },
        num_warps,
    )
    for dtype in ("bf16", "fp32")
    for block, num_warps in CONFIGS.items()
]  # fmt: skip
"""Kernel, signature, constants and warps of every configuration, to compile ahead of time."""
