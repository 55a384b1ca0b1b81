"""Planted faults: small, plausible mistakes that an error budget must reject.

Each is a working operator with one thing wrong. A test runs every fault and asserts that
:func:`skyreels_rt.testing.numerics.assert_within_budget` refuses its output: a budget that accepts
one of them proves nothing about the real implementation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from skyreels_rt.kernels.reference.audio_cross_attention import audio_cross_attention
from skyreels_rt.kernels.reference.qk_norm_rope import qk_norm_rope

Pair = tuple[Tensor, Tensor]


def gain(x: Tensor) -> Tensor:
    """0.4 % too loud."""
    return (x.double() * 1.004).to(x.dtype)


def dropped_tail(x: Tensor) -> Tensor:
    """Last column missing: an unmasked vector tail."""
    out = x.clone()
    out[..., -1] = 0
    return out


def truncated(x: Tensor, exact: Tensor) -> Tensor:
    """``exact`` (fp32 or fp64) cut to the dtype of ``x`` instead of rounded to nearest even.

    Parameters
    ----------
    x : Tensor, bf16
        Right output, for its dtype.
    exact : Tensor, same shape
        The same before its last rounding.
    """
    bits = exact.float().contiguous().view(torch.int32) & -0x10000
    return bits.view(torch.float32).to(x.dtype)


def _qk_wrong_eps(*tensors: Tensor, eps: float, num_heads: int) -> Pair:
    return qk_norm_rope(*tensors, eps=10 * eps, num_heads=num_heads)


def _qk_per_head_norm(
    q: Tensor,
    k: Tensor,
    wq: Tensor,
    wk: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    num_heads: int,
) -> Pair:
    def renormed(x: Tensor) -> Tensor:
        heads: Tensor = x.double().unflatten(-1, (num_heads, -1))
        scale = heads.square().mean((-2, -1), keepdim=True) / heads.square().mean(-1, keepdim=True)
        return (heads * scale.sqrt()).flatten(-2).to(x.dtype)

    return qk_norm_rope(renormed(q), renormed(k), wq, wk, cos, sin, eps=eps, num_heads=num_heads)


def _qk_shifted_position(
    q: Tensor,
    k: Tensor,
    wq: Tensor,
    wk: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    num_heads: int,
) -> Pair:
    return qk_norm_rope(q, k, wq, wk, cos.roll(1, 0), sin.roll(1, 0), eps=eps, num_heads=num_heads)


def _qk_half_split(
    q: Tensor,
    k: Tensor,
    wq: Tensor,
    wk: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    num_heads: int,
) -> Pair:
    def permuted(x: Tensor) -> Tensor:
        mixed: Tensor = x.unflatten(-1, (num_heads, 2, -1)).transpose(-1, -2).flatten(-3)
        return mixed

    q, k, wq, wk = permuted(q), permuted(k), permuted(wq), permuted(wk)
    return qk_norm_rope(q, k, wq, wk, cos, sin, eps=eps, num_heads=num_heads)


def _qk_rounded_twice(
    q: Tensor,
    k: Tensor,
    wq: Tensor,
    wk: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    num_heads: int,
) -> Pair:
    still = torch.ones_like(cos), torch.zeros_like(sin)
    q, k = qk_norm_rope(q, k, wq, wk, *still, eps=eps, num_heads=num_heads)

    def rotated(x: Tensor) -> Tensor:
        heads: Tensor = x.float().unflatten(-1, (num_heads, -1, 2))
        x0, x1 = heads.unbind(-1)
        c, s = cos[:, None], sin[:, None]
        return torch.stack((x0 * c - x1 * s, x0 * s + x1 * c), -1).flatten(-3).to(x.dtype)

    return rotated(q), rotated(k)


def _qk_gain(*tensors: Tensor, eps: float, num_heads: int) -> Pair:
    q, k = qk_norm_rope(*tensors, eps=eps, num_heads=num_heads)
    return gain(q), gain(k)


def _qk_dropped_tail(*tensors: Tensor, eps: float, num_heads: int) -> Pair:
    q, k = qk_norm_rope(*tensors, eps=eps, num_heads=num_heads)
    return dropped_tail(q), dropped_tail(k)


QK_NORM_ROPE: dict[str, Callable[..., Pair]] = {
    "wrong_eps": _qk_wrong_eps,
    "per_head_norm": _qk_per_head_norm,
    "shifted_position": _qk_shifted_position,
    "half_split_pairs": _qk_half_split,
    "rounded_twice": _qk_rounded_twice,
    "gain": _qk_gain,
    "dropped_tail": _qk_dropped_tail,
}
"""Faulty versions of ``qk_norm_rope``, called like its reference."""


def _audio_wrong_scale(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int) -> Tensor:
    return audio_cross_attention((q.double() * 1.01).to(q.dtype), k, v, num_heads=num_heads)


def _audio_shifted_frame(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int) -> Tensor:
    return audio_cross_attention(q, k.roll(1, 1), v.roll(1, 1), num_heads=num_heads)


def _audio_all_frames(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int) -> Tensor:
    return audio_cross_attention(
        q, k.flatten(1, 2)[:, None], v.flatten(1, 2)[:, None], num_heads=num_heads
    )


def _audio_dropped_token(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int) -> Tensor:
    return audio_cross_attention(q, k[:, :, :-1], v[:, :, :-1], num_heads=num_heads)


def _audio_gain(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int) -> Tensor:
    return gain(audio_cross_attention(q, k, v, num_heads=num_heads))


AUDIO_CROSS_ATTENTION: dict[str, Callable[..., Tensor]] = {
    "wrong_scale": _audio_wrong_scale,
    "shifted_frame": _audio_shifted_frame,
    "all_frames": _audio_all_frames,
    "dropped_token": _audio_dropped_token,
    "gain": _audio_gain,
}
"""Faulty versions of ``audio_cross_attention``, called like its reference."""


def _frames_half_up(frames: Tensor) -> Tensor:
    levels = (((frames.float() + 1.0) * 127.5).clamp(0, 255) + 0.5).floor()
    return levels.to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def _frames_truncated(frames: Tensor) -> Tensor:
    levels = ((frames.float() + 1.0) * 127.5).clamp(0, 255)
    return levels.to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def _frames_128(frames: Tensor) -> Tensor:
    levels = ((frames.float() + 1.0) * 128.0).clamp(0, 255).round()
    return levels.to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def _frames_bgr(frames: Tensor) -> Tensor:
    levels = ((frames.float() + 1.0) * 127.5).clamp(0, 255).round()
    return levels.to(torch.uint8).flip(0).permute(1, 2, 3, 0).contiguous()


FRAMES_TO_UINT8: dict[str, Callable[[Tensor], Tensor]] = {
    "half_up": _frames_half_up,
    "truncated": _frames_truncated,
    "scale_128": _frames_128,
    "bgr": _frames_bgr,
}
"""Faulty versions of ``frames_to_uint8``; bit equality must reject them."""
