"""Triton implementation of :func:`skyreels_rt.kernels.qk_norm_rope`.

One program takes one token of q or of k: its whole row as channel pairs, so that the rotation needs
no exchange between threads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from skyreels_rt.kernels.triton._rows import CONFIGS, row_config


@triton.jit
def _qk_norm_rope_kernel(
    q, k, weight_q, weight_k, cos, sin, length, q_batch, q_row, k_batch, k_row,
    WIDTH: tl.constexpr, HALF_HEAD: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.cast(tl.program_id(0), tl.int64)
    batch = row // length
    token = row % length
    if tl.program_id(1) == 0:
        x = q + batch * q_batch + token * q_row
        weight = weight_q
    else:
        x = k + batch * k_batch + token * k_row
        weight = weight_k
    columns = tl.arange(0, BLOCK)
    v = tl.load(x + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    w = tl.load(weight + columns, mask=columns < WIDTH, other=0.0, eviction_policy="evict_last")
    normed = v * tl.rsqrt(tl.sum(v * v, 0) / WIDTH + EPS) * w
    x0, x1 = tl.split(tl.reshape(normed, (BLOCK // 2, 2)))
    pairs = tl.arange(0, BLOCK // 2)
    angle = token * HALF_HEAD + pairs % HALF_HEAD
    c = tl.load(cos + angle, mask=pairs < WIDTH // 2, other=0.0)
    s = tl.load(sin + angle, mask=pairs < WIDTH // 2, other=0.0)
    rotated = tl.reshape(tl.join(x0 * c - x1 * s, x0 * s + x1 * c), (BLOCK,))
    tl.store(x + columns, rotated.to(q.dtype.element_ty), mask=columns < WIDTH)


def launch(
    q: Tensor,
    k: Tensor,
    weights: list[Tensor],
    angles: list[Tensor],
    eps: float,
    head_dim: int,
) -> None:
    """Overwrite ``q`` and ``k``; their weights and the tables (cos, sin) are dense and fp32."""
    batch, length, width = q.shape
    if q.numel() == 0:
        return
    block, num_warps = row_config(width)
    with torch.cuda.device_of(q):
        _qk_norm_rope_kernel[(batch * length, 2)](
            q, k, *weights, *angles, length, *q.stride()[:2], *k.stride()[:2],
            WIDTH=width, HALF_HEAD=head_dim // 2, EPS=eps, BLOCK=block, num_warps=num_warps,
        )  # fmt: skip


_OPERANDS = ("weight_q", "weight_k", "cos", "sin")

AOT = [
    (
        _qk_norm_rope_kernel,
        {
            "q": f"*{dtype}", "k": f"*{dtype}", **dict.fromkeys(_OPERANDS, "*fp32"),
            "length": "i32", "q_batch": "i64", "q_row": "i64", "k_batch": "i64", "k_row": "i64",
        },
        {"WIDTH": block * 5 // 8, "HALF_HEAD": 64, "EPS": 1e-6, "BLOCK": block},
        num_warps,
    )
    for dtype in ("bf16", "fp32")
    for block, num_warps in CONFIGS.items()
]  # fmt: skip
"""Kernel, signature, constants and warps of every configuration, to compile ahead of time."""
