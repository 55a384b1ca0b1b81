"""Solvers: accuracy on an ODE with a known solution, and equality with diffusers."""

import math

import numpy as np
import pytest
import torch

from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.diffusion.solvers import EulerSolver, UniPCSolver, make_solver
from skyreels_rt.errors import InvalidArgument

SHAPE = (3, 4, 5, 6)


def draw(seed, dtype=torch.float32):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def velocity_of(latents, sigma):
    """A nonlinear velocity field that depends on the noise level."""
    return torch.sin(2 * latents) + (sigma - 0.4) * latents


def run(solver, schedule, latents, field=velocity_of):
    state = solver.init()
    for index in range(schedule.num_steps):
        velocity = field(latents, schedule.sigmas[index])
        latents, state = solver.step(index, latents, velocity, state)
    return latents


def gaussian_error(solver_type, num_steps, **options):
    """Largest error on data N(0, s^2), where the exact flow only scales the noise by s."""
    s = 0.5
    schedule = FlowSchedule(num_steps, 1.0)
    noise = draw(0, torch.float64)

    def field(latents, sigma):
        variance = (1 - sigma) ** 2 * s**2 + sigma**2
        return latents * (sigma - (1 - sigma) * s**2) / variance

    result = run(solver_type(schedule, **options), schedule, noise, field)
    return float((result - s * noise).abs().max())


def test_euler_converges_with_order_one():
    ratio = gaussian_error(EulerSolver, 32) / gaussian_error(EulerSolver, 64)
    assert 1.7 < ratio < 2.4


def test_unipc_beats_euler_and_converges_faster():
    assert gaussian_error(UniPCSolver, 16) < gaussian_error(EulerSolver, 16) / 5
    ratio = gaussian_error(UniPCSolver, 32) / gaussian_error(UniPCSolver, 64)
    assert ratio > 3.4


@pytest.mark.parametrize("name", ["euler", "unipc"])
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_constant_denoised_is_reached_exactly(name, num_steps):
    # velocity = (latents - clean) / sigma points straight at the clean latents.
    schedule = FlowSchedule(num_steps, 3.0)
    clean = draw(1, torch.float64)
    result = run(
        make_solver(name, schedule), schedule, draw(2, torch.float64),
        lambda latents, sigma: (latents - clean) / sigma,
    )  # fmt: skip
    assert torch.allclose(result, clean, atol=1e-5)


@pytest.mark.parametrize("name", ["euler", "unipc"])
def test_steps_are_elementwise_over_the_timeline(name):
    schedule = FlowSchedule(4, 5.0)
    noise = draw(3)
    whole = run(make_solver(name, schedule), schedule, noise)
    sliced = run(make_solver(name, schedule), schedule, noise[:, 1:3])
    assert torch.equal(whole[:, 1:3], sliced)


@pytest.mark.parametrize("name", ["euler", "unipc"])
def test_inputs_are_not_written_to_and_state_belongs_to_the_caller(name):
    schedule = FlowSchedule(3, 5.0)
    solver = make_solver(name, schedule)
    latents, velocity = draw(4), draw(5)
    kept = latents.clone(), velocity.clone()
    stepped, state = solver.step(0, latents, velocity, solver.init())
    assert torch.equal(latents, kept[0])
    assert torch.equal(velocity, kept[1])
    # Two runs that share the solver do not disturb each other.
    once, _ = solver.step(1, stepped, velocity, state)
    run(solver, schedule, draw(6))
    again, _ = solver.step(1, stepped, velocity, state)
    assert torch.equal(once, again)


def test_make_solver_names():
    schedule = FlowSchedule(2, 1.0)
    assert isinstance(make_solver("euler", schedule), EulerSolver)
    assert isinstance(make_solver("unipc", schedule), UniPCSolver)
    with pytest.raises(InvalidArgument) as caught:
        make_solver("heun", schedule)
    assert caught.value.argument == "solver"


def test_unipc_refuses_order_and_indistinguishable_levels():
    with pytest.raises(InvalidArgument, match="order"):
        UniPCSolver(FlowSchedule(4, 1.0), order=4)
    with pytest.raises(InvalidArgument, match="noise levels"):
        UniPCSolver(FlowSchedule(8, 1e9))


def diffusers_run(scheduler, latents):
    for index, timestep in enumerate(scheduler.timesteps):
        sigma = float(scheduler.sigmas[index])
        latents = scheduler.step(velocity_of(latents, sigma), timestep, latents).prev_sample
    return latents


@pytest.mark.peer
@pytest.mark.parametrize(("num_steps", "shift"), [(1, 1.0), (4, 5.0), (30, 3.0)])
def test_euler_equals_diffusers(num_steps, shift):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - i / num_steps for i in range(num_steps)])
    schedule = FlowSchedule(num_steps, shift)
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(schedule.sigmas))
    torch.testing.assert_close(scheduler.timesteps, torch.tensor(schedule.timesteps))
    noise = draw(7)
    torch.testing.assert_close(
        run(EulerSolver(schedule), schedule, noise), diffusers_run(scheduler, noise)
    )


def unipc_of_diffusers(num_steps, shift, order):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=order,
        solver_type="bh2",
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        lower_order_final=True,
    )
    scheduler.set_timesteps(sigmas=1 - np.arange(num_steps) / num_steps)
    scheduler.set_begin_index(0)
    return scheduler


CASES = [(1, 1.0), (2, 5.0), (3, 5.0), (8, 5.0), (20, 3.0), (40, 1.0)]


@pytest.mark.peer
@pytest.mark.parametrize(("num_steps", "shift"), CASES)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_equals_diffusers_in_fp64(num_steps, shift, order):
    """With diffusers' coefficients made in fp64 too, nothing but rounding is left."""
    scheduler = unipc_of_diffusers(num_steps, shift, order)
    schedule = FlowSchedule(num_steps, shift)
    first = float(scheduler.sigmas[0])
    scheduler.sigmas = torch.tensor([first, *schedule.sigmas[1:]], dtype=torch.float64)
    noise = draw(8, torch.float64)
    ours = UniPCSolver(schedule, order=order)
    state, latents = ours.init(), noise
    for index in range(num_steps):
        sigma = float(scheduler.sigmas[index])
        latents, state = ours.step(index, latents, velocity_of(latents, sigma), state)
    assert math.isclose(first, 1 - 1e-6, abs_tol=2**-24)
    torch.testing.assert_close(latents, diffusers_run(scheduler, noise), rtol=1e-9, atol=1e-9)


@pytest.mark.peer
@pytest.mark.parametrize(("num_steps", "shift"), CASES)
def test_unipc_equals_unmodified_diffusers_in_fp32(num_steps, shift):
    scheduler = unipc_of_diffusers(num_steps, shift, 2)
    schedule = FlowSchedule(num_steps, shift)
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(schedule.sigmas))
    noise = draw(9)
    ours = run(UniPCSolver(schedule), schedule, noise)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, diffusers_run(scheduler, noise))
