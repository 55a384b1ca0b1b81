"""rms_norm_silu: against a second formulation, the fp64 oracle, planted faults and bad calls."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from skyreels_rt.errors import InvalidArgument, UnsupportedKernel
from skyreels_rt.kernels import Impl, rms_norm_silu
from skyreels_rt.kernels.reference.rms_norm_silu import rms_norm_silu as reference
from skyreels_rt.runtime.native import native_status
from skyreels_rt.testing.faults.rms_norm_silu import FAULTS
from skyreels_rt.testing.numerics import assert_bitwise_equal, assert_within_budget

LAYERS = {layer.name: layer for layer in native_status()}
needs_cpp = pytest.mark.skipif(not LAYERS["_C"].active, reason=f"_C: {LAYERS['_C'].detail}")
# The interpreter's casts to bf16 truncate, so there that type is left to the GPU.
interpreted = pytest.mark.skipif(
    not LAYERS["triton"].active or torch.cuda.is_available(),
    reason=f"interpreter not in use: {LAYERS['triton'].detail}",
)
ORDERS = [torch.contiguous_format, torch.channels_last_3d]
# Batch, channels, frames, height, width: VAE activations, odd tails, empty.
SHAPES = [
    (1, 96, 4, 16, 24), (2, 48, 1, 17, 19), (1, 384, 2, 6, 10), (3, 7, 2, 5, 3), (1, 1, 2, 3, 5),
    (1, 33, 1, 1, 1), (1, 16, 0, 4, 4), (0, 16, 1, 4, 4),
]  # fmt: skip
SMALL = [(2, 24, 1, 9, 8), (1, 7, 2, 5, 3), (1, 384, 1, 2, 10), (1, 16, 0, 4, 4)]


def make_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, order: torch.memory_format = ORDERS[0]
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(shape, generator=generator) * 3).to(dtype)
    gamma = 1 + 0.3 * torch.randn(shape[1], generator=generator)
    return x.contiguous(memory_format=order), gamma


def assert_good(
    actual: torch.Tensor, x: torch.Tensor, gamma: torch.Tensor, *, silu: bool = True
) -> None:
    high = reference(x.double(), gamma.double(), silu=silu)
    assert_within_budget(actual, high, reference(x, gamma, silu=silu), x.dtype)


def test_reference_is_rms_norm_then_silu() -> None:
    x, gamma = (t.double() for t in make_inputs((2, 12, 2, 3, 5), torch.float32))
    normed = F.rms_norm(x.movedim(1, -1), (12,), gamma, 0.0).movedim(-1, 1)
    torch.testing.assert_close(reference(x, gamma, silu=False), normed)
    torch.testing.assert_close(reference(x, gamma), normed * normed.sigmoid())


@needs_cpp
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpp_within_budget(
    shape: tuple[int, ...], dtype: torch.dtype, order: torch.memory_format, silu: bool
) -> None:
    x, gamma = make_inputs(shape, dtype, order)
    before = x.clone()
    actual = rms_norm_silu(x, gamma, silu=silu, impl=Impl.CPP)
    assert actual.is_contiguous(memory_format=order)
    assert_bitwise_equal(x, before)
    assert_good(actual, x, gamma, silu=silu)


@needs_cpp
def test_cpp_takes_views_and_stored_gains() -> None:
    for order in ORDERS:
        x, gamma = make_inputs((2, 16, 3, 9, 8), torch.float32, order)
        for view in (x[..., 1:, 1:], x[:, :, 1:], x[:, 2:], x.transpose(3, 4), x[:1].expand_as(x)):
            gain = gamma[: view.shape[1]]
            actual = rms_norm_silu(view, gain.view(-1, 1, 1, 1), impl=Impl.CPP)
            assert_good(actual, view, gain)
    x, gamma = make_inputs((1, 16, 2, 4, 4), torch.bfloat16)
    assert_good(rms_norm_silu(x, gamma.bfloat16(), impl=Impl.CPP), x, gamma.bfloat16())


@needs_cpp
@pytest.mark.parametrize("order", ORDERS)
def test_zeros_stay_zeros_and_nan_stays_in_its_position(order: torch.memory_format) -> None:
    x, gamma = make_inputs((1, 20, 1, 3, 11), torch.float32, order)
    clean = rms_norm_silu(x, gamma, impl=Impl.CPP)
    x[:, :, 0, 1, 3] = 0
    x[0, 17, 0, 2, 10] = torch.nan
    out = rms_norm_silu(x, gamma, impl=Impl.CPP)
    assert_bitwise_equal(out[0, :, 0, 1, 3], torch.zeros(20))
    assert bool(out[0, :, 0, 2, 10].isnan().all())
    assert_bitwise_equal(out[..., 0, :], clean[..., 0, :])


@needs_cpp
@pytest.mark.parametrize("order", ORDERS)
def test_silu_of_large_and_special_values(order: torch.memory_format) -> None:
    gains = torch.tensor([-1e4, -104.0, -95.0, -88.0, -40.0, -1.0, -1e-30, 0.0, 1.0, 60.0, 1e4])
    x = torch.ones(1, 11, 1, 1, 70).contiguous(memory_format=order)
    out = rms_norm_silu(x, gains, impl=Impl.CPP)
    assert_within_budget(out, reference(x.double(), gains.double()), out, torch.float32)
    gains = torch.tensor([torch.inf, torch.nan, 2.0])
    out = rms_norm_silu(torch.ones(1, 3, 1, 1, 70), gains, impl=Impl.CPP)[0, :, 0, 0]
    assert bool((out[0] == torch.inf).all())
    assert bool(out[1].isnan().all())
    assert bool(out[2].isfinite().all())


@needs_cpp
def test_exponential_is_accurate_to_two_ulp() -> None:
    """Over the whole range: silu(v) / v is 1 / (1 + exp(-v)), here for v < 0 nearly exp(v)."""
    values = torch.linspace(-86, -17, 40_001)
    out = rms_norm_silu(torch.ones(1, values.numel(), 1, 1, 1), values, impl=Impl.CPP).flatten()
    exact = F.silu(values.double())
    ulp = torch.finfo(torch.float32).eps
    # Two ulp of exp, half of one each for the sum, the division and the unit norm's scale.
    assert float(((out.double() - exact) / exact).abs().max()) <= 4 * ulp


@interpreted
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_triton_interpreted(
    shape: tuple[int, ...], dtype: torch.dtype, order: torch.memory_format, silu: bool
) -> None:
    x, gamma = make_inputs(shape, dtype, order)
    actual = rms_norm_silu(x, gamma, silu=silu, impl=Impl.TRITON)
    assert actual.is_contiguous(memory_format=order)
    assert_good(actual, x, gamma, silu=silu)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_triton_on_the_gpu(dtype: torch.dtype) -> None:
    for shape in SHAPES:
        for order in ORDERS:
            x, gamma = make_inputs(shape, dtype, order)
            actual = rms_norm_silu(x.cuda(), gamma.cuda(), impl=Impl.TRITON)
            assert actual.is_contiguous(memory_format=order)
            assert_good(actual.cpu(), x, gamma)


@needs_cpp
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_instruction_sets_and_thread_counts_give_the_same_bytes(
    dtype: torch.dtype, order: torch.memory_format
) -> None:
    from skyreels_rt import _C

    x, gamma = make_inputs((2, 43, 3, 17, 19), dtype, order)
    code = {torch.float32: 0, torch.bfloat16: 1}[dtype]
    last = order is torch.channels_last_3d
    for silu in (True, False):
        results = []
        for isa in _C.available_isas():
            for threads in (1, 2, 5):
                out = torch.empty_like(x)
                _C.rms_norm_silu(
                    x.data_ptr(), out.data_ptr(), gamma.data_ptr(), code, 2, 43, 3 * 17 * 19,
                    last, silu, threads, isa,
                )  # fmt: skip
                results.append(out)
        for out in results[1:]:
            assert_bitwise_equal(out, results[0])


@needs_cpp
def test_exponential_has_the_same_bytes_on_every_instruction_set() -> None:
    from skyreels_rt import _C

    special = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 1e-40, 3e38, -3e38])
    gamma = torch.cat([torch.linspace(-120, 120, 10_001), special])
    x = torch.ones(gamma.numel())
    results = []
    for isa in _C.available_isas():
        out = torch.empty_like(x)
        _C.rms_norm_silu(
            x.data_ptr(), out.data_ptr(), gamma.data_ptr(), 0, 1, gamma.numel(), 1, True, True, 1,
            isa,
        )  # fmt: skip
        results.append(out)
    for out in results[1:]:
        assert_bitwise_equal(out, results[0])


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_rejected(fault: str) -> None:
    x, gamma = make_inputs((1, 48, 2, 12, 13), torch.bfloat16)
    x = (x.float() * 1e-3).bfloat16()  # quiet, so that an epsilon matters
    assert_good(reference(x, gamma), x, gamma)
    with pytest.raises(AssertionError, match="error"):
        assert_good(FAULTS[fault](x, gamma), x, gamma)


@needs_cpp
@pytest.mark.parametrize("impl", [Impl.CPP, Impl.REFERENCE])
def test_the_result_can_be_written_into_part_of_a_buffer(impl: Impl) -> None:
    for batch in (1, 2):  # of one video the part is dense, of two it is not
        x, gamma = make_inputs((batch, 24, 3, 9, 8), torch.float32, torch.channels_last_3d)
        buffer = torch.full((batch, 24, 5, 9, 8), 7.0).contiguous(memory_format=ORDERS[1])
        out = rms_norm_silu(x, gamma, out=buffer[:, :, 2:], impl=impl)
        assert out.data_ptr() == buffer[:, :, 2:].data_ptr()
        assert_bitwise_equal(buffer[:, :, 2:], rms_norm_silu(x, gamma, impl=impl))
        assert bool((buffer[:, :, :2] == 7).all())
    with pytest.raises(InvalidArgument, match="out"):
        rms_norm_silu(x, gamma, out=buffer, impl=impl)
    with pytest.raises(InvalidArgument, match="out"):
        rms_norm_silu(x, gamma, out=torch.empty_like(x, dtype=torch.float64), impl=impl)


@interpreted
def test_triton_writes_into_part_of_a_buffer() -> None:
    x, gamma = make_inputs((1, 7, 2, 5, 3), torch.float32, torch.channels_last_3d)
    buffer = torch.full((1, 7, 4, 5, 3), 7.0).contiguous(memory_format=ORDERS[1])
    rms_norm_silu(x, gamma, out=buffer[:, :, 2:], impl=Impl.TRITON)
    assert_good(buffer[:, :, 2:], x, gamma)
    assert bool((buffer[:, :, :2] == 7).all())


@needs_cpp
def test_registration() -> None:
    op = torch.ops.skyreels_rt.rms_norm_silu.default
    for dtype in (torch.float32, torch.bfloat16):
        for order in ORDERS:
            for silu in (True, False):
                torch.library.opcheck(
                    op, (*make_inputs((2, 5, 2, 3, 4), dtype, order), silu, "cpp")
                )
    x, gamma = make_inputs((2, 5, 2, 3, 4), torch.float32)
    into = torch.ops.skyreels_rt.rms_norm_silu_into.default
    torch.library.opcheck(into, (x, gamma, torch.empty_like(x), True, "cpp"))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("impl", [Impl.AUTO, Impl.REFERENCE])
def test_compiles_whole(impl: Impl, order: torch.memory_format) -> None:
    inputs = make_inputs((1, 6, 2, 4, 5), torch.float32, order)

    def activated(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        return rms_norm_silu(x * 2, gamma, impl=impl) + 1

    compiled = torch.compile(activated, fullgraph=True, backend="aot_eager")
    assert_bitwise_equal(compiled(*inputs), activated(*inputs))


def test_gradients_come_from_the_reference() -> None:
    x, gamma = make_inputs((1, 6, 2, 3, 3), torch.float32)
    x.requires_grad_()
    gamma.requires_grad_()
    rms_norm_silu(x, gamma).square().sum().backward()
    for leaf in (x, gamma):
        assert leaf.grad is not None
        assert float(leaf.grad.abs().sum()) > 0


BAD = {
    "x rank": ({0: torch.zeros(1, 8, 4, 4)}, r"x: .*\(B, C, T, H, W\)"),
    "x dtype": ({0: torch.zeros(1, 8, 1, 4, 4, dtype=torch.int64)}, "x: .*float32"),
    "no channels": ({0: torch.zeros(1, 0, 1, 4, 4), 1: torch.zeros(0)}, "x: .*C >= 1"),
    "gamma size": ({1: torch.zeros(7)}, "gamma: .*C = 8"),
    "gamma rank": ({1: torch.zeros(())}, "gamma: .*C = 8"),
    "gamma transposed": ({1: torch.zeros(1, 8)}, "gamma: .*C = 8"),
    "gamma dtype": ({1: torch.zeros(8, dtype=torch.int64)}, "gamma: .*float32"),
    "gamma device": ({1: torch.zeros(8, device="meta")}, "gamma: .*cpu"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_calls(case: str) -> None:
    replaced, words = BAD[case]
    arguments = list(make_inputs((1, 8, 1, 4, 4), torch.float32))
    for index, tensor in replaced.items():
        arguments[index] = tensor
    with pytest.raises(InvalidArgument, match=words):
        rms_norm_silu(*arguments)


def test_unsupported_request_raises() -> None:
    with pytest.raises(UnsupportedKernel, match="cuda"):
        rms_norm_silu(*make_inputs((1, 8, 1, 4, 4), torch.float32), impl=Impl.CUDA)
