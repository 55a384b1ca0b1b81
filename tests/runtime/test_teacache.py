"""TeaCache's plan against the published rule, written down a second time as upstream runs it."""

import numpy as np
import pytest
import torch

import skyreels_rt as rt
from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.runtime.step_cache import (
    CalibrationRun,
    ChangeFit,
    MagnitudeFit,
    RunFacts,
    StepCalibration,
)
from skyreels_rt.runtime.teacache import (
    PUBLISHED_COEFFICIENTS,
    computed_steps,
    polynomial,
    relative_changes,
)
from skyreels_rt.testing.tiny import TinyModel, tiny_components

# reference: TeaCache4Wan2.1's own thresholds, by checkpoint
THRESHOLDS = {
    "t2v-1.3b": (0.05, 0.07, 0.08),
    "t2v-14b": (0.14, 0.15, 0.20),
    "i2v-14b-480p": (0.13, 0.19, 0.26),
    "i2v-14b-720p": (0.18, 0.20, 0.30),
}
IDENTITY = (0.0, 0.0, 0.0, 1.0, 0.0)


class Upstream:
    """The forward pass of ``teacache_generate.py``: called once per pass and step, state kept."""

    def __init__(self, num_steps, coefficients, threshold, ret):
        self.cnt, self.num_steps = 0, num_steps * 2
        self.coefficients, self.teacache_thresh = coefficients, threshold
        self.ret_steps, self.cutoff_steps = (10, self.num_steps) if ret else (2, self.num_steps - 2)
        self.previous, self.distance = [None, None], [0, 0]

    def is_close(self, distance):
        return distance < self.teacache_thresh

    def __call__(self, modulated_inp):
        branch = self.cnt % 2
        if self.cnt < self.ret_steps or self.cnt >= self.cutoff_steps:
            should_calc = True
            self.distance[branch] = 0
        else:
            rescale_func = np.poly1d(self.coefficients)
            previous = self.previous[branch]
            self.distance[branch] += rescale_func(
                ((modulated_inp - previous).abs().mean() / previous.abs().mean()).cpu().item()
            )
            should_calc = not self.is_close(self.distance[branch])
            if should_calc:
                self.distance[branch] = 0
        self.remember(branch, modulated_inp, should_calc)
        self.cnt += 1
        return should_calc

    def remember(self, branch, modulated_inp, should_calc):
        self.previous[branch] = modulated_inp.clone()


def upstream_plan(signals, coefficients, threshold, *, ret, kind=Upstream):
    """Flags of the conditional and of the unconditional pass, which upstream decides apart."""
    rule = kind(len(signals), coefficients, threshold, ret)
    flags = [(rule(signal), rule(signal)) for signal in signals]
    first, second = zip(*flags, strict=True)
    assert first == second
    return first


def facts_of(signals, calibration=None, model="m"):
    timesteps = tuple(float(1000 - k) for k in range(len(signals)))
    return RunFacts(model, timesteps, lambda kind: signals, calibration)


@pytest.fixture(scope="module")
def model():
    tiny = TinyModel().with_transformer(freq_dim=256)
    return tiny_components(tiny)


def time_signals(model, num_steps, shift, signal):
    return model.run_facts(FlowSchedule(num_steps, shift).timesteps).signals(signal)


@pytest.mark.parametrize("num_steps", [20, 30, 40, 50])
@pytest.mark.parametrize(("checkpoint", "signal"), list(PUBLISHED_COEFFICIENTS))
def test_plan_is_the_published_rule(model, checkpoint, signal, num_steps):
    coefficients = PUBLISHED_COEFFICIENTS[checkpoint, signal]
    rng = np.random.default_rng(num_steps)
    # Changes as real checkpoints have them: random walks of relative size 0.01 to 0.3.
    sizes = rng.uniform(0.01, 0.3, (num_steps, 1)) * rng.standard_normal((num_steps, 64))
    walk = [torch.from_numpy(row).float() for row in 1 + np.cumsum(0.3 * sizes, axis=0)]
    seen = set()
    for signals in (walk, *(time_signals(model, num_steps, shift, signal) for shift in (3.0, 5.0))):
        for threshold in THRESHOLDS[checkpoint]:
            expected = upstream_plan(
                signals, coefficients, threshold, ret=signal == "timestep_projection"
            )
            cache = rt.TeaCache(threshold, coefficients, signal=signal)
            assert cache.plan(facts_of(signals)).computed == expected
            seen.add(expected)
    assert any(not all(plan) for plan in seen)


def scalar_signals(changes, start=1.0):
    """Signals of one number whose relative changes are exactly these powers of two."""
    values = [start]
    for change in changes:
        values.append(values[-1] * (1 + change))
    return [torch.tensor([value]) for value in values]


TIES = scalar_signals([0.25, 0.25, 0.5, 0.25, 0.25, 0.25, 0.5, 0.125, 0.125])
FALLING = (0.0, 0.0, 0.0, 1.0, -0.25)  # negative below 0.25
CASES = [
    (TIES, IDENTITY, 0.5),
    (TIES, FALLING, 0.25),
    (TIES, (0.0, 0.0, 0.0, -1.0, 0.0), 0.1),
]


def flags(text):
    return tuple(mark == "#" for mark in text)


@pytest.mark.parametrize("ret", [False, True])
@pytest.mark.parametrize(("signals", "coefficients", "threshold"), CASES)
def test_ties_and_negative_values(signals, coefficients, threshold, ret):
    signal = "timestep_projection" if ret else "timestep"
    plan = rt.TeaCache(threshold, coefficients, signal=signal).plan(facts_of(signals))
    assert plan.computed == upstream_plan(signals, coefficients, threshold, ret=ret)


def test_a_tie_computes():
    # acc: .25 | .5 = threshold -> computed | .5 -> computed | .25 | .5 -> computed | .25 | ...
    plan = rt.TeaCache(0.5, IDENTITY).plan(facts_of(TIES))
    assert plan.computed == flags("#.##.#.#.#")


class Late(Upstream):
    def is_close(self, distance):
        return distance <= self.teacache_thresh


class Stale(Upstream):
    def remember(self, branch, modulated_inp, should_calc):
        if should_calc:
            self.previous[branch] = modulated_inp.clone()


class NoCutoff(Upstream):
    def __init__(self, *args):
        super().__init__(*args)
        self.cutoff_steps = self.num_steps


@pytest.mark.parametrize("fault", [Late, Stale, NoCutoff])
def test_the_comparison_sees_planted_faults(fault):
    differs = False
    for signals, coefficients, threshold in CASES:
        plan = rt.TeaCache(threshold, coefficients).plan(facts_of(signals)).computed
        differs |= plan != upstream_plan(signals, coefficients, threshold, ret=False, kind=fault)
    assert differs


def test_a_zero_signal_computes():
    signals = [torch.zeros(3), torch.ones(3), torch.ones(3), torch.zeros(3), torch.ones(3),
               torch.ones(3)]  # fmt: skip
    plan = rt.TeaCache(1e9, IDENTITY).plan(facts_of(signals))
    assert plan.computed == flags("##..##")


def test_polynomial_is_numpys():
    rng = np.random.default_rng(0)
    for coefficients in PUBLISHED_COEFFICIENTS.values():
        for x in rng.uniform(0, 1, 50).tolist():
            assert polynomial(coefficients, x) == np.poly1d(coefficients)(x)


def test_threshold_zero_computes_every_step_though_a_quartic_is_negative():
    assert computed_steps((0.1,) * 9, (0, 0, 0, 0, -1.0), 0.0, first_steps=1, last_steps=1) == (
        (True,) * 10
    )
    cache = rt.TeaCache(0.0)  # and asks for no calibration
    assert not cache.plan(facts_of(TIES)).skips


def test_forced_steps_can_be_chosen():
    cache = rt.TeaCache(1e9, IDENTITY, first_steps=3, last_steps=2)
    assert cache.plan(facts_of(TIES)).computed == flags("###.....##")
    gated = rt.TeaCache(0.5, IDENTITY, signal="modulated_input", first_steps=2)
    plan = gated.plan(facts_of(TIES))
    assert plan.computed == flags("##.......#")
    assert (plan.gate.coefficients, plan.gate.threshold) == (IDENTITY, 0.5)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_few_steps_are_all_computed(num_steps):
    for cache in (rt.TeaCache(9.0, IDENTITY), rt.MagCache(9.0, ratios=(1.0,))):
        assert not cache.plan(facts_of(TIES[:num_steps])).skips


def calibration(coefficients=IDENTITY, threshold=0.5):
    fit = ChangeFit(coefficients, threshold, 0.1, 1.0, 0.0)
    run = CalibrationRun((10,), 1.0, "euler", "", 1, 1, "none", ())
    return StepCalibration(fit, fit, fit, MagnitudeFit((10.0, 1.0), (0.0, 0.1), 0.2), run)


def test_auto_takes_the_models_calibration():
    run = facts_of(TIES, calibration())
    assert rt.TeaCache().plan(run) == rt.TeaCache(0.5, IDENTITY).plan(run)
    assert rt.TeaCache(0.75).plan(run) == rt.TeaCache(0.75, IDENTITY).plan(run)
    with pytest.raises(InvalidArgument, match="calibrate m"):
        rt.TeaCache().plan(facts_of(TIES))


def test_changes_outside_the_calibration_are_said(caplog):
    rt.TeaCache().plan(facts_of(TIES, calibration()))
    assert not caplog.records
    rt.TeaCache().plan(facts_of(scalar_signals([2.0] * 9), calibration()))
    assert "calibrated for changes" in caplog.text


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("threshold", {"threshold": -0.1}), ("threshold", {"threshold": float("nan")}),
        ("threshold", {"threshold": float("inf")}), ("threshold", {"threshold": True}),
        ("threshold", {"threshold": "0.1"}), ("threshold", {"coefficients": IDENTITY}),
        ("coefficients", {"threshold": 1.0, "coefficients": (1.0,) * 4}),
        ("coefficients", {"threshold": 1.0, "coefficients": (1.0,) * 6}),
        ("coefficients", {"threshold": 1.0, "coefficients": (1.0,) * 4 + (float("nan"),)}),
        ("coefficients", {"threshold": 1.0, "coefficients": "none"}),
        ("coefficients", {"threshold": 1.0, "coefficients": 3.0}),
        ("signal", {"signal": "e0"}), ("first_steps", {"first_steps": 0}),
        ("first_steps", {"first_steps": 1.0}), ("last_steps", {"last_steps": -1}),
    ],
)  # fmt: skip
def test_bad_values_are_refused_at_construction(name, options):
    with pytest.raises(InvalidArgument, match=name):
        rt.TeaCache(**options)


def test_relative_changes_of_one_signal():
    assert relative_changes([torch.ones(2)]) == ()
