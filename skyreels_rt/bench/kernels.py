"""Every operator against eager torch and torch.compile of its reference, in one process.

On a GPU each row also says which share of the machine's measured rate it reached: of copying for
what reads and writes, of a matrix product for dense attention.

Sides take turns, each run long enough to time (at least ``_MIN_SECONDS``), medians of ratios. In
place operators run on the same tensors again and again; their values do not matter here.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from skyreels_rt.bench.kernel_cases import CASES, GPU_CASES, KernelCase
from skyreels_rt.bench.rates import Rates, measure_rates, num_bytes, on_device, seconds_of
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
    device: torch.device | None = None,
    with_compile: bool = True,
    on_row: Callable[[Row], None] | None = None,
    cases: Sequence[KernelCase] | None = None,
    dtypes: Sequence[torch.dtype] | None = None,
) -> Report:
    """Time operators.

    Parameters
    ----------
    repeats : int
        Timed runs per side, at least 5; sides alternate.
    command : str
        Command line recorded in the report.
    device : torch.device, optional
        Where; the CPU by default.
    with_compile : bool
        Also time ``torch.compile`` of the reference (compiling takes most of the time).
    on_row : callable, optional
        Called with every finished row.
    cases : sequence of KernelCase
        What to time; by default what suits the device.
    dtypes : sequence of torch.dtype
        Types to time each in; by default float32 and bfloat16, on a GPU bfloat16.

    Raises
    ------
    InvalidArgument
        Too few repeats.
    """
    if repeats < MIN_REPEATS:
        raise InvalidArgument("repeats", expected=f"at least {MIN_REPEATS}", got=repeats)
    device = torch.device("cpu") if device is None else device
    on_gpu = device.type == "cuda"
    if cases is None:
        cases = GPU_CASES if on_gpu else CASES
    if dtypes is None:
        dtypes = (torch.bfloat16,) if on_gpu else (torch.float32, torch.bfloat16)
    bench = _Bench(device, repeats, with_compile, measure_rates(device) if on_gpu else None)
    rows = [] if bench.rates is None else bench.rates.rows()
    shapes: dict[str, Any] = {}
    plans = {dtype: KernelPlan.choose(device, dtype) for dtype in dtypes}
    for case in cases:
        shapes[f"{case.op}.{case.name}"] = case.shape
        for dtype in dtypes:
            for row in bench.measure(case, dtype, plans[dtype]):
                rows.append(row)
                if on_row is not None:
                    on_row(row)
    return Report(
        command=command,
        device=bench.name,
        threads=torch.get_num_threads(),
        kernel_plan={
            str(dtype).removeprefix("torch."): plan.to_json() for dtype, plan in plans.items()
        },
        rows=rows,
        details={"repeats": repeats, "shapes": shapes},
    )


class _Bench:
    """Where and how long cases are timed."""

    def __init__(
        self, device: torch.device, repeats: int, with_compile: bool, rates: Rates | None
    ) -> None:
        self._device, self._repeats, self._with_compile = device, repeats, with_compile
        self.rates = rates
        self.name = "cpu" if rates is None else torch.cuda.get_device_name(device)

    def measure(self, case: KernelCase, dtype: torch.dtype, plan: KernelPlan) -> list[Row]:
        """Rows of one case and dtype."""
        impl = getattr(plan, case.op)
        inputs = on_device(case.make(dtype), self._device)
        with torch.inference_mode():
            sides = _Sides(
                ours=lambda: case.run(*inputs, impl=impl),
                eager=lambda: case.reference(*inputs),
                compiled=_compiled(case, inputs) if self._with_compile else None,
            )
            moved = num_bytes(inputs) + num_bytes(sides.ours())
            seconds = _alternate(sides, self._repeats, self._device)
        name = f"kernels.{case.op}.{case.name}.{str(dtype).removeprefix('torch.')}"
        target: float | None = FUSED_TARGET if case.fused else SINGLE_PASS_TARGET
        if impl in (Impl.REFERENCE, AttentionBackend.SDPA) or self.rates is not None:
            target = None  # the plan chose what ours is compared with, or seconds count
        limit = case.h200_s if "H200" in self.name and dtype == torch.bfloat16 else None
        rows = [
            _row(f"{name}.seconds", seconds["ours"], "s", limit),
            _row(f"{name}.over_eager", _ratios(seconds, "eager"), "eager / ours", target),
        ]
        if self._with_compile:
            ratios = _ratios(seconds, "compiled")
            wanted = None if target is None else COMPILE_TARGET
            rows.append(_row(f"{name}.over_compile", ratios, "compiled / ours", wanted))
        if self.rates is not None:
            shares = [self.rates.share(case.flops, moved, s) for s in seconds["ours"]]
            unit = "of copying" if case.flops is None else "of a matrix product"
            rows.append(_row(f"{name}.share", shares, unit))
        return rows


def _compiled(case: KernelCase, inputs: tuple[Any, ...]) -> Callable[[], object]:
    torch.compiler.reset()
    function = torch.compile(case.reference, fullgraph=True, dynamic=False)
    return lambda: function(*inputs)


def _alternate(sides: _Sides, repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds a call of each side's runs, sides taking turns so that noise hits all alike."""
    calls = {name: call for name, call in vars(sides).items() if call is not None}
    counts = {name: _calls_in(call, _MIN_SECONDS, device) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats):
        for name in list(calls)[:: 1 if repeat % 2 else -1]:
            seconds[name].append(seconds_of(calls[name], counts[name], device) / counts[name])
    return seconds


def _calls_in(call: Callable[[], object], seconds: float, device: torch.device) -> int:
    """How many calls take at least ``seconds``; also warms up."""
    call()
    count = 1
    while seconds_of(call, count, device) < seconds:
        count *= 2
    return count


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
