"""Full-width RMSNorm and rotary embedding of queries and keys, fused, in place.

::

    n = x / sqrt(mean(x^2) + eps) * w                    mean over all N*K channels of a token
    (y0, y1) = (n0 c - n1 s,  n0 s + n1 c)               on channel pairs (2i, 2i+1) of each head

Legend: B batch, L tokens, N heads, K head size, D = N*K. Replaces two RMSNorms and two RoPEs: in
Wan's eager code the largest pointwise cost of a step.

Numerics: statistics, norm and rotation in fp32; one rounding, at the store. The CPU implementation
gives the same bytes for any number of threads and on any x86 processor.
Layout: last dimension of q and k dense, any batch and token strides (views of a fused qkv
projection). q and k must not overlap.

============== ======== ======================
implementation device   dtypes
============== ======== ======================
reference      any      fp32, bf16, fp16, fp64
cpp            CPU      fp32, bf16
triton         CUDA     fp32, bf16, fp16
============== ======== ======================

Source: Wan-Video/Wan2.1 ``wan/modules/model.py`` (``WanRMSNorm``, ``rope_apply``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.kernels import _checks, _native
from skyreels_rt.kernels._library import define_op
from skyreels_rt.kernels._select import Impl, resolve
from skyreels_rt.kernels.reference import qk_norm_rope as _reference


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    weight_q: Tensor,
    weight_k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    num_heads: int,
    impl: Impl = Impl.AUTO,
) -> tuple[Tensor, Tensor]:
    """Normalise and rotate queries and keys; use the returned tensors.

    ``q`` and ``k`` are given away: compiled implementations overwrite and return them. Where a
    gradient is needed the reference runs instead, whatever ``impl`` says.

    Parameters
    ----------
    q, k : Tensor, shape (B, L, N*K), fp32|bf16|fp16, last dim dense
        Projected queries and keys.
    weight_q, weight_k : Tensor, shape (N*K), floating
        Norm weights.
    cos, sin : Tensor, shape (L, K/2), fp32
        Rotation tables (:func:`skyreels_rt.models.rope.rope_tables`).
    eps : float
        Added to the mean square.
    num_heads : int
        N.
    impl : Impl
        Implementation, usually ``plan.qk_norm_rope``.

    Returns
    -------
    tuple of Tensor, shape (B, L, N*K)
        Queries and keys, normalised and rotated.

    Raises
    ------
    InvalidArgument
        A shape, dtype, device or stride outside the above.
    UnsupportedKernel
        The requested implementation cannot run here.
    """
    head_dim = _check(q, k, weight_q, weight_k, cos, sin, num_heads)
    chosen = resolve("qk_norm_rope", impl, q.device.type, q.dtype)
    if chosen == "reference" or _checks.needs_gradient(q, k, weight_q, weight_k):
        return _reference.qk_norm_rope(
            q, k, weight_q, weight_k, cos, sin, eps=eps, num_heads=num_heads
        )
    _op(q, k, weight_q, weight_k, cos, sin, eps, head_dim, chosen)
    return q, k


def _check(
    q: Tensor, k: Tensor, weight_q: Tensor, weight_k: Tensor, cos: Tensor, sin: Tensor, heads: int
) -> int:
    """Head size K, after checking every tensor."""
    _checks.require_shape("q", q, (None, None, None), "(B, L, N*K)")
    _checks.require_floating("q", q)
    _checks.require_shape("k", k, tuple(q.shape), "of q")
    _checks.require_like("k", k, "q", q)
    length, width = q.shape[1:]
    head_dim = _checks.require_heads(width, heads, even=True)
    for name, weight in (("weight_q", weight_q), ("weight_k", weight_k)):
        _checks.require_shape(name, weight, (width,), "(N*K)")
        _checks.require_floating(name, weight)
        _checks.require_device(name, weight, "q", q)
    for name, table in (("cos", cos), ("sin", sin)):
        _checks.require_shape(name, table, (length, head_dim // 2), "(L, K/2)")
        if table.dtype not in (torch.float32, torch.float64):
            raise InvalidArgument(name, expected="float32", got=str(table.dtype))
        _checks.require_device(name, table, "q", q)
    _checks.require_separate_rows("q", q)
    _checks.require_separate_rows("k", k)
    return head_dim


def _run(
    q: Tensor,
    k: Tensor,
    weight_q: Tensor,
    weight_k: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    head_dim: int,
    impl: str,
) -> None:
    operands = [_dense_fp32(x) for x in (weight_q, weight_k, cos, sin)]
    if impl == "triton":
        from skyreels_rt.kernels.triton import qk_norm_rope as triton

        triton.launch(q, k, operands[:2], operands[2:], eps, head_dim)
        return
    batch, length, width = q.shape
    _native.extension().qk_norm_rope(
        q.data_ptr(), k.data_ptr(), *[x.data_ptr() for x in operands],
        _native.DTYPE_CODES[q.dtype],
        batch, length, width // head_dim, head_dim,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), eps, torch.get_num_threads(),
    )  # fmt: skip


def _dense_fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float32 and x.is_contiguous() else x.float().contiguous()


def _fake(
    q: Tensor,
    k: Tensor,
    weight_q: Tensor,
    weight_k: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    head_dim: int,
    impl: str,
) -> None:
    """Nothing to allocate."""


_op = define_op(
    "qk_norm_rope(Tensor(a!) q, Tensor(b!) k, Tensor weight_q, Tensor weight_k, Tensor cos,"
    " Tensor sin, float eps, int head_dim, str impl) -> ()",
    run=_run,
    fake=_fake,
)
