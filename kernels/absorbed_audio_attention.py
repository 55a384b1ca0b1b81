"""Audio cross-attention with its q- and o-projection folded into the audio keys and values.

::

    m[b, f, :, hM:hM+M] = Wq_h^T k[b, f, :, h]^T / sqrt(K)
    c[b, f, hM:hM+M]    = k[b, f, :, h] bq_h / sqrt(K)
    u[b, f, hM:hM+M, :] = v[b, f, :, h] Wo_h^T
    out = residual + softmax_h(x m + c) u + o_bias              softmax over the M columns of a head

Legend: B batch, F latent frames, P patches of a frame, M audio tokens of a frame, N heads, h one of
them, K head size, D model width, S = N*M. Exactly residual + o_proj(attention(q_proj(x), k, v)),
where there is neither a norm nor a rotation between projection and attention. The fold depends on
weights and audio alone: made once for a clip and used in all steps, it replaces two D x D products
a token by two D x S ones (a quarter for M = 32, K = 128); worthwhile for M < K. Where memory for
the folds of all layers is short, fold inside the layer, at the cost of 2 F M D^2 products a step.

Numerics: products in the dtype of x with fp32 sums; logits (not rounded: bf16 ones break the error
budget), c and softmax in fp32; probabilities rounded once; one rounding of the output, a second
where o_bias comes beside a residual (fold the bias instead). In bf16 the mean error is 0.92 to 1.00
of the ordinary path's with a residual and the bias folded, up to 1.15 without a residual.
The CPU implementation gives the same bytes for any number of threads and on any x86 processor, up
to torch's matrix products.
Layout: any (copied where not dense); m is the transpose of dense (B, F, S, D).

============== ======== ====================== ========
implementation device   dtypes                 tokens M
============== ======== ====================== ========
reference      any      fp32, bf16, fp16, fp64 any
cpp            CPU      fp32, bf16             any
triton         CUDA     fp32, bf16, fp16       256
============== ======== ====================== ========

Implementations differ in the softmax between the products, which torch computes.

Source: weight absorption of multi-head latent attention, DeepSeek-V2 (arXiv 2405.04434).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skyreels_rt.errors import InvalidArgument, UnsupportedKernel
from skyreels_rt.kernels import _checks, _native
from skyreels_rt.kernels._library import define_op
from skyreels_rt.kernels._select import Impl, resolve
from skyreels_rt.kernels.reference import absorbed_audio_attention as _reference

_MAX_TRITON_TOKENS = 256


@dataclass(frozen=True, eq=False)
class AudioFold:
    """Audio keys and values with the projections folded in, from :func:`fold_audio_projections`.

    Attributes
    ----------
    m : Tensor, shape (B, F, D, N*M)
        Takes tokens to scaled logits.
    c : Tensor, shape (B, F, N*M), fp32
        Added to the logits.
    u : Tensor, shape (B, F, N*M, D)
        Takes probabilities to the output.
    tokens : int
        M.
    """

    m: Tensor
    c: Tensor
    u: Tensor
    tokens: int

    @property
    def nbytes(self) -> int:
        """Memory of the fold."""
        return sum(x.numel() * x.element_size() for x in (self.m, self.c, self.u))


def fold_audio_projections(
    q_weight: Tensor,
    q_bias: Tensor | None,
    k: Tensor,
    v: Tensor,
    o_weight: Tensor,
    *,
    num_heads: int,
    o_bias: Tensor | None = None,
) -> AudioFold:
    """Fold the projections around an audio cross-attention into its keys and values.

    Parameters
    ----------
    q_weight, o_weight : Tensor, shape (N*K, D) and (D, N*K), fp32|bf16|fp16
        Weights of the query and output projection, as ``nn.Linear`` holds them.
    q_bias : Tensor, shape (N*K), optional
        Bias of the query projection.
    k, v : Tensor, shape (B, F, M, N*K), dtype of the weights
        Keys and values of each frame's audio tokens.
    num_heads : int
        N.
    o_bias : Tensor, shape (D), optional
        Bias of the output projection. Folded in (the first head's rows of u take it, for its
        probabilities sum to one), it is not passed to :func:`absorbed_audio_attention` any more.

    Returns
    -------
    AudioFold
        Differentiable in all tensors.

    Raises
    ------
    InvalidArgument
        A shape, dtype or device outside the above.
    """
    _checks.require_shape("q_weight", q_weight, (None, None), "(N*K, D)")
    _checks.require_floating("q_weight", q_weight)
    inner, width = q_weight.shape
    head_dim = _checks.require_heads(inner, num_heads, even=False)
    _checks.require_shape("k", k, (None, None, None, inner), "(B, F, M, N*K)")
    _checks.require_shape("v", v, tuple(k.shape), "of k")
    _checks.require_shape("o_weight", o_weight, (width, inner), "(D, N*K)")
    for name, bias, size in (("q_bias", q_bias, inner), ("o_bias", o_bias, width)):
        if bias is not None:
            _checks.require_shape(name, bias, (size,), "of the projection")
            _checks.require_floating(name, bias)
            _checks.require_device(name, bias, "q_weight", q_weight)
    for name, x in (("k", k), ("v", v), ("o_weight", o_weight)):
        _checks.require_like(name, x, "q_weight", q_weight)
    batch, frames, tokens = k.shape[:3]
    if tokens == 0:
        raise InvalidArgument("k", expected="at least one audio token (M >= 1)", got=tuple(k.shape))

    def by_head(x: Tensor) -> Tensor:
        rows = batch * frames * tokens
        return x.reshape(rows, num_heads, head_dim).transpose(0, 1)

    def by_frame(x: Tensor) -> Tensor:  # from (N, B*F*M, last)
        heads = x.view(num_heads, batch, frames, tokens, x.shape[-1])
        return heads.permute(1, 2, 0, 3, 4).flatten(2, 3)

    compute = torch.promote_types(k.dtype, torch.float32)
    scale = head_dim**-0.5
    keys, values = by_head(k), by_head(v)
    queries = q_weight.view(num_heads, head_dim, width)
    outputs = o_weight.t().reshape(num_heads, head_dim, width)
    none = keys.new_zeros(1, 1, 1)
    m = torch.baddbmm(none, keys, queries, beta=0, alpha=scale)  # scaled before the one rounding
    if o_bias is None:
        u = torch.bmm(values, outputs)
    else:
        rest = o_bias.new_zeros(num_heads - 1, 1, width)
        shares = torch.cat([o_bias.view(1, 1, width), rest]).to(k.dtype)
        u = torch.baddbmm(shares, values, outputs)
    if q_bias is None:
        c = keys.new_zeros((batch, frames, num_heads * tokens), dtype=compute)
    else:
        bias = q_bias.to(compute).view(num_heads, head_dim, 1)
        c = by_frame(torch.bmm(keys.to(compute), bias * scale)).squeeze(-1)
    return AudioFold(m=by_frame(m).mT, c=c, u=by_frame(u), tokens=tokens)


def absorbed_audio_attention(
    x: Tensor,
    fold: AudioFold,
    o_bias: Tensor | None,
    residual: Tensor | None,
    *,
    impl: Impl = Impl.AUTO,
) -> Tensor:
    """Attend within each latent frame, from the tokens before q_proj to those after o_proj.

    Parameters
    ----------
    x : Tensor, shape (B, F*P, D), fp32|bf16|fp16
        Normalised tokens, frame after frame: the input of the query projection.
    fold : AudioFold
        Of x's dtype, for its frames.
    o_bias : Tensor, shape (D), dtype of x, or None
        Bias of the output projection; None where it is folded.
    residual : Tensor, shape (B, F*P, D), dtype of x, or None
        Added to the output.
    impl : Impl
        Implementation, usually ``plan.absorbed_audio_attention``.

    Returns
    -------
    Tensor, shape (B, F*P, D)
        A new tensor.

    Raises
    ------
    InvalidArgument
        A shape, dtype or device outside the above.
    UnsupportedKernel
        The requested implementation cannot run here, or not for so many tokens.
    """
    _check(x, fold, o_bias, residual)
    chosen = resolve("absorbed_audio_attention", impl, x.device.type, x.dtype)
    if chosen == "triton" and fold.tokens > _MAX_TRITON_TOKENS:
        if impl is not Impl.AUTO:
            raise UnsupportedKernel(
                f"absorbed_audio_attention: implementation 'triton' takes at most "
                f"{_MAX_TRITON_TOKENS} tokens a frame, not {fold.tokens}.",
                stage="kernels",
                hint="Impl.REFERENCE takes any number.",
            )
        chosen = "reference"
    operands = [t for t in (x, fold.m, fold.c, fold.u, o_bias, residual) if t is not None]
    if chosen == "reference" or _checks.needs_gradient(*operands):
        return _reference.absorbed_audio_attention(
            x, fold.m, fold.c, fold.u, o_bias, residual, tokens=fold.tokens
        )
    logits = _reference.logits(x, fold.m)
    probabilities = _op(logits, fold.c.flatten(0, 1), fold.tokens, x.dtype, chosen)
    return _reference.project(probabilities, fold.u, o_bias, residual)


def _check(x: Tensor, fold: AudioFold, o_bias: Tensor | None, residual: Tensor | None) -> None:
    """Check every tensor."""
    _checks.require_shape("x", x, (None, None, None), "(B, F*P, D)")
    _checks.require_floating("x", x)
    batch, length, width = x.shape
    _checks.require_shape("fold.m", fold.m, (batch, None, width, None), "(B, F, D, N*M)")
    _, frames, _, columns = fold.m.shape
    _checks.require_shape("fold.c", fold.c, (batch, frames, columns), "(B, F, N*M)")
    _checks.require_shape("fold.u", fold.u, (batch, frames, columns, width), "(B, F, N*M, D)")
    for name, operand in (("fold.m", fold.m), ("fold.u", fold.u)):
        _checks.require_like(name, operand, "x", x)
    if fold.c.dtype != torch.promote_types(x.dtype, torch.float32):
        raise InvalidArgument("fold.c", expected="torch.float32", got=str(fold.c.dtype))
    _checks.require_device("fold.c", fold.c, "x", x)
    if fold.tokens < 1 or columns % fold.tokens:
        raise InvalidArgument(
            "fold.tokens", expected=f"a divisor of N*M = {columns}", got=fold.tokens
        )
    if length % frames if frames else length:
        raise InvalidArgument("x", expected=f"L a multiple of F = {frames}", got=f"L = {length}")
    if o_bias is not None:
        _checks.require_shape("o_bias", o_bias, (width,), "(D)")
        _checks.require_like("o_bias", o_bias, "x", x)
    if residual is not None:
        _checks.require_shape("residual", residual, tuple(x.shape), "of x")
        _checks.require_like("residual", residual, "x", x)


def _run(logits: Tensor, c: Tensor, tokens: int, dtype: torch.dtype, impl: str) -> Tensor:
    """Softmax of logits (G, P, S) + c (G, S) over groups of M columns."""
    logits, c = logits.contiguous(), c.contiguous()
    out = torch.empty_like(logits, dtype=dtype)
    if out.numel() == 0:
        return out
    groups, rows, columns = logits.shape
    if impl == "triton":
        from skyreels_rt.kernels.triton import absorbed_audio_attention as _triton

        _triton.launch(logits, c, out, tokens)
    else:
        _native.extension().group_softmax(
            logits.data_ptr(), c.data_ptr(), out.data_ptr(), _native.DTYPE_CODES[dtype],
            groups, rows, columns // tokens, tokens, torch.get_num_threads(),
        )  # fmt: skip
    return out


def _fake(
    logits: Tensor,
    c: Tensor,  # noqa: ARG001 - the schema's arguments
    tokens: int,  # noqa: ARG001
    dtype: torch.dtype,
    impl: str,  # noqa: ARG001
) -> Tensor:
    return logits.new_empty(tuple(logits.shape), dtype=dtype)


_op = define_op(
    "absorbed_audio_attention(Tensor logits, Tensor c, int tokens, ScalarType dtype, str impl)"
    " -> Tensor",
    run=_run,
    fake=_fake,
)
