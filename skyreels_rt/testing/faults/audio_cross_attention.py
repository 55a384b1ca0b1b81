"""Faulty versions of :func:`skyreels_rt.kernels.audio_cross_attention`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
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


Options = dict[str, Any]  # the reference's keyword arguments


def _late_window(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
    ranges = options["ranges"] + torch.tensor([1, 0], dtype=torch.int32)
    ranges[:, 0] = ranges[:, 0].minimum(k.shape[1] - ranges[:, 1])
    return audio_cross_attention(q, k, v, **options | {"ranges": ranges})


def _short_window(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
    ranges = options["ranges"] - torch.tensor([0, 1], dtype=torch.int32)
    return audio_cross_attention(q, k, v, **options | {"ranges": ranges})


def _mask_ignored(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
    return audio_cross_attention(q, k, v, **options | {"token_mask": None})


def _masked_tokens_weigh(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
    """Masked values are zero, but their scores still share in the softmax."""
    v = v * options["token_mask"][..., None]
    return audio_cross_attention(q, k, v, **options | {"token_mask": None})


def _gate_of_next_frame(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
    gate_BF = options["gate_BF"].roll(1, 1)
    return audio_cross_attention(q, k, v, **options | {"gate_BF": gate_BF})


def _norm_per_head(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
    heads: Tensor = q.double().unflatten(-1, (options["num_heads"], -1))
    scale = heads.square().mean((-2, -1), keepdim=True) / heads.square().mean(-1, keepdim=True)
    return audio_cross_attention((heads * scale.sqrt()).flatten(-2).to(q.dtype), k, v, **options)


def _norm_without_weight(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
    ones = torch.ones_like(options["norm_weight_D"])
    return audio_cross_attention(q, k, v, **options | {"norm_weight_D": ones})


def _wrong_eps(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
    return audio_cross_attention(q, k, v, **options | {"eps": 1e-5})


FAULTS: dict[str, Callable[..., Tensor]] = {
    "wrong_scale": _wrong_scale,
    "shifted_frame": _shifted_frame,
    "all_frames": _all_frames,
    "dropped_token": _dropped_token,
    "gain": _gain,
}
"""Faulty versions of ``audio_cross_attention``, called like its reference."""

MODIFIER_FAULTS: dict[str, Callable[..., Tensor]] = {
    "late_window": _late_window,
    "short_window": _short_window,
    "mask_ignored": _mask_ignored,
    "masked_tokens_weigh": _masked_tokens_weigh,
    "gate_of_next_frame": _gate_of_next_frame,
    "norm_per_head": _norm_per_head,
    "norm_without_weight": _norm_without_weight,
    "wrong_eps": _wrong_eps,
}
"""Faulty versions of the call with ranges, mask, gate and norm, which come as one dict."""
