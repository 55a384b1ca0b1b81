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


def denoise_group(  # noqa: PLR0913 - everything that a step takes comes in here
    group: Group,
    predict: Predict,
    schedule: FlowSchedule,
    solver: Solver,
    *,
    guidance: Sequence[float],
    weights: Tensor,
    noise: Tensor,
    pinned: Tensor | None = None,
    impl: Impl = Impl.AUTO,
    order: Sequence[int] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
    mesh: Mesh | None = None,
) -> Tensor:
    """Denoise the new latents of ``group``.

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
    on_step : callable, optional
        Called as ``on_step(done, num_steps)`` once a step is done; on a GPU the next one is under
        way by then.
    is_cancelled : callable, optional
        Asked before each window of each step; with a mesh once a step, and then every rank must
        give the same answer (:meth:`skyreels_rt.distributed.mesh.Mesh.agreed`).
    mesh : Mesh, optional
        Ranks to spread the windows over. Every rank calls this with the same arguments and gets the
        same latents, those of a single rank.

    Returns
    -------
    Tensor, shape (C, num_new, h, w), float32
        Clean latents of ``[group.emitted, group.stop)``.

    Raises
    ------
    Cancelled
        ``is_cancelled`` returned True; nothing of the group is delivered.
    NonFinite
        A step gave NaN or infinity on any rank; nothing of the group is delivered.
    PeerFailed
        Another rank left, or did not answer in time.
    InvalidArgument
        ``noise``, ``pinned`` or ``order`` do not fit the group, or velocities not their window.
    """
    clean = _checked_pinned(group, noise, pinned)
    sequence = _checked_order(group, order)
    share = WindowShare(group) if mesh is None else WindowShare(group, mesh.axis("window"))
    part = share.part
    sequence = [index for index in sequence if index in share.own]
    weights = weights[share.seen.start : share.seen.stop].to(noise.device)
    starts = [window.start - part.start for window in part.windows]
    num_pinned, noise, clean = part.num_pinned, share.of_part(noise), share.of_part(clean)
    latents, state = noise.clone(), solver.init()
    watch = _Watch(noise.device, schedule.num_steps, on_step, mesh)
    with torch.no_grad():
        for step, timestep in enumerate(schedule.timesteps):
            sigma = schedule.sigmas[step]
            latents[:, :num_pinned] = clean * (1.0 - sigma) + noise[:, :num_pinned] * sigma
            velocities: dict[int, Tensor] = {}
            if mesh is not None:
                _stop_if(is_cancelled, step, schedule)
            for index in sequence:
                if mesh is None:
                    _stop_if(is_cancelled, step, schedule)
                window = group.windows[index]
                velocities[index] = predict(
                    window, _latents_of(window, latents, part), step, timestep
                )
            fusion = (share.exchange(velocities), starts, weights, guidance)
            if part.windows:  # else an idle rank: there are fewer windows than ranks
                latents, state = _stepped(latents, fusion, step, solver, state, num_pinned, impl)
            watch.launched(step, latents[:, num_pinned:], part.emitted)
        watch.finish()
        return share.gather(latents)


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


def _stop_if(is_cancelled: Callable[[], bool] | None, step: int, schedule: FlowSchedule) -> None:
    if is_cancelled is not None and is_cancelled():
        raise Cancelled(f"Cancelled at step {step + 1} of {schedule.num_steps}.", stage="denoise")


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
    """Follows the steps of a run: are their latents finite, and who is told that they are done."""

    def __init__(
        self,
        device: torch.device,
        num_steps: int,
        on_step: Callable[[int, int], None] | None,
        mesh: Mesh | None,
    ) -> None:
        self._numbers = step_numbers(device, num_steps)
        self._num_steps = num_steps
        self._on_step = on_step
        self._mesh = mesh
        self._done = 0

    def launched(self, step: int, latents: Tensor, first: int) -> None:
        """Step ``step`` gives ``latents``, of which the first is latent ``first``."""
        self._numbers.send(step, _first_bad(latents, first))
        self._follow(step + 1 - self._numbers.lag)

    def finish(self) -> None:
        """Wait for the last step."""
        self._follow(self._num_steps)

    def _follow(self, stop: int) -> None:
        for step in range(self._done, stop):
            self._require_finite(step)
            self._done = step + 1
            if self._on_step is not None:
                self._on_step(self._done, self._num_steps)

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
