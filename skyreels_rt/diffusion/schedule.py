"""The flow-matching noise schedule: which noise levels a run visits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from skyreels_rt.config import Spacing
from skyreels_rt.errors import InvalidArgument

LAST_LEVEL = 1e-3
"""Least level before the shift with the spacing ``"to_timestep_1"``."""


@dataclass(frozen=True)
class FlowSchedule:
    """Noise levels of a flow-matching run, shifted towards noise.

    ``latents = (1 - sigma) * clean + sigma * noise``. Evenly spaced levels s from 1 to 0 become
    ``shift * s / (1 + (shift - 1) * s)`` (the resolution-dependent shift of Stable Diffusion 3,
    arXiv 2403.03206; Wan's default is 5.0).

    Parameters
    ----------
    num_steps : int
        Denoising steps, >= 1.
    shift : float
        1.0 leaves the levels even; more spends more steps at high noise. Positive and finite.
    spacing : {"even", "to_timestep_1"}
        Levels before the shift: even from 1 to 0; or, as MultiTalk and SkyReels-V3 have it, even
        from 1 to 0.001 in ``num_steps`` levels, followed by 0.

    Raises
    ------
    InvalidArgument
        ``num_steps`` or ``shift`` is out of its range.
    """

    num_steps: int
    shift: float = 1.0
    spacing: Spacing = "even"

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise InvalidArgument("num_steps", expected="an integer >= 1", got=self.num_steps)
        if not (math.isfinite(self.shift) and self.shift > 0):
            raise InvalidArgument("shift", expected="a positive finite number", got=self.shift)

    @cached_property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels in [0, 1], ``num_steps + 1`` of them, from exactly 1.0 to exactly 0.0."""
        even = [1.0 - step / self.num_steps for step in range(1, self.num_steps)]
        if self.spacing == "to_timestep_1":
            last = self.num_steps - 1
            even = [1.0 - step / last * (1.0 - LAST_LEVEL) for step in range(1, self.num_steps)]
        inner = [self.shift * s / (1.0 + (self.shift - 1.0) * s) for s in even]
        return (1.0, *inner, 0.0)

    @cached_property
    def timesteps(self) -> tuple[float, ...]:
        """What the model embeds at each step: ``1000 * sigma``, ``num_steps`` numbers."""
        return tuple(1000.0 * sigma for sigma in self.sigmas[:-1])
