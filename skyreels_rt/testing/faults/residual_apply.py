"""Faulty versions of :func:`skyreels_rt.kernels.residual_apply`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from skyreels_rt.kernels.reference.residual_apply import residual_apply
from skyreels_rt.testing.faults.corruptions import dropped_tail, gain, truncated


def _subtracted(x: Tensor, residual: Tensor) -> Tensor:
    return residual_apply(x, -residual)


def _truncated(x: Tensor, residual: Tensor) -> Tensor:
    return truncated(x, x.double() + residual.double())


def _gain(x: Tensor, residual: Tensor) -> Tensor:
    return gain(residual_apply(x, residual))


def _dropped_tail(x: Tensor, residual: Tensor) -> Tensor:
    return dropped_tail(residual_apply(x, residual))


FAULTS: dict[str, Callable[..., Tensor]] = {
    "subtracted": _subtracted,
    "truncated": _truncated,
    "gain": _gain,
    "dropped_tail": _dropped_tail,
}
"""Faulty versions of ``residual_apply``, called like its reference."""
