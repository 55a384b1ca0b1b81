"""The flow-matching schedule: ends, shift, refusals."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.errors import InvalidArgument


@settings(deadline=None)
@given(num_steps=st.integers(1, 60), shift=st.floats(0.05, 50))
def test_runs_from_exactly_one_down_to_exactly_zero(num_steps, shift):
    schedule = FlowSchedule(num_steps, shift)
    assert len(schedule.sigmas) == num_steps + 1
    assert schedule.sigmas[0] == 1.0
    assert schedule.sigmas[-1] == 0.0
    assert all(a > b for a, b in pairwise(schedule.sigmas))
    assert schedule.timesteps == tuple(1000.0 * sigma for sigma in schedule.sigmas[:num_steps])


def test_known_values():
    assert FlowSchedule(4, 1.0).sigmas == (1.0, 0.75, 0.5, 0.25, 0.0)
    shifted = FlowSchedule(4, 5.0).sigmas
    assert shifted[1] == pytest.approx(15 / 16)  # 5 * 3/4 / (1 + 4 * 3/4)
    assert shifted[2] == pytest.approx(5 / 6)
    assert shifted[3] == pytest.approx(5 / 8)


@pytest.mark.parametrize(
    ("num_steps", "shift", "argument"),
    [
        (0, 1.0, "num_steps"),
        (-3, 1.0, "num_steps"),
        (4, 0.0, "shift"),
        (4, -1.0, "shift"),
        (4, math.inf, "shift"),
        (4, math.nan, "shift"),
    ],
)
def test_refuses(num_steps, shift, argument):
    with pytest.raises(InvalidArgument) as caught:
        FlowSchedule(num_steps, shift)
    assert caught.value.argument == argument


def test_multitalks_spacing_ends_at_timestep_one():
    # SkyReels-V3: linspace(1000, 1, 4), then 0, each shifted by 11.
    schedule = FlowSchedule(4, 11.0, "to_timestep_1")
    even = [1.0, 0.667, 0.334, 0.001]
    expected = [*(1000 * 11 * s / (1 + 10 * s) for s in even)]
    assert schedule.timesteps == pytest.approx(expected)
    assert schedule.sigmas[-1] == 0.0
    assert FlowSchedule(1, 11.0, "to_timestep_1").sigmas == (1.0, 0.0)
