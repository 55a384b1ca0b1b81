"""Triton implementation of :func:`skyreels_rt.kernels.residual_store`."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

CONFIGS: dict[str, int] = {"BLOCK": 2048, "num_warps": 4}
"""Chosen by inspection of registers, not yet measured on a GPU."""


@triton.jit
def _residual_store_kernel(before, after, out, count, BLOCK: tl.constexpr):
    i = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    entered = tl.load(before + i, mask=mask, other=0.0).to(tl.float32)
    left = tl.load(after + i, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + i, tl.cast(left - entered, out.dtype.element_ty), mask=mask)


def residual_store(before: Tensor, after: Tensor, out: Tensor) -> None:
    """``after - before`` into ``out``, all dense and of one layout."""
    count = before.numel()
    _residual_store_kernel[(triton.cdiv(count, CONFIGS["BLOCK"]),)](
        before, after, out, count, BLOCK=CONFIGS["BLOCK"], num_warps=CONFIGS["num_warps"]
    )


def _aot(dtype: str) -> tuple[Any, dict[str, str], dict[str, Any], int]:
    constants = {"count": 32760 * 1536, "BLOCK": CONFIGS["BLOCK"]}  # tokens of 480p, 81 frames
    pointers = dict.fromkeys(("before", "after", "out"), f"*{dtype}")
    signature = pointers | dict.fromkeys(constants, "constexpr")
    return _residual_store_kernel, signature, constants, CONFIGS["num_warps"]


AOT = [_aot(dtype) for dtype in ("bf16", "fp32")]
"""Kernel, signature, constants and warps of every configuration, for compile tests.

``count`` is a constant there, because Triton specialises on its divisibility at run time, too.
"""
