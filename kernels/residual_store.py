"""Residual of a run of transformer blocks, kept for the steps that skip them.

::

    out = after - before

Legend: before and after are the tokens that enter and leave the blocks. Replaces ``x.clone()``
before the blocks and a subtraction into new memory behind them.

Numerics: fp32, one rounding at the store.
Layout: dense in any order of dimensions, the same for all three.

============== ======== ======================
implementation device   dtypes
============== ======== ======================
reference      any      fp32, bf16, fp16, fp64
cpp            CPU      fp32, bf16
cuda           CUDA     fp32, bf16, fp16
triton         CUDA     fp32, bf16, fp16
============== ======== ======================

Source: TeaCache (arXiv 2411.19108), ``TeaCache4Wan2.1/teacache_generate.py``
(``self.previous_residual_even = x - ori_x``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from skyreels_rt.kernels import _checks, _native
from skyreels_rt.kernels._library import define_op
from skyreels_rt.kernels._select import Impl, resolve
from skyreels_rt.kernels.reference import residual_store as _reference


def residual_store(before: Tensor, after: Tensor, out: Tensor, *, impl: Impl = Impl.AUTO) -> Tensor:
    """Write ``after - before`` into ``out``.

    Parameters
    ----------
    before, after : Tensor, any shape, fp32|bf16|fp16, dense
        Tokens before and after the blocks.
    out : Tensor, same shape, dtype and strides
        Overwritten; may be ``before`` or ``after`` itself, and must not overlap them otherwise.
    impl : Impl
        Implementation, usually ``plan.residual_store``.

    Returns
    -------
    Tensor
        ``out``.

    Raises
    ------
    InvalidArgument
        A shape, dtype, device or stride outside the above.
    UnsupportedKernel
        The requested implementation cannot run here.
    """
    _checks.require_floating("before", before)
    _checks.require_gapless("before", before)
    _checks.require_layout("after", after, "before", before)
    _checks.require_layout("out", out, "before", before)
    chosen = resolve("residual_store", impl, before.device.type, before.dtype)
    if chosen == "reference" or _checks.needs_gradient(before, after):
        return out.copy_(_reference.residual_store(before, after))
    _op(before, after, out, chosen)
    return out


_launch = _native.cuda_launcher(
    "residual_store", *[_native.POINTER] * 3, _native.INT, _native.INT64
)


def _run(before: Tensor, after: Tensor, out: Tensor, impl: str) -> None:
    if before.numel() == 0:
        return
    if impl == "triton":
        from skyreels_rt.kernels.triton import residual_store as triton

        with torch.cuda.device_of(out):
            triton.residual_store(before, after, out)
        return
    addresses = (before.data_ptr(), after.data_ptr(), out.data_ptr())
    dtype, count = _native.DTYPE_CODES[before.dtype], before.numel()
    if impl == "cuda":
        with torch.cuda.device(before.device):
            _launch(*addresses, dtype, count)
    else:
        _native.extension().residual_store(*addresses, dtype, count, torch.get_num_threads())


def _fake(before: Tensor, after: Tensor, out: Tensor, impl: str) -> None:
    """Nothing to allocate."""


_op = define_op(
    "residual_store(Tensor before, Tensor after, Tensor(a!) out, str impl) -> ()",
    run=_run,
    fake=_fake,
)
