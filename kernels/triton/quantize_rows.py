"""Triton implementation of :func:`skyreels_rt.kernels.quantize_rows`: one program per row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from skyreels_rt.kernels.reference.quantize_rows import FP8_MAX, LEAST_SCALE
from skyreels_rt.kernels.triton._rows import CONFIGS, row_config, store_quantized


@triton.jit
def _quantize_rows_kernel(
    x, values, scales, x_row,
    WIDTH: tl.constexpr, LARGEST: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.cast(tl.program_id(0), tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < WIDTH
    v = tl.load(x + row * x_row + columns, mask=mask, other=0.0, eviction_policy="evict_first")
    store_quantized(
        v.to(tl.float32), values + row * WIDTH, scales + row, columns, mask, LARGEST, LEAST
    )


def launch(x: Tensor, values: Tensor, scales: Tensor) -> None:
    """Fill ``values`` and ``scales``, contiguous, from rows (M, D)."""
    num_rows, width = x.shape
    if num_rows == 0:
        return
    block, num_warps = row_config(width)
    with torch.cuda.device_of(x):
        _quantize_rows_kernel[(num_rows,)](
            x, values, scales, x.stride(0),
            WIDTH=width, LARGEST=FP8_MAX, LEAST=LEAST_SCALE, BLOCK=block, num_warps=num_warps,
        )  # fmt: skip


AOT = [
    (
        _quantize_rows_kernel,
        {"x": f"*{dtype}", "values": "*fp8e4nv", "scales": "*fp32", "x_row": "i64"},
        {"WIDTH": block * 5 // 8, "LARGEST": FP8_MAX, "LEAST": LEAST_SCALE, "BLOCK": block},
        num_warps,
    )
    for dtype in ("bf16", "fp32")
    for block, num_warps in CONFIGS.items()
]
"""Kernel, signature, constants and warps of every configuration, to compile ahead of time."""

MIN_CAPABILITY = 89
"""Oldest architecture with conversions to e4m3, as Triton numbers them."""
