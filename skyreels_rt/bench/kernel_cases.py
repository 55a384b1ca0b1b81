"""What the kernel benchmark runs: every operator at the embedded model's and at larger shapes.

A case makes its inputs for a type, calls the operator with a given implementation, and names the
eager form that the operator replaces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from skyreels_rt import kernels
from skyreels_rt.kernels import AttentionBackend, Impl
from skyreels_rt.kernels.reference.audio_cross_attention import (
    audio_cross_attention as eager_audio_cross_attention,
)
from skyreels_rt.kernels.reference.blf_step import blf_step as eager_blf_step
from skyreels_rt.kernels.reference.frames_to_uint8 import frames_to_uint8 as eager_frames_to_uint8
from skyreels_rt.kernels.reference.gate_residual_norm_modulate import (
    gate_residual_norm_modulate as eager_gate_residual_norm_modulate,
)
from skyreels_rt.kernels.reference.gate_residual_norm_modulate_quantize import (
    gate_residual_norm_modulate_quantize as eager_gate_residual_norm_modulate_quantize,
)
from skyreels_rt.kernels.reference.norm_modulate import norm_modulate as eager_norm_modulate
from skyreels_rt.kernels.reference.norm_modulate_quantize import (
    norm_modulate_quantize as eager_norm_modulate_quantize,
)
from skyreels_rt.kernels.reference.qk_norm_rope import qk_norm_rope as eager_qk_norm_rope
from skyreels_rt.kernels.reference.quantize_rows import quantize_rows as eager_quantize_rows
from skyreels_rt.kernels.reference.residual_apply import residual_apply as eager_residual_apply
from skyreels_rt.kernels.reference.residual_store import residual_store as eager_residual_store
from skyreels_rt.kernels.reference.rms_norm_silu import rms_norm_silu as eager_rms_norm_silu
from skyreels_rt.kernels.reference.teacache_gate import teacache_gate as eager_teacache_gate

Inputs = tuple[Any, ...]


@dataclass(frozen=True)
class KernelCase:
    """One operator at one shape.

    Attributes
    ----------
    op : str
        Operator, a field of :class:`~skyreels_rt.kernels.KernelPlan`.
    name : str
        Shape's name, part of the row's.
    shape : dict
        Sizes, for the report.
    fused : bool
        Whether it replaces several passes over memory; else a single one.
    make : callable
        Inputs of a type.
    run : callable
        The operator, with ``impl``: that field's value.
    reference : callable
        What it replaces, in eager torch.
    h200_s : float, optional
        Most seconds that a call should take on an H200, in bfloat16 (DESIGN.md names the floor).
    """

    op: str
    name: str
    shape: dict[str, int]
    fused: bool
    make: Callable[[torch.dtype], Inputs]
    run: Callable[..., object]
    reference: Callable[..., object]
    h200_s: float | None = None

    @property
    def flops(self) -> float | None:
        """Floating-point operations of the two products of a dense attention; else None."""
        if self.op != "attention":
            return None
        sizes = self.shape
        return 4.0 * sizes["heads"] * sizes["tokens"] * sizes["keys"] * sizes["head_dim"]


def _random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _norm(name: str, batch: int, length: int, width: int) -> KernelCase:
    def make(dtype: torch.dtype) -> Inputs:
        table = _random(batch, 6, width)
        return _random(batch, length, width, dtype=dtype), table[:, 1:2], table[:, :1]

    return KernelCase(
        "norm_modulate", name, {"batch": batch, "tokens": length, "width": width}, True, make,
        lambda x, w, b, impl: kernels.norm_modulate(x, w, b, eps=1e-6, impl=impl),
        lambda x, w, b: eager_norm_modulate(x, w, b, eps=1e-6),
    )  # fmt: skip


def _quantize(name: str, length: int, width: int) -> KernelCase:
    return KernelCase(
        "quantize_rows", name, {"tokens": length, "width": width}, True,
        lambda dtype: (_random(1, length, width, dtype=dtype),),
        lambda x, impl: kernels.quantize_rows(x, impl=impl),
        eager_quantize_rows,
    )  # fmt: skip


def _norm_quantize(name: str, length: int, width: int) -> KernelCase:
    plain = _norm(name, 1, length, width)
    return KernelCase(
        "norm_modulate_quantize", name, plain.shape, True, plain.make,
        lambda x, w, b, impl: kernels.norm_modulate_quantize(x, w, b, eps=1e-6, impl=impl),
        lambda x, w, b: eager_norm_modulate_quantize(x, w, b, eps=1e-6),
    )  # fmt: skip


def _gate_norm(name: str, batch: int, length: int, width: int) -> KernelCase:
    def make(dtype: torch.dtype) -> Inputs:
        table = _random(batch, 6, width)
        x, y = (
            _random(batch, length, width, dtype=dtype),
            _random(batch, length, width, dtype=dtype),
        )
        return x, y, 1e-3 * table[:, 2:3], table[:, 1:2], table[:, :1]

    return KernelCase(
        "gate_residual_norm_modulate", name, {"batch": batch, "tokens": length, "width": width},
        True, make,
        lambda x, y, g, w, b, impl: kernels.gate_residual_norm_modulate(
            x, y, g, w, b, eps=1e-6, impl=impl
        ),
        lambda x, y, g, w, b: eager_gate_residual_norm_modulate(x, y, g, w, b, eps=1e-6),
    )  # fmt: skip


def _gate_norm_quantize(name: str, length: int, width: int) -> KernelCase:
    plain = _gate_norm(name, 1, length, width)
    return KernelCase(
        "gate_residual_norm_modulate_quantize", name, plain.shape, True, plain.make,
        lambda *x, impl: kernels.gate_residual_norm_modulate_quantize(*x, eps=1e-6, impl=impl),
        lambda *x: eager_gate_residual_norm_modulate_quantize(*x, eps=1e-6),
    )  # fmt: skip


def _qk(name: str, length: int, heads: int, head_dim: int) -> KernelCase:
    def make(dtype: torch.dtype) -> Inputs:
        width = heads * head_dim
        weights = torch.ones(2, width)
        angles = _random(length, head_dim // 2)
        q, k = _random(1, length, width, dtype=dtype), _random(1, length, width, dtype=dtype)
        return q, k, weights[0], weights[1], angles.cos(), angles.sin()

    return KernelCase(
        "qk_norm_rope", name, {"tokens": length, "heads": heads, "head_dim": head_dim}, True, make,
        lambda *x, impl: kernels.qk_norm_rope(*x, eps=1e-6, num_heads=heads, impl=impl),
        lambda *x: eager_qk_norm_rope(*x, eps=1e-6, num_heads=heads),
    )  # fmt: skip


def _audio(
    name: str, frames: int, patches: int, tokens: int, heads: int, head_dim: int
) -> KernelCase:
    def make(dtype: torch.dtype) -> Inputs:
        width = heads * head_dim
        q = _random(1, frames * patches, width, dtype=dtype)
        k, v = _random(2, 1, frames, tokens, width, dtype=dtype)
        return q, k, v

    sizes = {
        "frames": frames, "patches": patches, "tokens": tokens, "heads": heads,
        "head_dim": head_dim,
    }  # fmt: skip
    return KernelCase(
        "audio_cross_attention", name, sizes, True, make,
        lambda q, k, v, impl: kernels.audio_cross_attention(q, k, v, num_heads=heads, impl=impl),
        lambda q, k, v: eager_audio_cross_attention(q, k, v, num_heads=heads),
    )  # fmt: skip


def _attention(name: str, heads: int, length: int, keys: int, head_dim: int) -> KernelCase:
    def make(dtype: torch.dtype) -> Inputs:
        q, k, v = (
            _random(1, count, heads, head_dim, dtype=dtype).transpose(1, 2)
            for count in (length, keys, keys)
        )
        return q, k, v

    def run(q: Tensor, k: Tensor, v: Tensor, impl: Impl | AttentionBackend) -> object:
        return kernels.dense_attention(q, k, v, backend=AttentionBackend(impl.value))

    sizes = {"heads": heads, "tokens": length, "keys": keys, "head_dim": head_dim}
    return KernelCase("attention", name, sizes, False, make, run, F.scaled_dot_product_attention)


def _rms(name: str, channels: int, frames: int, side: int) -> KernelCase:
    return KernelCase(
        "rms_norm_silu", name, {"channels": channels, "frames": frames, "side": side}, True,
        lambda dtype: (_random(1, channels, frames, side, side, dtype=dtype), torch.ones(channels)),
        lambda x, gamma, impl: kernels.rms_norm_silu(x, gamma, impl=impl),
        eager_rms_norm_silu,
    )  # fmt: skip


def _frames(name: str, frames: int, side: int) -> KernelCase:
    return KernelCase(
        "frames_to_uint8", name, {"frames": frames, "side": side}, True,
        lambda dtype: (_random(3, frames, side, side, dtype=dtype),),
        lambda x, impl: kernels.frames_to_uint8(x, impl=impl),
        eager_frames_to_uint8,
    )  # fmt: skip


def _blf(name: str, windows: int, passes: int, side: int) -> KernelCase:
    window, overlap = 9, 3
    length = window + (windows - 1) * (window - overlap)
    starts = [index * (window - overlap) for index in range(windows)]
    guidance = (1.0,) if passes == 1 else (-1.0, 2.0)

    def make(dtype: torch.dtype) -> Inputs:
        velocities = [_random(passes, 16, window, side, side, dtype=dtype) for _ in starts]
        weights = torch.full((windows, window), 0.5)
        return _random(16, length, side, side), velocities, starts, weights, guidance, -0.1

    sizes = {"windows": windows, "window": window, "passes": passes, "side": side}
    return KernelCase(
        "blf_step", name, sizes, True, make,
        lambda *x, impl: kernels.blf_step(*x, impl=impl),
        eager_blf_step,
    )  # fmt: skip


def _residual(op: str, name: str, length: int, width: int) -> KernelCase:
    def make(dtype: torch.dtype) -> Inputs:
        count = 3 if op == "residual_store" else 2
        return tuple(1e-3 * _random(1, length, width, dtype=dtype) for _ in range(count))

    run: dict[str, Callable[..., object]] = {
        "residual_store": kernels.residual_store,
        "residual_apply": kernels.residual_apply,
    }
    eager: dict[str, Callable[..., object]] = {
        "residual_store": lambda before, after, out: eager_residual_store(before, after),  # noqa: ARG005
        "residual_apply": eager_residual_apply,
    }
    sizes = {"tokens": length, "width": width}
    return KernelCase(
        op, name, sizes, False, make, lambda *x, impl: run[op](*x, impl=impl), eager[op]
    )


def _gate(name: str, length: int, width: int) -> KernelCase:
    polynomial = (2.4e5, -3.9e4, 2.2e3, -5.1e1, 0.7)

    def make(dtype: torch.dtype) -> Inputs:
        x = _random(1, length, width, dtype=dtype)
        return x, x + 0.01, torch.zeros(1)

    def run(x: Tensor, y: Tensor, accumulated: Tensor, impl: Impl) -> object:
        return kernels.teacache_gate(x, y, accumulated, polynomial, 0.1, False, impl=impl)

    return KernelCase(
        "teacache_gate", name, {"tokens": length, "width": width}, True, make, run,
        lambda x, y, accumulated: eager_teacache_gate(x, y, accumulated, polynomial, 0.1, False),
    )  # fmt: skip


# The embedded model: 9 latents of 16 x 16 patches, width 192. Wan2.1-1.3B at 640 x 384, 33 frames:
# 9 latents of 24 x 40 patches, width 1536.
CASES: tuple[KernelCase, ...] = (
    _norm("demo", 1, 2304, 192),
    _norm("1.3b", 1, 8640, 1536),
    _gate_norm("demo", 1, 2304, 192),
    _gate_norm("1.3b", 1, 8640, 1536),
    _quantize("demo", 2304, 192),
    _quantize("1.3b", 8640, 1536),
    _norm_quantize("demo", 2304, 192),
    _norm_quantize("1.3b", 8640, 1536),
    _gate_norm_quantize("demo", 2304, 192),
    _gate_norm_quantize("1.3b", 8640, 1536),
    _qk("demo", 2304, 3, 64),
    _qk("1.3b", 8640, 12, 128),
    _audio("demo", 9, 256, 8, 3, 64),
    _audio("1.3b", 9, 960, 32, 12, 128),
    _attention("demo", 3, 2304, 2304, 64),
    _attention("demo-text", 3, 2304, 144, 64),
    _attention("1.3b-text", 12, 8640, 512, 128),
    _rms("demo", 48, 4, 128),
    _rms("wan", 96, 4, 240),
    _frames("demo", 4, 256),
    _frames("480p", 4, 640),
    _blf("demo", 3, 2, 32),
    _blf("640x384", 3, 2, 62),
    _residual("residual_store", "demo", 2304, 192),
    _residual("residual_store", "1.3b", 8640, 1536),
    _residual("residual_apply", "demo", 2304, 192),
    _residual("residual_apply", "1.3b", 8640, 1536),
    _gate("demo", 2304, 192),
    _gate("1.3b", 8640, 1536),
)
"""Everything that ``skyreels-rt bench kernels`` times."""

# Wan2.1-14B at 832 x 480, 81 frames: 21 latents of 30 x 52 patches, width 5120.
GPU_CASES: tuple[KernelCase, ...] = (
    _norm("14b", 1, 32760, 5120),
    replace(_gate_norm("14b", 1, 32760, 5120), h200_s=0.37e-3),
    _quantize("14b", 32760, 5120),
    _norm_quantize("14b", 32760, 5120),
    _gate_norm_quantize("14b", 32760, 5120),
    replace(_qk("14b", 32760, 40, 128), h200_s=0.37e-3),
    replace(_audio("14b", 21, 1560, 32, 40, 128), h200_s=0.20e-3),
    _attention("14b", 40, 32760, 32760, 128),
    _attention("14b-text", 40, 32760, 512, 128),
    _rms("480p", 96, 4, 480),
    _frames("480p", 4, 640),
    _blf("480p", 4, 2, 104),
    _residual("residual_store", "14b", 32760, 5120),
    _residual("residual_apply", "14b", 32760, 5120),
    _gate("14b", 32760, 5120),
)
"""What is timed on a GPU, where smaller shapes measure launches."""
