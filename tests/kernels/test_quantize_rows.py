"""quantize_rows and the norms fused with it: exact scales, e4m3's rounding, faults, bad calls."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from skyreels_rt.errors import InvalidArgument, UnsupportedKernel
from skyreels_rt.kernels import (
    Impl,
    gate_residual_norm_modulate_quantize,
    norm_modulate_quantize,
    quantize_rows,
)
from skyreels_rt.kernels.reference.gate_residual_norm_modulate import gate_residual_norm_modulate
from skyreels_rt.kernels.reference.norm_modulate import norm_modulate
from skyreels_rt.kernels.reference.quantize_rows import FP8_MAX
from skyreels_rt.kernels.reference.quantize_rows import quantize_rows as reference
from skyreels_rt.runtime.native import native_status

LAYERS = {layer.name: layer for layer in native_status()}
interpreted = pytest.mark.skipif(
    not LAYERS["triton"].active or torch.cuda.is_available(),
    reason=f"interpreter not in use: {LAYERS['triton'].detail}",
)
EPS = 1e-6
HALF_STEP = 2.0**-4  # e4m3 keeps three bits behind the leading one


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_good(rows: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor) -> None:
    """The nearest e4m3 numbers, whose steps are even below the least normal one, 2^-6."""
    values, scales = rows
    exact = x.double()
    assert values.dtype == torch.float8_e4m3fn and values.shape == x.shape
    assert values.is_contiguous() and scales.is_contiguous()
    expected = exact.abs().amax(-1, keepdim=True) / FP8_MAX
    torch.testing.assert_close(scales.double(), expected, rtol=1e-6, atol=1e-12)
    error = (values.double() * scales.double() - exact).abs()
    bound = torch.maximum(HALF_STEP * exact.abs(), scales.double() * 2.0**-10)
    assert (error <= bound * (1 + 1e-5)).all(), "rounding error"
    if x.shape[0]:
        assert values.float().abs().amax(-1).eq(FP8_MAX).all(), "range not used: error"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_have_their_own_scale_and_e4m3s_rounding(dtype: torch.dtype) -> None:
    x = (numbers(7, 3, 32) * torch.logspace(-3, 3, 7)[:, None, None]).to(dtype)
    before = x.clone()
    assert_good(quantize_rows(x), x)
    assert torch.equal(x, before)
    assert_good(quantize_rows(x.transpose(0, 1)), x.transpose(0, 1))
    assert quantize_rows(x[:0])[0].shape == (0, 3, 32)


def test_rows_of_zeros_stay_zero() -> None:
    values, scales = quantize_rows(torch.zeros(2, 8))
    assert (values.float() == 0).all() and (scales > 0).all()


FAULTS: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "one scale for all": lambda x: (
        (x / (x.abs().max() / FP8_MAX)).to(torch.float8_e4m3fn),
        (x.abs().max() / FP8_MAX).expand(*x.shape[:-1], 1).contiguous(),
    ),
    "truncated": lambda x: (
        (reference(x)[0].float() * 0.94).to(torch.float8_e4m3fn), reference(x)[1]
    ),
    "range of e5m2": lambda x: (
        (x / (x.abs().amax(-1, keepdim=True) / 240)).to(torch.float8_e4m3fn),
        x.abs().amax(-1, keepdim=True) / 240,
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_rejected(fault: str) -> None:
    x = numbers(4, 32) * torch.tensor([[1.0], [2.0], [3.0], [50.0]])
    assert_good(reference(x), x)
    with pytest.raises(AssertionError, match=r"error|close"):
        assert_good(FAULTS[fault](x), x)


@pytest.mark.parametrize("segments", [1, 3])
def test_the_fused_norm_is_norm_then_quantise_without_a_rounding_between(segments: int) -> None:
    x = numbers(2, 12, 40).bfloat16()
    weight, bias = 1 + 0.1 * numbers(2, segments, 40, seed=1), numbers(2, segments, 40, seed=2)
    fused = norm_modulate_quantize(x, weight, bias, eps=EPS)
    expected = reference(norm_modulate(x.float(), weight, bias, eps=EPS))
    assert torch.equal(fused[0].float(), expected[0].float())
    assert torch.equal(fused[1], expected[1])
    exact = norm_modulate(x.double(), weight.double(), bias.double(), eps=EPS)
    assert_good(fused, exact)


@pytest.mark.parametrize("gated", [True, False])
def test_the_fused_residual_is_residual_norm_then_quantise(gated: bool) -> None:
    x, y = numbers(2, 12, 40).bfloat16(), numbers(2, 12, 40, seed=5).bfloat16()
    gate = numbers(2, 3, 40, seed=6) if gated else None
    weight, bias = 1 + 0.1 * numbers(1, 1, 40, seed=1), numbers(1, 1, 40, seed=2)
    total, *rows = gate_residual_norm_modulate_quantize(x, y, gate, weight, bias, eps=EPS)
    high = None if gate is None else gate.double()
    sums, normed = gate_residual_norm_modulate(
        x.double(), y.double(), high, weight.double(), bias.double(), eps=EPS
    )
    assert torch.equal(total, sums.bfloat16())
    assert_good((rows[0], rows[1]), normed)


@interpreted
def test_the_fused_residual_overwrites_the_stream() -> None:
    x, y = numbers(2, 6, 67), numbers(2, 6, 67, seed=5)
    tables = [numbers(1, 2, 67, seed=k) for k in range(3)]
    expected = gate_residual_norm_modulate_quantize(
        x.clone(), y, *tables, eps=EPS, impl=Impl.REFERENCE
    )
    found = gate_residual_norm_modulate_quantize(x, y, *tables, eps=EPS, impl=Impl.TRITON)
    assert found[0] is x
    torch.testing.assert_close(x, expected[0])
    torch.testing.assert_close(found[2], expected[2], rtol=1e-5, atol=0)
    carried = expected[1].float().frexp().mantissa.abs() == 0.5
    bound = 2 * HALF_STEP * 1.07 * expected[1].float().abs() + 2.0**-9
    difference = (found[1].float() - expected[1].float()).abs()
    assert (difference[~carried] <= bound[~carried]).all()


@interpreted
@pytest.mark.parametrize("width", [192, 67])
def test_triton_interpreted(width: int) -> None:
    # The interpreter's casts to 8 bits truncate, and lose the carry into the exponent. So numbers
    # that rounding may have brought to a power of two are left to the GPU.
    x = numbers(2, 6, width)
    weight, bias = 1 + 0.1 * numbers(1, 2, width, seed=1), numbers(1, 2, width, seed=2)
    pairs = (
        (quantize_rows(x, impl=Impl.TRITON), reference(x)),
        (
            norm_modulate_quantize(x, weight, bias, eps=EPS, impl=Impl.TRITON),
            norm_modulate_quantize(x, weight, bias, eps=EPS, impl=Impl.REFERENCE),
        ),
    )
    for (values, scales), (expected, expected_scales) in pairs:
        torch.testing.assert_close(scales, expected_scales, rtol=1e-6, atol=0)
        difference = (values.float() - expected.float()).abs()
        carried = expected.float().frexp().mantissa.abs() == 0.5
        bound = 2 * HALF_STEP * 1.07 * expected.float().abs() + 2.0**-9
        assert (difference[~carried] <= bound[~carried]).all() and not carried.all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_triton_on_the_gpu(dtype: torch.dtype) -> None:
    x = numbers(2, 77, 5120).to(dtype).cuda()
    values, scales = quantize_rows(x, impl=Impl.TRITON)
    assert_good((values, scales), x)
    expected = reference(x)
    assert torch.equal(values.float(), expected[0].float()) and torch.equal(scales, expected[1])
    weight, bias = (1 + 0.1 * numbers(1, 7, 5120)).cuda(), numbers(1, 7, 5120, seed=2).cuda()
    fused = norm_modulate_quantize(x, weight, bias, eps=EPS, impl=Impl.TRITON)
    assert_good(fused, norm_modulate(x.double(), weight.double(), bias.double(), eps=EPS))
    stream, y = x.clone(), numbers(2, 77, 5120, seed=5).to(dtype).cuda()
    total, *rows = gate_residual_norm_modulate_quantize(
        stream, y, weight, weight, bias, eps=EPS, impl=Impl.TRITON
    )
    sums, normed = gate_residual_norm_modulate(
        x.double(), y.double(), weight.double(), weight.double(), bias.double(), eps=EPS
    )
    torch.testing.assert_close(total, sums.to(dtype))
    assert_good((rows[0], rows[1]), normed)


@interpreted
def test_registration() -> None:
    tables = (torch.ones(1, 3, 16), torch.zeros(1, 3, 16))
    ops = torch.ops.skyreels_rt
    torch.library.opcheck(ops.quantize_rows.default, (numbers(2, 6, 16), "triton"))
    torch.library.opcheck(
        ops.norm_modulate_quantize.default, (numbers(2, 6, 16), *tables, EPS, "triton")
    )
    torch.library.opcheck(
        ops.gate_residual_norm_modulate_quantize.default,
        (numbers(2, 6, 16), numbers(2, 6, 16, seed=1), None, *tables, EPS, "triton"),
    )


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 8, dtype=torch.int64), torch.zeros(2, 0), torch.zeros(()),
        torch.zeros(8, 2).t(),
    ],
)  # fmt: skip
def test_bad_rows(x: torch.Tensor) -> None:
    with pytest.raises(InvalidArgument, match="x: "):
        quantize_rows(x)


def test_bad_tokens_and_requests() -> None:
    x, table = numbers(1, 6, 8), torch.zeros(1, 2, 8)
    bad = {
        "x: ": (x[0], table, table), "weight: ": (x, table[..., :7], table),
        "bias: ": (x, table, table[:, :1]), "D >= 1": (x[..., :0], table, table),
    }  # fmt: skip
    for words, arguments in bad.items():
        with pytest.raises(InvalidArgument, match=words):
            norm_modulate_quantize(*arguments, eps=EPS)
        tokens, *tables = arguments
        with pytest.raises(InvalidArgument, match=words):
            gate_residual_norm_modulate_quantize(tokens, tokens.clone(), None, *tables, eps=EPS)
    with pytest.raises(InvalidArgument, match="y: "):
        gate_residual_norm_modulate_quantize(x, x[:, :3].clone(), None, table, table, eps=EPS)
    with pytest.raises(InvalidArgument, match="gate: "):
        gate_residual_norm_modulate_quantize(x, x.clone(), table[..., :7], table, table, eps=EPS)
    with pytest.raises(UnsupportedKernel):
        quantize_rows(x, impl=Impl.CPP)
    with pytest.raises(UnsupportedKernel):
        norm_modulate_quantize(x, table, table, eps=EPS, impl=Impl.CPP)
