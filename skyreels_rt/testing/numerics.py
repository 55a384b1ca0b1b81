"""How close is close enough: an error budget against an fp64 oracle, and bit equality.

A fixed absolute tolerance hides real bugs (a wrong epsilon passes ``atol=0.1`` in bf16). The
budget asks that an implementation be as good as the reference run in the same low precision, in
three ways, each of which catches faults that the other two miss:

- *max*: ``max|a - hi| <= 2 (max|lo - hi| + eps max|hi|)``: no element goes astray (after
  flash-attention's test rule);
- *mean*: ``mean|a - hi| <= 1.1 mean|lo - hi|``: no extra rounding, no wrong constant;
- *gain*: ``|<a, hi> / <hi, hi> - 1| <= eps / 16``: no bias that rounding noise would hide.

``hi`` is the reference in fp64 on the same inputs, ``lo`` the reference in the low precision,
``eps`` that precision's machine epsilon. The constants held for every correct variant of four
operator families and rejected every planted fault (:mod:`skyreels_rt.testing.faults`).
"""

from __future__ import annotations

import torch
from torch import Tensor

_MAX_FACTOR = 2.0
_MEAN_FACTOR = 1.1
_GAIN_DIVISOR = 16.0
_GAIN_ELEMENTS = 4096  # below this the gain test measures noise


def assert_within_budget(
    actual: Tensor, reference_fp64: Tensor, low_precision: Tensor, dtype: torch.dtype
) -> None:
    """Raise AssertionError unless ``actual`` meets the error budget of ``dtype``.

    Parameters
    ----------
    actual : Tensor
        Output under test, of ``dtype``.
    reference_fp64 : Tensor, same shape, float64
        The oracle: the reference on the same (already rounded) inputs in fp64.
    low_precision : Tensor, same shape
        The reference on the same inputs in ``dtype``.
    dtype : torch.dtype
        float32 (compared by torch's own fp32 tolerances), bfloat16 or float16 (the budget).

    Raises
    ------
    AssertionError
        Saying which parts failed, by how much, and where the largest error is.
    """
    if actual.shape != reference_fp64.shape or actual.dtype != dtype:
        raise AssertionError(
            f"expected {dtype} of shape {tuple(reference_fp64.shape)}, "
            f"got {actual.dtype} of shape {tuple(actual.shape)}"
        )
    if actual.numel() == 0:
        return
    if not bool(torch.isfinite(actual).all()):
        raise AssertionError(f"not finite, first at {_first(~torch.isfinite(actual))}")
    if dtype == torch.float32:
        torch.testing.assert_close(actual.double(), reference_fp64, rtol=1.3e-6, atol=1e-5)
        return
    failures = _budget_failures(actual.double(), reference_fp64, low_precision.double(), dtype)
    if failures:
        error = (actual.double() - reference_fp64).abs()
        raise AssertionError(
            "; ".join([*failures, f"largest error at {_first(error == error.max())}"])
        )


def _budget_failures(a: Tensor, hi: Tensor, lo: Tensor, dtype: torch.dtype) -> list[str]:
    """One sentence for each part of the budget that is broken."""
    eps = torch.finfo(dtype).eps
    error, floor = (a - hi).abs(), (lo - hi).abs()
    limits = {
        "max": (error.max(), _MAX_FACTOR * (floor.max() + eps * hi.abs().max())),
        "mean": (error.mean(), _MEAN_FACTOR * floor.mean()),
    }
    energy = (hi * hi).sum()
    if a.numel() >= _GAIN_ELEMENTS and energy > 0:
        gain = ((a * hi).sum() / energy - 1.0).abs()
        limits["gain"] = (gain, torch.tensor(eps / _GAIN_DIVISOR))
    return [
        f"{part} error {float(got):.3e} exceeds {float(limit):.3e}"
        for part, (got, limit) in limits.items()
        if not got <= limit
    ]


def assert_bitwise_equal(actual: Tensor, expected: Tensor) -> None:
    """Raise AssertionError unless both tensors have the same shape, dtype and bytes.

    NaNs with equal bit patterns are equal; 0.0 and -0.0 are not.

    Parameters
    ----------
    actual, expected : Tensor
        Any shape and dtype, on any device.

    Raises
    ------
    AssertionError
        Naming the number of differing elements, and the first one's index, values and bytes.
    """
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise AssertionError(
            f"expected {expected.dtype} of shape {tuple(expected.shape)}, "
            f"got {actual.dtype} of shape {tuple(actual.shape)}"
        )
    a, e = actual.detach().cpu().contiguous(), expected.detach().cpu().contiguous()
    if a.numel() == 0:
        return
    a_bytes = a.reshape(-1, 1).view(torch.uint8)
    e_bytes = e.reshape(-1, 1).view(torch.uint8)
    differs = (a_bytes != e_bytes).any(dim=1)
    if bool(differs.any()):
        flat = int(differs.nonzero()[0])
        raise AssertionError(
            f"{int(differs.sum())} of {a.numel()} elements differ, first at "
            f"{_first(differs.reshape(a.shape))}: got {a.reshape(-1)[flat].item()!r} "
            f"({_hex(a_bytes[flat])}), expected {e.reshape(-1)[flat].item()!r} "
            f"({_hex(e_bytes[flat])})"
        )


def _first(mask: Tensor) -> tuple[int, ...]:
    """Index of the first true element."""
    return tuple(int(i) for i in mask.nonzero()[0])


def _hex(element: Tensor) -> str:
    return bytes(reversed(element.tolist())).hex()
