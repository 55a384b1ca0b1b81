"""teacache_gate: the published rule, the fp64 oracle, one result for any number of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from skyreels_rt.errors import InvalidArgument, UnsupportedKernel
from skyreels_rt.kernels import Impl, teacache_gate
from skyreels_rt.kernels.reference.teacache_gate import teacache_gate as reference
from skyreels_rt.runtime.native import native_status
from skyreels_rt.testing.faults.teacache_gate import FAULTS
from skyreels_rt.testing.numerics import assert_bitwise_equal, assert_within_budget

LAYERS = {layer.name: layer for layer in native_status()}
needs_cpp = pytest.mark.skipif(not LAYERS["_C"].active, reason=f"_C: {LAYERS['_C'].detail}")
needs_triton = pytest.mark.skipif(
    not LAYERS["triton"].active, reason=f"triton: {LAYERS['triton'].detail}"
)
# Published for Wan2.1 T2V-1.3B with the time embedding as signal.
WAN_1_3B = (2.39676752e3, -1.31110545e3, 2.01331979e2, -8.29855975, 1.37887774e-1)
SHAPES = [(1, 1536), (1, 6, 1536), (1, 336, 192), (2, 61, 33), (1,), (4096,), (16385,), (3, 70_001)]


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """Signals about 8 % apart and an accumulator that is under way."""
    generator = torch.Generator().manual_seed(5)
    previous = torch.randn(shape, generator=generator)
    signal = previous + 0.08 * torch.randn(shape, generator=generator)
    accumulated = torch.tensor([0.125])
    return signal.to(dtype), previous.to(dtype), accumulated, WAN_1_3B, 10.0, False


def run(impl: Impl, inputs: tuple[Any, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """New accumulator and decision, as the reference returns them."""
    signal, previous, accumulated, *rest = inputs
    accumulated = accumulated.clone()
    skip = teacache_gate(signal, previous, accumulated, *rest, impl=impl)
    return accumulated, skip


def assert_gate(actual: tuple[torch.Tensor, ...], inputs: tuple[Any, ...]) -> None:
    """The accumulator is within the budget of the fp64 oracle and the decision is right."""
    signal, previous, accumulated, *rest = inputs
    high, skip = reference(signal.double(), previous.double(), accumulated.double(), *rest)
    assert_within_budget(actual[0].float(), high, reference(*inputs)[0], torch.float32)
    assert_bitwise_equal(actual[1], skip)


def published(
    signals: list[torch.Tensor], coefficients: tuple[float, ...], threshold: float
) -> list[bool]:
    """TeaCache4Wan2.1's rule for one branch, as its Python code states it: steps skipped."""
    rescale, accumulated, previous, skipped = np.poly1d(coefficients), 0.0, None, []
    for step, signal in enumerate(signals):
        if step in (0, len(signals) - 1):
            should_compute, accumulated = True, 0.0
        else:
            change = (signal - previous).abs().mean() / previous.abs().mean()
            accumulated += rescale(change.cpu().item())
            should_compute = not accumulated < threshold
            if should_compute:
                accumulated = 0.0
        previous = signal
        skipped.append(not should_compute)
    return skipped


@pytest.mark.parametrize("impl", [Impl.REFERENCE, Impl.AUTO])
@pytest.mark.parametrize("threshold", [0.05, 0.08, 0.2])
def test_the_published_rule_decides_alike(threshold: float, impl: Impl) -> None:
    phase = torch.arange(256) / 40
    signals = [torch.sin(phase * (1 + 0.02 * step**1.3)) + 0.3 for step in range(40)]
    accumulated, skipped = torch.zeros(1), []
    for step, signal in enumerate(signals):
        previous, forced = signals[max(step - 1, 0)], step in (0, len(signals) - 1)
        skip = teacache_gate(signal, previous, accumulated, WAN_1_3B, threshold, forced, impl=impl)
        skipped.append(bool(skip))
    assert skipped == published(signals, WAN_1_3B, threshold)
    assert 0 < sum(skipped) < len(signals) - 2


@needs_cpp
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpp_within_budget(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = make_inputs(shape, dtype)
    assert_gate(run(Impl.CPP, inputs), inputs)


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="the device test runs it compiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_triton_within_budget(dtype: torch.dtype) -> None:
    for shape in [(1, 1536), (2, 61, 33), (16385,), (1,)]:
        inputs = make_inputs(shape, dtype)
        assert_gate(run(Impl.TRITON, inputs), inputs)


EDGES = {
    "reached": {4: 0.1},
    "forced": {5: True},
    "constant": {3: (0.25,), 4: 0.376},
    "exactly at the threshold": {3: (0.25,), 4: 0.375},
    "line": {3: (1.0, 0.0), 4: 0.2},
    "no change": {0: torch.ones(7), 1: torch.ones(7), 4: 1.0},
    "previous is zero": {1: torch.zeros(7), 0: torch.ones(7)},
    "infinitely low": {1: torch.zeros(7), 0: torch.ones(7), 3: (-1.0, 0.0)},
    "not a number": {0: torch.full((7,), float("nan")), 1: torch.ones(7)},
    "empty": {0: torch.ones(0), 1: torch.ones(0)},
    "infinite threshold": {4: float("inf")},
    "forced, not read": {0: torch.full((7,), float("nan")), 1: torch.zeros(7), 5: True},
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # 0 / 0 in Triton's interpreter
@pytest.mark.parametrize("case", EDGES)
@pytest.mark.parametrize("impl", [Impl.REFERENCE, Impl.CPP, Impl.TRITON])
def test_edges(case: str, impl: Impl) -> None:
    if not LAYERS[{Impl.TRITON: "triton"}.get(impl, "_C")].active:
        pytest.skip("not on this machine")
    if impl is Impl.TRITON and torch.cuda.is_available():
        pytest.skip("the device test runs it compiled")
    inputs = list(make_inputs((7,), torch.float32))
    for index, value in EDGES[case].items():
        inputs[index] = value
    accumulated, skip = run(impl, tuple(inputs))
    may_skip = case in ("constant", "line", "no change", "infinite threshold")
    assert bool(skip) == may_skip
    assert (float(accumulated) != 0) == may_skip
    assert_gate((accumulated, skip), tuple(inputs))


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_instruction_sets_and_thread_counts_give_the_same_bytes(dtype: torch.dtype) -> None:
    from skyreels_rt import _C

    signal, previous, start, *_ = make_inputs((5, 30_011), dtype)
    results = []
    for isa in _C.available_isas():
        for threads in (1, 2, 5):
            accumulated, skip = start.clone(), torch.zeros(1, dtype=torch.bool)
            _C.teacache_gate(
                signal.data_ptr(), previous.data_ptr(), accumulated.data_ptr(), skip.data_ptr(),
                list(WAN_1_3B), {torch.float32: 0, torch.bfloat16: 1}[dtype], False,
                signal.numel(), 10.0, threads, isa,
            )  # fmt: skip
            results.append(accumulated)
            assert bool(skip)
    for accumulated in results[1:]:
        assert_bitwise_equal(accumulated, results[0])


@needs_cpp
@pytest.mark.parametrize("impl", [Impl.REFERENCE, Impl.CPP])
def test_dense_layouts(impl: Impl) -> None:
    signal, previous, *rest = make_inputs((3, 20, 35), torch.bfloat16)
    expected = run(impl, (signal, previous, *rest))[0]
    for change in (
        lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:],  # not aligned
        lambda x: x.permute(2, 0, 1),
    ):
        turned = (change(signal), change(previous), *rest)
        assert_gate(run(impl, turned), turned)
        if impl is Impl.CPP:  # walks through memory, whatever the order of dimensions
            assert_bitwise_equal(run(impl, turned)[0], expected)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_rejected(fault: str) -> None:
    generous = make_inputs((1, 6, 1536), torch.bfloat16)
    strict, forced = (*generous[:4], 0.01, False), (*generous[:4], 10.0, True)
    for inputs in (generous, strict, forced):
        assert_gate(reference(*inputs), inputs)
    with pytest.raises(AssertionError):
        for inputs in (generous, strict, forced):
            assert_gate(FAULTS[fault](*inputs), inputs)


@needs_cpp
def test_registration() -> None:
    op = torch.ops.skyreels_rt.teacache_gate.default
    for dtype in (torch.float32, torch.bfloat16):
        for forced in (False, True):
            signal, previous, *rest = make_inputs((3, 7, 8), dtype)
            torch.library.opcheck(op, (signal, previous, *rest[:-1], forced, "cpp"))
            torch.library.opcheck(op, (signal.mT, previous.mT, *rest[:-1], forced, "cpp"))


@pytest.mark.parametrize("impl", [Impl.AUTO, Impl.REFERENCE])
def test_compiles_whole(impl: Impl) -> None:
    inputs = make_inputs((3, 7, 8), torch.float32)

    def gated(signal: torch.Tensor, previous: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        skip = teacache_gate(signal * 2, previous * 2, state, *inputs[3:], impl=impl)
        return torch.where(skip, signal, previous)

    compiled = torch.compile(gated, fullgraph=True, backend="aot_eager")
    states = inputs[2].clone(), inputs[2].clone()
    assert_bitwise_equal(compiled(*inputs[:2], states[0]), gated(*inputs[:2], states[1]))
    assert_bitwise_equal(*states)


@pytest.mark.parametrize("impl", [Impl.AUTO, Impl.REFERENCE])
def test_a_decision_records_no_gradient(impl: Impl) -> None:
    signal, previous, accumulated, *rest = make_inputs((3, 8), torch.float32)
    skip = teacache_gate(signal.requires_grad_(), previous, accumulated, *rest, impl=impl)
    assert bool(skip)
    assert not accumulated.requires_grad


ONES = torch.ones
BAD = {
    "dtype": ({"signal": ONES(4).int()}, "signal: .*float32"),
    "gaps": ({"signal": ONES(8)[::2], "previous": ONES(8)[::2]}, "signal: .*dense"),
    "shape": ({"previous": ONES(5)}, "previous: .*as signal"),
    "mixed": ({"previous": ONES(4).bfloat16()}, "previous: .*float32"),
    "device": ({"previous": ONES(4, device="meta")}, "previous: .*cpu"),
    "accumulated": ({"accumulated": torch.tensor(0.0)}, r"accumulated: .*\(1,\)"),
    "accumulated dtype": ({"accumulated": ONES(1).double()}, "accumulated: .*float32"),
    "accumulated device": ({"accumulated": ONES(1, device="meta")}, "accumulated: .*cpu"),
    "no coefficient": ({"coefficients": ()}, "coefficients: .*1 to 8 numbers, got 0"),
    "coefficients": ({"coefficients": (1.0,) * 9}, "coefficients"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_calls(case: str) -> None:
    changed, words = BAD[case]
    arguments = {
        "signal": ONES(4), "previous": ONES(4), "accumulated": torch.zeros(1),
        "coefficients": (1.0, 0.0), "threshold": 0.1, "forced": False,
    }  # fmt: skip
    with pytest.raises(InvalidArgument, match=words):
        teacache_gate(**(arguments | changed))


def test_unsupported_request_raises() -> None:
    inputs = make_inputs((4,), torch.float16)
    assert_gate(run(Impl.AUTO, inputs), inputs)
    with pytest.raises(UnsupportedKernel, match="float16"):
        run(Impl.CPP, inputs)


@needs_cpp
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"signal": 0}, "signal"),
        ({"skip": 0}, "skip"),
        ({"coefficients": []}, "coefficients"),
        ({"count": -1}, "count"),
        ({"dtype": 2}, "dtype"),
    ],
)
def test_native_function_checks_its_arguments(change: dict[str, Any], words: str) -> None:
    from skyreels_rt import _C

    x, skip = torch.zeros(4), torch.zeros(1, dtype=torch.bool)
    good = {
        "signal": x.data_ptr(), "previous": x.data_ptr(), "accumulated": x.data_ptr(),
        "skip": skip.data_ptr(), "coefficients": [1.0], "dtype": 0, "forced": False, "count": 4,
        "threshold": 0.1, "num_threads": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match=words):
        _C.teacache_gate(**(good | change))


@pytest.mark.gpu
@pytest.mark.parametrize("impl", [Impl.CUDA, Impl.TRITON])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_device_within_budget(dtype: torch.dtype, impl: Impl) -> None:
    def moved(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.cuda() if isinstance(x, torch.Tensor) else x for x in inputs)

    for shape in [*SHAPES, (1, 32760, 1536)]:
        inputs = make_inputs(shape, dtype)
        first = run(impl, moved(inputs))
        assert_gate(tuple(x.cpu() for x in first), inputs)
        assert_bitwise_equal(run(impl, moved(inputs))[0], first[0])
        signal, previous, *rest = moved(inputs)
        unaligned = [torch.cat([x.flatten()[:1], x.flatten()])[1:] for x in (signal, previous)]
        assert_bitwise_equal(run(impl, (*unaligned, *rest))[0], first[0])
    for changes in EDGES.values():
        edge = list(make_inputs((7,), torch.float32))
        for index, value in changes.items():
            edge[index] = value
        assert_gate(tuple(x.cpu() for x in run(impl, moved(tuple(edge)))), tuple(edge))
