"""Faulty versions of :func:`skyreels_rt.kernels.dense_attention`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from skyreels_rt.kernels.reference.dense_attention import dense_attention
from skyreels_rt.testing.faults.corruptions import gain

_BLOCK = 128  # keys


def _blocks(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maxima (., L, 1), sums (., L, 1) and outputs (., L, K) of each block, stacked in front."""
    parts = []
    for keys, values in zip(k.split(_BLOCK, dim=2), v.split(_BLOCK, dim=2), strict=True):
        scores = (q @ keys.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
        largest = scores.amax(-1, keepdim=True)
        weights = (scores - largest).exp()
        parts.append((largest, weights.sum(-1, keepdim=True), weights @ values.float()))
    maxima, sums, outputs = (torch.stack(part) for part in zip(*parts, strict=True))
    return maxima, sums, outputs


def _wrong_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return dense_attention((q.double() * 1.01).to(q.dtype), k, v)


def _no_rescale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each block keeps its own maximum when the blocks are added."""
    _, sums, outputs = _blocks(q, k, v)
    return (outputs.sum(0) / sums.sum(0)).to(q.dtype)


def _sums_not_rescaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    maxima, sums, outputs = _blocks(q, k, v)
    factors = (maxima - maxima.amax(0)).exp()
    return ((outputs * factors).sum(0) / sums.sum(0)).to(q.dtype)


def _dropped_last_key(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return dense_attention(q, k[:, :, :-1], v[:, :, :-1])


def _padding_attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys and values of zeros up to a whole group of eight."""
    pad = (0, 0, 0, 8 - k.shape[2] % 8)
    return dense_attention(q, *(torch.nn.functional.pad(x, pad) for x in (k, v)))


def _swapped_pairs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The values of two neighbouring keys exchanged, as in a pair packed the wrong way round."""
    even = v.shape[2] // 2 * 2
    pairs = v[:, :, :even].unflatten(2, (-1, 2)).flip(3).flatten(2, 3)
    return dense_attention(q, k, torch.cat((pairs, v[:, :, even:]), dim=2))


def _swapped_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return dense_attention(q, k.flip(1), v)


def _gain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return gain(dense_attention(q, k, v))


FAULTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "wrong_scale": _wrong_scale,
    "no_rescale": _no_rescale,
    "sums_not_rescaled": _sums_not_rescaled,
    "dropped_last_key": _dropped_last_key,
    "padding_attended": _padding_attended,
    "swapped_pairs": _swapped_pairs,
    "swapped_heads": _swapped_heads,
    "gain": _gain,
}
"""Faulty versions of ``dense_attention``, called with its three tensors."""
