"""Rows in 8-bit floating point (e4m3), each with a scale of its own.

::

    scales[m] = max(max |x[m]| / 448, 1e-12)
    values[m] = round(clamp(x[m] / scales[m], -448, 448))        to nearest, ties to even

Legend: rows m of width D. What a linear layer with per-token scales reads.

Numerics: quotients and scales in fp32, correctly rounded; so every implementation gives the same
bytes, but for the scales' and quotients' last bit where a compiler may not divide exactly.
Layout: last dimension dense; the outputs are contiguous.

============== ======== ================
implementation device   dtypes
============== ======== ================
reference      any      fp32, bf16, fp16
triton         CUDA     fp32, bf16, fp16
============== ======== ================

Source: per-token scaling of ZeroQuant (arXiv 2206.01861), in the e4m3 of arXiv 2209.05433.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.kernels import _checks
from skyreels_rt.kernels._library import define_op
from skyreels_rt.kernels._select import Impl, resolve
from skyreels_rt.kernels.reference import quantize_rows as _reference


def quantize_rows(x: Tensor, *, impl: Impl = Impl.AUTO) -> tuple[Tensor, Tensor]:
    """Bring every row to e4m3.

    Parameters
    ----------
    x : Tensor, shape (..., D), fp32|bf16|fp16, last dim dense, finite
        Rows.
    impl : Impl
        Implementation, usually ``plan.quantize_rows``.

    Returns
    -------
    values : Tensor, shape (..., D), float8_e4m3fn
        Rows over their scale.
    scales : Tensor, shape (..., 1), fp32
        A 448th of the largest magnitude of each row.

    Raises
    ------
    InvalidArgument
        A shape, dtype or stride outside the above.
    UnsupportedKernel
        The requested implementation cannot run here.
    """
    _checks.require_floating("x", x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise InvalidArgument("x", expected="rows (..., D) with D >= 1", got=tuple(x.shape))
    _checks.require_dense("x", x)
    chosen = resolve("quantize_rows", impl, x.device.type, x.dtype)
    if chosen == "reference":
        return _reference.quantize_rows(x)
    values, scales = _op(x, chosen)
    return values, scales


def _run(x: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    from skyreels_rt.kernels.triton import quantize_rows as triton

    values, scales = _fake(x, impl)
    triton.launch(x.reshape(-1, x.shape[-1]), values, scales)
    return values, scales


def _fake(x: Tensor, impl: str) -> tuple[Tensor, Tensor]:  # noqa: ARG001 - the schema's arguments
    values = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    return values, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


_op = define_op(
    "quantize_rows(Tensor x, str impl) -> (Tensor, Tensor)",
    run=_run,
    fake=_fake,
)
