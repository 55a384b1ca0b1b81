"""The one denoise loop: a group of windows from noise to clean latents.

Per step: every window predicts from the same latents, the velocities are fused
(:mod:`skyreels_rt.diffusion.blf`), the solver takes one step on the fused velocity. Latents that
were emitted before are not solved for: at each step they are the clean latents brought to the
current noise level with the timeline's own noise, and they are never returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from skyreels_rt.config import Ramp
from skyreels_rt.diffusion.blf import Group, Window, fuse, window_weights
from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.diffusion.solvers import Solver
from skyreels_rt.errors import Cancelled, InvalidArgument, NonFinite

Predict = Callable[[Window, Tensor, int, float], Tensor]
"""``predict(window, latents, step, timestep) -> velocity``.

``latents`` is the window's part of the group, shape (C, window length, h, w), float32, contiguous,
not to be written to. The velocity has the same shape, in any floating dtype.
"""


def denoise_group(
    group: Group,
    predict: Predict,
    schedule: FlowSchedule,
    solver: Solver,
    *,
    noise: Tensor,
    pinned: Tensor | None = None,
    overlap: int,
    ramp: Ramp = "linear",
    order: Sequence[int] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> Tensor:
    """Denoise the new latents of ``group``.

    Parameters
    ----------
    group : Group
        Windows, pinned and new latents.
    predict : callable
        The model with its conditions and guidance, see :data:`Predict`.
    schedule : FlowSchedule
        Noise levels.
    solver : Solver
        Made from the same schedule.
    noise : Tensor, shape (C, group length, h, w), float32
        Timeline noise of ``[group.start, group.stop)``; its device is where the loop runs.
    pinned : Tensor, shape (C, num_pinned, h, w), float32, or None
        Clean latents of ``[group.start, group.emitted)``; None where there are none.
    overlap : int
        Length of the fusion ramps in latents.
    ramp : {"linear", "uniform"}
        Kind of fusion weights.
    order : sequence of int, optional
        Order in which the windows are computed, a permutation of their indices. It has no effect
        on the result.
    on_step : callable, optional
        Called as ``on_step(done, num_steps)`` after each step.
    is_cancelled : callable, optional
        Asked before each window of each step.

    Returns
    -------
    Tensor, shape (C, num_new, h, w), float32
        Clean latents of ``[group.emitted, group.stop)``.

    Raises
    ------
    Cancelled
        ``is_cancelled`` returned True; nothing of the group is delivered.
    NonFinite
        A step gave NaN or infinity; nothing of the group is delivered.
    InvalidArgument
        ``noise``, ``pinned`` or ``order`` do not fit the group, or a velocity not its window.
    """
    clean = _checked_pinned(group, noise, pinned)
    sequence = _checked_order(group, order)
    weights = [weight.to(noise.device) for weight in window_weights(group, overlap, ramp)]
    pinned_noise, new = noise[:, : group.num_pinned], noise[:, group.num_pinned :]
    state = solver.init()
    with torch.no_grad():
        for step, timestep in enumerate(schedule.timesteps):
            sigma = schedule.sigmas[step]
            renoised = clean * (1.0 - sigma) + pinned_noise * sigma
            latents = torch.cat([renoised, new], dim=1)
            velocities: dict[Window, Tensor] = {}
            for index in sequence:
                if is_cancelled is not None and is_cancelled():
                    raise Cancelled(
                        f"Cancelled at step {step + 1} of {schedule.num_steps}.", stage="denoise"
                    )
                window = group.windows[index]
                part = latents[:, window.start - group.start : window.stop - group.start]
                # Contiguous for every window alike: kernels may choose their path by strides.
                velocities[window] = predict(window, part.contiguous(), step, timestep)
            velocity = fuse(velocities, group, weights)[:, group.num_pinned :]
            new, state = solver.step(step, new, velocity, state)
            # One host read a step: it also keeps cancellation and progress honest on a GPU, where
            # the host would otherwise queue every step at once.
            _check_finite(new, group, step, schedule.num_steps)
            if on_step is not None:
                on_step(step + 1, schedule.num_steps)
    return new


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


def _check_finite(latents: Tensor, group: Group, step: int, num_steps: int) -> None:
    """Raise if a new latent is NaN or infinite, naming the step and the first such latent."""
    finite_CFHW = torch.isfinite(latents)
    if bool(finite_CFHW.all()):
        return
    finite_F = finite_CFHW.all(dim=3).all(dim=2).all(dim=0)
    first = int((~finite_F).to(torch.int64).argmax())
    raise NonFinite(
        f"Step {step + 1} of {num_steps} gave NaN or infinity, first at latent "
        f"{group.emitted + first}.",
        stage="denoise",
        hint="Check the inputs, or compute in a wider dtype.",
    )
