"""TeaCache: skip a step's blocks while the time embedding has changed little.

Source: TeaCache (arXiv 2411.19108), ``TeaCache4Wan2.1/teacache_generate.py``
(``teacache_forward``), whose quartics are :data:`PUBLISHED_COEFFICIENTS`. Upstream decides anew at
every call, with a host read, a call counter that tells the guidance passes apart, and its state on
the class; here the rule runs once, over the signals of all steps.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.runtime.step_cache import ChangeGate, RunFacts, Signal, StepPlan, can_spare_steps

logger = logging.getLogger(__name__)

NUM_COEFFICIENTS = 5

PUBLISHED_FORCED: dict[Signal, tuple[int, int]] = {
    "timestep": (1, 1), "timestep_projection": (5, 0), "modulated_input": (1, 1),
}  # fmt: skip
"""Steps that are computed in any case, at the start and at the end, as published (for
``modulated_input`` as for ``timestep``)."""

PUBLISHED_COEFFICIENTS: dict[tuple[str, Signal], tuple[float, ...]] = {
    ("t2v-1.3b", "timestep_projection"): (
        -5.21862437e4, 9.23041404e3, -5.28275948e2, 1.36987616e1, -4.99875664e-2,
    ),
    ("t2v-14b", "timestep_projection"): (
        -3.03318725e5, 4.90537029e4, -2.65530556e3, 5.87365115e1, -3.15583525e-1,
    ),
    ("i2v-14b-480p", "timestep_projection"): (
        2.57151496e5, -3.54229917e4, 1.40286849e3, -1.35890334e1, 1.32517977e-1,
    ),
    ("i2v-14b-720p", "timestep_projection"): (
        8.10705460e3, 2.13393892e3, -3.72934672e2, 1.66203073e1, -4.17769401e-2,
    ),
    ("t2v-1.3b", "timestep"): (
        2.39676752e3, -1.31110545e3, 2.01331979e2, -8.29855975, 1.37887774e-1,
    ),
    ("t2v-14b", "timestep"): (
        -5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404,
    ),
    ("i2v-14b-480p", "timestep"): (
        -3.02331670e2, 2.23948934e2, -5.25463970e1, 5.87348440, -2.01973289e-1,
    ),
    ("i2v-14b-720p", "timestep"): (
        -114.36346466, 65.26524496, -18.82220707, 4.91518089, -0.23412683,
    ),
}  # fmt: skip
"""Quartics of Wan2.1 checkpoints by (checkpoint, signal), highest power first, from TeaCache."""


@dataclass(frozen=True)
class TeaCache:
    """Skip steps whose estimated change stays under a threshold.

    ``acc += P(mean|m_i - m_(i-1)| / mean|m_(i-1)|)``; the step is computed, and ``acc`` set to 0,
    where it is forced or ``acc >= threshold``.

    Parameters
    ----------
    threshold : float or None
        Accumulated relative change from which a step is computed, >= 0. 0 switches the cache off,
        though the published rule would still skip where a quartic is negative. None is the model's
        default, from its calibration.
    coefficients : tuple of 5 float, or "auto"
        Of P, highest power first; ``"auto"`` is the model's calibration.
    signal : {"timestep", "timestep_projection", "modulated_input"}
        m: the time embedding, its six-way projection ("ret" upstream), or the first block's
        modulated input. The last depends on the picture, so each window decides for itself while
        it runs, for all its guidance passes at once, and the host reads one flag per window and
        step.
    first_steps, last_steps : int or None
        Steps computed in any case; None is 1 and 1, for ``"timestep_projection"`` 5 and 0.

    Raises
    ------
    InvalidArgument
        A value out of its range.
    """

    threshold: float | None = None
    coefficients: tuple[float, ...] | Literal["auto"] = "auto"
    signal: Signal = "timestep"
    first_steps: int | None = None
    last_steps: int | None = None

    def __post_init__(self) -> None:
        if self.signal not in get_args(Signal):
            raise InvalidArgument(
                "signal", expected=f"one of {get_args(Signal)}", got=repr(self.signal)
            )
        if self.threshold is not None:
            require_threshold(self.threshold)
        if self.coefficients != "auto":
            object.__setattr__(self, "coefficients", _checked_coefficients(self.coefficients))
            if self.threshold is None:
                raise InvalidArgument(
                    "threshold", expected="a number beside one's own coefficients", got=None
                )
        for name, least in (("first_steps", 1), ("last_steps", 0)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise InvalidArgument(name, expected=f"an integer >= {least}", got=repr(value))

    @property
    def forced_steps(self) -> tuple[int, int]:
        """Steps computed in any case, at the start and at the end."""
        first, last = PUBLISHED_FORCED[self.signal]
        return (
            first if self.first_steps is None else self.first_steps,
            last if self.last_steps is None else self.last_steps,
        )

    def plan(self, run: RunFacts) -> StepPlan:
        """The plan of a run; for ``"modulated_input"`` forced steps and a gate for the others."""
        num_steps = len(run.timesteps)
        if self.threshold == 0 or not can_spare_steps(num_steps):
            return StepPlan.every_step(num_steps)
        coefficients, threshold, fit = self.coefficients, self.threshold, None
        if coefficients == "auto" or threshold is None:
            fit = run.require_calibration("coefficients").fit(self.signal)
            coefficients = fit.coefficients
            threshold = fit.threshold if threshold is None else threshold
        first, last = self.forced_steps
        if self.signal == "modulated_input":
            forced = tuple(_is_forced(step, num_steps, first, last) for step in range(num_steps))
            return StepPlan(forced, ChangeGate(coefficients, threshold))
        changes = relative_changes(run.signals(self.signal))
        if (
            fit is not None
            and changes
            and not fit.least <= min(changes) <= max(changes) <= fit.greatest
        ):
            logger.warning(
                "%s was calibrated for changes of %.3g to %.3g per step, this run has %.3g to %.3g",
                run.model, fit.least, fit.greatest, min(changes), max(changes),
            )  # fmt: skip
        return StepPlan(
            computed_steps(changes, coefficients, threshold, first_steps=first, last_steps=last)
        )


def relative_changes(signals: Sequence[Tensor]) -> tuple[float, ...]:
    """``mean|m_i - m_(i-1)| / mean|m_(i-1)|`` of every step after the first; one host read.

    Parameters
    ----------
    signals : sequence of Tensor, any one shape, floating
        Differences and means are taken in their type and on their device, as upstream does, so
        that a tie with the threshold falls alike.

    Returns
    -------
    tuple of float
        One fewer than the signals; NaN or infinity where the signal before is zero.
    """
    changes = [
        (here - before).abs().mean() / before.abs().mean()
        for before, here in itertools.pairwise(signals)
    ]
    return tuple(torch.stack(changes).tolist()) if changes else ()


def computed_steps(
    changes: Sequence[float],
    coefficients: Sequence[float],
    threshold: float,
    *,
    first_steps: int,
    last_steps: int,
) -> tuple[bool, ...]:
    """The published rule over all steps.

    Parameters
    ----------
    changes : sequence of float
        Of :func:`relative_changes`, for the steps after the first.
    coefficients : sequence of float
        Of the polynomial, highest power first.
    threshold : float
        Accumulated change from which a step is computed; 0 computes every step.
    first_steps, last_steps : int
        Steps computed in any case.

    Returns
    -------
    tuple of bool
        One more than the changes.
    """
    num_steps, accumulated = len(changes) + 1, 0.0
    flags: list[bool] = []
    for step in range(num_steps):
        is_computed = _is_forced(step, num_steps, first_steps, last_steps) or threshold == 0
        if not is_computed:
            accumulated += polynomial(coefficients, changes[step - 1])
            is_computed = not accumulated < threshold  # NaN computes
        if is_computed:
            accumulated = 0.0
        flags.append(is_computed)
    return tuple(flags)


def polynomial(coefficients: Sequence[float], x: float) -> float:
    """Value at ``x`` by Horner's rule, in the order of ``numpy.poly1d``, so to the same bits."""
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


def require_threshold(threshold: float) -> None:
    """Raise unless ``threshold`` is a finite number >= 0.

    Raises
    ------
    InvalidArgument
        It is not.
    """
    is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if not is_number or not math.isfinite(threshold) or threshold < 0:
        raise InvalidArgument("threshold", expected="a finite number >= 0", got=repr(threshold))


def _is_forced(step: int, num_steps: int, first_steps: int, last_steps: int) -> bool:
    return step < first_steps or step >= num_steps - last_steps


def _checked_coefficients(coefficients: Sequence[float] | str) -> tuple[float, ...]:
    expected = f"'auto' or {NUM_COEFFICIENTS} finite numbers, highest power first"
    if isinstance(coefficients, str):
        raise InvalidArgument("coefficients", expected=expected, got=repr(coefficients))
    try:
        found = tuple(float(value) for value in coefficients)
    except (TypeError, ValueError):
        found = ()
    if len(found) != NUM_COEFFICIENTS or not all(math.isfinite(value) for value in found):
        raise InvalidArgument("coefficients", expected=expected, got=coefficients)
    return found
