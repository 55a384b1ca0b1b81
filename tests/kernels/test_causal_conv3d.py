"""causal_conv3d: against a second formulation, the fp64 oracle, planted faults and bad calls."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from skyreels_rt.errors import InvalidArgument, UnsupportedKernel
from skyreels_rt.kernels import Impl, KernelPlan, causal_conv3d
from skyreels_rt.kernels.causal_conv3d import MAX_ERROR
from skyreels_rt.kernels.reference.causal_conv3d import causal_conv3d as reference
from skyreels_rt.runtime.native import native_status
from skyreels_rt.testing.faults.causal_conv3d import FAULTS
from skyreels_rt.testing.numerics import assert_bitwise_equal

LAYERS = {layer.name: layer for layer in native_status()}
needs_cpp = pytest.mark.skipif(not LAYERS["_C"].active, reason=f"_C: {LAYERS['_C'].detail}")
# Batch, channels, out channels, frames, height, width, taps.
SHAPES = [
    (1, 96, 96, 4, 12, 20, 3), (2, 16, 48, 1, 5, 7, 3), (1, 32, 16, 2, 1, 1, 3),
    (1, 48, 64, 3, 9, 4, 1), (1, 384, 192, 2, 6, 10, 1), (0, 16, 16, 1, 4, 4, 3),
]  # fmt: skip


def make_inputs(shape, dtype=torch.float32):
    batch, channels, out_channels, frames, height, width, taps = shape
    generator = torch.Generator().manual_seed(1)

    def random(*size):
        return torch.randn(size, generator=generator).to(dtype)

    weight = random(out_channels, channels, taps, 3, 3) / (9 * taps * channels) ** 0.5
    x = random(batch, channels, frames, height, width)
    return x, weight, random(out_channels), random(batch, channels, taps - 1, height, width)


def is_near(actual, expected):
    if actual.shape != expected.shape:
        return False
    if actual.numel() == 0:
        return True
    error = (actual.double() - expected).abs()
    scale = expected.abs().max()
    return bool(error.max() <= MAX_ERROR * scale and error.mean() <= MAX_ERROR / 10 * scale)


def test_reference_is_a_convolution_of_padded_frames():
    x, weight, bias, past = make_inputs((2, 16, 32, 3, 6, 5, 3), torch.float64)
    frames = F.pad(torch.cat([past, x], dim=2), (1, 1, 1, 1))
    expected = F.conv3d(frames, weight, bias)
    torch.testing.assert_close(reference(x, weight, bias, past=past), expected)
    alone = F.conv3d(F.pad(x, (1, 1, 1, 1, 2, 0)), weight, bias)
    torch.testing.assert_close(reference(x, weight, bias), alone)
    x, weight, _, _ = make_inputs((1, 16, 16, 2, 3, 4, 1), torch.float64)
    large = F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")
    torch.testing.assert_close(
        reference(x, weight, doubled=True), F.conv3d(large, weight, padding=(0, 1, 1))
    )


@needs_cpp
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "with_past, with_residual, doubled", [*itertools.product([0, 1], repeat=3)]
)
def test_cpp_is_near_the_oracle(shape, with_past, with_residual, doubled):
    x, weight, bias, past = make_inputs(shape)
    options = {"past": past if with_past else None, "doubled": bool(doubled)}
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    expected = reference(x.double(), weight.double(), bias.double(), **wide)
    if with_residual:
        options["residual"] = torch.randn(expected.shape)
        expected += options["residual"]
    before = [one.clone() for one in (x, weight, bias, past)]
    actual = causal_conv3d(x, weight, bias, impl=Impl.CPP, **options)
    assert actual.is_contiguous(memory_format=torch.channels_last_3d)
    assert is_near(actual, expected)
    for one, kept in zip((x, weight, bias, past), before, strict=True):
        assert_bitwise_equal(one, kept)


@needs_cpp
@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512", "avx512_bf16"])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_bytes_on_every_processor_and_number_of_threads(isa, threads, monkeypatch):
    from skyreels_rt.kernels import _native

    x, weight, bias, past = make_inputs((1, 32, 48, 2, 18, 11, 3))
    expected = causal_conv3d(x, weight, bias, past=past, impl=Impl.CPP)
    native = _native.extension()
    if isa not in native.available_isas():
        pytest.skip(f"{isa} is not available here")

    class OfThisIsa:
        def __getattr__(self, name):
            function = getattr(native, name)
            return lambda *arguments: function(*arguments, isa)

    monkeypatch.setattr(_native, "extension", OfThisIsa)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert_bitwise_equal(causal_conv3d(x, weight, bias, past=past, impl=Impl.CPP), expected)


@needs_cpp
def test_cpp_takes_any_memory_order():
    x, weight, bias, past = make_inputs((2, 32, 16, 2, 6, 7, 3))
    expected = causal_conv3d(x, weight, bias, past=past, impl=Impl.CPP)
    last = torch.channels_last_3d
    orders = (
        (x.contiguous(memory_format=last), weight.contiguous(memory_format=last)),
        (x.mT.contiguous().mT, weight.mT.contiguous().mT),
    )
    for frames, kernel in orders:
        actual = causal_conv3d(frames, kernel, bias, past=past, impl=Impl.CPP)
        assert_bitwise_equal(actual, expected)


@needs_cpp
def test_nan_reaches_what_it_touches_and_zeros_stay_zero():
    x, weight, _, past = make_inputs((1, 16, 16, 1, 12, 12, 3))
    y = causal_conv3d(torch.zeros_like(x), weight, past=torch.zeros_like(past), impl=Impl.CPP)
    assert torch.equal(y, torch.zeros_like(y))
    x[0, 3, 0, 5, 5] = float("nan")
    assert causal_conv3d(x, weight, past=past, impl=Impl.CPP)[:, :, :, 5, 5].isnan().all()


@pytest.mark.parametrize("fault", FAULTS)
def test_budget_rejects_a_planted_fault(fault):
    inputs = make_inputs((1, 32, 32, 2, 8, 8, 3))
    wide = [one.double() for one in inputs]
    expected = reference(*wide[:3], past=wide[3])
    assert is_near(reference(*inputs[:3], past=inputs[3]), expected)
    assert not is_near(FAULTS[fault](*inputs), expected)


def test_other_widths_and_gradients_run_the_reference():
    x, weight, bias, past = make_inputs((1, 3, 5, 2, 4, 4, 3))
    assert_bitwise_equal(
        causal_conv3d(x, weight, bias, past=past), reference(x, weight, bias, past=past)
    )
    x, weight, bias, past = make_inputs((1, 16, 16, 2, 4, 4, 3))
    causal_conv3d(x, weight.requires_grad_(), bias, past=past).sum().backward()
    assert weight.grad is not None


def test_half_types_run_the_reference():
    assert KernelPlan.choose("cpu", torch.bfloat16).causal_conv3d is Impl.REFERENCE
    x, weight, bias, past = make_inputs((1, 16, 16, 2, 4, 4, 3), torch.bfloat16)
    with pytest.raises(UnsupportedKernel):
        causal_conv3d(x, weight, bias, past=past, impl=Impl.CPP)


def test_bad_calls_are_refused():
    x, weight, bias, past = make_inputs((1, 16, 16, 2, 4, 4, 3))
    bad = {
        "x": lambda: causal_conv3d(x[0], weight),
        "x: expected F >= 1": lambda: causal_conv3d(x[:, :, :0], weight),
        "weight": lambda: causal_conv3d(x, weight[:, :8]),
        "weight: expected 1 or 3 taps": lambda: causal_conv3d(x, weight[:, :, :2]),
        "bias": lambda: causal_conv3d(x, weight, bias[:8]),
        "past": lambda: causal_conv3d(x, weight, past=past[:, :, :1]),
        "residual": lambda: causal_conv3d(x, weight, residual=x[..., :2]),
        "weight: expected dtype": lambda: causal_conv3d(x, weight.double()),
    }
    for name, call in bad.items():
        with pytest.raises(InvalidArgument, match=name):
            call()
