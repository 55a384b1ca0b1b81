"""residual_store: every implementation gives the reference's bytes."""

from __future__ import annotations

import pytest
import torch

from skyreels_rt.errors import InvalidArgument, UnsupportedKernel
from skyreels_rt.kernels import Impl, residual_store
from skyreels_rt.kernels.reference.residual_store import residual_store as reference
from skyreels_rt.runtime.native import native_status
from skyreels_rt.testing.faults.residual_store import FAULTS
from skyreels_rt.testing.numerics import assert_bitwise_equal, assert_within_budget

LAYERS = {layer.name: layer for layer in native_status()}
needs_cpp = pytest.mark.skipif(not LAYERS["_C"].active, reason=f"_C: {LAYERS['_C'].detail}")
needs_triton = pytest.mark.skipif(
    not LAYERS["triton"].active, reason=f"triton: {LAYERS['triton'].detail}"
)
SHAPES = [(1, 336, 192), (2, 61, 33), (1, 1, 1), (5,), (2, 3, 4, 5, 7), (0, 4), (3, 100_003)]


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    before = torch.randn(shape, generator=generator)
    after = before + 0.3 * torch.randn(shape, generator=generator)
    return before.to(dtype), after.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_reference_is_the_difference(dtype: torch.dtype) -> None:
    before, after = make_inputs((2, 61, 33), dtype)
    assert_bitwise_equal(reference(before, after), torch.sub(after, before))
    high = reference(before.double(), after.double())
    assert_within_budget(reference(before, after), high, reference(before, after), dtype)


@needs_cpp
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpp_equals_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    before, after = make_inputs(shape, dtype)
    out = torch.full_like(before, float("nan"))
    kept = before.clone(), after.clone()
    assert residual_store(before, after, out, impl=Impl.CPP) is out
    assert_bitwise_equal(out, reference(before, after))
    assert_bitwise_equal(before, kept[0])
    assert_bitwise_equal(after, kept[1])


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="the device test runs it compiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # its bf16 casts truncate
def test_triton_equals_reference(dtype: torch.dtype) -> None:
    for shape in [(1, 33, 65), (5,), (0, 4)]:
        before, after = make_inputs(shape, dtype)
        out = torch.empty_like(before)
        residual_store(before, after, out, impl=Impl.TRITON)
        assert_bitwise_equal(out, reference(before, after))


@needs_cpp
@pytest.mark.parametrize("impl", [Impl.CPP, Impl.REFERENCE])
def test_dense_layouts_and_aliases(impl: Impl) -> None:
    before, after = make_inputs((3, 20, 35), torch.bfloat16)
    turned = [x.permute(2, 0, 1) for x in (before, after, torch.empty_like(before))]
    assert_bitwise_equal(
        residual_store(*turned, impl=impl), reference(before, after).permute(2, 0, 1)
    )
    shifted = [torch.cat([x.flatten()[:1], x.flatten()])[1:] for x in (before, after, after)]
    expected = reference(before, after)
    assert_bitwise_equal(residual_store(*shifted, impl=impl), expected.flatten())
    for target in (0, 1):
        operands = [before.clone(), after.clone()]
        residual_store(*operands, operands[target], impl=impl)
        assert_bitwise_equal(operands[target], expected)


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_instruction_sets_and_thread_counts_give_the_same_bytes(dtype: torch.dtype) -> None:
    from skyreels_rt import _C

    before, after = make_inputs((3, 40_009), dtype)
    expected = reference(before, after)
    code = {torch.float32: 0, torch.bfloat16: 1}[dtype]
    for isa in _C.available_isas():
        for threads in (1, 2, 5):
            out = torch.empty_like(before)
            _C.residual_store(
                before.data_ptr(), after.data_ptr(), out.data_ptr(), code, out.numel(), threads, isa
            )
            assert_bitwise_equal(out, expected)
    with pytest.raises(ValueError, match="null"):
        _C.residual_store(before.data_ptr(), 0, before.data_ptr(), code, 4, 1)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_rejected(fault: str) -> None:
    before, after = make_inputs((1, 336, 192), torch.bfloat16)
    high, low = reference(before.double(), after.double()), reference(before, after)
    with pytest.raises(AssertionError, match="error"):
        assert_within_budget(FAULTS[fault](before, after), high, low, torch.bfloat16)


@needs_cpp
def test_registration() -> None:
    op = torch.ops.skyreels_rt.residual_store.default
    for dtype in (torch.float32, torch.bfloat16):
        before, after = make_inputs((2, 7, 8), dtype)
        torch.library.opcheck(op, (before, after, torch.empty_like(before), "cpp"))
        permuted = [x.transpose(0, 2) for x in (before, after, torch.empty_like(before))]
        torch.library.opcheck(op, (*permuted, "cpp"))


@pytest.mark.parametrize("impl", [Impl.AUTO, Impl.REFERENCE])
def test_compiles_whole(impl: Impl) -> None:
    before, after = make_inputs((2, 7, 8), torch.float32)

    def kept(before: torch.Tensor, after: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return residual_store(before * 2, after + 1, out, impl=impl) * 3

    compiled = torch.compile(kept, fullgraph=True, backend="aot_eager")
    outs = torch.empty_like(before), torch.empty_like(before)
    assert_bitwise_equal(compiled(before, after, outs[0]), kept(before, after, outs[1]))
    assert_bitwise_equal(*outs)


def test_gradients_come_from_the_reference() -> None:
    before, after = make_inputs((2, 3), torch.float32)
    out = residual_store(before.requires_grad_(), after.requires_grad_(), torch.empty(2, 3))
    out.sum().backward()
    assert_bitwise_equal(after.grad, torch.ones(2, 3))
    assert_bitwise_equal(before.grad, -torch.ones(2, 3))


ZEROS = torch.zeros
BAD = {
    "dtype": ({"before": ZEROS(2, 4).int()}, "before: .*float32"),
    "gaps": ({"before": ZEROS(2, 8)[:, :4]}, "before: .*dense"),
    "expanded": ({"before": ZEROS(1, 4).expand(2, 4)}, "before: .*dense"),
    "shape": ({"after": ZEROS(4, 2)}, "after: .*as before"),
    "mixed": ({"after": ZEROS(2, 4).bfloat16()}, "after: .*float32"),
    "strides": ({"out": ZEROS(4, 2).t()}, "out: .*strides"),
    "device": ({"out": ZEROS(2, 4, device="meta")}, "out: .*cpu"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_calls(case: str) -> None:
    changed, words = BAD[case]
    arguments = {"before": ZEROS(2, 4), "after": ZEROS(2, 4), "out": ZEROS(2, 4)} | changed
    with pytest.raises(InvalidArgument, match=words):
        residual_store(**arguments)


def test_unsupported_request_raises() -> None:
    operands = [torch.zeros(4, dtype=torch.float16)] * 3
    with pytest.raises(UnsupportedKernel, match="float16"):
        residual_store(*operands, impl=Impl.CPP)


@pytest.mark.gpu
@pytest.mark.parametrize("impl", [Impl.CUDA, Impl.TRITON])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_device_equals_reference(dtype: torch.dtype, impl: Impl) -> None:
    for shape in [*SHAPES, (1, 32760, 1536)]:
        before, after = make_inputs(shape, dtype)
        expected = reference(before, after)
        a, b = before.cuda(), after.cuda()
        assert_bitwise_equal(residual_store(a, b, torch.empty_like(a), impl=impl), expected)
        flat = [x.flatten()[1:] for x in (a, b, torch.empty_like(a))]  # not aligned to 16 bytes
        assert_bitwise_equal(residual_store(*flat, impl=impl), expected.flatten()[1:])
        assert_bitwise_equal(residual_store(a, b, b, impl=impl), expected)
