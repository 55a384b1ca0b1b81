"""Triton implementation of ``gate_residual_norm_modulate_quantize``: one program per token."""

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
def _gate_residual_norm_modulate_quantize_kernel(
    x, y, gate, weight, bias, values, scales, length, gate_tokens, norm_tokens,
    x_batch, x_row, y_batch, y_row, gate_batch, gate_segment,
    weight_batch, weight_segment, bias_batch, bias_segment,
    GATED: tl.constexpr, WIDTH: tl.constexpr, EPS: tl.constexpr, LARGEST: tl.constexpr,
    LEAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.cast(tl.program_id(0), tl.int64)
    batch = row // length
    token = row % length
    columns = tl.arange(0, BLOCK)
    mask = columns < WIDTH
    place = x + batch * x_batch + token * x_row + columns
    total = tl.load(place, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    v = tl.load(
        y + batch * y_batch + token * y_row + columns,
        mask=mask, other=0.0, eviction_policy="evict_first",
    ).to(tl.float32)  # fmt: skip
    if GATED:
        segment = token // gate_tokens
        v *= load_segment_row(gate, batch, segment, gate_batch, gate_segment, columns, mask)
    total += v
    tl.store(place, total.to(x.dtype.element_ty), mask=mask)
    centred = tl.where(mask, total - tl.sum(total, 0) / WIDTH, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / WIDTH + EPS)
    segment = token // norm_tokens
    w = load_segment_row(weight, batch, segment, weight_batch, weight_segment, columns, mask)
    b = load_segment_row(bias, batch, segment, bias_batch, bias_segment, columns, mask)
    out = tl.where(mask, centred * scale * w + b, 0.0)
    store_quantized(out, values + row * WIDTH, scales + row, columns, mask, LARGEST, LEAST)


def launch(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    values: Tensor,
    scales: Tensor,
    eps: float,
) -> None:
    """Overwrite ``x`` and fill the others, contiguous, from checked arguments of the operator."""
    batch, length, width = x.shape
    if x.numel() == 0:
        return
    block, num_warps = row_config(width)
    table = weight if gate is None else gate
    with torch.cuda.device_of(x):
        _gate_residual_norm_modulate_quantize_kernel[(batch * length,)](
            x, y, table, weight, bias, values, scales, length, length // table.shape[1],
            length // weight.shape[1], *x.stride()[:2], *y.stride()[:2],
            *segment_strides(table), *segment_strides(weight), *segment_strides(bias),
            GATED=gate is not None, WIDTH=width, EPS=eps, LARGEST=FP8_MAX, LEAST=LEAST_SCALE,
            BLOCK=block, num_warps=num_warps,
        )  # fmt: skip


_STRIDES = ("x_batch", "x_row", "y_batch", "y_row", "gate_batch", "gate_segment",
            "weight_batch", "weight_segment", "bias_batch", "bias_segment")  # fmt: skip

AOT = [
    (
        _gate_residual_norm_modulate_quantize_kernel,
        {
            "x": f"*{dtype}", "y": f"*{dtype}", "gate": "*fp32", "weight": "*fp32",
            "bias": "*fp32", "values": "*fp8e4nv", "scales": "*fp32",
            "length": "i32", "gate_tokens": "i32", "norm_tokens": "i32",
            **dict.fromkeys(_STRIDES, "i64"),
        },
        {
            "GATED": gated, "WIDTH": block * 5 // 8, "EPS": 1e-6, "LARGEST": FP8_MAX,
            "LEAST": LEAST_SCALE, "BLOCK": block,
        },
        num_warps,
    )
    for dtype in ("bf16", "fp32")
    for gated in (True, False)
    for block, num_warps in CONFIGS.items()
]  # fmt: skip
"""Kernel, signature, constants and warps of every configuration, to compile ahead of time."""
