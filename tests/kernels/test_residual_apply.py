"""residual_apply: every implementation gives the reference's bytes, in place."""

from __future__ import annotations

import pytest
import torch

from skyreels_rt.errors import InvalidArgument, UnsupportedKernel
from skyreels_rt.kernels import Impl, residual_apply
from skyreels_rt.kernels.reference.residual_apply import residual_apply as reference
from skyreels_rt.runtime.native import native_status
from skyreels_rt.testing.faults.residual_apply import FAULTS
from skyreels_rt.testing.numerics import assert_bitwise_equal, assert_within_budget

LAYERS = {layer.name: layer for layer in native_status()}
needs_cpp = pytest.mark.skipif(not LAYERS["_C"].active, reason=f"_C: {LAYERS['_C'].detail}")
needs_triton = pytest.mark.skipif(
    not LAYERS["triton"].active, reason=f"triton: {LAYERS['triton'].detail}"
)
SHAPES = [(1, 336, 192), (2, 61, 33), (1, 1, 1), (5,), (2, 3, 4, 5, 7), (0, 4), (3, 100_003)]


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    x, residual = torch.randn(2, *shape, generator=generator).to(dtype)
    return x, residual


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_reference_is_the_sum(dtype: torch.dtype) -> None:
    x, residual = make_inputs((2, 61, 33), dtype)
    assert_bitwise_equal(reference(x, residual), torch.add(x, residual))
    high = reference(x.double(), residual.double())
    assert_within_budget(reference(x, residual), high, reference(x, residual), dtype)


@needs_cpp
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpp_equals_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, residual = make_inputs(shape, dtype)
    expected, kept = reference(x, residual), residual.clone()
    assert residual_apply(x, residual, impl=Impl.CPP) is x
    assert_bitwise_equal(x, expected)
    assert_bitwise_equal(residual, kept)


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="the device test runs it compiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # its bf16 casts truncate
def test_triton_equals_reference(dtype: torch.dtype) -> None:
    for shape in [(1, 33, 65), (5,), (0, 4)]:
        x, residual = make_inputs(shape, dtype)
        expected = reference(x, residual)
        assert_bitwise_equal(residual_apply(x, residual, impl=Impl.TRITON), expected)


@needs_cpp
def test_dense_layouts() -> None:
    x, residual = make_inputs((3, 20, 35), torch.bfloat16)
    expected = reference(x, residual)
    for impl in (Impl.CPP, Impl.REFERENCE):
        turned = x.clone().permute(2, 0, 1), residual.permute(2, 0, 1)
        assert_bitwise_equal(residual_apply(*turned, impl=impl), expected.permute(2, 0, 1))
        shifted = [torch.cat([t.flatten()[:1], t.flatten()])[1:] for t in (x, residual)]
        assert_bitwise_equal(residual_apply(*shifted, impl=impl), expected.flatten())
        itself = x.clone()
        assert_bitwise_equal(residual_apply(itself, itself, impl=impl), reference(x, x))


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_instruction_sets_and_thread_counts_give_the_same_bytes(dtype: torch.dtype) -> None:
    from skyreels_rt import _C

    x, residual = make_inputs((3, 40_009), dtype)
    expected = reference(x, residual)
    code = {torch.float32: 0, torch.bfloat16: 1}[dtype]
    for isa in _C.available_isas():
        for threads in (1, 2, 5):
            out = x.clone()
            _C.residual_apply(out.data_ptr(), residual.data_ptr(), code, out.numel(), threads, isa)
            assert_bitwise_equal(out, expected)
    with pytest.raises(ValueError, match="null"):
        _C.residual_apply(x.data_ptr(), 0, code, 4, 1)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_rejected(fault: str) -> None:
    x, residual = make_inputs((1, 336, 192), torch.bfloat16)
    high, low = reference(x.double(), residual.double()), reference(x, residual)
    with pytest.raises(AssertionError, match="error"):
        assert_within_budget(FAULTS[fault](x, residual), high, low, torch.bfloat16)


@needs_cpp
def test_registration() -> None:
    op = torch.ops.skyreels_rt.residual_apply.default
    for dtype in (torch.float32, torch.bfloat16):
        x, residual = (t.clone() for t in make_inputs((2, 7, 8), dtype))
        torch.library.opcheck(op, (x, residual, "cpp"))
        torch.library.opcheck(op, (x.transpose(0, 2), residual.transpose(0, 2), "cpp"))


@pytest.mark.parametrize("impl", [Impl.AUTO, Impl.REFERENCE])
def test_compiles_whole(impl: Impl) -> None:
    x, residual = make_inputs((2, 7, 8), torch.float32)

    def skipped(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return residual_apply(x * 2, residual, impl=impl) * 3

    compiled = torch.compile(skipped, fullgraph=True, backend="aot_eager")
    assert_bitwise_equal(compiled(x, residual), skipped(x, residual))


def test_gradients_come_from_the_reference() -> None:
    x, residual = make_inputs((2, 3), torch.float32)
    residual_apply(x.requires_grad_(), residual.requires_grad_()).sum().backward()
    assert_bitwise_equal(x.grad, torch.ones(2, 3))
    assert_bitwise_equal(residual.grad, torch.ones(2, 3))


ZEROS = torch.zeros
BAD = {
    "dtype": ({"x": ZEROS(2, 4).int()}, "x: .*float32"),
    "gaps": ({"x": ZEROS(2, 8)[:, :4]}, "x: .*dense"),
    "expanded": ({"x": ZEROS(1, 4).expand(2, 4)}, "x: .*dense"),
    "shape": ({"residual": ZEROS(4, 2)}, "residual: .*as x"),
    "mixed": ({"residual": ZEROS(2, 4).bfloat16()}, "residual: .*float32"),
    "strides": ({"residual": ZEROS(4, 2).t()}, "residual: .*strides"),
    "device": ({"residual": ZEROS(2, 4, device="meta")}, "residual: .*cpu"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_calls(case: str) -> None:
    changed, words = BAD[case]
    with pytest.raises(InvalidArgument, match=words):
        residual_apply(**({"x": ZEROS(2, 4), "residual": ZEROS(2, 4)} | changed))


def test_unsupported_request_raises() -> None:
    half = torch.zeros(4, dtype=torch.float16)
    with pytest.raises(UnsupportedKernel, match="float16"):
        residual_apply(half, half, impl=Impl.CPP)


@pytest.mark.gpu
@pytest.mark.parametrize("impl", [Impl.CUDA, Impl.TRITON])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_device_equals_reference(dtype: torch.dtype, impl: Impl) -> None:
    for shape in [*SHAPES, (1, 32760, 1536)]:
        x, residual = make_inputs(shape, dtype)
        expected = reference(x, residual)
        on_device = x.cuda(), residual.cuda()
        unaligned = [t.flatten()[1:] for t in (x.cuda(), residual.cuda())]
        assert_bitwise_equal(residual_apply(*on_device, impl=impl), expected)
        assert_bitwise_equal(residual_apply(*unaligned, impl=impl), expected.flatten()[1:])
