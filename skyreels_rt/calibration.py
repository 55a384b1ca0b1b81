"""Measures how a model's steps differ and fits the step caches to it: ``skyreels-rt calibrate``.

TeaCache needs a polynomial from a signal's change to the change of what the blocks do; MagCache
needs the size of what they do over the timesteps. Both come from a few complete runs. Sources: see
:mod:`skyreels_rt.runtime.teacache` and :mod:`skyreels_rt.runtime.magcache`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from skyreels_rt.components import Components
from skyreels_rt.conditioning.portrait import prepare_portrait
from skyreels_rt.config import config_to_dict, write_json
from skyreels_rt.diffusion.blf import Window
from skyreels_rt.diffusion.block_reuse import OnBlocks
from skyreels_rt.errors import InvalidArgument, OutputError
from skyreels_rt.model_folder import CALIBRATION_FILE
from skyreels_rt.options import resolve_settings
from skyreels_rt.report import versions
from skyreels_rt.runtime.magcache import MagCache
from skyreels_rt.runtime.step_cache import (
    CalibrationRun,
    ChangeFit,
    MagnitudeFit,
    Signal,
    StepCache,
    StepCalibration,
    TimeSignal,
)
from skyreels_rt.runtime.teacache import TeaCache, polynomial, relative_changes
from skyreels_rt.session import Session

DEFAULT_STEPS = (10, 20, 40)
"""Runs that are measured: a signal's change per step spans what these give."""

SHARE_COMPUTED = 0.5
THRESHOLD_STEPS = 20
"""Default thresholds are the least at which no more than this share of the steps is computed, in a
run of so many steps."""

DEGREE = 4
_GRID = tuple(10 ** (exponent / 40) for exponent in range(-160, 81))
"""Thresholds tried for a default: 1e-4 to 100."""


@dataclass(frozen=True, eq=False)
class CalibrationClip:
    """What one run is given.

    Attributes
    ----------
    audio : ndarray, shape (S,) or (S, channels), float32 in [-1, 1]
        Speech; one window's worth is used.
    sample_rate : int
        Hz.
    portrait : ndarray, shape (H, W, 3), uint8, or None
        Portrait.
    prompt : str
        Prompt.
    """

    audio: NDArray[np.float32]
    sample_rate: int
    portrait: NDArray[np.uint8] | None = None
    prompt: str = ""


@dataclass
class _Trace:
    """Changes along the steps of one window and guidance pass."""

    content: list[float] = field(default_factory=list)  # of the modulated input
    residual: list[float] = field(default_factory=list)
    log_ratio: list[float] = field(default_factory=list)  # of the residual's size
    last: tuple[Tensor, Tensor] | None = None

    def add(self, signal: Tensor, residual: Tensor) -> None:
        """Take the next step's modulated input and residual, (1, L, D)."""
        residual = residual.float()
        if self.last is not None:
            before_signal, before = self.last
            self.content += relative_changes([before_signal, signal])
            self.residual += relative_changes([before, residual])
            ratio = (residual.norm(dim=-1) / before.norm(dim=-1)).mean()
            self.log_ratio.append(math.log(float(ratio)))
        self.last = (signal.clone(), residual.clone())


@dataclass(frozen=True)
class _Run:
    """One run's timesteps and what was seen along them, by window and guidance pass."""

    timesteps: tuple[float, ...]
    traces: dict[tuple[Window, int], _Trace]


def calibrate(
    components: Components,
    clips: Sequence[CalibrationClip],
    *,
    num_steps: Sequence[int] = DEFAULT_STEPS,
    inputs: str,
    on_run: Callable[[int, int], None] | None = None,
) -> StepCalibration:
    """Measure a model.

    Parameters
    ----------
    components : Components
        The model.
    clips : sequence of CalibrationClip
        At least one.
    num_steps : sequence of int
        Steps of the runs every clip is put through, 10 or more each.
    inputs : str
        Which clips, for the provenance.
    on_run : callable, optional
        Called as ``on_run(done, planned)`` after every run.

    Raises
    ------
    InvalidArgument
        No clip, no or too few steps, or a clip the model cannot use.
    SkyReelsError
        From the model.
    """
    if not clips:
        raise InvalidArgument("clips", expected="at least one", got=0)
    if not num_steps or min(num_steps) < 2 * (DEGREE + 1):
        raise InvalidArgument(
            "num_steps", expected=f"numbers >= {2 * (DEGREE + 1)}", got=tuple(num_steps)
        )
    runs: list[_Run] = []
    for clip in clips:
        for count in num_steps:
            runs.append(_measure(components, clip, count))
            if on_run is not None:
                on_run(len(runs), len(clips) * len(num_steps))
    settings = resolve_settings(components, {})
    found = StepCalibration(
        **{signal: _fit_changes(components, runs, signal) for signal in get_args(Signal)},
        magnitude=_fit_magnitude([run for run in runs if len(run.timesteps) == max(num_steps)]),
        run=CalibrationRun(
            num_steps=tuple(num_steps),
            shift=settings.shift,
            solver=settings.solver,
            weights=components.transformer.time_digest(),
            num_clips=len(clips),
            num_windows=sum(len({window for window, _ in run.traces}) for run in runs),
            inputs=inputs,
            versions=tuple(f"{name} {version}" for name, version in versions().items()),
        ),
    )
    return _with_thresholds(components, found)


def write_calibration(folder: Path, found: StepCalibration) -> Path:
    """Write a calibration into a model folder, where the engine reads it; its path.

    Raises
    ------
    OutputError
        It is no model folder, or cannot be written to.
    """
    if not (folder / "model_index.json").is_file():
        raise OutputError(
            f"{folder}: no model folder.", stage="output", hint="Give the folder of the model."
        )
    path = folder / CALIBRATION_FILE
    write_json(path, config_to_dict(found))
    return path


def _measure(parts: Components, clip: CalibrationClip, num_steps: int) -> _Run:
    """One window of a clip, denoised with every step computed."""
    settings = resolve_settings(parts, {"num_steps": num_steps, "prompt": clip.prompt})
    traces: dict[tuple[Window, int], _Trace] = {}

    def observe(window: Window) -> OnBlocks:
        def on_blocks(step: int, index: int, signal: Tensor, residual: Tensor) -> None:
            del step
            traces.setdefault((window, index), _Trace()).add(signal, residual)

        return on_blocks

    portrait = clip.portrait
    if portrait is not None:
        portrait = prepare_portrait(portrait, settings.height, settings.width, finder=None)
    frames = parts.timeline.num_frames(settings.window)
    with Session(parts, settings, portrait=portrait, observe=observe) as session:
        session.push_audio(
            clip.audio[: frames * clip.sample_rate // settings.fps], clip.sample_rate
        )
        session.end_audio()
        next(session.frames(), None)  # the first chunk comes when its group is denoised
    return _Run(settings.schedule.timesteps, traces)


def _fit_changes(parts: Components, runs: Sequence[_Run], signal: Signal) -> ChangeFit:
    """Quartic from a signal's change to the residual's, over all steps of all runs."""
    x: list[float] = []
    y: list[float] = []
    for run in runs:
        known = [] if signal == "modulated_input" else _time_changes(parts, run, signal)
        for trace in run.traces.values():
            x += known or trace.content
            y += trace.residual
    coefficients = np.polyfit(x, y, DEGREE).tolist()
    missed = [polynomial(coefficients, a) - b for a, b in zip(x, y, strict=True)]
    a4, a3, a2, a1, a0 = coefficients
    return ChangeFit(
        coefficients=(a4, a3, a2, a1, a0),
        threshold=0.0,
        least=min(x),
        greatest=max(x),
        error=float(np.sqrt(np.mean(np.square(missed)))),
    )


def _time_changes(parts: Components, run: _Run, signal: TimeSignal) -> list[float]:
    return list(relative_changes(parts.run_facts(run.timesteps).signals(signal)))


def _fit_magnitude(runs: Sequence[_Run]) -> MagnitudeFit:
    """Size of the residual over the timesteps, the mean over windows, passes and clips."""
    logs = [trace.log_ratio for run in runs for trace in run.traces.values()]
    sizes = np.concatenate([[0.0], np.cumsum(np.mean(logs, axis=0))])
    return MagnitudeFit(runs[0].timesteps, tuple(sizes.tolist()), threshold=0.0)


def _with_thresholds(parts: Components, found: StepCalibration) -> StepCalibration:
    """The same with default thresholds."""
    timesteps = resolve_settings(parts, {"num_steps": THRESHOLD_STEPS}).schedule.timesteps
    facts = replace(parts.run_facts(timesteps), calibration=found)

    def least(cache: Callable[[float], StepCache]) -> float:
        for threshold in _GRID:
            computed = cache(threshold).plan(facts).computed
            if sum(computed) <= SHARE_COMPUTED * THRESHOLD_STEPS:
                return float(f"{threshold:.3g}")
        return _GRID[-1]

    timestep = least(TeaCache)
    projected = least(lambda threshold: TeaCache(threshold, signal="timestep_projection"))
    magnitude = least(MagCache)
    return replace(
        found,
        timestep=replace(found.timestep, threshold=timestep),
        timestep_projection=replace(found.timestep_projection, threshold=projected),
        # Not known before a run; it estimates the same change as the time embedding does.
        modulated_input=replace(found.modulated_input, threshold=timestep),
        magnitude=replace(found.magnitude, threshold=magnitude),
    )
