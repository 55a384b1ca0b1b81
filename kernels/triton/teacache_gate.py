"""Triton implementation of :func:`skyreels_rt.kernels.teacache_gate`: partial sums, then one block.

The coefficients are constants of the compiled kernel: they belong to a checkpoint, and as arguments
Triton would round them to fp32.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor, uint8

CHUNK = 16384  # elements of one pair of partial sums
CONFIGS: dict[str, int] = {"BLOCK": 1024, "num_warps": 4}
"""Chosen by inspection of registers, not yet measured on a GPU."""


@triton.jit
def _partial_sums_kernel(
    signal, previous, sums, count, num_chunks, CHUNK: tl.constexpr, BLOCK: tl.constexpr
):
    chunk = tl.cast(tl.program_id(0), tl.int64)
    change = tl.zeros((BLOCK,), tl.float32)
    size = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, CHUNK, BLOCK):
        i = chunk * CHUNK + first + tl.arange(0, BLOCK)
        mask = i < count
        before = tl.load(previous + i, mask=mask, other=0.0).to(tl.float32)
        change += tl.abs(tl.load(signal + i, mask=mask, other=0.0).to(tl.float32) - before)
        size += tl.abs(before)
    tl.store(sums + chunk, tl.sum(change.to(tl.float64), axis=0))
    tl.store(sums + num_chunks + chunk, tl.sum(size.to(tl.float64), axis=0))


@triton.jit
def _decide_kernel(
    sums, num_chunks, accumulated, skip, threshold, COEFFICIENTS: tl.constexpr, BLOCK: tl.constexpr
):
    change = tl.zeros((BLOCK,), tl.float64)
    size = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, num_chunks, BLOCK):
        i = first + tl.arange(0, BLOCK)
        mask = i < num_chunks
        change += tl.load(sums + i, mask=mask, other=0.0)
        size += tl.load(sums + num_chunks + i, mask=mask, other=0.0)
    ratio = tl.sum(change, axis=0) / tl.sum(size, axis=0)
    estimate = ratio * 0.0
    for power in tl.static_range(len(COEFFICIENTS)):
        estimate = estimate * ratio + tl.full((), COEFFICIENTS[power], tl.float64)
    total = (tl.load(accumulated).to(tl.float64) + estimate).to(tl.float32)
    low = (total < threshold) & (total > float("-inf"))
    tl.store(accumulated, tl.where(low, total, 0.0))
    tl.store(skip, low.to(tl.uint8))


def teacache_gate(
    signal: Tensor,
    previous: Tensor,
    accumulated: Tensor,
    skip: Tensor,
    sums: Tensor,
    coefficients: tuple[float, ...],
    threshold: float,
) -> None:
    """Launch both kernels, or only the second where the step is forced.

    Parameters
    ----------
    signal, previous, accumulated, coefficients, threshold
        As the operator's.
    skip : Tensor, shape (1,), bool
        Written.
    sums : Tensor, shape (number of chunks, 2), float64
        Scratch. No chunk means a forced step: 0 / 0 is not a number, and that never skips.
    """
    num_chunks = sums.shape[0]
    config = {"BLOCK": CONFIGS["BLOCK"], "num_warps": CONFIGS["num_warps"]}
    if num_chunks:
        _partial_sums_kernel[(num_chunks,)](
            signal, previous, sums, signal.numel(), num_chunks, CHUNK=CHUNK, **config
        )
    _decide_kernel[(1,)](
        sums, num_chunks, accumulated, skip.view(uint8), threshold, COEFFICIENTS=coefficients,
        **config,
        enable_fp_fusion=False,  # the polynomial rounds as on the host
    )  # fmt: skip


COUNT = 32760 * 1536  # tokens of 480p, 81 frames


def _aot_sums(dtype: str) -> tuple[Any, dict[str, str], dict[str, Any], int]:
    constants = {
        "count": COUNT, "num_chunks": COUNT // CHUNK + 1, "CHUNK": CHUNK, "BLOCK": CONFIGS["BLOCK"]
    }  # fmt: skip
    pointers = {"signal": f"*{dtype}", "previous": f"*{dtype}", "sums": "*fp64"}
    signature = pointers | dict.fromkeys(constants, "constexpr")
    return _partial_sums_kernel, signature, constants, CONFIGS["num_warps"]


def _aot_decide() -> tuple[Any, dict[str, str], dict[str, Any], int]:
    constants = {
        "num_chunks": 4096,
        "COEFFICIENTS": (2396.76752, -1311.10545, 201.331979, -8.29855975, 0.137887774),
        "BLOCK": CONFIGS["BLOCK"],
    }
    pointers = {"sums": "*fp64", "accumulated": "*fp32", "skip": "*u8"}
    signature = pointers | {"threshold": "fp32"} | dict.fromkeys(constants, "constexpr")
    return _decide_kernel, signature, constants, CONFIGS["num_warps"]


AOT = [*[_aot_sums(dtype) for dtype in ("bf16", "fp32")], _aot_decide()]
"""Kernel, signature, constants and warps of every configuration, for compile tests.

Sizes are constants there, because Triton specialises on their divisibility at run time, too.
"""
