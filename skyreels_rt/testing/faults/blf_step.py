"""Faulty versions of :func:`skyreels_rt.kernels.blf_step`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from skyreels_rt.kernels.reference.blf_step import blf_step
from skyreels_rt.testing.faults.corruptions import dropped_tail, gain

Windows = Sequence[Tensor]


def _unweighted(
    latents: Tensor,
    velocities: Windows,
    starts: Sequence[int],
    weights: Tensor,
    guidance: Sequence[float],
    delta: float,
    *,
    num_pinned: int = 0,
) -> Tensor:
    ones = torch.ones_like(weights)
    return blf_step(latents, velocities, starts, ones, guidance, delta, num_pinned=num_pinned)


def _shifted_window(
    latents: Tensor,
    velocities: Windows,
    starts: Sequence[int],
    weights: Tensor,
    guidance: Sequence[float],
    delta: float,
    *,
    num_pinned: int = 0,
) -> Tensor:
    late = [velocity.roll(1, 2) for velocity in velocities]
    return blf_step(latents, late, starts, weights, guidance, delta, num_pinned=num_pinned)


def _swapped_passes(
    latents: Tensor,
    velocities: Windows,
    starts: Sequence[int],
    weights: Tensor,
    guidance: Sequence[float],
    delta: float,
    *,
    num_pinned: int = 0,
) -> Tensor:
    backwards = tuple(reversed(guidance))
    return blf_step(latents, velocities, starts, weights, backwards, delta, num_pinned=num_pinned)


def _bf16_sums(
    latents: Tensor,
    velocities: Windows,
    starts: Sequence[int],
    weights: Tensor,
    guidance: Sequence[float],
    delta: float,
    *,
    num_pinned: int = 0,
) -> Tensor:
    factors = torch.tensor(list(guidance), dtype=torch.bfloat16).view(-1, 1, 1, 1, 1)
    combined = [(v.bfloat16() * factors).sum(0, keepdim=True) for v in velocities]
    return blf_step(latents, combined, starts, weights, (1.0,), delta, num_pinned=num_pinned)


def _nothing_pinned(*arguments: object, num_pinned: int = 0) -> Tensor:
    del num_pinned
    return blf_step(*arguments)  # type: ignore[arg-type]


def _gain(*arguments: object, num_pinned: int = 0) -> Tensor:
    return gain(blf_step(*arguments, num_pinned=num_pinned))  # type: ignore[arg-type]


def _dropped_tail(*arguments: object, num_pinned: int = 0) -> Tensor:
    return dropped_tail(blf_step(*arguments, num_pinned=num_pinned))  # type: ignore[arg-type]


FAULTS: dict[str, Callable[..., Tensor]] = {
    "unweighted": _unweighted,
    "shifted_window": _shifted_window,
    "swapped_passes": _swapped_passes,
    "bf16_sums": _bf16_sums,
    "nothing_pinned": _nothing_pinned,
    "gain": _gain,
    "dropped_tail": _dropped_tail,
}
"""Faulty versions of ``blf_step``, called like its reference."""
