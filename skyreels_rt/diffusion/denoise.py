"""The one denoise loop: a group of windows from noise to clean latents.

Per step: every window predicts from the same latents; guidance, fusion of the windows
(:mod:`skyreels_rt.diffusion.blf`) and the solver's step on the fused velocity follow, for Euler
steps in one pass (:func:`skyreels_rt.kernels.blf_step`). Latents that were emitted before are not
solved for: at each step they are the clean latents brought to the current noise level with the
timeline's own noise, and they are never returned.

Nothing in a step waits for the device. What the host must know of it, whether the latents are
finite, comes a step later on a GPU (:mod:`skyreels_rt.runtime.step_numbers`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Required, TypedDict, Unpack

import torch
from torch import Tensor

from skyreels_rt.diffusion.blf import Group, Window
from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.diffusion.solvers import Solver, SolverState
from skyreels_rt.diffusion.window_share import WindowShare
from skyreels_rt.distributed.mesh import Mesh
from skyreels_rt.errors import Cancelled, InvalidArgument, NonFinite
from skyreels_rt.kernels import Impl, blf_step, blf_velocity
from skyreels_rt.runtime.step_numbers import step_numbers

_NO_LATENT = -(2**62)

Predict = Callable[[Window, Tensor, int, float], Tensor]
"""``predict(window, latents, step, timestep) -> velocities``.

``latents`` is the window's part of the group, shape (C, window length, h, w), float32, contiguous,
not to be written to. The velocities have shape (P, C, window length, h, w), one per guidance pass,
in any floating dtype.
"""


class DenoiseOptions(TypedDict, total=False):
    """How a group is denoised.

    Attributes
    ----------
    guidance : sequence of P float
        Factor of each guidance pass (:func:`skyreels_rt.diffusion.guidance.guidance_passes`).
    weights : Tensor, shape (windows, window length), float32
        Fusion weights of the group (:func:`skyreels_rt.diffusion.blf.window_weights`).
    noise : Tensor, shape (C, group length, h, w), float32
        Timeline noise of ``[group.start, group.stop)``; its device is where the loop runs.
    pinned : Tensor, shape (C, num_pinned, h, w), float32, or None
        Clean latents of ``[group.start, group.emitted)``; None where there are none.
    impl : Impl
        Implementation of the fused step, usually ``plan.blf_step``.
    order : sequence of int, optional
        Order in which the windows are computed, a permutation of their indices. It has no effect
        on the result.
    is_cancelled : callable, optional
        Asked before each window of each step; with a mesh once a step, and then every rank must
        give the same answer (:meth:`skyreels_rt.distributed.mesh.Mesh.agreed`).
    mesh : Mesh, optional
        Ranks to spread the windows over. Every rank makes the same calls and gets the same latents,
        those of a single rank.
    """

    guidance: Required[Sequence[float]]
    weights: Required[Tensor]
    noise: Required[Tensor]
    pinned: Tensor | None
    impl: Impl
    order: Sequence[int] | None
    is_cancelled: Callable[[], bool] | None
    mesh: Mesh | None


class Denoising:
    """A group on its way from noise to clean latents, one step a call.

    Parameters
    ----------
    group : Group
        Windows, pinned and new latents.
    predict : callable
        The model with its conditions, see :data:`Predict`.
    schedule : FlowSchedule
        Noise levels.
    solver : Solver
        Made from the same schedule.
    **options : DenoiseOptions
        How.

    Raises
    ------
    InvalidArgument
        ``noise``, ``pinned`` or ``order`` do not fit the group.
    """

    def __init__(
        self,
        group: Group,
        predict: Predict,
        schedule: FlowSchedule,
        solver: Solver,
        **options: Unpack[DenoiseOptions],
    ) -> None:
        noise = options["noise"]
        clean = _checked_pinned(group, noise, options.get("pinned"))
        sequence = _checked_order(group, options.get("order"))
        self._group, self._predict = group, predict
        self._schedule, self._solver = schedule, solver
        self._guidance = options["guidance"]
        self._impl = options.get("impl", Impl.AUTO)
        self._is_cancelled, self._mesh = options.get("is_cancelled"), options.get("mesh")
        mesh = self._mesh
        self._share = (
            WindowShare(group) if mesh is None else WindowShare(group, mesh.axis("window"))
        )
        self._sequence = [index for index in sequence if index in self._share.own]
        seen = self._share.seen
        self._weights = options["weights"][seen.start : seen.stop].to(noise.device)
        part = self._share.part
        self._starts = [window.start - part.start for window in part.windows]
        self._noise, self._clean = self._share.of_part(noise), self._share.of_part(clean)
        self._latents, self._state = self._noise.clone(), solver.init()
        self._num_launched = 0
        self._watch = _Watch(noise.device, schedule.num_steps, mesh)

    @property
    def num_steps(self) -> int:
        """Steps to the clean latents."""
        return self._schedule.num_steps

    @property
    def num_done(self) -> int:
        """Steps known to be done; on a GPU the next one is under way by then."""
        return self._watch.num_done

    @torch.no_grad()
    def step(self) -> None:
        """Do the next step.

        Raises
        ------
        Cancelled
            ``is_cancelled`` returned True.
        NonFinite
            The step, or on a GPU the one before, gave NaN or infinity on any rank.
        PeerFailed
            Another rank left, or did not answer in time.
        InvalidArgument
            Velocities do not fit their window.

        After any of them the group must be started again.
        """
        step, part, num_pinned = self._num_launched, self._share.part, self._share.part.num_pinned
        sigma, timestep = self._schedule.sigmas[step], self._schedule.timesteps[step]
        latents = self._latents
        latents[:, :num_pinned] = self._clean * (1.0 - sigma) + self._noise[:, :num_pinned] * sigma
        velocities: dict[int, Tensor] = {}
        if self._mesh is not None:
            self._stop_if_cancelled()
        for index in self._sequence:
            if self._mesh is None:
                self._stop_if_cancelled()
            window = self._group.windows[index]
            velocities[index] = self._predict(
                window, _latents_of(window, latents, part), step, timestep
            )
        fusion = (self._share.exchange(velocities), self._starts, self._weights, self._guidance)
        if part.windows:  # else an idle rank: there are fewer windows than ranks
            self._latents, self._state = _stepped(
                latents, fusion, step, self._solver, self._state, num_pinned, self._impl
            )
        self._num_launched += 1
        self._watch.launched(step, self._latents[:, num_pinned:], part.emitted)
        if self.is_done:
            self._watch.finish()

    @property
    def is_done(self) -> bool:
        """Whether all steps are done."""
        return self._num_launched == self.num_steps

    @torch.no_grad()
    def latents(self) -> Tensor:
        """At the end: clean latents (C, num_new, h, w), float32, of the group's new latents.

        Raises
        ------
        PeerFailed
            Another rank left, or did not answer in time.
        """
        return self._share.gather(self._latents)

    def _stop_if_cancelled(self) -> None:
        if self._is_cancelled is not None and self._is_cancelled():
            raise Cancelled(
                f"Cancelled at step {self._num_launched + 1} of {self.num_steps}.", stage="denoise"
            )


def denoise_group(
    group: Group,
    predict: Predict,
    schedule: FlowSchedule,
    solver: Solver,
    *,
    on_step: Callable[[int, int], None] | None = None,
    **options: Unpack[DenoiseOptions],
) -> Tensor:
    """Denoise the new latents of ``group``, all steps at once.

    Parameters
    ----------
    group, predict, schedule, solver, **options
        As in :class:`Denoising`.
    on_step : callable, optional
        Called as ``on_step(done, num_steps)`` once a step is done; on a GPU the next one is under
        way by then.

    Returns
    -------
    Tensor, shape (C, num_new, h, w), float32
        Clean latents of ``[group.emitted, group.stop)``.

    Raises
    ------
    Cancelled, NonFinite, PeerFailed, InvalidArgument
        As :class:`Denoising` and its steps; nothing of the group is delivered.
    """
    denoising = Denoising(group, predict, schedule, solver, **options)
    while not denoising.is_done:
        told = denoising.num_done
        try:
            denoising.step()
        finally:  # a step that fails may be the first to tell of those before it
            if on_step is not None:
                for done in range(told, denoising.num_done):
                    on_step(done + 1, denoising.num_steps)
    return denoising.latents()


def _stepped(
    latents: Tensor,
    fusion: tuple[list[Tensor], list[int], Tensor, Sequence[float]],
    step: int,
    solver: Solver,
    state: SolverState,
    num_pinned: int,
    impl: Impl,
) -> tuple[Tensor, SolverState]:
    """Latents behind a step on the fused velocity, and the solver's memory."""
    delta = solver.euler_delta(step)
    if delta is not None:
        return blf_step(latents, *fusion, delta, num_pinned=num_pinned, impl=impl), state
    velocity = blf_velocity(*fusion, length=latents.shape[1], impl=impl)
    new, state = solver.step(step, latents[:, num_pinned:], velocity[:, num_pinned:], state)
    # A new tensor: the state may hold a view of the old one.
    return torch.cat([latents[:, :num_pinned], new], dim=1), state


def _latents_of(window: Window, latents: Tensor, part: Group) -> Tensor:
    """One window's latents, contiguous for all alike: kernels may choose their path by strides."""
    return latents[:, window.start - part.start : window.stop - part.start].contiguous()


def _checked_pinned(group: Group, noise: Tensor, pinned: Tensor | None) -> Tensor:
    """Clean pinned latents, beside the noise, once both have the group's shape."""
    if noise.ndim != 4 or noise.shape[1] != group.length:
        raise InvalidArgument(
            "noise", expected=f"shape (C, {group.length}, h, w)", got=tuple(noise.shape)
        )
    channels, _, height, width = noise.shape
    shape = (channels, group.num_pinned, height, width)
    if pinned is None:
        pinned = noise.new_empty((channels, 0, height, width))
    if pinned.shape != shape:
        raise InvalidArgument("pinned", expected=f"shape {shape}", got=tuple(pinned.shape))
    return pinned.to(noise)


def _checked_order(group: Group, order: Sequence[int] | None) -> Sequence[int]:
    """``order``, or timeline order, once it names every window once."""
    indices = range(len(group.windows))
    if order is None:
        return indices
    if sorted(order) != list(indices):
        raise InvalidArgument(
            "order", expected=f"a permutation of 0 .. {len(group.windows) - 1}", got=list(order)
        )
    return order


class _Watch:
    """Follows the steps of a group: which are done, and are their latents finite."""

    def __init__(self, device: torch.device, num_steps: int, mesh: Mesh | None) -> None:
        self._numbers = step_numbers(device, num_steps)
        self._num_steps = num_steps
        self._mesh = mesh
        self.num_done = 0

    def launched(self, step: int, latents: Tensor, first: int) -> None:
        """Step ``step`` gives ``latents``, of which the first is latent ``first``."""
        self._numbers.send(step, _first_bad(latents, first))
        self._follow(step + 1 - self._numbers.lag)

    def finish(self) -> None:
        """Wait for the last step."""
        self._follow(self._num_steps)

    def _follow(self, stop: int) -> None:
        for step in range(self.num_done, stop):
            self._require_finite(step)
            self.num_done = step + 1

    def _require_finite(self, step: int) -> None:
        """Raise if a new latent of any rank is bad, naming the step and the first such."""
        bad, mesh = self._numbers.take(step), self._mesh
        if mesh is not None:  # all stop together; the first latent is the largest negative number
            worst = mesh.largest(_NO_LATENT if bad < 0 else -bad)
            bad = -1 if worst == _NO_LATENT else -worst
        if bad >= 0:
            where = f"Step {step + 1} of {self._num_steps}"
            raise NonFinite(
                f"{where} gave NaN or infinity, first at latent {bad}.",
                stage="denoise",
                hint="Check the inputs, or compute in a wider dtype.",
            )


def _first_bad(latents: Tensor, first: int) -> Tensor:
    """Index of the first latent with NaN or infinity, counted from ``first``; -1 if all are finite.

    A number on the device: the host reads it when it is there.
    """
    if latents.shape[1] == 0:
        return torch.full((), -1, dtype=torch.int64, device=latents.device)
    bad_F = ~torch.isfinite(latents).all(dim=3).all(dim=2).all(dim=0)
    return (bad_F.to(torch.int64).argmax() + first + 1) * bad_F.any() - 1
