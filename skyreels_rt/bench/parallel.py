"""Two ranks of one thread each against one rank of one thread, on a job of four windows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyreels_rt.distributed.cost_model import H200
from skyreels_rt.distributed.parallel import Parallel
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.media.portraits import portrait_path
from skyreels_rt.report import Report, Row
from skyreels_rt.types import Timeline
from skyreels_rt.worker_engine import WorkerEngine

MIN_REPEATS = 5
NUM_WINDOWS = 4
RATE, FPS = 16_000, 25
SPEEDUP_TARGET = 1.5
"""Of window-parallel with two ranks, from speech to frames."""

MESHES = {
    "window": Parallel(window=2),
    "guidance": Parallel(guidance=2),
    "ulysses": Parallel(ulysses=2),
    "ring": Parallel(ring=2),
}


@dataclass
class _Side:
    """One mesh and its runs."""

    engine: WorkerEngine
    seconds: list[float] = field(default_factory=list)
    denoise: list[float] = field(default_factory=list)
    sent_bytes: Mapping[str, int] = field(default_factory=dict)

    def run(self, speech: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Frames of the job; its times are kept."""
        start = time.perf_counter()
        options: Any = {
            "sample_rate": RATE, "image": portrait_path("mira"), "horizon": NUM_WINDOWS,
            "on_progress": lambda _: None,
        }  # fmt: skip
        with self.engine.open_job(speech, options) as job:
            frames = np.concatenate([chunk.frames for chunk in job.chunks()])
        self.seconds.append(time.perf_counter() - start)
        self.denoise.append(job.clock.seconds["denoise"])
        self.sent_bytes = self.engine.workers[0].usage["sent_bytes"]
        return frames


def measure_parallel(
    model: str | Path,
    *,
    repeats: int,
    full: bool,
    command: str,
    on_run: Callable[[str], None] | None = None,
) -> Report:
    """Time a job over two worker processes against one, sides taking turns.

    Parameters
    ----------
    model : str or Path
        As for :meth:`Engine.from_pretrained`; on the CPU.
    repeats : int
        Runs of each side, at least 5.
    full : bool
        Also the meshes along the other axes.
    command : str
        Command line recorded in the report.
    on_run : callable, optional
        Called with the side before each run.

    Returns
    -------
    Report
        Rows ``parallel.*`` of docs/benchmarks.md.

    Raises
    ------
    InvalidArgument
        Too few repeats.
    SkyReelsError
        What loading and running the model raises.
    """
    if repeats < MIN_REPEATS:
        raise InvalidArgument("repeats", expected=f"at least {MIN_REPEATS}", got=repeats)
    names = list(MESHES) if full else ["window"]
    with ExitStack() as stack:
        sides = {"one": _side(stack, model, 1, None)}
        sides |= {name: _side(stack, model, 2, MESHES[name]) for name in names}
        speech = _speech(sides["one"].engine)
        frames = {name: side.run(speech) for name, side in sides.items()}  # and warm up
        for side in sides.values():
            side.seconds.clear()
            side.denoise.clear()
        for repeat in range(repeats):
            for name in sorted(sides, reverse=bool(repeat % 2)):
                if on_run is not None:
                    on_run(f"run {repeat + 1} of {repeats}: {name}")
                sides[name].run(speech)
        facts = sides["one"].engine.facts
    rows = [_row("parallel.one.seconds", sides["one"].seconds, "s")]
    for name in names:
        rows += _rows(name, sides["one"], sides[name], frames["one"], frames[name])
    details = {
        "model": facts.name,
        "windows": NUM_WINDOWS,
        "frames": len(frames["one"]),
        "sent_bytes": {name: dict(side.sent_bytes) for name, side in sides.items()},
    }
    return Report(command, "cpu", 1, facts.kernel_plan, rows, details)


def measured_links(model: str | Path, num_ranks: int, *, command: str) -> Report:
    """Measure the links between worker processes on the CPU, and what the cost model makes of them.

    Parameters
    ----------
    model : str or Path
        Whose steps the cost model spreads.
    num_ranks : int
        Processes, at least 2.
    command : str
        Command line recorded in the report.

    Returns
    -------
    Report
        Rows ``parallel.links.*``; the suggested mesh is among the details.

    Raises
    ------
    InvalidArgument
        One process.
    """
    with WorkerEngine(model, devices=["cpu"] * num_ranks, threads=1) as engine:
        links = engine.measure_links()
        hardware = H200.over(links)
        suggested = Parallel.suggest(engine, engine.step_shape(10.0), num_ranks, hardware=hardware)
        facts = engine.facts
    rows = [
        Row("parallel.links.point_to_point", links.point_to_point / 1e9, "GB/s", None, "higher"),
        Row("parallel.links.all_to_all", links.all_to_all / 1e9, "GB/s", None, "higher"),
        Row("parallel.links.latency", links.latency_s * 1e6, "us", None, "lower"),
    ]
    details = {
        "ranks": links.num_ranks,
        "suggested": str(suggested),
        "note": "compute of the suggestion: H200s, not measured",
    }
    return Report(command, "cpu", 1, facts.kernel_plan, rows, details)


def _side(stack: ExitStack, model: str | Path, num_ranks: int, parallel: Parallel | None) -> _Side:
    engine = WorkerEngine(model, devices=["cpu"] * num_ranks, parallel=parallel, threads=1)
    return _Side(stack.enter_context(engine))


def _speech(engine: WorkerEngine) -> NDArray[np.float32]:
    """Something that stands for speech, as long as four windows of the model."""
    shape = engine.step_shape(1000.0)
    latents = shape.window + (NUM_WINDOWS - 1) * (shape.window - shape.overlap)
    seconds = Timeline().num_frames(latents) / FPS
    times = np.arange(int(seconds * RATE)) / RATE
    hum = np.sin(2 * np.pi * 140 * times) * np.sin(4 * np.pi * times)
    return (0.3 * hum).astype(np.float32)


def _rows(
    name: str,
    one: _Side,
    side: _Side,
    expected: NDArray[np.uint8],
    frames: NDArray[np.uint8],
) -> list[Row]:
    speedups = [a / b for a, b in zip(one.seconds, side.seconds, strict=True)]
    denoise = [a / b for a, b in zip(one.denoise, side.denoise, strict=True)]
    off = np.abs(frames.astype(np.int16) - expected.astype(np.int16)).max()
    is_exact = name == "window"
    return [
        _row(f"parallel.{name}.seconds", side.seconds, "s"),
        _row(
            f"parallel.{name}.speedup", speedups, "one / two", SPEEDUP_TARGET if is_exact else None
        ),
        _row(f"parallel.{name}.denoise_speedup", denoise, "one / two"),
        Row(f"parallel.{name}.difference", float(off), "of 255", 0.0 if is_exact else None),
    ]


def _row(name: str, values: list[float], unit: str, target: float | None = None) -> Row:
    """Median with spread."""
    better: Any = "higher" if name.endswith("speedup") else "lower"
    middle = statistics.median(values)
    return Row(name, middle, unit, target, better, min=min(values), max=max(values))
