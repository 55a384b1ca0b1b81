"""Gated residual in place, then the modulated LayerNorm of its result as 8-bit rows, fused.

::

    x[b, l] += gate[b, s] * y[b, l]
    values, scales = quantize_rows(norm(x)[b, l] * weight[b, s'] + bias[b, s'])

:func:`skyreels_rt.kernels.gate_residual_norm_modulate` whose second output goes straight through
:func:`skyreels_rt.kernels.quantize_rows`: what a linear layer in 8 bits reads is never written in
the tokens' type.

Legend, layout and the overwriting of ``x`` as in ``gate_residual_norm_modulate``. Numerics:
everything in fp32 up to one rounding for x and one to e4m3; the norm is taken of the sum before it
is rounded.

============== ======== ================
implementation device   dtypes
============== ======== ================
reference      any      fp32, bf16, fp16
triton         CUDA     fp32, bf16, fp16
============== ======== ================
"""

from __future__ import annotations

import torch
from torch import Tensor

from skyreels_rt.kernels import _checks
from skyreels_rt.kernels._library import define_op
from skyreels_rt.kernels._select import Impl, resolve
from skyreels_rt.kernels.reference import gate_residual_norm_modulate_quantize as _reference


def gate_residual_norm_modulate_quantize(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    impl: Impl = Impl.AUTO,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add a gated branch to the stream and bring the sum's norm to 8 bits; there is no gradient.

    ``x`` is given away: compiled implementations overwrite and return it.

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
        Implementation, usually ``plan.gate_residual_norm_modulate_quantize``.

    Returns
    -------
    x : Tensor, shape (B, L, D), dtype of x
        The stream.
    values : Tensor, shape (B, L, D), float8_e4m3fn
        Its norm over the scales.
    scales : Tensor, shape (B, L, 1), fp32
        A 448th of the largest magnitude of each normalised token.

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
    chosen = resolve("gate_residual_norm_modulate_quantize", impl, x.device.type, x.dtype)
    if chosen == "reference":
        return _reference.gate_residual_norm_modulate_quantize(x, y, gate, weight, bias, eps=eps)
    values, scales = _op(x, y, gate, weight, bias, eps, chosen)
    return x, values, scales


def _run(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    impl: str,
) -> tuple[Tensor, Tensor]:
    from skyreels_rt.kernels.triton import gate_residual_norm_modulate_quantize as triton

    values, scales = _fake(x, y, gate, weight, bias, eps, impl)
    triton.launch(x, y, gate, weight, bias, values, scales, eps)
    return values, scales


def _fake(
    x: Tensor,
    y: Tensor,  # noqa: ARG001 - the schema's arguments
    gate: Tensor | None,  # noqa: ARG001
    weight: Tensor,  # noqa: ARG001
    bias: Tensor,  # noqa: ARG001
    eps: float,  # noqa: ARG001
    impl: str,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    values = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    return values, x.new_empty((*x.shape[:2], 1), dtype=torch.float32)


_op = define_op(
    "gate_residual_norm_modulate_quantize(Tensor(a!) x, Tensor y, Tensor? gate, Tensor weight,"
    " Tensor bias, float eps, str impl) -> (Tensor, Tensor)",
    run=_run,
    fake=_fake,
)
