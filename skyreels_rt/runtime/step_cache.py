"""Which denoising steps run the transformer blocks, and which reuse what the blocks did before.

A step cache turns what is known before the first step into a :class:`StepPlan`. On Wan the time
embedding tells a step's change, and it depends on the timestep and the weights alone; so the plan
is a constant of a run, the same for every guidance pass, BLF window and rank, and costs no host
read per step.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from skyreels_rt.errors import InvalidArgument

logger = logging.getLogger(__name__)

TimeSignal = Literal["timestep", "timestep_projection"]
"""Time embedding (TeaCache's ``e``), or its six-way projection (``e0``, "ret" upstream)."""

Signal = Literal["timestep", "timestep_projection", "modulated_input"]
"""A :data:`TimeSignal`, or the first block's normalised and modulated input."""

MAX_LOGGED = 4096
"""Latest entries of a :class:`StepLog`; a plan makes one for a whole job."""

FEW_STEPS = 4
"""Runs of so few steps have none to spare."""


@dataclass(frozen=True)
class ChangeFit:
    """How far a change of a signal tells the change of the blocks' residual.

    Attributes
    ----------
    coefficients : tuple of 5 float
        Quartic from relative L1 change of the signal to that of the residual, highest power first.
    threshold : float
        Default threshold of TeaCache for this model.
    least, greatest : float
        Changes of the signal that were fitted; outside them the quartic is a guess.
    error : float
        Root mean square of what the quartic misses.
    """

    coefficients: tuple[float, float, float, float, float]
    threshold: float
    least: float
    greatest: float
    error: float


@dataclass(frozen=True)
class MagnitudeFit:
    """How the size of the blocks' residual changes over a run.

    Attributes
    ----------
    timesteps : tuple of float
        Falling.
    log_magnitudes : tuple of float
        Natural logarithm of the residual's size there, relative to the first.
    threshold : float
        Default threshold of MagCache for this model.
    """

    timesteps: tuple[float, ...]
    log_magnitudes: tuple[float, ...]
    threshold: float

    def __post_init__(self) -> None:
        times = self.timesteps
        if len(times) < 2 or any(b >= a for a, b in itertools.pairwise(times)):
            raise InvalidArgument("timesteps", expected="two or more falling numbers", got=times)
        if len(self.log_magnitudes) != len(times):
            raise InvalidArgument(
                "log_magnitudes",
                expected=f"{len(times)} numbers as timesteps",
                got=len(self.log_magnitudes),
            )


@dataclass(frozen=True)
class CalibrationRun:
    """Where the figures of a calibration come from.

    Attributes
    ----------
    num_steps : tuple of int
        Steps of the runs.
    shift : float
        Timestep shift.
    solver : str
        Solver.
    weights : str
        Digest of the time embedding's weights, to tell another training's.
    num_clips : int
        Portraits and voices.
    num_windows : int
        BLF windows measured, over all runs.
    inputs : str
        Which clips.
    versions : tuple of str
        Of the packages that made it, as ``name version``.
    """

    num_steps: tuple[int, ...]
    shift: float
    solver: str
    weights: str
    num_clips: int
    num_windows: int
    inputs: str
    versions: tuple[str, ...]


@dataclass(frozen=True)
class StepCalibration:
    """What ``skyreels-rt calibrate`` found out about a model (``step_cache.json``).

    Attributes
    ----------
    timestep, timestep_projection, modulated_input : ChangeFit
        By signal.
    magnitude : MagnitudeFit
        For MagCache.
    run : CalibrationRun
        Provenance.
    """

    timestep: ChangeFit
    timestep_projection: ChangeFit
    modulated_input: ChangeFit
    magnitude: MagnitudeFit
    run: CalibrationRun

    def fit(self, signal: Signal) -> ChangeFit:
        """The fit of one signal."""
        found: ChangeFit = getattr(self, signal)
        return found


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run before its first step.

    Attributes
    ----------
    model : str
        Its name, for messages.
    timesteps : tuple of float
        ``1000 * sigma`` of every step.
    signals : callable
        From a :data:`TimeSignal` to the tensors of all steps, of one shape.
    calibration : StepCalibration or None
        The model's, if it has one.
    """

    model: str
    timesteps: tuple[float, ...]
    signals: Callable[[TimeSignal], Sequence[Tensor]]
    calibration: StepCalibration | None = None

    def require_calibration(self, argument: str) -> StepCalibration:
        """The model's calibration.

        Raises
        ------
        InvalidArgument
            It has none; ``argument`` names the option that asked for it.
        """
        if self.calibration is None:
            raise InvalidArgument(
                argument,
                expected=f"numbers, since {self.model} has no calibration",
                got="auto",
                hint=f"Run `skyreels-rt calibrate {self.model}`, or give numbers.",
            )
        return self.calibration


@dataclass(frozen=True)
class ChangeGate:
    """Decides the open steps of a plan from a signal that only a running step knows.

    Attributes
    ----------
    coefficients : tuple of float
        Polynomial, highest power first.
    threshold : float
        Accumulated change from which a step is computed.
    """

    coefficients: tuple[float, ...]
    threshold: float


@dataclass(frozen=True)
class StepPlan:
    """Steps of a run that run the blocks.

    Attributes
    ----------
    computed : tuple of bool
        One flag per step; the first is True. A step that is not computed adds the blocks' last
        residual.
    gate : ChangeGate or None
        Where given, steps that are not ``computed`` may still be, as each window's signal says.

    Raises
    ------
    InvalidArgument
        No step, or a first step that would reuse what was never computed.
    """

    computed: tuple[bool, ...]
    gate: ChangeGate | None = None

    def __post_init__(self) -> None:
        if not self.computed or not self.computed[0]:
            raise InvalidArgument(
                "computed", expected="steps of which the first is computed", got=self.computed
            )

    @classmethod
    def every_step(cls, num_steps: int) -> StepPlan:
        """The plan without a step cache."""
        return cls((True,) * num_steps)

    @property
    def skips(self) -> bool:
        """Whether any step may be skipped."""
        return not all(self.computed)

    def keeps_residual(self, step: int) -> bool:
        """Whether a later step may reuse what the blocks of ``step``, if computed, did."""
        # Any computed step replaces the residual: only the very next step tells.
        return step + 1 < len(self.computed) and not self.computed[step + 1]


def can_spare_steps(num_steps: int) -> bool:
    """Whether a run has steps that could be skipped; says so in the log if not."""
    if num_steps <= FEW_STEPS:
        logger.warning(
            "a step cache does nothing at %d steps or fewer: every step is computed", FEW_STEPS
        )
    return num_steps > FEW_STEPS


class StepCache(Protocol):
    """A rule that says which steps to compute: TeaCache, MagCache, StepMask."""

    def plan(self, run: RunFacts) -> StepPlan:
        """The plan of a run; the same facts give the same plan.

        Raises
        ------
        InvalidArgument
            The rule does not fit the run.
        """


@dataclass(frozen=True)
class StepMask:
    """A user's own choice of steps.

    Parameters
    ----------
    flags : sequence of bool
        For every step, whether it is computed; the first must be. As long as the run.

    Raises
    ------
    InvalidArgument
        Something other than booleans, no step, or a first step that is skipped. Another length
        than the run's is refused when a session is opened.
    """

    flags: tuple[bool, ...]

    def __post_init__(self) -> None:
        try:
            flags = tuple(self.flags)
        except TypeError:
            flags = ()
        if not flags or not all(isinstance(flag, bool) for flag in flags):
            raise InvalidArgument("flags", expected="booleans, one per step", got=self.flags)
        if not flags[0]:
            raise InvalidArgument(
                "flags",
                expected="a first step that is computed",
                got=flags,
                hint="There is nothing to reuse yet.",
            )
        object.__setattr__(self, "flags", flags)

    def plan(self, run: RunFacts) -> StepPlan:
        """The flags, once their number is the run's."""
        if len(self.flags) != len(run.timesteps):
            raise InvalidArgument(
                "flags", expected=f"{len(run.timesteps)} flags, one per step", got=len(self.flags)
            )
        return StepPlan(self.flags)


@dataclass(frozen=True)
class StepRun:
    """Consecutive windows that computed and skipped the same steps.

    Attributes
    ----------
    start, stop : int
        Latents from the first window's start to the last window's end.
    windows : int
        How many.
    computed : tuple of bool
        One flag per step.
    """

    start: int
    stop: int
    windows: int
    computed: tuple[bool, ...]

    @property
    def text(self) -> str:
        """``#`` for a computed step, ``.`` for a skipped one."""
        return "".join("#" if flag else "." for flag in self.computed)


@dataclass
class StepLog:
    """What every window of a job did, kept short: equal neighbours share an entry.

    Only :data:`MAX_LOGGED` entries are kept, so that an endless session does not grow.

    Attributes
    ----------
    runs : list of StepRun
        In timeline order.
    """

    runs: list[StepRun] = field(default_factory=list)

    def add(self, start: int, stop: int, computed: tuple[bool, ...]) -> None:
        """Add the next window of the timeline."""
        last = self.runs[-1] if self.runs else None
        if last is not None and last.computed == computed:
            self.runs[-1] = StepRun(last.start, stop, last.windows + 1, computed)
        else:
            self.runs.append(StepRun(start, stop, 1, computed))
            del self.runs[:-MAX_LOGGED]
