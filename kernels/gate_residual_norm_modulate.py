"""Gated residual in place, then the modulated LayerNorm of its result, fused.

::

    x[b, l] += gate[b, s] * y[b, l]
    normed[b, l] = (x[b, l] - mean) / sqrt(variance + eps) * weight[b, s'] + bias[b, s']
    s = l // (L / S),  s' = l // (L / S')

Legend: B batch, L tokens, D width, S segments of the gate and S' of weight and bias (1 for a whole
window, the number of latent frames where each has a modulation of its own). Replaces the gate, the
residual and :func:`skyreels_rt.kernels.norm_modulate`: the stream is read and written once.

Numerics: fp32 throughout; the norm is taken of the sum before it is rounded. One rounding for x,
one for normed. The CPU implementation gives the same bytes for any number of threads and on any x86
processor.
Layout: last dimensions dense, any other strides; normed is contiguous. y must not overlap x.

============== ======== ======================
implementation device   dtypes
============== ======== ======================
reference      any      fp32, bf16, fp16, fp64
cpp            CPU      fp32, bf16
triton         CUDA     fp32, bf16, fp16
============== ======== ======================

Source: DiT, arXiv 2212.09748; Wan-Video/Wan2.1 ``wan/modules/model.py`` (``WanAttentionBlock``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from skyreels_rt.kernels import _checks, _native
from skyreels_rt.kernels._library import define_op
from skyreels_rt.kernels._select import Impl, resolve
from skyreels_rt.kernels.reference import gate_residual_norm_modulate as _reference


def gate_residual_norm_modulate(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    impl: Impl = Impl.AUTO,
) -> tuple[Tensor, Tensor]:
    """Add a gated branch to the stream and normalise the sum; use the returned tensors.

    ``x`` is given away: compiled implementations overwrite and return it. Where a gradient is
    needed the reference runs instead, whatever ``impl`` says.

    Parameters
    ----------
    x : Tensor, shape (B, L, D), fp32|bf16|fp16, last dim dense
        Residual stream.
    y : Tensor, shape (B, L, D), dtype of x, last dim dense
        Output of a branch.
    gate : Tensor, shape (B or 1, S, D), fp32, last dim dense, or None
        Of each segment of L / S tokens; None for a plain residual.
    weight, bias : Tensor, shape (B or 1, S', D), fp32, last dim dense
        Of the norm, for each segment of L / S' tokens.
    eps : float
        Added to the variance.
    impl : Impl
        Implementation, usually ``plan.gate_residual_norm_modulate``.

    Returns
    -------
    tuple of Tensor, shape (B, L, D), dtype of x
        The stream, and its norm, which is new and contiguous.

    Raises
    ------
    InvalidArgument
        A shape, dtype, device or stride outside the above.
    UnsupportedKernel
        The requested implementation cannot run here.
    """
    _checks.require_tokens(x)
    _checks.require_residual(x, y, gate)
    _checks.require_affine(weight, bias, x)
    chosen = resolve("gate_residual_norm_modulate", impl, x.device.type, x.dtype)
    wanted = (x, y, weight, bias) if gate is None else (x, y, gate, weight, bias)
    if chosen == "reference" or _checks.needs_gradient(*wanted):
        return _reference.gate_residual_norm_modulate(x, y, gate, weight, bias, eps=eps)
    return x, _op(x, y, gate, weight, bias, eps, chosen)


def _run(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    impl: str,
) -> Tensor:
    normed = torch.empty_like(x, memory_format=torch.contiguous_format)
    if impl == "triton":
        from skyreels_rt.kernels.triton import gate_residual_norm_modulate as triton

        triton.launch(x, y, gate, weight, bias, normed, eps)
        return normed
    batch, length, width = x.shape
    _native.extension().gate_residual_norm_modulate(
        x.data_ptr(), y.data_ptr(), _native.in_huge_pages(normed).data_ptr(),
        (0, 1, 0, 0) if gate is None else _native.segment_table(gate),
        _native.segment_table(weight), _native.segment_table(bias),
        _native.DTYPE_CODES[x.dtype], batch, length, width,
        *x.stride()[:2], *y.stride()[:2], eps, torch.get_num_threads(),
    )  # fmt: skip
    return normed


def _fake(
    x: Tensor,
    y: Tensor,  # noqa: ARG001 - the schema's arguments
    gate: Tensor | None,  # noqa: ARG001
    weight: Tensor,  # noqa: ARG001
    bias: Tensor,  # noqa: ARG001
    eps: float,  # noqa: ARG001
    impl: str,  # noqa: ARG001
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_op = define_op(
    "gate_residual_norm_modulate(Tensor(a!) x, Tensor y, Tensor? gate, Tensor weight, Tensor bias,"
    " float eps, str impl) -> Tensor",
    run=_run,
    fake=_fake,
)
