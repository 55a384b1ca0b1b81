"""Triton implementation of :func:`skyreels_rt.kernels.norm_modulate`: one program per token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from skyreels_rt.kernels.triton._rows import (
    CONFIGS,
    load_segment_row,
    row_config,
    segment_strides,
)


@triton.jit
def _norm_modulate_kernel(
    x, y, weight, bias, length, tokens, x_batch, x_row,
    weight_batch, weight_segment, bias_batch, bias_segment,
    WIDTH: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
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
    out = centred * scale * w + b
    tl.store(y + row * WIDTH + columns, out.to(y.dtype.element_ty), mask=mask)


def launch(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, eps: float) -> None:
    """Fill ``out``, contiguous, from checked arguments of the operator."""
    batch, length, width = x.shape
    if out.numel() == 0:
        return
    block, num_warps = row_config(width)
    with torch.cuda.device_of(x):
        _norm_modulate_kernel[(batch * length,)](
            x, out, weight, bias, length, length // weight.shape[1], x.stride(0), x.stride(1),
            *segment_strides(weight), *segment_strides(bias),
            WIDTH=width, EPS=eps, BLOCK=block, num_warps=num_warps,
        )  # fmt: skip


AOT = [
    (
        _norm_modulate_kernel,
        {
            "x": f"*{dtype}", "y": f"*{dtype}", "weight": "*fp32", "bias": "*fp32",
            "length": "i32", "tokens": "i32", "x_batch": "i64", "x_row": "i64",
            "weight_batch": "i64", "weight_segment": "i64",
            "bias_batch": "i64", "bias_segment": "i64",
        },
        {"WIDTH": block * 5 // 8, "EPS": 1e-6, "BLOCK": block},
        num_warps,
    )
    for dtype in ("bf16", "fp32")
    for block, num_warps in CONFIGS.items()
]  # fmt: skip
"""Kernel, signature, constants and warps of every configuration, to compile ahead of time."""
