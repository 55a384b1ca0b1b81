"""LayerNorm and modulation of tokens, straight into 8-bit rows with their scales, fused.

::

    y[b, l] = (x[b, l] - mean) / sqrt(variance + eps) * weight[b, s] + bias[b, s]
    values, scales = quantize_rows(y)

:func:`skyreels_rt.kernels.norm_modulate` followed by :func:`skyreels_rt.kernels.quantize_rows`,
without the rounding to the tokens' type between them: the tokens are read once, and a byte a value
is written. For linear layers that multiply in 8 bits.

Legend and layout as in ``norm_modulate``. Numerics: everything in fp32 up to the one rounding to
e4m3.

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
from skyreels_rt.kernels.reference import norm_modulate_quantize as _reference


def norm_modulate_quantize(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, impl: Impl = Impl.AUTO
) -> tuple[Tensor, Tensor]:
    """Normalise, modulate and quantise tokens; there is no gradient.

    Parameters
    ----------
    x : Tensor, shape (B, L, D), fp32|bf16|fp16, last dim dense
        Tokens.
    weight, bias : Tensor, shape (B or 1, S, D), fp32, last dim dense
        Of each segment of L / S tokens.
    eps : float
        Added to the variance.
    impl : Impl
        Implementation, usually ``plan.norm_modulate_quantize``.

    Returns
    -------
    values : Tensor, shape (B, L, D), float8_e4m3fn
        Tokens over their scale.
    scales : Tensor, shape (B, L, 1), fp32
        A 448th of the largest magnitude of each token.

    Raises
    ------
    InvalidArgument
        A shape, dtype, device or stride outside the above.
    UnsupportedKernel
        The requested implementation cannot run here.
    """
    _checks.require_tokens(x)
    _checks.require_dense("x", x)
    _checks.require_affine(weight, bias, x)
    chosen = resolve("norm_modulate_quantize", impl, x.device.type, x.dtype)
    if chosen == "reference":
        return _reference.norm_modulate_quantize(x, weight, bias, eps=eps)
    values, scales = _op(x, weight, bias, eps, chosen)
    return values, scales


def _run(x: Tensor, weight: Tensor, bias: Tensor, eps: float, impl: str) -> tuple[Tensor, Tensor]:
    from skyreels_rt.kernels.triton import norm_modulate_quantize as triton

    values, scales = _fake(x, weight, bias, eps, impl)
    triton.launch(x, weight, bias, values, scales, eps)
    return values, scales


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, impl: str  # noqa: ARG001 - the schema's arguments
) -> tuple[Tensor, Tensor]:  # fmt: skip
    values = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    return values, x.new_empty((*x.shape[:2], 1), dtype=torch.float32)


_op = define_op(
    "norm_modulate_quantize(Tensor x, Tensor weight, Tensor bias, float eps, str impl)"
    " -> (Tensor, Tensor)",
    run=_run,
    fake=_fake,
)
