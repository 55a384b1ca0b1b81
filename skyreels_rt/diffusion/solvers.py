"""Solvers of the flow ODE: one step takes latents and velocity at a noise level to the next level.

A solver is a table of plain numbers made from the schedule; what changes during a run is a
:class:`SolverState` that the caller holds. Every step is a sum of tensors times numbers,
elementwise over the timeline, so slicing the timeline and stepping commute. Products and sums are
separate operations (no ``alpha=``, ``addcmul`` or ``lerp``): a fused multiply-add in one code path
of an operation and not in another would make bits depend on where a latent lies in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from skyreels_rt.config import SolverName
from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.errors import InvalidArgument

# float32 nearest to 1 - 1e-6: diffusers starts UniPC there, because log(1 - sigma) ends at sigma 1.
_UNIPC_FIRST_SIGMA = 1.0 - 17 * 2.0**-24


@dataclass(frozen=True)
class SolverState:
    """What a multistep solver remembers between steps; a one-step solver leaves it empty.

    Attributes
    ----------
    previous : Tensor or None
        Latents from which the last step started, after their correction.
    denoised : tuple of Tensor
        Predicted clean latents of the last steps, newest first.
    """

    previous: Tensor | None = None
    denoised: tuple[Tensor, ...] = ()


class Solver(Protocol):
    """What the denoise loop needs of a solver."""

    def init(self) -> SolverState:
        """State before the first step."""

    def euler_delta(self, index: int) -> float | None:
        """``sigma_next - sigma`` where step ``index`` is that times the velocity, else None."""

    def step(
        self, index: int, latents: Tensor, velocity: Tensor, state: SolverState
    ) -> tuple[Tensor, SolverState]:
        """Latents at ``sigmas[index + 1]`` and the new state.

        Parameters
        ----------
        index : int
            Step, 0 to ``num_steps - 1``; steps are taken in order.
        latents, velocity : Tensor, any one shape, float32
            Latents at ``sigmas[index]`` and the model's velocity there. Neither is written to.
        state : SolverState
            From :meth:`init` or the step before.
        """


class EulerSolver:
    """Explicit Euler: ``latents + (sigma_next - sigma) * velocity``.

    Parameters
    ----------
    schedule : FlowSchedule
        Noise levels of the run.
    """

    def __init__(self, schedule: FlowSchedule) -> None:
        sigmas = schedule.sigmas
        self._deltas = tuple(b - a for a, b in pairwise(sigmas))

    def init(self) -> SolverState:
        """Empty state."""
        return SolverState()

    def euler_delta(self, index: int) -> float | None:
        """Every step is an Euler step."""
        return self._deltas[index]

    def step(
        self, index: int, latents: Tensor, velocity: Tensor, state: SolverState
    ) -> tuple[Tensor, SolverState]:
        """See :meth:`Solver.step`."""
        return latents + velocity * self._deltas[index], state


@dataclass(frozen=True)
class _Update:
    """One linear update: factor of the starting latents, factors of clean predictions."""

    latents: float
    denoised: tuple[float, ...]

    def apply(self, latents: Tensor, denoised: Sequence[Tensor]) -> Tensor:
        """Weighted sum, in the order of the factors."""
        total = latents * self.latents
        for weight, prediction in zip(self.denoised, denoised, strict=True):
            total = total + prediction * weight
        return total


class UniPCSolver:
    """UniPC, B2(h) variant on predicted clean latents (arXiv 2302.04867).

    Same numbers as diffusers' ``UniPCMultistepScheduler`` with ``prediction_type`` and sigmas of
    flow matching and ``lower_order_final``; there the coefficients are made in fp32 at every step,
    here once in fp64. Like there, the first noise level is taken as 1 - 1e-6.

    Parameters
    ----------
    schedule : FlowSchedule
        Noise levels of the run.
    order : int
        Order of the predictor, 1 to 3. The first and last steps use a lower one.

    Raises
    ------
    InvalidArgument
        ``order`` is out of its range, or two levels of the schedule are too close to tell apart.
    """

    def __init__(self, schedule: FlowSchedule, order: int = 2) -> None:
        if order not in (1, 2, 3):
            raise InvalidArgument("order", expected="1, 2 or 3", got=order)
        sigmas = (_UNIPC_FIRST_SIGMA, *schedule.sigmas[1:])
        if any(b >= a for a, b in pairwise(sigmas)):
            raise InvalidArgument(
                "schedule",
                expected="noise levels that fall from 1 - 1e-6 to 0",
                got=f"shift={schedule.shift}",
                hint="Use a shift nearer to 1, or the Euler solver.",
            )
        num_steps = schedule.num_steps
        orders = [min(order, index + 1, num_steps - index) for index in range(num_steps)]
        self._order = order
        self._sigmas = sigmas
        self._predictors = tuple(_predictor(sigmas, i, orders[i]) for i in range(num_steps))
        # The corrector of step i revises the predictor step i - 1, at that step's order.
        self._correctors = tuple(_corrector(sigmas, i, orders[i]) for i in range(num_steps - 1))

    def init(self) -> SolverState:
        """Empty state."""
        return SolverState()

    def euler_delta(self, index: int) -> float | None:  # noqa: ARG002 - the protocol's argument
        """None: every step needs the predictions before it."""
        return None

    def step(
        self, index: int, latents: Tensor, velocity: Tensor, state: SolverState
    ) -> tuple[Tensor, SolverState]:
        """See :meth:`Solver.step`."""
        denoised = (latents - velocity * self._sigmas[index], *state.denoised)
        if state.previous is not None:
            corrector = self._correctors[index - 1]
            latents = corrector.apply(state.previous, denoised[: len(corrector.denoised)])
        predictor = self._predictors[index]
        stepped = predictor.apply(latents, denoised[: len(predictor.denoised)])
        return stepped, SolverState(previous=latents, denoised=denoised[: self._order])


def make_solver(name: SolverName, schedule: FlowSchedule) -> Solver:
    """Solver by its configuration name.

    Parameters
    ----------
    name : {"euler", "unipc"}
        Kind of solver.
    schedule : FlowSchedule
        Noise levels of the run.

    Raises
    ------
    InvalidArgument
        The name is unknown.
    """
    if name == "euler":
        return EulerSolver(schedule)
    if name == "unipc":
        return UniPCSolver(schedule)
    raise InvalidArgument("solver", expected="'euler' or 'unipc'", got=repr(name))


def _log_snr(sigma: float) -> float:
    """Half log signal-to-noise ratio, ``log((1 - sigma) / sigma)`` in the flow parametrisation."""
    return math.log1p(-sigma) - math.log(sigma)


def _predictor(sigmas: Sequence[float], index: int, order: int) -> _Update:
    """UniP update from level ``index`` to the next, over the predictions there and before."""
    if sigmas[index + 1] == 0.0:
        # Limit h -> infinity; lower_order_final makes the last order 1, so only m0 remains.
        return _Update(latents=0.0, denoised=(1.0,))
    start = _log_snr(sigmas[index])
    h = _log_snr(sigmas[index + 1]) - start
    nodes = [(_log_snr(sigmas[index - k]) - start) / h for k in range(1, order)]
    # 0.5 at order 2 is the authors' closed form for every node; the solve would differ slightly.
    factors = [0.5] if order == 2 else _moment_factors(nodes, h)
    history = [factor / node for factor, node in zip(factors, nodes, strict=True)]
    return _update(sigmas, index, h, newest=None, history=history)


def _corrector(sigmas: Sequence[float], index: int, order: int) -> _Update:
    """UniC update of the same step, over the prediction at ``index + 1`` first, then as above."""
    start = _log_snr(sigmas[index])
    h = _log_snr(sigmas[index + 1]) - start
    nodes = [(_log_snr(sigmas[index - k]) - start) / h for k in range(1, order)]
    factors = [0.5] if order == 1 else _moment_factors([*nodes, 1.0], h)
    history = [factor / node for factor, node in zip(factors[:-1], nodes, strict=True)]
    return _update(sigmas, index, h, newest=factors[-1], history=history)


def _update(
    sigmas: Sequence[float],
    index: int,
    h: float,
    *,
    newest: float | None,
    history: Sequence[float],
) -> _Update:
    """Collect ``x' = (s'/s) x - a' B (m0 + sum_k c_k (m_k - m0))`` by prediction, ``B = e^-h - 1``.

    ``newest`` is the factor c of the prediction at the target level (corrector), ``history`` those
    of the predictions before m0.
    """
    sigma, target = sigmas[index], sigmas[index + 1]
    scale = -(1.0 - target) * math.expm1(-h)
    differences = [*([] if newest is None else [newest]), *history]
    here = scale * (1.0 - math.fsum(differences))
    ahead = () if newest is None else (scale * newest,)
    behind = tuple(scale * factor for factor in history)
    return _Update(latents=target / sigma, denoised=(*ahead, here, *behind))


def _moment_factors(nodes: Sequence[float], h: float) -> list[float]:
    """Solve the order conditions ``sum_k r_k^i rho_k = (i + 1)! phi_{i+2}(-h) (-h) / B(h)``.

    Parameters
    ----------
    nodes : sequence of float
        Distinct r_k, in units of h.
    h : float
        Step in half log signal-to-noise ratio.
    """
    if not nodes:
        return []
    b_h = math.expm1(-h)
    phi, factorial, moments = b_h / -h - 1.0, 1, []
    for i in range(len(nodes)):
        moments.append(phi * factorial / b_h)
        factorial *= i + 2
        phi = phi / -h - 1.0 / factorial
    powers = torch.tensor([[r**i for r in nodes] for i in range(len(nodes))], dtype=torch.float64)
    solution: list[float] = torch.linalg.solve(
        powers, torch.tensor(moments, dtype=torch.float64)
    ).tolist()
    return solution
