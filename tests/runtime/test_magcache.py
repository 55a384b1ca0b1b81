"""MagCache's plan against the published rule as upstream runs it, and StepMask."""

import math

import numpy as np
import pytest

import skyreels_rt as rt
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.runtime.magcache import magnitude_ratios, nearest_ratios
from skyreels_rt.runtime.step_cache import MagnitudeFit, RunFacts, StepLog, StepPlan, StepRun


def facts_of(num_steps):
    return RunFacts("m", tuple(float(num_steps - k) for k in range(num_steps)), lambda _: ())


class Upstream:
    """``magcache_forward``: called once per pass and step, state kept."""

    def __init__(self, num_steps, ratios, threshold, max_skips, retention):
        self.cnt, self.num_steps, self.mag_ratios = 0, 2 * num_steps, np.repeat(ratios, 2)
        self.magcache_thresh, self.K, self.retention_ratio = threshold, max_skips, retention
        self.accumulated_ratio, self.accumulated_err = [1.0, 1.0], [0.0, 0.0]
        self.accumulated_steps = [0, 0]

    def __call__(self):
        skip_forward, branch = False, self.cnt % 2
        if self.cnt >= int(self.num_steps * self.retention_ratio):
            self.accumulated_ratio[branch] = (
                self.accumulated_ratio[branch] * self.mag_ratios[self.cnt]
            )
            self.accumulated_steps[branch] += 1
            self.accumulated_err[branch] += np.abs(1 - self.accumulated_ratio[branch])
            if (
                self.accumulated_err[branch] < self.magcache_thresh
                and self.accumulated_steps[branch] <= self.K
            ):
                skip_forward = True
            else:
                self.accumulated_err[branch] = 0
                self.accumulated_steps[branch] = 0
                self.accumulated_ratio[branch] = 1.0
        self.cnt += 1
        return not skip_forward


@pytest.mark.parametrize("num_steps", [20, 30, 40, 50])
@pytest.mark.parametrize("threshold", [0.02, 0.06, 0.12, 0.24, 1e6])
@pytest.mark.parametrize("max_skips", [1, 2, 4])
def test_plan_is_the_published_rule(num_steps, threshold, max_skips):
    ratios = np.random.default_rng(num_steps).uniform(0.9, 1.03, num_steps).tolist()
    rule = Upstream(num_steps, ratios, threshold, max_skips, 0.2)
    expected = [(rule(), rule()) for _ in range(num_steps)]
    cache = rt.MagCache(threshold, max_skips=max_skips, ratios=tuple(ratios))
    plan = cache.plan(facts_of(num_steps))
    assert [(flag, flag) for flag in plan.computed] == expected


def test_a_tie_computes():
    # error after one step of ratio 1.25 is 0.25, after two 0.25 + 0.5625
    ratios = (1.0, 1.25) * 5
    plan = rt.MagCache(0.25, retention=0.0, ratios=ratios).plan(facts_of(10))
    assert plan.computed == (True, True) + (False, True) * 4
    plan = rt.MagCache(0.2501, retention=0.0, ratios=(1.25,) * 10).plan(facts_of(10))
    assert plan.computed == (True, False) * 5


def test_zero_switches_it_off_and_the_first_step_is_computed():
    assert not rt.MagCache(0.0).plan(facts_of(10)).skips
    plan = rt.MagCache(9.0, retention=0.0, max_skips=99, ratios=(1.0,) * 10).plan(facts_of(10))
    assert plan.computed == (True,) + (False,) * 9


def test_other_numbers_of_steps():
    assert nearest_ratios((1.0, 2.0, 3.0, 4.0), 4) == (1.0, 2.0, 3.0, 4.0)
    assert nearest_ratios((1.0, 2.0, 3.0), 5) == (1.0, 1.0, 2.0, 3.0, 3.0)  # ties to even
    assert nearest_ratios((1.0, 2.0), 1) == (2.0,)
    fit = MagnitudeFit((1000.0, 500.0, 0.0), (0.0, 0.2, 0.1), 0.1)
    ratios = magnitude_ratios(fit, (1000.0, 750.0, 250.0))
    assert ratios == pytest.approx((1.0, math.exp(0.1), math.exp(0.05)))
    with pytest.raises(InvalidArgument, match="timesteps"):
        MagnitudeFit((0.0, 1.0), (0.0, 0.0), 0.1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("threshold", {"threshold": -1.0}), ("threshold", {"threshold": math.nan}),
        ("threshold", {"ratios": (1.0,)}), ("max_skips", {"max_skips": 0}),
        ("max_skips", {"max_skips": 1.5}), ("retention", {"retention": 1.1}),
        ("retention", {"retention": "x"}), ("retention", {"retention": math.nan}),
        ("ratios", {"threshold": 1.0, "ratios": ()}),
        ("ratios", {"threshold": 1.0, "ratios": (1.0, 0.0)}),
        ("ratios", {"threshold": 1.0, "ratios": "all"}),
    ],
)  # fmt: skip
def test_bad_values_are_refused_at_construction(name, options):
    with pytest.raises(InvalidArgument, match=name):
        rt.MagCache(**options)


def test_step_mask():
    assert rt.StepMask([True, False]).plan(facts_of(2)).computed == (True, False)
    for flags in ((), (False, True), (1, 0), "ab", 3):
        with pytest.raises(InvalidArgument, match="flags"):
            rt.StepMask(flags)
    with pytest.raises(InvalidArgument, match="3 flags, one per step"):
        rt.StepMask((True, False)).plan(facts_of(3))


def test_a_residual_is_kept_only_where_the_next_step_takes_it():
    plan = StepPlan((True, True, False, False, True))
    assert [plan.keeps_residual(step) for step in (0, 1, 4)] == [False, True, False]
    with pytest.raises(InvalidArgument, match="computed"):
        StepPlan((False, True))


def test_the_log_joins_equal_neighbours():
    log = StepLog()
    log.add(0, 9, (True, False))
    log.add(6, 15, (True, False))
    log.add(12, 21, (True, True))
    assert log.runs == [StepRun(0, 15, 2, (True, False)), StepRun(12, 21, 1, (True, True))]
    assert log.runs[0].text == "#."
