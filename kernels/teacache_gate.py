"""TeaCache's decision whether the transformer blocks of a step may be skipped, on the device.

::

    r     = mean|signal - previous| / mean|previous|
    total = accumulated + polynomial(coefficients, r)
    skip  = total < threshold and not forced
    accumulated = total if skip else 0

Legend: signal and previous are the timestep embedding (or another signal) of this and the last
step. Replaces two reductions, a host read (upstream's ``.cpu().item()``) and the rule in Python.
The caller keeps ``previous``, and updates it at every step, skipped or not.

Numerics: differences in fp32, short sums of fixed extent in fp32, their sums in fp64 in a fixed
order, so that the result does not depend on the number of threads; ratio and polynomial (Horner's
rule, as ``numpy.poly1d``) in fp64; ``accumulated`` and ``threshold`` rounded to fp32. A total that
is not finite (where ``previous`` is zero) never skips.
Layout: dense in any order of dimensions, the same for signal and previous.

============== ======== ======================
implementation device   dtypes
============== ======== ======================
reference      any      fp32, bf16, fp16, fp64
cpp            CPU      fp32, bf16
cuda           CUDA     fp32, bf16, fp16
triton         CUDA     fp32, bf16, fp16
============== ======== ======================

Source: TeaCache (arXiv 2411.19108), ``TeaCache4Wan2.1/teacache_generate.py``
(``teacache_forward``), whose counters and coefficients are the caller's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.kernels import _checks, _native
from skyreels_rt.kernels._library import define_op
from skyreels_rt.kernels._select import Impl, resolve
from skyreels_rt.kernels.reference import teacache_gate as _reference

MAX_COEFFICIENTS = 8
"""Of the polynomial (``kMaxCoefficients`` in ``csrc``)."""

_CHUNK = 16384
"""Elements of one pair of partial sums on a GPU (``kChunk`` in ``csrc``)."""


def teacache_gate(
    signal: Tensor,
    previous: Tensor,
    accumulated: Tensor,
    coefficients: Sequence[float],
    threshold: float,
    forced: bool,
    *,
    impl: Impl = Impl.AUTO,
) -> Tensor:
    """Decide whether this step may be skipped; nothing is read by the host.

    Parameters
    ----------
    signal, previous : Tensor, any one shape, fp32|bf16|fp16, dense
        Signal of this step and of the step before. They are not read where ``forced`` is True.
    accumulated : Tensor, shape (1,), fp32
        Change accumulated since the last computed step; updated in place. Starts at 0.
    coefficients : sequence of 1 to 8 float
        Of the polynomial, highest power first.
    threshold : float
        Accumulated change from which a step is computed.
    forced : bool
        The step is computed in any case (upstream: the first and the last).
    impl : Impl
        Implementation, usually ``plan.teacache_gate``.

    Returns
    -------
    Tensor, shape (1,), bool
        Whether to skip, on the device of ``signal``.

    Raises
    ------
    InvalidArgument
        A shape, dtype, device, stride or number outside the above.
    UnsupportedKernel
        The requested implementation cannot run here.
    """
    _checks.require_floating("signal", signal)
    _checks.require_gapless("signal", signal)
    _checks.require_layout("previous", previous, "signal", signal)
    _checks.require_shape("accumulated", accumulated, (1,), "(1,)")
    _checks.require_device("accumulated", accumulated, "signal", signal)
    if accumulated.dtype not in (torch.float32, torch.promote_types(signal.dtype, torch.float32)):
        raise InvalidArgument("accumulated", expected="float32", got=str(accumulated.dtype))
    if not 1 <= len(coefficients) <= MAX_COEFFICIENTS:
        raise InvalidArgument(
            "coefficients", expected=f"1 to {MAX_COEFFICIENTS} numbers", got=len(coefficients)
        )
    chosen = resolve("teacache_gate", impl, signal.device.type, signal.dtype)
    signal, previous = signal.detach(), previous.detach()  # a decision has no gradient
    if chosen == "reference":
        total, skip = _reference.teacache_gate(
            signal, previous, accumulated, coefficients, threshold, forced
        )
        accumulated.copy_(total)
        return skip
    out: Tensor = _op(signal, previous, accumulated, coefficients, threshold, forced, chosen)
    return out


_launch = _native.cuda_launcher(
    "teacache_gate", *[_native.POINTER] * 6, *[_native.INT] * 3, *[_native.INT64] * 2,
    _native.FLOAT,
)  # fmt: skip


def _run(
    signal: Tensor,
    previous: Tensor,
    accumulated: Tensor,
    coefficients: list[float],
    threshold: float,
    forced: bool,
    impl: str,
) -> Tensor:
    skip = signal.new_empty((1,), dtype=torch.bool)
    count = signal.numel()
    if impl == "cpp":
        _native.extension().teacache_gate(
            signal.data_ptr(), previous.data_ptr(), accumulated.data_ptr(), skip.data_ptr(),
            coefficients, _native.DTYPE_CODES[signal.dtype], forced, count, threshold,
            torch.get_num_threads(),
        )  # fmt: skip
        return skip
    num_chunks = 0 if forced else -(-count // _CHUNK)
    sums = signal.new_empty((num_chunks, 2), dtype=torch.float64)
    if impl == "triton":
        from skyreels_rt.kernels.triton import teacache_gate as triton

        with torch.cuda.device_of(signal):
            triton.teacache_gate(
                signal, previous, accumulated, skip, sums, tuple(coefficients), threshold
            )
        return skip
    factors = (ctypes.c_double * len(coefficients))(*coefficients)
    with torch.cuda.device(signal.device):
        _launch(
            signal.data_ptr(), previous.data_ptr(), accumulated.data_ptr(), skip.data_ptr(),
            sums.data_ptr(), ctypes.addressof(factors), len(coefficients),
            _native.DTYPE_CODES[signal.dtype], int(forced), count, num_chunks, threshold,
        )  # fmt: skip
    return skip


def _fake(
    signal: Tensor,
    previous: Tensor,  # noqa: ARG001 - the schema's arguments
    accumulated: Tensor,  # noqa: ARG001
    coefficients: list[float],  # noqa: ARG001
    threshold: float,  # noqa: ARG001
    forced: bool,  # noqa: ARG001
    impl: str,  # noqa: ARG001
) -> Tensor:
    return signal.new_empty((1,), dtype=torch.bool)


_op = define_op(
    "teacache_gate(Tensor signal, Tensor previous, Tensor(a!) accumulated, float[] coefficients,"
    " float threshold, bool forced, str impl) -> Tensor",
    run=_run,
    fake=_fake,
)
