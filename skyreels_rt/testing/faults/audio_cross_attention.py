"""Faulty versions of :func:`skyreels_rt.kernels.audio_cross_attention`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from skyreels_rt.kernels.reference.audio_cross_attention import audio_cross_attention
from skyreels_rt.testing.faults.corruptions import gain


def _wrong_scale(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int) -> Tensor:
    return audio_cross_attention((q.double() * 1.01).to(q.dtype), k, v, num_heads=num_heads)


def _shifted_frame(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int) -> Tensor:
    return audio_cross_attention(q, k.roll(1, 1), v.roll(1, 1), num_heads=num_heads)


def _all_frames(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int) -> Tensor:
    return audio_cross_attention(
        q, k.flatten(1, 2)[:, None], v.flatten(1, 2)[:, None], num_heads=num_heads
    )


def _dropped_token(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int) -> Tensor:
    return audio_cross_attention(q, k[:, :, :-1], v[:, :, :-1], num_heads=num_heads)


def _gain(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int) -> Tensor:
    return gain(audio_cross_attention(q, k, v, num_heads=num_heads))


FAULTS: dict[str, Callable[..., Tensor]] = {
    "wrong_scale": _wrong_scale,
    "shifted_frame": _shifted_frame,
    "all_frames": _all_frames,
    "dropped_token": _dropped_token,
    "gain": _gain,
}
"""Faulty versions of ``audio_cross_attention``, called like its reference."""
