"""Faulty versions of :func:`skyreels_rt.kernels.residual_store`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from skyreels_rt.kernels.reference.residual_store import residual_store
from skyreels_rt.testing.faults.corruptions import dropped_tail, gain, truncated


def _swapped(before: Tensor, after: Tensor) -> Tensor:
    return residual_store(after, before)


def _truncated(before: Tensor, after: Tensor) -> Tensor:
    return truncated(before, after.double() - before.double())


def _gain(before: Tensor, after: Tensor) -> Tensor:
    return gain(residual_store(before, after))


def _dropped_tail(before: Tensor, after: Tensor) -> Tensor:
    return dropped_tail(residual_store(before, after))


FAULTS: dict[str, Callable[..., Tensor]] = {
    "swapped": _swapped,
    "truncated": _truncated,
    "gain": _gain,
    "dropped_tail": _dropped_tail,
}
"""Faulty versions of ``residual_store``, called like its reference."""
