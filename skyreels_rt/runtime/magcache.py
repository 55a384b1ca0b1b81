"""MagCache: skip steps while the size of the blocks' residual has hardly changed.

Source: MagCache (arXiv 2506.09045), Zehong-Ma/MagCache ``MagCache4Wan2.1/magcache_generate.py``
(``magcache_forward``, ``nearest_interp``). Upstream keeps one state per guidance pass; the measured
ratios hardly differ between passes, so here one list serves all, and the plan is a constant.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.runtime.step_cache import MagnitudeFit, RunFacts, StepPlan, can_spare_steps
from skyreels_rt.runtime.teacache import require_threshold


@dataclass(frozen=True)
class MagCache:
    """Skip steps while the estimated error of the residual's size stays under a threshold.

    Since the last computed step, ``product *= ratio_i`` and ``error += |1 - product|``; the step is
    skipped where ``error < threshold`` and at most ``max_skips`` were skipped in a row.

    Parameters
    ----------
    threshold : float or None
        Accumulated error from which a step is computed, >= 0; 0 switches the cache off. None is
        the model's default, from its calibration.
    max_skips : int
        Most steps skipped in a row (K), >= 1.
    retention : float
        Share of the run, from its start, that is computed in any case; 0 to 1. The first step
        always is.
    ratios : tuple of float, or "auto"
        Size of the residual over that of the step before, for every step (the first has no
        meaning), > 0. A tuple of another length than the run is resampled to the nearest, as
        upstream. ``"auto"`` takes the model's calibration, at the run's own timesteps.

    Raises
    ------
    InvalidArgument
        A value out of its range.
    """

    threshold: float | None = None
    max_skips: int = 4
    retention: float = 0.2
    ratios: tuple[float, ...] | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.threshold is not None:
            require_threshold(self.threshold)
        if type(self.max_skips) is not int or self.max_skips < 1:
            raise InvalidArgument("max_skips", expected="an integer >= 1", got=repr(self.max_skips))
        if isinstance(self.retention, bool) or not isinstance(self.retention, int | float):
            raise InvalidArgument("retention", expected="a number", got=repr(self.retention))
        if not 0 <= self.retention <= 1:
            raise InvalidArgument("retention", expected="0 to 1", got=self.retention)
        if self.ratios != "auto":
            object.__setattr__(self, "ratios", _checked_ratios(self.ratios))
            if self.threshold is None:
                raise InvalidArgument(
                    "threshold", expected="a number beside one's own ratios", got=None
                )

    def plan(self, run: RunFacts) -> StepPlan:
        """The plan of a run."""
        num_steps, threshold = len(run.timesteps), self.threshold
        if threshold == 0 or not can_spare_steps(num_steps):
            return StepPlan.every_step(num_steps)
        if self.ratios == "auto" or threshold is None:
            fit = run.require_calibration("ratios").magnitude
            ratios = magnitude_ratios(fit, run.timesteps)
            threshold = fit.threshold if threshold is None else threshold
        else:
            ratios = nearest_ratios(self.ratios, num_steps)
        retained = max(1, int(num_steps * self.retention))
        return StepPlan(computed_steps(ratios, threshold, self.max_skips, retained))


def computed_steps(
    ratios: Sequence[float], threshold: float, max_skips: int, retained: int
) -> tuple[bool, ...]:
    """The published rule for one guidance pass.

    Parameters
    ----------
    ratios : sequence of float
        One per step.
    threshold : float
        Accumulated error from which a step is computed.
    max_skips : int
        Most steps skipped in a row.
    retained : int
        Steps at the start that are computed in any case.
    """
    product, error, skipped = 1.0, 0.0, 0
    flags: list[bool] = []
    for step, ratio in enumerate(ratios):
        is_computed = step < retained
        if not is_computed:
            product *= ratio
            error += abs(1.0 - product)
            skipped += 1
            is_computed = not (error < threshold and skipped <= max_skips)
        if is_computed:
            product, error, skipped = 1.0, 0.0, 0
        flags.append(is_computed)
    return tuple(flags)


def nearest_ratios(ratios: Sequence[float], num_steps: int) -> tuple[float, ...]:
    """Ratios resampled to another number of steps, as upstream's ``nearest_interp`` does."""
    if num_steps == 1:
        return (ratios[-1],)
    places = np.round(np.arange(num_steps) * ((len(ratios) - 1) / (num_steps - 1)))
    return tuple(ratios[int(place)] for place in places)


def magnitude_ratios(fit: MagnitudeFit, timesteps: Sequence[float]) -> tuple[float, ...]:
    """Ratios of a run, from the size measured as a function of the timestep.

    A step of another run spans several measured steps or a part of one; the nearest measured ratio,
    which upstream takes, would be that of a step of another length.

    Returns
    -------
    tuple of float
        One per timestep, the first 1.0.
    """
    # np.interp wants rising places; outside them it keeps the last value.
    sizes = np.interp(timesteps, fit.timesteps[::-1], fit.log_magnitudes[::-1]).tolist()
    steps = itertools.pairwise(sizes)
    return (1.0, *(math.exp(here - before) for before, here in steps))


def _checked_ratios(ratios: Sequence[float] | str) -> tuple[float, ...]:
    expected = "'auto' or finite numbers > 0, one per step"
    if isinstance(ratios, str):
        raise InvalidArgument("ratios", expected=expected, got=repr(ratios))
    try:
        found = tuple(float(value) for value in ratios)
    except (TypeError, ValueError):
        found = ()
    if not found or not all(math.isfinite(value) and value > 0 for value in found):
        raise InvalidArgument("ratios", expected=expected, got=ratios)
    return found
