"""Attention of each latent frame's tokens over that frame's audio tokens only.

::

    out[b, f*P + p] = softmax(q[b, f*P + p] . k[b, f]^T / sqrt(K)) . v[b, f]     per head

Legend: B batch, F latent frames, P patches of a frame, M audio tokens of a frame, N heads, K head
size. Replaces regrouping, attention over F*M keys with a block mask, and the way back.

Numerics: scores and softmax in fp32 or better, one rounding at the store.
Layout: last dimension dense.

============== ======== ======================
implementation device   dtypes
============== ======== ======================
reference      any      fp32, bf16, fp16, fp64
============== ======== ======================

Source: the audio adapters of MultiTalk (arXiv 2505.22647) and SkyReels-V3.
"""

from __future__ import annotations

from torch import Tensor

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.kernels import _checks
from skyreels_rt.kernels._select import Impl, resolve
from skyreels_rt.kernels.reference import audio_cross_attention as _reference


def audio_cross_attention(
    q: Tensor, k: Tensor, v: Tensor, *, num_heads: int, impl: Impl = Impl.AUTO
) -> Tensor:
    """Attend strictly within each latent frame.

    Parameters
    ----------
    q : Tensor, shape (B, F*P, N*K), fp32|bf16|fp16
        Queries, frame after frame.
    k, v : Tensor, shape (B, F, M, N*K), dtype of q
        Keys and values of each frame's audio tokens.
    num_heads : int
        N.
    impl : Impl
        Implementation, usually ``plan.audio_cross_attention``.

    Returns
    -------
    Tensor, shape (B, F*P, N*K)
        Attended values.

    Raises
    ------
    InvalidArgument
        A shape, dtype or device outside the above.
    UnsupportedKernel
        The requested implementation cannot run here.
    """
    _checks.require_shape("q", q, (None, None, None), "(B, F*P, N*K)")
    _checks.require_floating("q", q)
    batch, length, width = q.shape
    _checks.require_shape("k", k, (batch, None, None, width), "(B, F, M, N*K)")
    _checks.require_shape("v", v, tuple(k.shape), "of k")
    _checks.require_like("k", k, "q", q)
    _checks.require_like("v", v, "q", q)
    _checks.require_heads(width, num_heads, even=False)
    frames, tokens = k.shape[1:3]
    if length % frames if frames else length:
        raise InvalidArgument("q", expected=f"L a multiple of F = {frames}", got=f"L = {length}")
    if tokens == 0:
        raise InvalidArgument("k", expected="at least one audio token (M >= 1)", got=tuple(k.shape))
    resolve("audio_cross_attention", impl, q.device.type, q.dtype)
    return _reference.audio_cross_attention(q, k, v, num_heads=num_heads)
