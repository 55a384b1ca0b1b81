"""qk_norm_rope: against a second formulation, the fp64 oracle, planted faults and bad calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from skyreels_rt.errors import InvalidArgument, UnsupportedKernel
from skyreels_rt.kernels import Impl, qk_norm_rope
from skyreels_rt.kernels.reference.qk_norm_rope import qk_norm_rope as reference
from skyreels_rt.runtime.native import native_status
from skyreels_rt.testing.faults.qk_norm_rope import FAULTS
from skyreels_rt.testing.numerics import assert_bitwise_equal, assert_within_budget

LAYERS = {layer.name: layer for layer in native_status()}
needs_cpp = pytest.mark.skipif(not LAYERS["_C"].active, reason=f"_C: {LAYERS['_C'].detail}")
# The interpreter's casts to bf16 truncate, so there that type is left to the GPU.
interpreted = pytest.mark.skipif(
    not LAYERS["triton"].active or torch.cuda.is_available(),
    reason=f"interpreter not in use: {LAYERS['triton'].detail}",
)
# Batch, length, heads, head size: model shapes, odd tails, empty.
SHAPES = [
    (1, 336, 3, 64), (2, 61, 12, 128), (1, 100, 2, 32), (2, 173, 3, 22), (1, 700, 1, 6),
    (1, 1, 1, 2), (1, 0, 3, 64), (0, 5, 3, 64),
]  # fmt: skip


def make_inputs(
    shape: tuple[int, int, int, int], dtype: torch.dtype, *, fused: bool = False
) -> tuple[torch.Tensor, ...]:
    """q, k, weights and tables; ``fused`` makes q and k views of one qkv tensor."""
    batch, length, heads, head_dim = shape
    width = heads * head_dim
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(batch, length, 3 * width, generator=generator)
    weights = 1.0 + 0.2 * torch.randn(2, width, generator=generator)
    angles = torch.rand(length, head_dim // 2, generator=generator) * 6.0
    parts = qkv.to(dtype).split(width, dim=-1)[:2]
    q, k = parts if fused else (part.contiguous() for part in parts)
    return q, k, *weights.to(dtype), angles.cos(), angles.sin()


def oracle(inputs: tuple[torch.Tensor, ...], **options: Any) -> tuple[torch.Tensor, ...]:
    return reference(*(x.double() for x in inputs), **options)


def clone(inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    return [x.clone() for x in inputs]


def assert_both_within_budget(
    actual: tuple[torch.Tensor, ...], inputs: tuple[torch.Tensor, ...], **options: Any
) -> None:
    high, low = oracle(inputs, **options), reference(*inputs, **options)
    for a, hi, lo in zip(actual, high, low, strict=True):
        assert_within_budget(a, hi, lo, inputs[0].dtype)


def test_reference_is_rms_norm_then_complex_rotation() -> None:
    inputs = tuple(x.double() for x in make_inputs((2, 30, 3, 16), torch.float32))
    q, _, weight, _, cos, sin = inputs
    normed = F.rms_norm(q, (48,), weight, 1e-6).unflatten(-1, (3, 8, 2))
    rotated = torch.view_as_complex(normed) * torch.complex(cos, sin)[:, None]
    expected = torch.view_as_real(rotated).flatten(-3)
    torch.testing.assert_close(reference(*inputs, eps=1e-6, num_heads=3)[0], expected)


@needs_cpp
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpp_within_budget(
    shape: tuple[int, int, int, int], dtype: torch.dtype, fused: bool
) -> None:
    inputs = make_inputs(shape, dtype, fused=fused)
    options = {"eps": 1e-6, "num_heads": shape[2]}
    expected_from = tuple(clone(inputs))
    actual = qk_norm_rope(*inputs, **options, impl=Impl.CPP)
    assert actual[0] is inputs[0]
    assert actual[1] is inputs[1]
    assert_both_within_budget(actual, expected_from, **options)


@interpreted
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("shape", [(2, 9, 3, 64), (1, 4, 40, 128), (1, 7, 3, 22), (1, 0, 3, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_triton_interpreted(
    shape: tuple[int, int, int, int], dtype: torch.dtype, fused: bool
) -> None:
    inputs = make_inputs(shape, dtype, fused=fused)
    options = {"eps": 1e-6, "num_heads": shape[2]}
    expected_from = tuple(clone(inputs))
    actual = qk_norm_rope(*inputs, **options, impl=Impl.TRITON)
    assert actual[0] is inputs[0]
    assert actual[1] is inputs[1]
    assert_both_within_budget(actual, expected_from, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_triton_on_the_gpu(dtype: torch.dtype) -> None:
    for shape in [*SHAPES, (1, 50, 40, 128)]:
        inputs = make_inputs(shape, dtype)
        options = {"eps": 1e-6, "num_heads": shape[2]}
        q, k = qk_norm_rope(*(x.cuda() for x in inputs), **options, impl=Impl.TRITON)
        assert_both_within_budget((q.cpu(), k.cpu()), inputs, **options)


@needs_cpp
def test_cpp_leaves_the_rest_of_a_fused_projection_alone() -> None:
    qkv = torch.randn(1, 50, 3 * 64)
    before = qkv.clone()
    tables = torch.ones(50, 16), torch.zeros(50, 16)
    qk_norm_rope(
        qkv[..., :64], qkv[..., 64:128], torch.ones(64), torch.ones(64), *tables,
        eps=1e-6, num_heads=2, impl=Impl.CPP,
    )  # fmt: skip
    assert_bitwise_equal(qkv[..., 128:], before[..., 128:])
    assert not torch.equal(qkv[..., :128], before[..., :128])


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_instruction_sets_and_thread_counts_give_the_same_bytes(dtype: torch.dtype) -> None:
    from skyreels_rt import _C

    inputs = make_inputs((2, 211, 3, 38), dtype)
    code = {torch.float32: 0, torch.bfloat16: 1}[dtype]
    results = []
    for isa in _C.available_isas():
        for threads in (1, 2, 5):
            q, k, *rest = clone(inputs)
            weights_tables = [x.float() for x in rest]
            strides = (*q.stride()[:2], *k.stride()[:2])
            _C.qk_norm_rope(
                q.data_ptr(), k.data_ptr(), *(x.data_ptr() for x in weights_tables),
                code, 2, 211, 3, 38, *strides, 1e-6, threads, isa,
            )  # fmt: skip
            results.append((q, k))
    for q, k in results[1:]:
        assert_bitwise_equal(q, results[0][0])
        assert_bitwise_equal(k, results[0][1])


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_rejected(fault: str) -> None:
    q, k, *rest = make_inputs((1, 336, 3, 64), torch.bfloat16)
    inputs = (q * 3e-3, k * 3e-3, *rest)  # quiet, so that epsilon matters
    options = {"eps": 1e-6, "num_heads": 3}
    assert_both_within_budget(reference(*inputs, **options), inputs, **options)
    with pytest.raises(AssertionError, match="error"):
        assert_both_within_budget(FAULTS[fault](*inputs, **options), inputs, **options)


@needs_cpp
def test_registration() -> None:
    op = torch.ops.skyreels_rt.qk_norm_rope.default
    for dtype in (torch.float32, torch.bfloat16):
        for fused in (False, True):
            q, k, *rest = make_inputs((2, 7, 2, 8), dtype, fused=fused)
            if fused:  # views of one storage: opcheck forbids writing to aliases of one another
                k = k.clone()
            torch.library.opcheck(op, (q, k, *rest, 1e-6, 8, "cpp"))


@pytest.mark.parametrize("impl", [Impl.AUTO, Impl.REFERENCE])
def test_compiles_whole(impl: Impl) -> None:
    inputs = make_inputs((1, 20, 2, 16), torch.float32)
    options = {"eps": 1e-6, "num_heads": 2}

    def projected(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        q, k = qk_norm_rope(x * 2, x + 1, *rest, **options, impl=impl)
        return q @ k.transpose(1, 2)

    arguments = inputs[:1] + inputs[2:]
    compiled = torch.compile(projected, fullgraph=True, backend="aot_eager")
    assert_bitwise_equal(compiled(*arguments), projected(*arguments))


def test_gradients_come_from_the_reference() -> None:
    inputs = make_inputs((1, 6, 2, 8), torch.float32)
    q = inputs[0].requires_grad_()
    weight = inputs[2].requires_grad_()
    out_q, out_k = qk_norm_rope(*inputs, eps=1e-6, num_heads=2)
    (out_q.square().sum() + out_k.sum()).backward()
    assert q.grad is not None
    assert weight.grad is not None
    assert float(weight.grad.abs().sum()) > 0


BAD = {
    "q rank": ({0: torch.zeros(5, 16)}, 2, r"q: .*\(B, L, N\*K\)"),
    "q dtype": ({0: torch.zeros(1, 5, 16, dtype=torch.int64)}, 2, "q: .*float32"),
    "k shape": ({1: torch.zeros(1, 4, 16)}, 2, "k: "),
    "k dtype": ({1: torch.zeros(1, 5, 16, dtype=torch.float64)}, 2, "k: .*as q"),
    "weight": ({2: torch.zeros(8)}, 2, "weight_q: "),
    "cos": ({4: torch.zeros(5, 8)}, 2, r"cos: .*\(L, K/2\)"),
    "sin dtype": ({5: torch.zeros(5, 4, dtype=torch.bfloat16)}, 2, "sin: .*float32"),
    "heads": ({}, 3, "num_heads"),
    "odd head": ({}, 16, "even head size"),
    "stride": ({0: torch.zeros(1, 16, 5).transpose(1, 2)}, 2, "stride 1"),
    "expanded": ({0: torch.zeros(1, 1, 16).expand(1, 5, 16)}, 2, "overlap"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_calls(case: str) -> None:
    replaced, num_heads, words = BAD[case]
    arguments = list(make_inputs((1, 5, 2, 8), torch.float32))
    for index, tensor in replaced.items():
        arguments[index] = tensor
    with pytest.raises(InvalidArgument, match=words):
        qk_norm_rope(*arguments, eps=1e-6, num_heads=num_heads)


@pytest.mark.parametrize("index", [1, 2, 3, 4, 5])
def test_operands_of_another_device_are_refused(index: int) -> None:
    arguments = list(make_inputs((1, 5, 2, 8), torch.float32))
    arguments[index] = arguments[index].to("meta")
    with pytest.raises(InvalidArgument, match="cpu"):
        qk_norm_rope(*arguments, eps=1e-6, num_heads=2)


def test_no_width_and_integer_weights_are_refused() -> None:
    empty = [torch.zeros(1, 5, 0), torch.zeros(1, 5, 0), torch.zeros(0), torch.zeros(0)]
    with pytest.raises(InvalidArgument, match="num_heads"):
        qk_norm_rope(*empty, torch.zeros(5, 0), torch.zeros(5, 0), eps=1e-6, num_heads=2)
    arguments = list(make_inputs((1, 5, 2, 8), torch.float32))
    arguments[2] = torch.ones(16, dtype=torch.int64)
    with pytest.raises(InvalidArgument, match="weight_q"):
        qk_norm_rope(*arguments, eps=1e-6, num_heads=2)


def test_unsupported_request_raises() -> None:
    with pytest.raises(UnsupportedKernel, match="cuda"):
        qk_norm_rope(
            *make_inputs((1, 5, 2, 8), torch.float32), eps=1e-6, num_heads=2, impl=Impl.CUDA
        )
