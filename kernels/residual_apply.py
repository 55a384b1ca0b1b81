"""Residual of skipped transformer blocks, added to their input in place.

::

    x = x + residual

Legend: x the tokens that would enter the blocks, residual what
:func:`skyreels_rt.kernels.residual_store` kept of an earlier step.

Numerics: fp32, one rounding at the store.
Layout: dense in any order of dimensions, the same for both.

============== ======== ======================
implementation device   dtypes
============== ======== ======================
reference      any      fp32, bf16, fp16, fp64
cpp            CPU      fp32, bf16
cuda           CUDA     fp32, bf16, fp16
triton         CUDA     fp32, bf16, fp16
============== ======== ======================

Source: TeaCache (arXiv 2411.19108), ``TeaCache4Wan2.1/teacache_generate.py``
(``x += self.previous_residual_even``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from skyreels_rt.kernels import _checks, _native
from skyreels_rt.kernels._library import define_op
from skyreels_rt.kernels._select import Impl, resolve
from skyreels_rt.kernels.reference import residual_apply as _reference


def residual_apply(x: Tensor, residual: Tensor, *, impl: Impl = Impl.AUTO) -> Tensor:
    """Add ``residual`` to ``x``; use the returned tensor.

    ``x`` is given away: compiled implementations overwrite and return it. Where a gradient is
    needed the reference runs instead, whatever ``impl`` says.

    Parameters
    ----------
    x : Tensor, any shape, fp32|bf16|fp16, dense
        Tokens.
    residual : Tensor, same shape, dtype and strides
        What to add; must not overlap ``x`` in part.
    impl : Impl
        Implementation, usually ``plan.residual_apply``.

    Returns
    -------
    Tensor, same shape, dtype and strides
        The sum.

    Raises
    ------
    InvalidArgument
        A shape, dtype, device or stride outside the above.
    UnsupportedKernel
        The requested implementation cannot run here.
    """
    _checks.require_floating("x", x)
    _checks.require_gapless("x", x)
    _checks.require_layout("residual", residual, "x", x)
    chosen = resolve("residual_apply", impl, x.device.type, x.dtype)
    if chosen == "reference" or _checks.needs_gradient(x, residual):
        return _reference.residual_apply(x, residual)
    _op(x, residual, chosen)
    return x


_launch = _native.cuda_launcher(
    "residual_apply", *[_native.POINTER] * 2, _native.INT, _native.INT64
)


def _run(x: Tensor, residual: Tensor, impl: str) -> None:
    if x.numel() == 0:
        return
    if impl == "triton":
        from skyreels_rt.kernels.triton import residual_apply as triton

        with torch.cuda.device_of(x):
            triton.residual_apply(x, residual)
        return
    addresses = (x.data_ptr(), residual.data_ptr())
    dtype, count = _native.DTYPE_CODES[x.dtype], x.numel()
    if impl == "cuda":
        with torch.cuda.device(x.device):
            _launch(*addresses, dtype, count)
    else:
        _native.extension().residual_apply(*addresses, dtype, count, torch.get_num_threads())


def _fake(x: Tensor, residual: Tensor, impl: str) -> None:
    """Nothing to allocate."""


_op = define_op(
    "residual_apply(Tensor(a!) x, Tensor residual, str impl) -> ()", run=_run, fake=_fake
)
