"""gate_residual_norm_modulate: second formulation, fp64 oracle, planted faults and bad calls."""

from __future__ import annotations

import pytest
import torch

from skyreels_rt.errors import InvalidArgument, UnsupportedKernel
from skyreels_rt.kernels import Impl, gate_residual_norm_modulate
from skyreels_rt.kernels.reference.gate_residual_norm_modulate import (
    gate_residual_norm_modulate as reference,
)
from skyreels_rt.runtime.native import native_status
from skyreels_rt.testing.faults.gate_residual_norm_modulate import FAULTS
from skyreels_rt.testing.numerics import assert_bitwise_equal, assert_within_budget

LAYERS = {layer.name: layer for layer in native_status()}
needs_cpp = pytest.mark.skipif(not LAYERS["_C"].active, reason=f"_C: {LAYERS['_C'].detail}")
# The interpreter's casts to bf16 truncate, so there that type is left to the GPU.
interpreted = pytest.mark.skipif(
    not LAYERS["triton"].active or torch.cuda.is_available(),
    reason=f"interpreter not in use: {LAYERS['triton'].detail}",
)
EPS = 1e-6
# Batch, length, segments of the gate, of the norm, width; 0 segments of the gate: no gate.
SHAPES = [
    (1, 576, 1, 1, 192), (2, 576, 9, 1, 192), (1, 62, 0, 1, 1536), (2, 84, 7, 12, 67),
    (1, 5, 1, 5, 5120), (3, 6, 2, 3, 1), (1, 13, 0, 1, 17), (1, 0, 3, 1, 64), (0, 6, 1, 2, 64),
]  # fmt: skip
SMALL = [(2, 12, 3, 1, 192), (1, 6, 0, 2, 67), (1, 5, 1, 5, 1536), (1, 0, 3, 1, 64)]
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]


def make_inputs(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, *, sliced: bool = False
) -> Inputs:
    """Stream, branch, gate, weight and bias; ``sliced`` gives all of them strides of their own."""
    batch, length, gates, norms, width = shape
    generator = torch.Generator().manual_seed(1)

    def random(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, generator=generator)

    both = (random(batch, length, 2 * width) * 2 + 0.3).to(dtype)
    x, y = both.split(width, -1)
    gate = random(1 if sliced else batch, gates, 3, width)[:, :, 1] if gates else None
    table = random(batch, norms, 6, width) * 0.3
    table[:, :, 4] += 1
    weight, bias = table[:, :, 4], table[:, :, 3]
    if sliced:
        return x, y, gate, weight, bias
    return x.contiguous(), y.contiguous(), gate, weight.contiguous(), bias.contiguous()


def clone(inputs: Inputs) -> Inputs:
    return tuple(None if x is None else x.clone() for x in inputs)  # type: ignore[return-value]


def assert_good(actual: tuple[torch.Tensor, torch.Tensor], inputs: Inputs) -> None:
    high = reference(*(None if x is None else x.double() for x in inputs), eps=EPS)
    for a, hi, lo in zip(actual, high, reference(*inputs, eps=EPS), strict=True):
        assert_within_budget(a, hi, lo, inputs[0].dtype)


def test_reference_is_the_formula_token_by_token() -> None:
    inputs = make_inputs((2, 12, 3, 2, 20), torch.float32)
    x, y, gate, weight, bias = (t.double() for t in inputs)
    total, normed = reference(x, y, gate, weight, bias, eps=EPS)
    for b, token in ((0, 0), (1, 4), (0, 7), (1, 11)):
        row = x[b, token] + gate[b, token // 4] * y[b, token]
        torch.testing.assert_close(total[b, token], row)
        unit = (row - row.mean()) / (row.var(correction=0) + EPS).sqrt()
        torch.testing.assert_close(
            normed[b, token], unit * weight[b, token // 6] + bias[b, token // 6]
        )


@needs_cpp
@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpp_within_budget(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, sliced: bool
) -> None:
    inputs = make_inputs(shape, dtype, sliced=sliced)
    before = clone(inputs)
    actual = gate_residual_norm_modulate(*inputs, eps=EPS, impl=Impl.CPP)
    assert actual[0] is inputs[0]
    assert actual[1].is_contiguous()
    assert_bitwise_equal(inputs[1], before[1])
    assert_good(actual, before)


@needs_cpp
def test_cpp_takes_permuted_streams() -> None:
    x, y, gate, weight, bias = make_inputs((6, 4, 1, 1, 96), torch.float32)
    inputs = x.transpose(0, 1), y[:1, :1].expand(4, 6, -1), gate[:1], weight[:1], bias[:1]
    before = clone(inputs)
    assert_good(gate_residual_norm_modulate(*inputs, eps=EPS, impl=Impl.CPP), before)


@interpreted
@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_triton_interpreted(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, sliced: bool
) -> None:
    inputs = make_inputs(shape, dtype, sliced=sliced)
    before = clone(inputs)
    actual = gate_residual_norm_modulate(*inputs, eps=EPS, impl=Impl.TRITON)
    assert actual[0] is inputs[0]
    assert_good(actual, before)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_triton_on_the_gpu(dtype: torch.dtype) -> None:
    for shape in SHAPES:
        for sliced in (False, True):
            inputs = make_inputs(shape, dtype, sliced=sliced)
            on_gpu = (None if t is None else t.cuda() for t in inputs)
            out = gate_residual_norm_modulate(*on_gpu, eps=EPS, impl=Impl.TRITON)
            assert_good((out[0].cpu(), out[1].cpu()), inputs)


@needs_cpp
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_instruction_sets_and_thread_counts_give_the_same_bytes(
    dtype: torch.dtype, gated: bool
) -> None:
    from skyreels_rt import _C

    inputs = make_inputs((2, 210, 7, 5, 203), dtype)
    code = {torch.float32: 0, torch.bfloat16: 1}[dtype]
    tables = [(t.data_ptr(), t.shape[1], *t.stride()[:2]) for t in inputs[2:]]
    if not gated:
        tables[0] = (0, 1, 0, 0)
    y = inputs[1]
    results = []
    for isa in _C.available_isas():
        for threads in (1, 2, 5):
            x, normed = inputs[0].clone(), torch.empty_like(y)
            _C.gate_residual_norm_modulate(
                x.data_ptr(), y.data_ptr(), normed.data_ptr(), *tables, code, 2, 210, 203,
                *x.stride()[:2], *y.stride()[:2], EPS, threads, isa,
            )  # fmt: skip
            results.append((x, normed))
    for pair in results[1:]:
        assert_bitwise_equal(pair[0], results[0][0])
        assert_bitwise_equal(pair[1], results[0][1])


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_rejected(fault: str) -> None:
    x, y, *tables = make_inputs((1, 336, 3, 1, 192), torch.bfloat16)
    # Quiet, so that epsilon matters; the branch as strong as the stream.
    inputs = ((x.float() * 1e-3).bfloat16(), (y.float() * 1e-3).bfloat16(), *tables)
    assert_good(reference(*inputs, eps=EPS), inputs)
    with pytest.raises(AssertionError, match="error"):
        assert_good(FAULTS[fault](*inputs, eps=EPS), inputs)


@needs_cpp
def test_registration() -> None:
    op = torch.ops.skyreels_rt.gate_residual_norm_modulate.default
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((2, 6, 3, 2, 8), (2, 6, 0, 1, 8)):
            torch.library.opcheck(op, (*make_inputs(shape, dtype), EPS, "cpp"))
    x, y, *tables = make_inputs((4, 6, 1, 2, 8), torch.float32, sliced=True)
    # Views of one storage: opcheck forbids writing to aliases of one another.
    torch.library.opcheck(op, (x[:, :, :], y.clone(), *tables, EPS, "cpp"))


@pytest.mark.parametrize("impl", [Impl.AUTO, Impl.REFERENCE])
def test_compiles_whole(impl: Impl) -> None:
    inputs = make_inputs((1, 20, 2, 1, 16), torch.float32)

    def block(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        stream, normed = gate_residual_norm_modulate(x * 2, *rest, eps=EPS, impl=impl)
        return stream + 3 * normed

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert_bitwise_equal(compiled(*inputs), block(*inputs))


def test_gradients_come_from_the_reference() -> None:
    inputs = make_inputs((1, 6, 2, 3, 8), torch.float32)
    for leaf in inputs:
        leaf.requires_grad_()
    stream, normed = gate_residual_norm_modulate(*inputs, eps=EPS)
    assert stream is not inputs[0]
    (stream.square().sum() + normed.square().sum()).backward()
    for leaf in inputs:
        assert leaf.grad is not None
        assert float(leaf.grad.abs().sum()) > 0


BAD = {
    "x rank": ({0: torch.zeros(6, 16)}, r"x: .*\(B, L, D\)"),
    "x dtype": ({0: torch.zeros(1, 6, 16, dtype=torch.int64)}, "x: .*float32"),
    "x stride": ({0: torch.zeros(1, 16, 6).transpose(1, 2)}, "x: .*stride 1"),
    "x expanded": ({0: torch.zeros(1, 1, 16).expand(1, 6, 16)}, "x: .*overlap"),
    "no width": ({0: torch.zeros(1, 6, 0)}, "x: .*D >= 1"),
    "y shape": ({1: torch.zeros(1, 5, 16)}, "y: .*of x"),
    "y dtype": ({1: torch.zeros(1, 6, 16, dtype=torch.bfloat16)}, "y: .*as x"),
    "y stride": ({1: torch.zeros(1, 16, 6).transpose(1, 2)}, "y: .*stride 1"),
    "gate segments": ({2: torch.zeros(1, 4, 16)}, "gate: .*divisor of L = 6.*S = 4"),
    "gate dtype": ({2: torch.zeros(1, 1, 16, dtype=torch.float64)}, "gate: .*float32"),
    "weight rank": ({3: torch.zeros(2, 16)}, r"weight: .*\(B or 1, S, D\)"),
    "weight batch": ({3: torch.zeros(3, 2, 16)}, "weight: "),
    "bias shape": ({4: torch.zeros(1, 3, 16)}, "bias: .*of weight"),
    "bias device": ({4: torch.zeros(1, 2, 16, device="meta")}, "bias: .*cpu"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_calls(case: str) -> None:
    replaced, words = BAD[case]
    arguments = list(make_inputs((1, 6, 1, 2, 16), torch.float32))
    for index, tensor in replaced.items():
        arguments[index] = tensor
    with pytest.raises(InvalidArgument, match=words):
        gate_residual_norm_modulate(*arguments, eps=EPS)


def test_unsupported_request_raises() -> None:
    with pytest.raises(UnsupportedKernel, match="cuda"):
        gate_residual_norm_modulate(
            *make_inputs((1, 6, 2, 1, 8), torch.float32), eps=EPS, impl=Impl.CUDA
        )
