"""Attention of each latent frame's tokens over that frame's audio tokens only.

::

    n[b, l] = q[b, l] / sqrt(mean(q[b, l]^2) + eps) w            with norm_weight w, else q[b, l]
    out[b, f*P + p] = gate[b, f] softmax(n[b, f*P + p] . k[b, f]^T / sqrt(K)) . v[b, f]  per head

Legend: B batch, F latent frames, P patches of a frame, M audio tokens of a frame, T audio tokens of
the clip, N heads, K head size. k[b, f] are the M tokens of frame f, or the tokens
[start, start + count) of T that ``ranges`` gives it: overlapping windows without copies. Replaces
regrouping, gathers, attention over all keys with a block mask, and the way back.

Numerics: norm, scores and softmax in fp32, one rounding at the store. Triton rounds the normalised
queries and the probabilities to the dtype of q, for the tensor cores (fp32: three TF32 products);
the CUDA implementation uses no tensor cores. The CPU implementation gives the same bytes for any
number of threads and on any x86 processor.
Layout: last dimension dense (else copied), any other strides: views of a fused projection.

============== ======== ====================== ================ ========
implementation device   dtypes                 head size K      tokens M
============== ======== ====================== ================ ========
reference      any      fp32, bf16, fp16, fp64 any              any
cpp            CPU      fp32, bf16             any              any
triton         CUDA     fp32, bf16, fp16       16 to 128        any
cuda           CUDA     fp32, bf16, fp16       8 j, 32 to 128  256
============== ======== ====================== ================ ========

Outside the last two columns AUTO takes the reference and an explicit request raises.

Source: the audio adapters of MultiTalk (arXiv 2505.22647) and SkyReels-V3; other models add windows
over neighbouring frames, norms of queries and keys, and gates.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from skyreels_rt.errors import InvalidArgument, UnsupportedKernel
from skyreels_rt.kernels import _checks, _native
from skyreels_rt.kernels._library import define_op
from skyreels_rt.kernels._select import Impl, resolve
from skyreels_rt.kernels.reference import audio_cross_attention as _reference

MAX_TOKENS = 256
"""Most tokens of a range, and of a frame in the CUDA implementation."""


def audio_cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int,
    ranges: Tensor | None = None,
    token_mask: Tensor | None = None,
    gate: Tensor | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    impl: Impl = Impl.AUTO,
) -> Tensor:
    """Attend strictly within each latent frame.

    Parameters
    ----------
    q : Tensor, shape (B, F*P, N*K), fp32|bf16|fp16
        Queries, frame after frame.
    k, v : Tensor, shape (B, F, M, N*K), or (B, T, N*K) with ``ranges``, dtype of q
        Keys and values of the audio tokens. They are kept over all steps, so keys come already
        normalised where the model normalises them.
    num_heads : int
        N.
    ranges : Tensor, shape (F, 2), int32, on the CPU, optional
        Start and count of each frame's tokens, 1 to 256 of them. CUDA implementations copy it
        without waiting; pin it to capture the call in a graph.
    token_mask : Tensor, shape (B, F, M) or (B, T), bool, optional
        False for tokens that are not attended. A frame that attends none gets zeros.
    gate : Tensor, shape (B, F), fp32, optional
        Factor of each frame's output.
    norm_weight : Tensor, shape (N*K), floating, optional
        Weight of an RMSNorm over the full width of q (of q alone), applied while loading it.
    eps : float
        Added to that norm's mean square.
    impl : Impl
        Implementation, usually ``plan.audio_cross_attention``.

    Returns
    -------
    Tensor, shape (B, F*P, N*K)
        Attended values.

    Raises
    ------
    InvalidArgument
        A shape, dtype, device or range outside the above.
    UnsupportedKernel
        The requested implementation cannot run here, or not for these sizes.
    """
    frames = _check(q, k, v, num_heads, ranges)
    _check_modifiers(q, k, ranges, token_mask, gate, norm_weight, frames)
    chosen = resolve("audio_cross_attention", impl, q.device.type, q.dtype)
    obstacle = _size_obstacle(chosen, q.shape[2] // num_heads, None if ranges is not None else k)
    if obstacle:
        if impl is not Impl.AUTO:
            raise UnsupportedKernel(
                f"audio_cross_attention: implementation {chosen!r} {obstacle}.",
                stage="kernels",
                hint="Impl.REFERENCE takes any size.",
            )
        chosen = "reference"
    operands = [x for x in (gate, norm_weight) if x is not None]
    if chosen == "reference" or _checks.needs_gradient(q, k, v, *operands):
        if ranges is not None and not torch.compiler.is_compiling():
            _check_ranges(ranges, k.shape[1])
        return _reference.audio_cross_attention(
            q, k, v, num_heads=num_heads, ranges=ranges, token_mask=token_mask, gate_BF=gate,
            norm_weight_D=norm_weight, eps=eps,
        )  # fmt: skip
    out: Tensor = _op(q, k, v, ranges, token_mask, gate, norm_weight, num_heads, eps, chosen)
    return out


def _check(q: Tensor, k: Tensor, v: Tensor, num_heads: int, ranges: Tensor | None) -> int:
    """Latent frames F, after checking queries, keys, values and the shape of the ranges."""
    _checks.require_shape("q", q, (None, None, None), "(B, F*P, N*K)")
    _checks.require_floating("q", q)
    batch, length, width = q.shape
    if ranges is None:
        _checks.require_shape("k", k, (batch, None, None, width), "(B, F, M, N*K)")
        frames = k.shape[1]
    else:
        _checks.require_shape("k", k, (batch, None, width), "(B, T, N*K)")
        _checks.require_shape("ranges", ranges, (None, 2), "(F, 2)")
        if ranges.dtype != torch.int32 or ranges.device.type != "cpu":
            raise InvalidArgument(
                "ranges", expected="torch.int32 on cpu", got=f"{ranges.dtype} on {ranges.device}"
            )
        frames = ranges.shape[0]
    _checks.require_shape("v", v, tuple(k.shape), "of k")
    _checks.require_like("k", k, "q", q)
    _checks.require_like("v", v, "q", q)
    _checks.require_heads(width, num_heads, even=False)
    if length % frames if frames else length:
        raise InvalidArgument("q", expected=f"L a multiple of F = {frames}", got=f"L = {length}")
    if k.shape[-2] == 0:
        raise InvalidArgument("k", expected="at least one audio token (M >= 1)", got=tuple(k.shape))
    return frames


def _check_modifiers(
    q: Tensor,
    k: Tensor,
    ranges: Tensor | None,
    token_mask: Tensor | None,
    gate: Tensor | None,
    norm_weight: Tensor | None,
    frames: int,
) -> None:
    """Check the optional tensors."""
    if token_mask is not None:
        legend = "(B, F, M)" if ranges is None else "(B, T)"
        _checks.require_shape("token_mask", token_mask, tuple(k.shape[:-1]), legend)
        if token_mask.dtype != torch.bool:
            raise InvalidArgument("token_mask", expected="torch.bool", got=str(token_mask.dtype))
        _checks.require_device("token_mask", token_mask, "q", q)
    if gate is not None:
        _checks.require_shape("gate", gate, (q.shape[0], frames), "(B, F)")
        if gate.dtype not in (torch.float32, torch.float64):
            raise InvalidArgument("gate", expected="torch.float32", got=str(gate.dtype))
        _checks.require_device("gate", gate, "q", q)
    if norm_weight is not None:
        _checks.require_shape("norm_weight", norm_weight, (q.shape[2],), "(N*K)")
        _checks.require_floating("norm_weight", norm_weight)
        _checks.require_device("norm_weight", norm_weight, "q", q)


def _check_ranges(ranges: Tensor, tokens: int) -> int:
    """Most tokens of any frame, after checking that all lie in [0, T). Never waits for a device."""
    longest = 1
    for frame, (start, count) in enumerate(ranges.tolist()):
        if not (1 <= count <= MAX_TOKENS and 0 <= start <= tokens - count):
            raise InvalidArgument(
                f"ranges[{frame}]",
                expected=f"1 <= count <= {MAX_TOKENS} tokens inside [0, {tokens})",
                got=f"start {start}, count {count}",
            )
        longest = max(longest, count)
    return longest


def _size_obstacle(impl: str, head_dim: int, k_BFMD: Tensor | None) -> str | None:
    """Why an implementation cannot take these sizes, or None; ranges are never too long."""
    if impl == "triton" and not 16 <= head_dim <= 128:
        return f"takes head sizes 16 to 128, not {head_dim}"
    if impl == "cuda" and not (32 <= head_dim <= 128 and head_dim % 8 == 0):
        return f"takes head sizes 32 to 128 in steps of 8, not {head_dim}"
    if impl == "cuda" and k_BFMD is not None and k_BFMD.shape[2] > MAX_TOKENS:
        return f"takes at most {MAX_TOKENS} tokens a frame, not {k_BFMD.shape[2]}"
    return None


_launch_query_scales = _native.cuda_launcher(
    "audio_query_scales", *[_native.POINTER] * 2, _native.INT, *[_native.INT64] * 5, _native.FLOAT
)
_launch = _native.cuda_launcher(
    "audio_cross_attention", *[_native.POINTER] * 9, _native.INT, *[_native.POINTER] * 2
)


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ranges: Tensor | None,
    token_mask: Tensor | None,
    gate: Tensor | None,
    norm_weight: Tensor | None,
    num_heads: int,
    eps: float,
    impl: str,
) -> Tensor:
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    token_mask, ranges = (None if x is None else x.contiguous() for x in (token_mask, ranges))
    gate, norm_weight = (None if x is None else _dense_fp32(x) for x in (gate, norm_weight))
    batch, length, width = q.shape
    out = q.new_empty((batch, length, width))
    if ranges is None:
        frames, tokens = k.shape[1:3]
        strides = (*k.stride()[:3], *v.stride()[:3], frames * tokens, tokens)
    else:
        frames, tokens = ranges.shape[0], _check_ranges(ranges, k.shape[1])
        strides = (k.stride(0), 0, k.stride(1), v.stride(0), 0, v.stride(1), k.shape[1], 0)
    strides = (*q.stride()[:2], *strides)
    if out.numel() == 0:
        return out
    sizes = (batch, frames, length // frames, tokens, num_heads, width // num_heads)
    if impl == "triton":
        from skyreels_rt.kernels.triton import audio_cross_attention as _triton

        options = (ranges, token_mask, gate, norm_weight)
        _triton.launch((q, k, v, out), options, sizes, strides, eps)
        return out
    pointers = [_address(x) for x in (q, k, v, out, ranges, token_mask, gate, norm_weight)]
    dtype = _native.DTYPE_CODES[q.dtype]
    if impl == "cuda":
        scales = None if norm_weight is None else q.new_empty((batch, length), dtype=torch.float32)
        host_sizes = (_native.INT64 * 6)(*sizes)
        host_strides = (_native.INT64 * 10)(*strides)
        with torch.cuda.device(q.device):
            if scales is not None:
                shape = (batch, length, width, *strides[:2])
                _launch_query_scales(q.data_ptr(), scales.data_ptr(), dtype, *shape, eps)
            addresses = ctypes.addressof(host_sizes), ctypes.addressof(host_strides)
            _launch(*pointers, _address(scales), dtype, *addresses)
    else:
        _native.in_huge_pages(out)
        attend = _native.extension().audio_cross_attention
        attend(*pointers, dtype, sizes, strides, eps, torch.get_num_threads())
    return out


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _dense_fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float32 and x.is_contiguous() else x.float().contiguous()


def _fake(
    q: Tensor,
    k: Tensor,  # noqa: ARG001 - the schema's arguments
    v: Tensor,  # noqa: ARG001
    ranges: Tensor | None,  # noqa: ARG001
    token_mask: Tensor | None,  # noqa: ARG001
    gate: Tensor | None,  # noqa: ARG001
    norm_weight: Tensor | None,  # noqa: ARG001
    num_heads: int,  # noqa: ARG001
    eps: float,  # noqa: ARG001
    impl: str,  # noqa: ARG001
) -> Tensor:
    return q.new_empty(tuple(q.shape))


_op = define_op(
    "audio_cross_attention(Tensor q, Tensor k, Tensor v, Tensor? ranges, Tensor? token_mask,"
    " Tensor? gate, Tensor? norm_weight, int num_heads, float eps, str impl) -> Tensor",
    run=_run,
    fake=_fake,
)
