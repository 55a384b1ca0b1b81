"""Argument checks of the operators: the argument, what was expected, what came."""

from __future__ import annotations

import torch
from torch import Tensor

from skyreels_rt.errors import InvalidArgument

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Element types the references take; float64 serves as oracle."""


def require_floating(name: str, x: Tensor) -> None:
    """Raise InvalidArgument unless ``x`` is fp32, bf16, fp16 or fp64."""
    if x.dtype not in FLOATING:
        raise InvalidArgument(
            name, expected="float32, bfloat16, float16 or float64", got=str(x.dtype)
        )


def require_shape(name: str, x: Tensor, shape: tuple[int | None, ...], legend: str) -> None:
    """Raise InvalidArgument unless ``x`` has ``shape``.

    Parameters
    ----------
    name : str
        Argument to name.
    x : Tensor
        The tensor.
    shape : tuple of int or None
        Expected sizes, None where any will do.
    legend : str
        The shape in words, e.g. ``"(B, L, N*K)"``.
    """
    if x.shape != shape and (
        x.ndim != len(shape)
        or any(want is not None and want != n for n, want in zip(x.shape, shape, strict=True))
    ):
        sizes = ", ".join("any" if want is None else str(want) for want in shape)
        raise InvalidArgument(name, expected=f"shape {legend} = ({sizes})", got=tuple(x.shape))


def require_like(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raise InvalidArgument unless ``x`` has the dtype and the device of ``other``."""
    if x.dtype != other.dtype or x.device != other.device:
        raise InvalidArgument(
            name,
            expected=f"{other.dtype} on {other.device}, as {other_name}",
            got=f"{x.dtype} on {x.device}",
        )


def require_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raise InvalidArgument unless ``x`` is on the device of ``other``."""
    if x.device != other.device:
        raise InvalidArgument(name, expected=f"{other.device}, as {other_name}", got=str(x.device))


def require_heads(width: int, num_heads: int, *, even: bool) -> int:
    """Head size K of ``width`` = N*K, or raise InvalidArgument naming ``num_heads``.

    Parameters
    ----------
    width, num_heads : int
        N*K and N.
    even : bool
        Whether K must be even (rotary pairs).
    """
    splits = 1 <= num_heads <= width and width % num_heads == 0
    if not splits or (even and width // num_heads % 2):
        kind = "an even head size" if even else "a whole head size"
        raise InvalidArgument(
            "num_heads", expected=f"a divisor of {width} that gives {kind}", got=num_heads
        )
    return width // num_heads


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether autograd wants to record an operation on these tensors."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
