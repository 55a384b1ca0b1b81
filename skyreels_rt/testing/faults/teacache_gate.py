"""Faulty versions of :func:`skyreels_rt.kernels.teacache_gate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from skyreels_rt.kernels.reference.teacache_gate import teacache_gate

Gate = tuple[Tensor, Tensor]


def _divided_by_the_new_signal(signal: Tensor, previous: Tensor, *rest: object) -> Gate:
    return teacache_gate(previous, signal, *rest)  # type: ignore[arg-type]


def _lowest_power_first(
    signal: Tensor,
    previous: Tensor,
    accumulated: Tensor,
    coefficients: Sequence[float],
    threshold: float,
    forced: bool,
) -> Gate:
    backwards = coefficients[::-1]
    return teacache_gate(signal, previous, accumulated, backwards, threshold, forced)


def _squares(
    signal: Tensor,
    previous: Tensor,
    accumulated: Tensor,
    coefficients: Sequence[float],
    threshold: float,
    forced: bool,
) -> Gate:
    changed = previous.double().square().mean().sqrt() / previous.double().abs().mean()
    difference = (signal.double() - previous.double()) * changed
    moved = previous.double() + difference
    return teacache_gate(moved, previous.double(), accumulated, coefficients, threshold, forced)


def _nothing_accumulated(
    signal: Tensor, previous: Tensor, accumulated: Tensor, *rest: object
) -> Gate:
    return teacache_gate(signal, previous, torch.zeros_like(accumulated), *rest)  # type: ignore[arg-type]


def _never_reset(
    signal: Tensor,
    previous: Tensor,
    accumulated: Tensor,
    coefficients: Sequence[float],
    threshold: float,
    forced: bool,
) -> Gate:
    infinite = float("inf")
    total, _ = teacache_gate(signal, previous, accumulated, coefficients, infinite, forced)
    return total, (total < threshold) & (not forced)


def _forced_ignored(
    signal: Tensor,
    previous: Tensor,
    accumulated: Tensor,
    coefficients: Sequence[float],
    threshold: float,
    forced: bool,
) -> Gate:
    del forced
    return teacache_gate(signal, previous, accumulated, coefficients, threshold, False)


def _dropped_tail(signal: Tensor, previous: Tensor, *rest: object) -> Gate:
    return teacache_gate(signal[..., :-1], previous[..., :-1], *rest)  # type: ignore[arg-type]


FAULTS: dict[str, Callable[..., Gate]] = {
    "divided_by_the_new_signal": _divided_by_the_new_signal,
    "lowest_power_first": _lowest_power_first,
    "squares": _squares,
    "nothing_accumulated": _nothing_accumulated,
    "never_reset": _never_reset,
    "forced_ignored": _forced_ignored,
    "dropped_tail": _dropped_tail,
}
"""Faulty versions of ``teacache_gate``, called like its reference."""
