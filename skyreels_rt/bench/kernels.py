"""Every operator against eager torch and torch.compile of its reference, in one process.

Sides take turns, each run long enough to time (at least ``_MIN_SECONDS``), medians of ratios. In
place operators run on the same tensors again and again; their values do not matter here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from skyreels_rt.bench.kernel_cases import CASES, KernelCase
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.kernels import AttentionBackend, Impl, KernelPlan
from skyreels_rt.report import Report, Row

MIN_REPEATS = 5
_MIN_SECONDS = 2e-3
FUSED_TARGET, SINGLE_PASS_TARGET, COMPILE_TARGET = 2.0, 0.95, 0.9
"""Least speed-up over eager torch of a fused and of a single-pass operator, and over
torch.compile."""


@dataclass(frozen=True)
class _Sides:
    """Callables of one case, each one call of the operator."""

    ours: Callable[[], object]
    eager: Callable[[], object]
    compiled: Callable[[], object] | None


def measure_kernels(
    *,
    repeats: int,
    command: str,
    with_compile: bool = True,
    on_row: Callable[[Row], None] | None = None,
    cases: Sequence[KernelCase] = CASES,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
) -> Report:
    """Time operators on the CPU.

    Parameters
    ----------
    repeats : int
        Timed runs per side, at least 5; sides alternate.
    command : str
        Command line recorded in the report.
    with_compile : bool
        Also time ``torch.compile`` of the reference (compiling takes most of the time).
    on_row : callable, optional
        Called with every finished row.
    cases : sequence of KernelCase
        What to time.
    dtypes : sequence of torch.dtype
        Types to time each in.

    Raises
    ------
    InvalidArgument
        Too few repeats.
    """
    if repeats < MIN_REPEATS:
        raise InvalidArgument("repeats", expected=f"at least {MIN_REPEATS}", got=repeats)
    rows: list[Row] = []
    shapes: dict[str, Any] = {}
    plans = {dtype: KernelPlan.choose("cpu", dtype) for dtype in dtypes}
    for case in cases:
        shapes[f"{case.op}.{case.name}"] = case.shape
        for dtype in dtypes:
            for row in _measure(case, dtype, plans[dtype], repeats, with_compile):
                rows.append(row)
                if on_row is not None:
                    on_row(row)
    return Report(
        command=command,
        device="cpu",
        threads=torch.get_num_threads(),
        kernel_plan={
            str(dtype).removeprefix("torch."): plan.to_json() for dtype, plan in plans.items()
        },
        rows=rows,
        details={"repeats": repeats, "shapes": shapes},
    )


def _measure(
    case: KernelCase, dtype: torch.dtype, plan: KernelPlan, repeats: int, with_compile: bool
) -> list[Row]:
    """Rows of one case and dtype."""
    impl = getattr(plan, case.op)
    inputs = case.make(dtype)
    with torch.inference_mode():
        sides = _Sides(
            ours=lambda: case.run(*inputs, impl=impl),
            eager=lambda: case.reference(*inputs),
            compiled=_compiled(case, inputs) if with_compile else None,
        )
        seconds = _alternate(sides, repeats)
    name = f"kernels.{case.op}.{case.name}.{str(dtype).removeprefix('torch.')}"
    target: float | None = FUSED_TARGET if case.fused else SINGLE_PASS_TARGET
    if impl in (Impl.REFERENCE, AttentionBackend.SDPA):
        target = None  # the plan chose what ours is compared with
    rows = [
        _row(f"{name}.seconds", seconds["ours"], "s"),
        _row(f"{name}.over_eager", _ratios(seconds, "eager"), "eager / ours", target),
    ]
    if with_compile:
        ratios = _ratios(seconds, "compiled")
        wanted = None if target is None else COMPILE_TARGET
        rows.append(_row(f"{name}.over_compile", ratios, "compiled / ours", wanted))
    return rows


def _compiled(case: KernelCase, inputs: tuple[Any, ...]) -> Callable[[], object]:
    torch.compiler.reset()
    function = torch.compile(case.reference, fullgraph=True, dynamic=False)
    return lambda: function(*inputs)


def _alternate(sides: _Sides, repeats: int) -> dict[str, list[float]]:
    """Seconds a call of each side's runs, sides taking turns so that noise hits all alike."""
    calls = {name: call for name, call in vars(sides).items() if call is not None}
    counts = {name: _calls_in(call, _MIN_SECONDS) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats):
        for name in list(calls)[:: 1 if repeat % 2 else -1]:
            start = time.perf_counter()
            for _ in range(counts[name]):
                calls[name]()
            seconds[name].append((time.perf_counter() - start) / counts[name])
    return seconds


def _calls_in(call: Callable[[], object], seconds: float) -> int:
    """How many calls take at least ``seconds``; also warms up."""
    call()
    count = 1
    while True:
        start = time.perf_counter()
        for _ in range(count):
            call()
        if time.perf_counter() - start >= seconds:
            return count
        count *= 2


def _ratios(seconds: dict[str, list[float]], peer: str) -> list[float]:
    return [a / b for a, b in zip(seconds[peer], seconds["ours"], strict=True)]


def _row(name: str, values: list[float], unit: str, target: float | None = None) -> Row:
    """Median with spread; ratios are speed-ups, so more is better."""
    return Row(
        name,
        statistics.median(values),
        unit,
        target,
        min=min(values),
        max=max(values),
        better="lower" if unit == "s" else "higher",
    )
