"""norm_modulate: against a second formulation, the fp64 oracle, planted faults and bad calls."""

from __future__ import annotations

import pytest
import torch

from skyreels_rt.errors import InvalidArgument, UnsupportedKernel
from skyreels_rt.kernels import Impl, norm_modulate
from skyreels_rt.kernels.reference.norm_modulate import norm_modulate as reference
from skyreels_rt.runtime.native import native_status
from skyreels_rt.testing.faults.norm_modulate import FAULTS
from skyreels_rt.testing.numerics import assert_bitwise_equal, assert_within_budget

LAYERS = {layer.name: layer for layer in native_status()}
needs_cpp = pytest.mark.skipif(not LAYERS["_C"].active, reason=f"_C: {LAYERS['_C'].detail}")
# The interpreter's casts to bf16 truncate, so there that type is left to the GPU.
interpreted = pytest.mark.skipif(
    not LAYERS["triton"].active or torch.cuda.is_available(),
    reason=f"interpreter not in use: {LAYERS['triton'].detail}",
)
EPS = 1e-6
# Batch, length, segments, width: model shapes, odd tails, empty.
SHAPES = [
    (1, 576, 1, 192), (2, 576, 9, 192), (1, 62, 2, 1536), (2, 77, 7, 67), (1, 5, 5, 5120),
    (3, 6, 1, 1), (1, 13, 1, 17), (1, 0, 3, 64), (0, 6, 1, 64),
]  # fmt: skip
SMALL = [(2, 12, 3, 192), (1, 6, 1, 67), (1, 5, 5, 1536), (1, 0, 3, 64)]


def make_inputs(
    shape: tuple[int, int, int, int], dtype: torch.dtype, *, sliced: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, weight and bias; ``sliced`` makes all of them views with strides of their own."""
    batch, length, segments, width = shape
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, length, 2 * width, generator=generator) * 2 + 0.3
    table = torch.randn(1 if sliced else batch, segments, 6, width, generator=generator) * 0.3
    weight, bias = 1 + table[:, :, 1], table[:, :, 0]
    if sliced:
        table[:, :, 4] += 1
        return x.to(dtype)[..., width:], table[:, :, 4], bias
    return x[..., :width].to(dtype).contiguous(), weight, bias.contiguous()


def assert_good(actual: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> None:
    assert actual.is_contiguous()
    high = reference(*(x.double() for x in inputs), eps=EPS)
    assert_within_budget(actual, high, reference(*inputs, eps=EPS), inputs[0].dtype)


def test_reference_is_the_formula_token_by_token() -> None:
    x, weight, bias = (t.double() for t in make_inputs((2, 12, 3, 20), torch.float32))
    out = reference(x, weight, bias, eps=EPS)
    for b, token in ((0, 0), (1, 3), (0, 7), (1, 11)):
        row, s = x[b, token], token // 4
        normed = (row - row.mean()) / (row.var(correction=0) + EPS).sqrt()
        torch.testing.assert_close(out[b, token], normed * weight[b, s] + bias[b, s])


@needs_cpp
@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpp_within_budget(
    shape: tuple[int, int, int, int], dtype: torch.dtype, sliced: bool
) -> None:
    inputs = make_inputs(shape, dtype, sliced=sliced)
    assert_good(norm_modulate(*inputs, eps=EPS, impl=Impl.CPP), inputs)


@needs_cpp
def test_cpp_takes_permuted_and_expanded_tokens() -> None:
    x, weight, bias = make_inputs((6, 4, 1, 96), torch.float32)
    for view in (x.transpose(0, 1), x[:1].expand(6, -1, -1), x[:, ::2], x[:, :1].expand(-1, 4, -1)):
        inputs = view, weight[:1], bias[:1]
        assert_good(norm_modulate(*inputs, eps=EPS, impl=Impl.CPP), inputs)


@needs_cpp
def test_cpp_keeps_precision_beside_a_large_mean() -> None:
    x, weight, bias = make_inputs((1, 40, 1, 192), torch.float32)
    inputs = x + 300, weight, bias
    actual = norm_modulate(*inputs, eps=EPS, impl=Impl.CPP).double()
    high = reference(*(t.double() for t in inputs), eps=EPS)
    low = reference(*inputs, eps=EPS).double()
    assert (actual - high).abs().max() <= 2 * (low - high).abs().max()


@needs_cpp
def test_nan_stays_in_its_row() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x, weight, bias = make_inputs((1, 9, 1, 40), dtype)
        clean = norm_modulate(x, weight, bias, eps=EPS, impl=Impl.CPP)
        x[0, 4, 33] = torch.nan
        out = norm_modulate(x, weight, bias, eps=EPS, impl=Impl.CPP)
        assert bool(out[0, 4].isnan().all())
        others = [0, 1, 2, 3, 5, 6, 7, 8]
        assert_bitwise_equal(out[0, others], clean[0, others])


@interpreted
@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_triton_interpreted(
    shape: tuple[int, int, int, int], dtype: torch.dtype, sliced: bool
) -> None:
    inputs = make_inputs(shape, dtype, sliced=sliced)
    assert_good(norm_modulate(*inputs, eps=EPS, impl=Impl.TRITON), inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_triton_on_the_gpu(dtype: torch.dtype) -> None:
    for shape in SHAPES:
        for sliced in (False, True):
            inputs = make_inputs(shape, dtype, sliced=sliced)
            on_gpu = (x.cuda() for x in inputs)
            assert_good(norm_modulate(*on_gpu, eps=EPS, impl=Impl.TRITON).cpu(), inputs)


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_instruction_sets_and_thread_counts_give_the_same_bytes(dtype: torch.dtype) -> None:
    from skyreels_rt import _C

    x, weight, bias = make_inputs((2, 210, 5, 203), dtype)
    code = {torch.float32: 0, torch.bfloat16: 1}[dtype]
    tables = [(t.data_ptr(), 5, *t.stride()[:2]) for t in (weight, bias)]
    results = []
    for isa in _C.available_isas():
        for threads in (1, 2, 5):
            out = torch.empty_like(x)
            _C.norm_modulate(
                x.data_ptr(), out.data_ptr(), *tables, code, 2, 210, 203, *x.stride()[:2], EPS,
                threads, isa,
            )  # fmt: skip
            results.append(out)
    for out in results[1:]:
        assert_bitwise_equal(out, results[0])


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_rejected(fault: str) -> None:
    x, *tables = make_inputs((1, 336, 3, 192), torch.bfloat16)
    inputs = ((x.float() * 1e-3).bfloat16(), *tables)  # quiet, so that epsilon matters
    assert_good(reference(*inputs, eps=EPS), inputs)
    with pytest.raises(AssertionError, match="error"):
        assert_good(FAULTS[fault](*inputs, eps=EPS), inputs)


@needs_cpp
def test_registration() -> None:
    op = torch.ops.skyreels_rt.norm_modulate.default
    for dtype in (torch.float32, torch.bfloat16):
        for sliced in (False, True):
            torch.library.opcheck(
                op, (*make_inputs((2, 6, 3, 8), dtype, sliced=sliced), EPS, "cpp")
            )


@pytest.mark.parametrize("impl", [Impl.AUTO, Impl.REFERENCE])
def test_compiles_whole(impl: Impl) -> None:
    inputs = make_inputs((1, 20, 2, 16), torch.float32)

    def modulated(x: torch.Tensor, *tables: torch.Tensor) -> torch.Tensor:
        return norm_modulate(x * 2, *tables, eps=EPS, impl=impl) + 1

    compiled = torch.compile(modulated, fullgraph=True, backend="aot_eager")
    assert_bitwise_equal(compiled(*inputs), modulated(*inputs))


def test_gradients_come_from_the_reference() -> None:
    x, weight, bias = make_inputs((1, 6, 2, 8), torch.float32)
    for leaf in (x, weight, bias):
        leaf.requires_grad_()
    norm_modulate(x, weight, bias, eps=EPS).square().sum().backward()
    for leaf in (x, weight, bias):
        assert leaf.grad is not None
        assert float(leaf.grad.abs().sum()) > 0


BAD = {
    "x rank": ({0: torch.zeros(6, 16)}, r"x: .*\(B, L, D\)"),
    "x dtype": ({0: torch.zeros(1, 6, 16, dtype=torch.int64)}, "x: .*float32"),
    "x stride": ({0: torch.zeros(1, 16, 6).transpose(1, 2)}, "x: .*stride 1"),
    "no width": ({0: torch.zeros(1, 6, 0)}, "x: .*D >= 1"),
    "weight rank": ({1: torch.zeros(2, 16)}, r"weight: .*\(B or 1, S, D\)"),
    "weight batch": ({1: torch.zeros(3, 2, 16)}, "weight: "),
    "weight width": ({1: torch.zeros(1, 2, 15)}, "weight: "),
    "weight segments": ({1: torch.zeros(1, 4, 16)}, "weight: .*divisor of L = 6.*S = 4"),
    "no segments": ({1: torch.zeros(1, 0, 16)}, "weight: .*divisor"),
    "weight dtype": ({1: torch.zeros(1, 2, 16, dtype=torch.bfloat16)}, "weight: .*float32"),
    "weight device": ({1: torch.zeros(1, 2, 16, device="meta")}, "weight: .*cpu"),
    "bias stride": ({2: torch.zeros(1, 16, 2).transpose(1, 2)}, "bias: .*stride 1"),
    "bias shape": ({2: torch.zeros(1, 3, 16)}, "bias: .*of weight"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_calls(case: str) -> None:
    replaced, words = BAD[case]
    arguments = list(make_inputs((1, 6, 2, 16), torch.float32))
    for index, tensor in replaced.items():
        arguments[index] = tensor
    with pytest.raises(InvalidArgument, match=words):
        norm_modulate(*arguments, eps=EPS)


@needs_cpp
def test_native_call_refuses_bad_sizes() -> None:
    from skyreels_rt import _C

    table = (8, 1, 0, 0)
    for bad in (
        (0, 8, table, table, 0, 1, 6, 4, 24, 4, EPS, 1),
        (8, 8, (8, 4, 0, 0), table, 0, 1, 6, 4, 24, 4, EPS, 1),
        (8, 8, table, table, 2, 1, 6, 4, 24, 4, EPS, 1),
        (8, 8, table, table, 0, 1, 6, 0, 24, 4, EPS, 1),
        (8, 8, table, table, 0, 1, 6, 4, 24, 4, EPS, 0),
    ):
        with pytest.raises(ValueError, match="expected"):
            _C.norm_modulate(*bad)


def test_unsupported_request_raises() -> None:
    with pytest.raises(UnsupportedKernel, match="cuda"):
        norm_modulate(*make_inputs((1, 6, 2, 8), torch.float32), eps=EPS, impl=Impl.CUDA)
