"""Triton implementation of :func:`skyreels_rt.kernels.audio_cross_attention`.

One program is one head of BLOCK_P queries of one frame; it walks over the frame's tokens in blocks
with a running softmax, which for the usual 8 to 64 tokens is a single step. A norm of the queries
needs one factor a row, which a first launch writes.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from skyreels_rt.kernels import _native

CONFIGS: dict[tuple[bool, int], tuple[int, int, int]] = {
    (True, 16): (128, 64, 4), (True, 32): (128, 64, 4), (True, 64): (128, 64, 8),
    (True, 128): (128, 32, 8), (False, 16): (64, 32, 4), (False, 32): (64, 32, 4),
    (False, 64): (32, 32, 8), (False, 128): (16, 16, 8),
}  # fmt: skip
"""(16-bit elements, padded head size) -> queries, most tokens of a block, warps.

Chosen by inspection of registers, not yet measured on a GPU.
"""

_NORM_WIDTH = 1024  # channels a program of the row factors loads at once


@triton.jit
def _row_scale_kernel(
    q_ptr, scale_ptr, length, width, q_stride_batch, q_stride_row, EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """1 / sqrt(mean(q^2) + eps) of one row."""
    row = tl.program_id(0).to(tl.int64)
    start = q_ptr + (row // length) * q_stride_batch + (row % length) * q_stride_row
    lane = tl.arange(0, BLOCK)
    squares = tl.full((BLOCK,), 0.0, tl.float32)
    for first in range(0, width, BLOCK):
        x = tl.load(start + first + lane, mask=first + lane < width, other=0.0).to(tl.float32)
        squares += x * x
    tl.store(scale_ptr + row, 1.0 / tl.sqrt(tl.sum(squares, 0) / width + EPS))


@triton.jit
def _audio_cross_attention_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, ranges_ptr, mask_ptr, gate_ptr, scale_ptr, weight_ptr,
    frames, patches, tokens, num_heads,
    q_stride_batch, q_stride_row,
    k_stride_batch, k_stride_frame, k_stride_row,
    v_stride_batch, v_stride_frame, v_stride_row,
    mask_stride_batch, mask_stride_frame,
    HEAD_DIM: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    HAS_RANGES: tl.constexpr, HAS_MASK: tl.constexpr, HAS_GATE: tl.constexpr,
    HAS_NORM: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """BLOCK_P queries of one (batch, frame, head); UPCAST: dots in fp32, for the interpreter."""
    head = tl.program_id(0).to(tl.int64)
    frame_of_batch = tl.program_id(2).to(tl.int64)
    b = frame_of_batch // frames
    f = frame_of_batch % frames
    patch = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    row = f * patches + patch
    channel = tl.arange(0, BLOCK_K)
    in_patch = patch < patches
    in_head = channel < HEAD_DIM
    here = in_patch[:, None] & in_head[None, :]

    q_at = q_ptr + b * q_stride_batch + row[:, None] * q_stride_row + head * HEAD_DIM
    q = tl.load(q_at + channel[None, :], mask=here, other=0.0)
    dtype = q.dtype
    if HAS_NORM:
        scale = tl.load(scale_ptr + b * frames * patches + row, mask=in_patch, other=0.0)
        weight = tl.load(weight_ptr + head * HEAD_DIM + channel, mask=in_head, other=0.0)
        q = (q.to(tl.float32) * scale[:, None] * weight[None, :]).to(dtype)
    if UPCAST:
        q = q.to(tl.float32)

    start = tl.cast(0, tl.int64)
    count = tokens
    if HAS_RANGES:
        start = tl.load(ranges_ptr + 2 * f).to(tl.int64)
        count = tl.load(ranges_ptr + 2 * f + 1)
    to_base_two: tl.constexpr = 1.4426950408889634 / HEAD_DIM**0.5
    k_at = k_ptr + b * k_stride_batch + f * k_stride_frame + start * k_stride_row + head * HEAD_DIM
    v_at = v_ptr + b * v_stride_batch + f * v_stride_frame + start * v_stride_row + head * HEAD_DIM
    largest = tl.full((BLOCK_P,), -float("inf"), tl.float32)
    total = tl.full((BLOCK_P,), 0.0, tl.float32)
    sums = tl.full((BLOCK_P, BLOCK_K), 0.0, tl.float32)
    for first in tl.range(0, count, BLOCK_M, num_stages=1):  # one step as a rule
        token = (first + tl.arange(0, BLOCK_M)).to(tl.int64)
        attended = token < count
        kv = attended[:, None] & in_head[None, :]
        k = tl.load(k_at + token[:, None] * k_stride_row + channel[None, :], mask=kv, other=0.0)
        v = tl.load(v_at + token[:, None] * v_stride_row + channel[None, :], mask=kv, other=0.0)
        if UPCAST:
            k = k.to(tl.float32)
            v = v.to(tl.float32)
        if HAS_MASK:
            mask_at = mask_ptr + b * mask_stride_batch + f * mask_stride_frame + start + token
            attended = attended & (tl.load(mask_at, mask=attended, other=0) != 0)
        scores = tl.dot(q, tl.trans(k), input_precision="tf32x3") * to_base_two
        scores = tl.where(attended[None, :], scores, -float("inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        finite = tl.where(larger == -float("inf"), 0.0, larger)  # nothing attended so far
        p = tl.exp2(scores - finite[:, None])
        shrink = tl.exp2(largest - finite)
        total = total * shrink + tl.sum(p, 1)
        p = p.to(tl.float32 if UPCAST else dtype)
        sums = sums * shrink[:, None] + tl.dot(p, v, input_precision="tf32x3")
        largest = larger
    factor = 1.0 / tl.where(total == 0.0, 1.0, total)
    if HAS_GATE:
        factor *= tl.load(gate_ptr + frame_of_batch)
    length = tl.cast(frames, tl.int64) * patches
    out_at = out_ptr + ((b * length + row[:, None]) * num_heads + head) * HEAD_DIM
    tl.store(out_at + channel[None, :], (sums * factor[:, None]).to(dtype), mask=here)


def launch(
    tensors: tuple[Tensor, ...],
    options: tuple[Tensor | None, ...],
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    eps: float,
) -> None:
    """Run on checked tensors.

    Parameters
    ----------
    tensors : tuple of Tensor
        q, k, v and out; the last of shape (B, F*P, N*K), dense.
    options : tuple of Tensor or None
        Ranges (CPU), token mask, gate and norm weight, dense.
    sizes : tuple of int
        B, F, P, M, N, K.
    strides : tuple of int
        Of q (batch, row), k and v (batch, frame, row each) and the mask (batch, frame).
    eps : float
        Of the norm.
    """
    q = tensors[0]
    ranges, token_mask, gate, weight = options
    batch, frames, patches, tokens, num_heads, head_dim = sizes
    padded = max(16, triton.next_power_of_2(head_dim))
    block_p, block_m, warps = CONFIGS[q.element_size() == 2, padded]
    block_p = min(block_p, max(16, triton.next_power_of_2(patches)))
    block_m = min(block_m, max(16, triton.next_power_of_2(tokens)))
    if ranges is not None:
        ranges = ranges.to(q.device, non_blocking=True)
    if token_mask is not None:
        token_mask = token_mask.view(torch.uint8)
    scales = None
    if weight is not None:
        scales = q.new_empty((batch, frames * patches), dtype=torch.float32)
        _row_scale_kernel[(batch * frames * patches,)](
            q, scales, frames * patches, num_heads * head_dim, *strides[:2], EPS=eps,
            BLOCK=_NORM_WIDTH,
        )  # fmt: skip
    grid = (num_heads, triton.cdiv(patches, block_p), batch * frames)
    _audio_cross_attention_kernel[grid](
        *tensors, ranges, token_mask, gate, scales, weight,
        frames, patches, tokens, num_heads, *strides,
        HEAD_DIM=head_dim, BLOCK_P=block_p, BLOCK_M=block_m, BLOCK_K=padded,
        HAS_RANGES=ranges is not None, HAS_MASK=token_mask is not None, HAS_GATE=gate is not None,
        HAS_NORM=weight is not None, UPCAST=_native.triton_interprets(), num_warps=warps,
    )  # fmt: skip


def _aot() -> list[tuple[Any, dict[str, str], dict[str, Any], int]]:
    """Every tuned config for bf16 and fp32, with everything optional switched on."""
    kernels: list[tuple[Any, dict[str, str], dict[str, Any], int]] = []
    for element in ("bf16", "fp32"):
        norm = {"q_ptr": f"*{element}", "scale_ptr": "*fp32", "length": "i32", "width": "i32"}
        norm |= {"q_stride_batch": "i64", "q_stride_row": "i32"}
        constants: dict[str, Any] = {"EPS": 1e-6, "BLOCK": _NORM_WIDTH}
        kernels.append((_row_scale_kernel, norm, constants, 4))
    pointers = {"ranges_ptr": "*i32", "mask_ptr": "*u8", "gate_ptr": "*fp32"}
    pointers |= {"scale_ptr": "*fp32", "weight_ptr": "*fp32"}
    numbers = ["frames", "patches", "tokens", "num_heads", "q_stride_batch", "q_stride_row"]
    numbers += [f"{x}_stride_{axis}" for x in "kv" for axis in ("batch", "frame", "row")]
    numbers += ["mask_stride_batch", "mask_stride_frame"]
    flags = dict.fromkeys(("HAS_RANGES", "HAS_MASK", "HAS_GATE", "HAS_NORM"), True)
    for (is_16_bit, padded), (block_p, block_m, warps) in CONFIGS.items():
        element = "*bf16" if is_16_bit else "*fp32"
        signature = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), element) | pointers
        signature |= dict.fromkeys(numbers, "i32")
        constants = {"HEAD_DIM": padded, "BLOCK_P": block_p, "BLOCK_M": block_m, "BLOCK_K": padded}
        constants |= flags | {"UPCAST": False}
        kernels.append((_audio_cross_attention_kernel, signature, constants, warps))
    return kernels


AOT = _aot()
"""(kernel, signature, constants, warps) of every config, compiled by the tests without a GPU."""
