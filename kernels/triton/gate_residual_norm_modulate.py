"""Triton implementation of :func:`skyreels_rt.kernels.gate_residual_norm_modulate`."""

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
def _gate_residual_norm_modulate_kernel(
    x, y, gate, weight, bias, normed, length, gate_tokens, norm_tokens,
    x_batch, x_row, y_batch, y_row, gate_batch, gate_segment,
    weight_batch, weight_segment, bias_batch, bias_segment,
    GATED: tl.constexpr, WIDTH: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
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
    out = centred * scale * w + b
    tl.store(normed + row * WIDTH + columns, out.to(normed.dtype.element_ty), mask=mask)


def launch(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    normed: Tensor,
    eps: float,
) -> None:
    """Overwrite ``x`` and fill ``normed``, contiguous, from checked arguments of the operator."""
    batch, length, width = x.shape
    if x.numel() == 0:
        return
    block, num_warps = row_config(width)
    table = weight if gate is None else gate
    with torch.cuda.device_of(x):
        _gate_residual_norm_modulate_kernel[(batch * length,)](
            x, y, table, weight, bias, normed, length, length // table.shape[1],
            length // weight.shape[1], *x.stride()[:2], *y.stride()[:2],
            *segment_strides(table), *segment_strides(weight), *segment_strides(bias),
            GATED=gate is not None, WIDTH=width, EPS=eps, BLOCK=block, num_warps=num_warps,
        )  # fmt: skip


_STRIDES = ("x_batch", "x_row", "y_batch", "y_row", "gate_batch", "gate_segment",
            "weight_batch", "weight_segment", "bias_batch", "bias_segment")  # fmt: skip

AOT = [
    (
        _gate_residual_norm_modulate_kernel,
        {
            "x": f"*{dtype}", "y": f"*{dtype}", "gate": "*fp32", "weight": "*fp32",
            "bias": "*fp32", "normed": f"*{dtype}",
            "length": "i32", "gate_tokens": "i32", "norm_tokens": "i32",
            **dict.fromkeys(_STRIDES, "i64"),
        },
        {"GATED": gated, "WIDTH": block * 5 // 8, "EPS": 1e-6, "BLOCK": block},
        num_warps,
    )
    for dtype in ("bf16", "fp32")
    for gated in (True, False)
    for block, num_warps in CONFIGS.items()
]  # fmt: skip
"""Kernel, signature, constants and warps of every configuration, to compile ahead of time."""
