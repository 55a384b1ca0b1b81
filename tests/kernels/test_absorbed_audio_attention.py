"""absorbed_audio_attention: equal to q_proj, audio_cross_attention, o_proj and residual."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from skyreels_rt.errors import InvalidArgument, UnsupportedKernel
from skyreels_rt.kernels import (
    AudioFold,
    Impl,
    KernelPlan,
    absorbed_audio_attention,
    fold_audio_projections,
)
from skyreels_rt.kernels.reference.audio_cross_attention import audio_cross_attention
from skyreels_rt.runtime.native import native_status
from skyreels_rt.testing.faults.absorbed_audio_attention import FAULTS
from skyreels_rt.testing.numerics import assert_bitwise_equal, assert_within_budget

LAYERS = {layer.name: layer for layer in native_status()}
needs_cpp = pytest.mark.skipif(not LAYERS["_C"].active, reason=f"_C: {LAYERS['_C'].detail}")
needs_triton = pytest.mark.skipif(not LAYERS["triton"].active, reason="triton is not installed")
# Batch, frames, patches, tokens, heads, head size: the embedded model's, Wan's in short, odd ones.
SHAPES = [
    (2, 3, 64, 8, 3, 64),
    (1, 2, 64, 32, 4, 128),
    (1, 3, 37, 11, 5, 22),
    (2, 2, 19, 33, 2, 48),
]
EMPTY = [(0, 2, 3, 4, 2, 8), (1, 0, 3, 4, 2, 8), (1, 2, 0, 4, 2, 8)]


class Layer(NamedTuple):
    """Inputs of one layer's audio attention."""

    x: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    q_weight: torch.Tensor
    o_weight: torch.Tensor
    q_bias: torch.Tensor
    o_bias: torch.Tensor
    residual: torch.Tensor

    def to(self, dtype: torch.dtype | str) -> Layer:
        return Layer(*(x.to(dtype) for x in self))


def make_layer(shape: tuple[int, ...], dtype: torch.dtype, loudness: float = 1.0) -> Layer:
    batch, frames, patches, tokens, heads, head_dim = shape
    width = heads * head_dim
    generator = torch.Generator().manual_seed(4)

    def randn(*size: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(size, generator=generator) * scale).to(dtype)

    return Layer(
        x=randn(batch, frames * patches, width),
        k=randn(batch, frames, tokens, width, scale=loudness),
        v=randn(batch, frames, tokens, width),
        q_weight=randn(width, width, scale=width**-0.5),
        o_weight=randn(width, width, scale=width**-0.5),
        q_bias=randn(width, scale=0.3),
        o_bias=randn(width, scale=0.3),
        residual=randn(batch, frames * patches, width),
    )


def fold_of(layer: Layer, heads: int, *, fold_bias: bool = False) -> AudioFold:
    return fold_audio_projections(
        layer.q_weight, layer.q_bias, layer.k, layer.v, layer.o_weight, num_heads=heads,
        o_bias=layer.o_bias if fold_bias else None,
    )  # fmt: skip


def ordinary(layer: Layer, heads: int, *, bias: bool, residual: bool) -> torch.Tensor:
    q = F.linear(layer.x, layer.q_weight, layer.q_bias)
    attended = audio_cross_attention(q, layer.k, layer.v, num_heads=heads)
    out = F.linear(attended, layer.o_weight, layer.o_bias if bias else None)
    return layer.residual + out if residual else out


# Where the output bias is, and whether there is a residual.
FORMS = [("none", False), ("none", True), ("here", False), ("here", True), ("folded", False),
         ("folded", True)]  # fmt: skip


def absorbed(layer: Layer, heads: int, bias: str, residual: bool, impl: Impl) -> torch.Tensor:
    return absorbed_audio_attention(
        layer.x,
        fold_of(layer, heads, fold_bias=bias == "folded"),
        layer.o_bias if bias == "here" else None,
        layer.residual if residual else None,
        impl=impl,
    )


def assert_matches(
    actual: torch.Tensor, layer: Layer, heads: int, *, bias: bool, residual: bool
) -> None:
    dtype = layer.x.dtype
    high = ordinary(layer.to(torch.float64), heads, bias=bias, residual=residual)
    low = ordinary(layer, heads, bias=bias, residual=residual)
    assert_within_budget(actual, high, low, dtype)


@pytest.mark.parametrize(("bias", "residual"), FORMS)
def test_equal_to_the_ordinary_path(bias: str, residual: bool) -> None:
    for shape in SHAPES:
        layer = make_layer(shape, torch.float64)
        out = absorbed(layer, shape[4], bias, residual, Impl.REFERENCE)
        expected = ordinary(layer, shape[4], bias=bias != "none", residual=residual)
        assert float((out - expected).abs().max()) <= 1e-12 * float(expected.abs().max())


def test_fold_is_the_formula() -> None:
    layer = make_layer((2, 3, 4, 5, 3, 8), torch.float64)
    fold = fold_of(layer, 3)
    b, f, h, m = 1, 2, 1, 3
    part, column = slice(8 * h, 8 * h + 8), 5 * h + m
    key, value = layer.k[b, f, m, part], layer.v[b, f, m, part]
    torch.testing.assert_close(fold.m[b, f, :, column], layer.q_weight[part].T @ key / 8**0.5)
    torch.testing.assert_close(fold.c[b, f, column], layer.q_bias[part] @ key / 8**0.5)
    torch.testing.assert_close(fold.u[b, f, column], layer.o_weight[:, part] @ value)
    assert fold.tokens == 5
    assert fold.nbytes == 8 * (2 * 2 * 3 * 24 * 15 + 2 * 3 * 15)
    assert not fold_of(layer._replace(q_bias=None), 3).c.any()


@pytest.mark.parametrize(("bias", "residual"), FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("impl", [Impl.REFERENCE, pytest.param(Impl.CPP, marks=needs_cpp)])
def test_within_budget(impl: Impl, dtype: torch.dtype, bias: str, residual: bool) -> None:
    if bias == "folded" and not residual and dtype == torch.bfloat16:
        pytest.skip("the form for a residual: without one the bias costs nothing unfolded")
    # Loud keys show every rounding of logits and probabilities; without a residual nothing else is
    # rounded, and the ordinary path, which keeps both in fp32, is a little better there.
    for shape in SHAPES:
        for loudness in (1.0, 3.0) if residual or dtype == torch.float32 else (1.0,):
            layer = make_layer(shape, dtype, loudness)
            actual = absorbed(layer, shape[4], bias, residual, impl)
            assert_matches(actual, layer, shape[4], bias=bias != "none", residual=residual)


@pytest.mark.parametrize("impl", [Impl.REFERENCE, pytest.param(Impl.CPP, marks=needs_cpp)])
@pytest.mark.parametrize("shape", EMPTY)
def test_empty(shape: tuple[int, ...], impl: Impl) -> None:
    layer = make_layer(shape, torch.float32)
    for bias, residual in FORMS:
        assert absorbed(layer, 2, bias, residual, impl).shape == layer.x.shape


@needs_cpp
def test_views_and_permuted_inputs() -> None:
    shape = (2, 3, 10, 6, 2, 16)
    layer = make_layer(shape, torch.bfloat16)
    expected = absorbed(layer, 2, "here", True, Impl.CPP)
    k, v = torch.cat([layer.k, layer.v], -1).chunk(2, -1)
    x, residual = (
        t.transpose(0, 1).contiguous().transpose(0, 1) for t in (layer.x, layer.residual)
    )
    views = layer._replace(k=k, v=v, x=x, residual=residual)
    assert_bitwise_equal(absorbed(views, 2, "here", True, Impl.CPP), expected)


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_instruction_sets_and_thread_counts_give_the_same_bytes(dtype: torch.dtype) -> None:
    from skyreels_rt import _C

    for tokens, heads in ((8, 3), (13, 5), (32, 2), (1, 4)):
        generator = torch.Generator().manual_seed(5)
        logits = torch.randn(3, 41, heads * tokens, generator=generator) * 4
        shifts = torch.randn(3, heads * tokens, generator=generator)
        results = []
        for isa in _C.available_isas():
            for threads in (1, 2, 5):
                out = torch.full_like(logits, torch.nan, dtype=dtype)
                _C.group_softmax(
                    logits.data_ptr(), shifts.data_ptr(), out.data_ptr(),
                    {4: 0, 2: 1}[out.element_size()], 3, 41, heads, tokens, threads, isa,
                )  # fmt: skip
                results.append(out)
        for out in results:
            assert_bitwise_equal(out, results[0])
        expected = (logits + shifts[:, None]).double().unflatten(-1, (heads, tokens)).softmax(-1)
        assert_within_budget(
            results[0], expected.flatten(-2), expected.flatten(-2).to(dtype), dtype
        )


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="runs on the device instead")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_triton_interpreted_within_budget(dtype: torch.dtype) -> None:
    # Not in bf16: the interpreter's casts to it truncate.
    for shape in [(1, 2, 64, 8, 3, 64), (1, 3, 37, 11, 2, 22), (0, 2, 3, 4, 2, 8)]:
        layer = make_layer(shape, dtype)
        actual = absorbed(layer, shape[4], "folded", True, Impl.TRITON)
        assert_matches(actual, layer, shape[4], bias=True, residual=True)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_rejected(fault: str) -> None:
    layer = make_layer(SHAPES[1], torch.bfloat16, loudness=3.0)
    fold = fold_of(layer, 4, fold_bias=True)
    right = absorbed(layer, 4, "folded", True, Impl.REFERENCE)
    assert_matches(right, layer, 4, bias=True, residual=True)
    with pytest.raises(AssertionError, match="error"):
        assert_matches(
            FAULTS[fault](layer.x, fold, None, layer.residual), layer, 4, bias=True, residual=True
        )


@needs_cpp
def test_registration() -> None:
    op = torch.ops.skyreels_rt.absorbed_audio_attention.default
    logits, shifts = torch.randn(2, 7, 12), torch.randn(2, 12)
    permuted = torch.randn(7, 12, 2).permute(2, 0, 1)
    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(op, (logits, shifts, 4, dtype, "cpp"))
        torch.library.opcheck(op, (permuted, shifts, 4, dtype, "cpp"))


@pytest.mark.parametrize("impl", [Impl.AUTO, Impl.REFERENCE])
def test_compiles_whole(impl: Impl) -> None:
    layer = make_layer((1, 2, 3, 4, 2, 8), torch.float32)

    def folded(x: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return absorbed(layer._replace(x=x, k=k, v=v), 2, "here", True, impl)

    compiled = torch.compile(folded, fullgraph=True, backend="aot_eager")
    tensors = layer.x, layer.k, layer.v
    assert_bitwise_equal(compiled(*tensors), folded(*tensors))
    fold = fold_of(layer, 2)
    ready = torch.compile(absorbed_audio_attention, fullgraph=True, backend="aot_eager")
    expected = absorbed_audio_attention(layer.x, fold, None, layer.residual, impl=impl)
    assert_bitwise_equal(ready(layer.x, fold, None, layer.residual, impl=impl), expected)


def test_gradients_come_from_the_reference() -> None:
    layer = make_layer((1, 2, 3, 4, 2, 8), torch.float64)
    leaves = Layer(*(x.clone().requires_grad_() for x in layer))
    absorbed(leaves, 2, "folded", True, Impl.AUTO).square().sum().backward()
    others = Layer(*(x.clone().requires_grad_() for x in layer))
    ordinary(others, 2, bias=True, residual=True).square().sum().backward()
    for leaf, other in zip(leaves, others, strict=True):
        torch.testing.assert_close(leaf.grad, other.grad)


BAD = {
    "x rank": ({"x": torch.zeros(6, 16)}, {}, r"x: .*\(B, F\*P, D\)"),
    "x dtype": ({"x": torch.zeros(1, 6, 16, dtype=torch.int64)}, {}, "x: .*float32"),
    "x width": ({"x": torch.zeros(1, 6, 8)}, {}, "fold.m: "),
    "ragged": ({"x": torch.zeros(1, 5, 16)}, {}, "multiple of F"),
    "bias": ({"o_bias": torch.zeros(8)}, {}, "o_bias: "),
    "residual": ({"residual": torch.zeros(1, 5, 16)}, {}, "residual: "),
    "residual dtype": ({"residual": torch.zeros(1, 6, 16).double()}, {}, "residual: .*as x"),
    "m dtype": ({}, {"m": torch.zeros(1, 2, 16, 8).half()}, "fold.m: .*as x"),
    "c dtype": ({}, {"c": torch.zeros(1, 2, 8).half()}, "fold.c: .*float32"),
    "u shape": ({}, {"u": torch.zeros(1, 2, 16, 8)}, "fold.u: "),
    "tokens": ({}, {"tokens": 3}, "fold.tokens: "),
    "no tokens": ({}, {"tokens": 0}, "fold.tokens: "),
    "device": ({"residual": torch.zeros(1, 6, 16, device="meta")}, {}, "residual: .*cpu"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_calls(case: str) -> None:
    arguments, of_fold, words = BAD[case]
    layer = make_layer((1, 2, 3, 4, 2, 8), torch.float32)
    fold = dataclasses.replace(fold_of(layer, 2), **of_fold)
    given = {"x": layer.x, "o_bias": layer.o_bias, "residual": layer.residual} | arguments
    with pytest.raises(InvalidArgument, match=words):
        absorbed_audio_attention(given["x"], fold, given["o_bias"], given["residual"])


BAD_FOLDS = {
    "heads": ({}, 3, "num_heads"),
    "q_weight": ({"q_weight": torch.zeros(16)}, 2, r"q_weight: .*\(N\*K, D\)"),
    "o_weight": ({"o_weight": torch.zeros(16, 8)}, 2, "o_weight: "),
    "q_bias": ({"q_bias": torch.zeros(8)}, 2, "q_bias: "),
    "k": ({"k": torch.zeros(1, 8, 16)}, 2, r"k: .*\(B, F, M, N\*K\)"),
    "v": ({"v": torch.zeros(1, 2, 3, 16)}, 2, "v: "),
    "dtype": ({"k": torch.zeros(1, 2, 4, 16).half()}, 2, "k: .*as q_weight"),
    "no tokens": ({n: torch.zeros(1, 2, 0, 16) for n in "kv"}, 2, "M >= 1"),
}


@pytest.mark.parametrize("case", BAD_FOLDS)
def test_bad_folds(case: str) -> None:
    replaced, heads, words = BAD_FOLDS[case]
    layer = make_layer((1, 2, 3, 4, 2, 8), torch.float32)._replace(**replaced)
    with pytest.raises(InvalidArgument, match=words):
        fold_of(layer, heads)


def test_requests() -> None:
    layer = make_layer((1, 2, 3, 4, 2, 8), torch.float32)
    with pytest.raises(UnsupportedKernel, match=r"Supported here: .*reference"):
        absorbed(layer, 2, "here", True, Impl.CUDA)
    if LAYERS["_C"].active:
        assert KernelPlan.choose("cpu", torch.bfloat16).absorbed_audio_attention is Impl.CPP


@needs_triton
def test_too_many_tokens_for_triton() -> None:
    layer = make_layer((1, 1, 2, 257, 1, 4), torch.float32)
    with pytest.raises(UnsupportedKernel, match="at most 256 tokens a frame, not 257"):
        absorbed(layer, 1, "here", True, Impl.TRITON)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("bias", "residual"), [("here", True), ("folded", True), ("here", False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_device_within_budget(dtype: torch.dtype, bias: str, residual: bool) -> None:
    for shape in [*SHAPES, (1, 3, 1560, 32, 12, 128)]:
        layer = make_layer(shape, dtype)
        with torch.inference_mode():
            actual = absorbed(layer.to("cuda"), shape[4], bias, residual, Impl.TRITON)
        assert_matches(actual.cpu(), layer, shape[4], bias=bias != "none", residual=residual)
