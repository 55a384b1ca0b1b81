"""LayerNorm of tokens, then a weight and a bias for each segment of them, fused.

::

    y[b, l] = (x[b, l] - mean) / sqrt(variance + eps) * weight[b, s] + bias[b, s]
    s = l // (L / S)

Legend: B batch, L tokens, D width, S segments: 1 for a whole window, the number of latent frames
where each frame has a modulation of its own. ``weight`` is what multiplies the normalised token:
1 + scale in adaLN, or the weight of an affine LayerNorm (B = S = 1). Replaces LayerNorm, casts,
multiply and add.

Numerics: mean, then the centred variance, and the modulation in fp32; one rounding, at the store.
The CPU implementation gives the same bytes for any number of threads and on any x86 processor.
Layout: last dimensions dense, any other strides (slices of a stacked modulation table); the output
is contiguous.

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
from skyreels_rt.kernels.reference import norm_modulate as _reference


def norm_modulate(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, impl: Impl = Impl.AUTO
) -> Tensor:
    """Normalise and modulate tokens.

    Where a gradient is needed the reference runs, whatever ``impl`` says.

    Parameters
    ----------
    x : Tensor, shape (B, L, D), fp32|bf16|fp16, last dim dense
        Tokens.
    weight, bias : Tensor, shape (B or 1, S, D), fp32, last dim dense
        Of each segment of L / S tokens.
    eps : float
        Added to the variance.
    impl : Impl
        Implementation, usually ``plan.norm_modulate``.

    Returns
    -------
    Tensor, shape (B, L, D), dtype of x, contiguous
        A new tensor.

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
    chosen = resolve("norm_modulate", impl, x.device.type, x.dtype)
    if chosen == "reference" or _checks.needs_gradient(x, weight, bias):
        return _reference.norm_modulate(x, weight, bias, eps=eps)
    out: Tensor = _op(x, weight, bias, eps, chosen)
    return out


def _run(x: Tensor, weight: Tensor, bias: Tensor, eps: float, impl: str) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if impl == "triton":
        from skyreels_rt.kernels.triton import norm_modulate as triton

        triton.launch(x, weight, bias, out, eps)
        return out
    batch, length, width = x.shape
    across, along, _ = x.stride()
    _native.extension().norm_modulate(
        x.data_ptr(), _native.in_huge_pages(out).data_ptr(),
        _native.segment_table(weight), _native.segment_table(bias),
        _native.DTYPE_CODES[x.dtype], batch, length, width, across, along, eps,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def _fake(x: Tensor, weight: Tensor, bias: Tensor, eps: float, impl: str) -> Tensor:  # noqa: ARG001 - the schema's arguments
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_op = define_op(
    "norm_modulate(Tensor x, Tensor weight, Tensor bias, float eps, str impl) -> Tensor",
    run=_run,
    fake=_fake,
)
