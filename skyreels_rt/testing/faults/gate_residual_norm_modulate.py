"""Faulty versions of :func:`skyreels_rt.kernels.gate_residual_norm_modulate`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from skyreels_rt.kernels.reference.gate_residual_norm_modulate import gate_residual_norm_modulate
from skyreels_rt.kernels.reference.norm_modulate import norm_modulate
from skyreels_rt.testing.faults.corruptions import dropped_tail, gain

Pair = tuple[Tensor, Tensor]


def _wrong_eps(*tensors: Tensor, eps: float) -> Pair:
    return gate_residual_norm_modulate(*tensors, eps=10 * eps)


def _norm_of_rounded(*tensors: Tensor, eps: float) -> Pair:
    total, _ = gate_residual_norm_modulate(*tensors, eps=eps)
    return total, norm_modulate(total, *tensors[3:], eps=eps)


def _norm_of_old(*tensors: Tensor, eps: float) -> Pair:
    total, _ = gate_residual_norm_modulate(*tensors, eps=eps)
    return total, norm_modulate(tensors[0], *tensors[3:], eps=eps)


def _rounded_branch(x: Tensor, y: Tensor, gate: Tensor, *norm: Tensor, eps: float) -> Pair:
    per_token = x.shape[1] // gate.shape[1]
    branch = (gate.repeat_interleave(per_token, 1) * y.double()).to(x.dtype)
    return gate_residual_norm_modulate(x, branch, gate.new_ones(1, 1, x.shape[2]), *norm, eps=eps)


def _shifted_segment(x: Tensor, y: Tensor, gate: Tensor, *norm: Tensor, eps: float) -> Pair:
    return gate_residual_norm_modulate(x, y, gate.roll(1, 1), *norm, eps=eps)


def _no_gate(x: Tensor, y: Tensor, gate: Tensor, *norm: Tensor, eps: float) -> Pair:  # noqa: ARG001
    return gate_residual_norm_modulate(x, y, None, *norm, eps=eps)


def _gain(*tensors: Tensor, eps: float) -> Pair:
    total, normed = gate_residual_norm_modulate(*tensors, eps=eps)
    return total, gain(normed)


def _dropped_tail(*tensors: Tensor, eps: float) -> Pair:
    total, normed = gate_residual_norm_modulate(*tensors, eps=eps)
    return dropped_tail(total), normed


FAULTS: dict[str, Callable[..., Pair]] = {
    "wrong_eps": _wrong_eps,
    "norm_of_rounded": _norm_of_rounded,
    "norm_of_old": _norm_of_old,
    "rounded_branch": _rounded_branch,
    "shifted_segment": _shifted_segment,
    "no_gate": _no_gate,
    "gain": _gain,
    "dropped_tail": _dropped_tail,
}
"""Faulty versions of ``gate_residual_norm_modulate``, called like its reference, with a gate."""
