"""Faulty versions of :func:`skyreels_rt.kernels.causal_conv3d`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from skyreels_rt.kernels.reference.causal_conv3d import causal_conv3d
from skyreels_rt.testing.faults.corruptions import gain


def _swapped_past(x: Tensor, weight: Tensor, bias: Tensor, past: Tensor) -> Tensor:
    return causal_conv3d(x, weight, bias, past=past.flip(2))


def _forgotten_past(x: Tensor, weight: Tensor, bias: Tensor, past: Tensor) -> Tensor:
    return causal_conv3d(x, weight, bias, past=torch.zeros_like(past))


def _replicated_edge(x: Tensor, weight: Tensor, bias: Tensor, past: Tensor) -> Tensor:
    y = causal_conv3d(x, weight, bias, past=past)
    y[..., -1] = y[..., -2]
    return y


def _transposed(x: Tensor, weight: Tensor, bias: Tensor, past: Tensor) -> Tensor:
    return causal_conv3d(x, weight.mT.contiguous(), bias, past=past)


def _no_bias(x: Tensor, weight: Tensor, bias: Tensor, past: Tensor) -> Tensor:  # noqa: ARG001
    return causal_conv3d(x, weight, past=past)


def _gain(x: Tensor, weight: Tensor, bias: Tensor, past: Tensor) -> Tensor:
    return gain(causal_conv3d(x, weight, bias, past=past))


FAULTS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "swapped_past": _swapped_past,
    "forgotten_past": _forgotten_past,
    "replicated_edge": _replicated_edge,
    "transposed": _transposed,
    "no_bias": _no_bias,
    "gain": _gain,
}
"""Faulty versions of ``causal_conv3d``, called with its four tensors."""
