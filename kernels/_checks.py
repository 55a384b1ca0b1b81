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
    fits = x.ndim == len(shape)
    for size, want in zip(x.shape, shape, strict=False):  # a loop: this runs on every call
        fits = fits and (want is None or want == size)
    if not fits:
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


def require_segments(name: str, table: Tensor, x_name: str, x: Tensor) -> None:
    """Raise InvalidArgument unless ``table`` holds one row for each segment of the tokens of ``x``.

    Parameters
    ----------
    name : str
        Argument to name.
    table : Tensor
        Should be (B or 1, S, D) in fp32 (fp64 beside fp64), last dimension dense; S divides L.
    x_name : str
        Name of ``x``.
    x : Tensor, shape (B, L, D)
        Already checked.
    """
    batch, length, width = x.shape
    if table.ndim != 3 or table.shape[0] not in (1, batch) or table.shape[2] != width:
        raise InvalidArgument(
            name, expected=f"shape (B or 1, S, D) = ({batch} or 1, any, {width})",
            got=tuple(table.shape),
        )  # fmt: skip
    segments = table.shape[1]
    if segments == 0 or length % segments:
        raise InvalidArgument(name, expected=f"S a divisor of L = {length}", got=f"S = {segments}")
    wanted = torch.float64 if x.dtype == torch.float64 else torch.float32
    if table.dtype != wanted or table.device != x.device:
        raise InvalidArgument(
            name,
            expected=f"{wanted} on {x.device}, as {x_name}",
            got=f"{table.dtype} on {table.device}",
        )
    require_dense(name, table)


def require_tokens(x: Tensor) -> None:
    """Raise InvalidArgument unless ``x`` is a floating (B, L, D) with D >= 1."""
    require_shape("x", x, (None, None, None), "(B, L, D)")
    require_floating("x", x)
    if x.shape[2] == 0:
        raise InvalidArgument("x", expected="D >= 1", got=tuple(x.shape))


def require_affine(weight: Tensor, bias: Tensor, x: Tensor) -> None:
    """Raise InvalidArgument unless weight and bias are the rows of a norm of ``x``, checked."""
    require_segments("weight", weight, "x", x)
    require_shape("bias", bias, weight.shape, "of weight")
    require_like("bias", bias, "weight", weight)
    require_dense("bias", bias)


def require_residual(x: Tensor, y: Tensor, gate: Tensor | None) -> None:
    """Raise InvalidArgument unless ``gate * y`` may be added to ``x``, checked, in place."""
    require_separate_rows("x", x)
    require_shape("y", y, x.shape, "of x")
    require_like("y", y, "x", x)
    require_dense("y", y)
    if gate is not None:
        require_segments("gate", gate, "x", x)


def require_dense(name: str, x: Tensor) -> None:
    """Raise InvalidArgument unless the last dimension of ``x`` has stride 1."""
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise InvalidArgument(
            name, expected="a dense last dimension (stride 1)", got=f"stride {x.stride(-1)}"
        )


def require_separate_rows(name: str, x: Tensor) -> None:
    """Raise InvalidArgument unless the rows of ``x``, shape (B, L, D), are dense and apart."""
    require_dense(name, x)
    batch, length, width = x.shape
    across, along, _ = x.stride()
    if (along < width and length > 1) or (across < width and batch > 1):
        raise InvalidArgument(
            name,
            expected="rows that do not overlap, for they are overwritten",
            got=f"strides {x.stride()}",
            hint="Clone an expanded tensor first.",
        )


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


def require_gapless(name: str, x: Tensor) -> None:
    """Raise InvalidArgument unless the elements of ``x`` fill their memory without a gap."""
    if x.is_contiguous():
        return
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and stride != expected:
            raise InvalidArgument(
                name,
                expected="a dense tensor, in any order of dimensions",
                got=f"shape {tuple(x.shape)} with strides {x.stride()}",
                hint="Make it contiguous first.",
            )
        expected *= size


def require_layout(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raise InvalidArgument unless ``x`` has shape, dtype, device and strides of ``other``."""
    if x.shape != other.shape:
        raise InvalidArgument(
            name, expected=f"shape {tuple(other.shape)}, as {other_name}", got=tuple(x.shape)
        )
    require_like(name, x, other_name, other)
    if not (x.is_contiguous() and other.is_contiguous()) and x.stride() != other.stride():
        raise InvalidArgument(
            name, expected=f"strides {other.stride()}, as {other_name}", got=x.stride()
        )
