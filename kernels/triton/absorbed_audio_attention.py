"""Triton softmax of :func:`skyreels_rt.kernels.absorbed_audio_attention`.

A program takes some (row, head) pairs at a time; a pair's M logits are consecutive in memory, and
so are the pairs.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

CONFIGS: dict[int, tuple[int, int]] = {
    4: (512, 4), 8: (256, 4), 16: (128, 4), 32: (64, 4), 64: (32, 4), 128: (16, 4), 256: (8, 4),
}  # fmt: skip
"""Padded tokens -> (row, head) pairs of a program, warps: 2048 logits, 16 a thread.

Chosen by inspection of registers, not yet measured on a GPU.
"""


@triton.jit
def _group_softmax_kernel(
    logits_ptr, c_ptr, out_ptr, num_pairs, rows, heads,
    TOKENS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Softmax of logits + c of BLOCK pairs."""
    pair = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    token = tl.arange(0, BLOCK_M)
    here = (pair < num_pairs)[:, None] & (token < TOKENS)[None, :]
    frame = pair // heads // rows
    of_frame = (frame * heads + pair % heads) * TOKENS
    x = tl.load(logits_ptr + pair[:, None] * TOKENS + token[None, :], mask=here, other=0.0)
    x += tl.load(c_ptr + of_frame[:, None] + token[None, :], mask=here, other=0.0)
    x = tl.where((token < TOKENS)[None, :], x, -float("inf"))
    e = tl.exp(x - tl.max(x, 1)[:, None])
    p = e / tl.sum(e, 1)[:, None]
    at = out_ptr + pair[:, None] * TOKENS + token[None, :]
    tl.store(at, p.to(out_ptr.dtype.element_ty), mask=here)


def launch(logits: Tensor, c: Tensor, out: Tensor, tokens: int) -> None:
    """Run on checked tensors.

    Parameters
    ----------
    logits : Tensor, shape (G, P, N*M), fp32, dense
        Logits of the P rows of each frame.
    c : Tensor, shape (G, N*M), fp32, dense
        Added to them.
    out : Tensor, shape (G, P, N*M), dense
        Probabilities.
    tokens : int
        M.
    """
    padded = max(4, triton.next_power_of_2(tokens))
    block, warps = CONFIGS[padded]
    rows, heads = logits.shape[1], logits.shape[2] // tokens
    num_pairs = logits.shape[0] * rows * heads
    _group_softmax_kernel[(triton.cdiv(num_pairs, block),)](
        logits, c, out, num_pairs, rows, heads,
        TOKENS=tokens, BLOCK=block, BLOCK_M=padded, num_warps=warps,
    )  # fmt: skip


def _aot() -> list[tuple[Any, dict[str, str], dict[str, Any], int]]:
    kernels: list[tuple[Any, dict[str, str], dict[str, Any], int]] = []
    for element in ("*bf16", "*fp32"):
        for padded, (block, warps) in CONFIGS.items():
            signature = {"logits_ptr": "*fp32", "c_ptr": "*fp32", "out_ptr": element}
            signature |= {"num_pairs": "i32", "rows": "i32", "heads": "i32"}
            constants = {"TOKENS": padded, "BLOCK": block, "BLOCK_M": padded}
            kernels.append((_group_softmax_kernel, signature, constants, warps))
    return kernels


AOT = _aot()
"""(kernel, signature, constants, warps) of every config, compiled by the tests without a GPU."""
