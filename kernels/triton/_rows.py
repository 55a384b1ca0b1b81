"""What the kernels over rows of D values share: launch sizes and the address of a segment's row."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

CONFIGS = {256: 1, 512: 1, 1024: 2, 2048: 4, 4096: 8, 8192: 8}
"""Warps by padded row width: chosen by inspection of registers, not yet measured on a GPU."""


def row_config(width: int) -> tuple[int, int]:
    """Padded width and number of warps for rows of ``width`` values."""
    padded = max(triton.next_power_of_2(width), min(CONFIGS))
    return padded, CONFIGS.get(padded, 16)


def segment_strides(table: Tensor) -> tuple[int, int]:
    """Strides of the batch (0 where it is broadcast) and of the segments of a (B or 1, S, D)."""
    across, along, _ = table.stride()
    return (across if table.shape[0] > 1 else 0), along


@triton.jit
def load_segment_row(
    table: tl.tensor,
    batch: tl.tensor,
    segment: tl.tensor,
    stride_batch: tl.tensor,
    stride_segment: tl.tensor,
    columns: tl.tensor,
    mask: tl.tensor,
) -> tl.tensor:
    """Row of one segment; neighbouring programs read it again, so it should stay cached."""
    offset = batch * stride_batch + segment * stride_segment
    return tl.load(table + offset + columns, mask=mask, other=0.0, eviction_policy="evict_last")


@triton.jit
def store_quantized(
    v: tl.tensor,
    values: tl.tensor,
    scale: tl.tensor,
    columns: tl.tensor,
    mask: tl.tensor,
    LARGEST: tl.constexpr,
    LEAST: tl.constexpr,
) -> None:
    """Store one row, zero where masked, over its scale, and the scale; divisions are exact."""
    least = tl.full((), LEAST, tl.float32)
    largest = tl.full((), LARGEST, tl.float32)
    own = tl.maximum(tl.div_rn(tl.max(tl.abs(v), 0), largest), least)
    quotient = tl.div_rn(v, own)
    quotient = tl.minimum(tl.maximum(quotient, -LARGEST), LARGEST)
    tl.store(values + columns, quotient.to(values.dtype.element_ty), mask=mask)
    tl.store(scale, own)
