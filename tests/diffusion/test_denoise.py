"""The denoise loop: exactness, order, pinned latents, cancellation, non-finite values."""

import itertools

import pytest
import torch

from skyreels_rt.diffusion import denoise
from skyreels_rt.diffusion.blf import num_kept_latents, plan_group, window_weights
from skyreels_rt.diffusion.noise import timeline_noise
from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.diffusion.solvers import make_solver
from skyreels_rt.errors import Cancelled, InvalidArgument, NonFinite
from skyreels_rt.runtime.step_numbers import HostNumbers

SHAPE = (3, 4, 5)
SOLVERS = ["euler", "unipc"]
# 14 latents: windows 0-8, 5-13 and 6-14 (shifted), latents 6 and 7 under all three.
SHIFTED = {"window": 8, "overlap": 3, "horizon": 99}


def predict_pointwise(window, latents, step, timestep):
    """A velocity that looks at one value only: windows cannot matter."""
    return torch.sin(2 * latents) + (timestep / 1000 - 0.4) * latents


def predict_in_context(window, latents, step, timestep):
    """A velocity that depends on the whole window and on the place within it."""
    place = torch.arange(latents.shape[1], dtype=latents.dtype).view(1, -1, 1, 1)
    return (
        torch.tanh(latents)
        + latents.mean(dim=1, keepdim=True)
        + 0.3 * torch.sin(place + window.start)
        + timestep / 2000
    )


def denoise_group(group, predict, *args, overlap, ramp="linear", **options):
    """One guidance pass of weight 1."""
    return denoise.denoise_group(
        group, lambda *shown: predict(*shown)[None], *args, guidance=[1.0],
        weights=window_weights(group, overlap, ramp), **options,
    )  # fmt: skip


class Recorder:
    """Keeps what every window was shown at every step."""

    def __init__(self, predict):
        self.predict, self.seen = predict, []

    def __call__(self, window, latents, step, timestep):
        self.seen.append((window, step, timestep, latents.clone()))
        return self.predict(window, latents, step, timestep)


def noise_of(group, seed=5):
    return timeline_noise(seed, group.start, group.length, SHAPE)


def run_stream(total, sizes, predict, solver="euler", num_steps=4, seed=5, **options):
    """Clean latents of a whole stream; keeps only as many emitted latents as the bound says."""
    schedule = FlowSchedule(num_steps, 5.0)
    kept_limit = num_kept_latents(sizes["window"], sizes["overlap"])
    kept, parts, emitted = torch.empty(3, 0, 4, 5), [], 0
    while (group := plan_group(emitted, total, True, **sizes)) is not None:
        new = denoise_group(
            group, predict, schedule, make_solver(solver, schedule),
            noise=noise_of(group, seed), pinned=kept[:, kept.shape[1] - group.num_pinned :],
            overlap=sizes["overlap"], **options,
        )  # fmt: skip
        parts.append(new)
        kept = torch.cat([kept, new], dim=1)[:, -kept_limit:] if kept_limit else kept
        emitted = group.stop
    return torch.cat(parts, dim=1)


def plain_sampling(total, predict, solver, num_steps=4, seed=5):
    """The whole timeline as one sequence, without windows."""
    schedule = FlowSchedule(num_steps, 5.0)
    stepper = make_solver(solver, schedule)
    group = plan_group(0, total, True, window=total, overlap=0, horizon=1)
    latents, state = noise_of(group, seed), stepper.init()
    for index, timestep in enumerate(schedule.timesteps):
        velocity = predict(group.windows[0], latents, index, timestep)
        latents, state = stepper.step(index, latents, velocity, state)
    return latents


def naive_group(group, predict, schedule, noise, pinned, overlap, fault=None):
    """The definition, in fp64, latent by latent, with Euler steps; `fault` plants one error."""
    noise, pinned = noise.double(), pinned.double()
    latents = noise.clone()
    for step, timestep in enumerate(schedule.timesteps):
        sigma, target = schedule.sigmas[step], schedule.sigmas[step + 1]
        if fault != "revised_pinned" or step == 0:
            for k in range(group.num_pinned):
                latents[:, k] = (1 - sigma) * pinned[:, k] + sigma * noise[:, k]
        velocity = {
            w: predict(w, latents[:, w.start - group.start : w.stop - group.start], step, timestep)
            for w in group.windows
        }
        for n in range(group.start, group.stop):
            total, weight_sum = torch.zeros_like(latents[:, 0]), 0.0
            for w in group.windows:
                if w.start <= n < w.stop:
                    shift = 0 if fault == "off_by_one_ramp" else 1
                    up = (n - w.start + shift) / (overlap + 1) if w.start > group.start else 1
                    down = (w.stop - n - 1 + shift) / (overlap + 1) if w.stop < group.stop else 1
                    weight = min(1, up, down)
                    total = total + weight * velocity[w][:, n - w.start]
                    weight_sum += weight
            fused = total if fault == "unnormalised" else total / weight_sum
            latents[:, n - group.start] += (target - sigma) * fused
    return latents[:, group.num_pinned :]


def assert_matches_naive(total, emitted, sizes, fault=None):
    group = plan_group(emitted, total, True, **sizes)
    schedule = FlowSchedule(5, 3.0)
    noise = noise_of(group)
    pinned = timeline_noise(77, group.start, group.num_pinned, SHAPE)
    got = denoise_group(
        group, predict_in_context, schedule, make_solver("euler", schedule),
        noise=noise, pinned=pinned, overlap=sizes["overlap"],
    )  # fmt: skip
    expected = naive_group(
        group, predict_in_context, schedule, noise, pinned, sizes["overlap"], fault
    )
    assert got.shape == (3, group.num_new, 4, 5)
    torch.testing.assert_close(got.double(), expected, rtol=1.3e-6, atol=1e-5)


CASES = [
    (14, 0, SHIFTED),  # three-fold cover
    (27, 13, {"window": 8, "overlap": 3, "horizon": 3}),  # continuation, all hops even
    (25, 13, {"window": 8, "overlap": 3, "horizon": 3}),  # continuation, last window shifted
    (14, 13, {"window": 8, "overlap": 3, "horizon": 3}),  # one latent left, seven pinned
    (19, 0, {"window": 7, "overlap": 5, "horizon": 99}),  # overlap longer than the hop
    (11, 0, {"window": 4, "overlap": 0, "horizon": 99}),  # no overlap, shifted last window
]


@pytest.mark.parametrize(("total", "emitted", "sizes"), CASES)
def test_equals_the_naive_loop(total, emitted, sizes):
    assert_matches_naive(total, emitted, sizes)


@pytest.mark.parametrize(
    ("fault", "case"),
    [("unnormalised", 0), ("off_by_one_ramp", 0), ("revised_pinned", 1), ("revised_pinned", 3)],
)
def test_planted_faults_are_rejected(fault, case):
    with pytest.raises(AssertionError, match="not close"):
        assert_matches_naive(*CASES[case], fault=fault)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("total", [1, 5, 8])
def test_one_window_is_plain_sampling_bit_by_bit(solver, total):
    sizes = {"window": 8, "overlap": 3, "horizon": 2}
    got = run_stream(total, sizes, predict_in_context, solver)
    assert torch.equal(got, plain_sampling(total, predict_in_context, solver))


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_processing_order_gives_the_same_bytes(solver):
    expected = run_stream(14, SHIFTED, predict_in_context, solver)
    for order in itertools.permutations(range(3)):
        predict = Recorder(predict_in_context)
        got = run_stream(14, SHIFTED, predict, solver, order=order)
        assert torch.equal(got, expected), order
        starts = [window.start for window, *_ in predict.seen]
        assert starts == [(0, 5, 6)[index] for index in order] * 4


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("ramp", ["linear", "uniform"])
@pytest.mark.parametrize(
    "sizes", [SHIFTED, {"window": 6, "overlap": 2, "horizon": 1}, {**SHIFTED, "horizon": 2}]
)
def test_a_pointwise_denoiser_gives_the_full_sequence(solver, ramp, sizes):
    got = run_stream(21, sizes, predict_pointwise, solver, ramp=ramp)
    torch.testing.assert_close(got, plain_sampling(21, predict_pointwise, solver))


def test_ramp_is_passed_on():
    linear = run_stream(14, SHIFTED, predict_in_context)
    assert not torch.equal(linear, run_stream(14, SHIFTED, predict_in_context, ramp="uniform"))


def test_every_window_of_a_step_sees_the_same_latents():
    predict = Recorder(predict_in_context)
    run_stream(14, SHIFTED, predict)
    assert len(predict.seen) == 3 * 4
    for step in range(4):
        timeline = {}
        for window, _, timestep, latents in (s for s in predict.seen if s[1] == step):
            assert timestep == FlowSchedule(4, 5.0).timesteps[step]
            assert latents.is_contiguous()
            for n in range(window.start, window.stop):
                latent = latents[:, n - window.start]
                assert torch.equal(timeline.setdefault(n, latent), latent)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("total", [23, 14])
def test_pinned_latents_are_renoised_at_every_step_and_never_revised(solver, total):
    sizes = {"window": 8, "overlap": 3, "horizon": 2}
    group = plan_group(13, total, True, **sizes)
    schedule = FlowSchedule(5, 5.0)
    noise = noise_of(group)
    pinned = timeline_noise(77, group.start, group.num_pinned, SHAPE)
    before = pinned.clone()
    predict = Recorder(predict_in_context)
    new = denoise_group(
        group, predict, schedule, make_solver(solver, schedule),
        noise=noise, pinned=pinned, overlap=3,
    )  # fmt: skip
    assert torch.equal(pinned, before)
    assert new.shape[1] == group.num_new
    checked = 0
    for window, step, _, latents in predict.seen:
        sigma = schedule.sigmas[step]
        for n in range(window.start, min(window.stop, group.emitted)):
            k = n - group.start
            expected = (1 - sigma) * before[:, k] + sigma * noise[:, k]
            assert torch.equal(latents[:, n - window.start], expected)
            checked += 1
    assert checked >= 5 * group.num_pinned


@pytest.mark.parametrize("solver", SOLVERS)
def test_velocity_at_pinned_latents_has_no_effect(solver):
    group = plan_group(13, 23, True, window=8, overlap=3, horizon=2)
    schedule = FlowSchedule(4, 5.0)

    def spoiled(window, latents, step, timestep):
        velocity = predict_in_context(window, latents, step, timestep)
        velocity[:, : max(0, group.emitted - window.start)] = 1e6
        return velocity

    results = [
        denoise_group(
            group, predict, schedule, make_solver(solver, schedule), noise=noise_of(group),
            pinned=timeline_noise(77, group.start, 3, SHAPE), overlap=3,
        )
        for predict in (predict_in_context, spoiled)
    ]  # fmt: skip
    assert torch.equal(*results)


def test_pinned_latents_influence_what_follows():
    group = plan_group(13, 23, True, window=8, overlap=3, horizon=2)
    schedule = FlowSchedule(4, 5.0)
    results = [
        denoise_group(
            group, predict_in_context, schedule, make_solver("euler", schedule),
            noise=noise_of(group), pinned=torch.full((3, 3, 4, 5), value), overlap=3,
        )
        for value in (0.0, 2.0)
    ]  # fmt: skip
    assert not torch.equal(*results)


def test_noise_is_not_written_to():
    group = plan_group(0, 14, True, **SHIFTED)
    schedule, noise = FlowSchedule(3, 5.0), noise_of(group)
    before = noise.clone()
    denoise_group(
        group, predict_in_context, schedule, make_solver("unipc", schedule), noise=noise, overlap=3
    )
    assert torch.equal(noise, before)


@pytest.mark.parametrize("allowed", [0, 1, 4])
def test_cancellation_stops_before_the_next_window(allowed):
    predict = Recorder(predict_in_context)
    steps = []
    with pytest.raises(Cancelled) as caught:
        run_stream(
            14, SHIFTED, predict, is_cancelled=lambda: len(predict.seen) >= allowed,
            on_step=lambda done, total: steps.append((done, total)),
        )  # fmt: skip
    assert caught.value.stage == "denoise"
    assert len(predict.seen) == allowed
    assert steps == [(k + 1, 4) for k in range(allowed // 3)]


def test_progress_is_told_after_every_step():
    steps = []
    run_stream(14, SHIFTED, predict_in_context, on_step=lambda *state: steps.append(state))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("bad_step", [0, 3])
def test_non_finite_velocity_names_step_and_latent(solver, value, bad_step):
    def predict(window, latents, step, timestep):
        velocity = predict_in_context(window, latents, step, timestep)
        if step == bad_step and window.start == 5:
            velocity[1, 4, 2, 2] = value
        return velocity

    steps = []
    with pytest.raises(NonFinite, match=rf"Step {bad_step + 1} of 4 .* latent 9\b") as caught:
        run_stream(14, SHIFTED, predict, solver, on_step=lambda done, _: steps.append(done))
    assert caught.value.stage == "denoise"
    assert len(steps) == bad_step


class Late(HostNumbers):
    """Numbers that come a step late, as from a GPU."""

    lag = 1

    def __init__(self, device, num_steps):
        super().__init__()


@pytest.mark.parametrize("solver", SOLVERS)
def test_numbers_that_come_late_change_no_bit(monkeypatch, solver):
    expected, steps, launched = run_stream(14, SHIFTED, predict_in_context, solver), [], []

    def on_step(done, total):
        steps.append((done, total, launched[-1]))

    def predict(window, latents, step, timestep):
        launched.append(step)
        return predict_in_context(window, latents, step, timestep)

    monkeypatch.setattr(denoise, "step_numbers", Late)
    assert torch.equal(run_stream(14, SHIFTED, predict, solver, on_step=on_step), expected)
    # A step is reported once the next was launched, the last one at the end.
    assert steps == [(1, 4, 1), (2, 4, 2), (3, 4, 3), (4, 4, 3)]


@pytest.mark.parametrize(("bad_step", "launched"), [(0, 1), (2, 3), (3, 3)])
def test_late_numbers_still_stop_a_bad_run_and_name_its_step(monkeypatch, bad_step, launched):
    seen, steps = [], []

    def predict(window, latents, step, timestep):
        seen.append(step)
        velocity = predict_in_context(window, latents, step, timestep)
        if step == bad_step and window.start == 5:
            velocity[1, 4, 2, 2] = float("nan")
        return velocity

    monkeypatch.setattr(denoise, "step_numbers", Late)
    with pytest.raises(NonFinite, match=rf"Step {bad_step + 1} of 4 .* latent 9\b"):
        run_stream(14, SHIFTED, predict, on_step=lambda done, _: steps.append(done))
    assert (seen[-1], len(steps)) == (launched, bad_step)


def test_no_graph_is_recorded():
    gain = torch.ones((), requires_grad=True)
    result = run_stream(6, SHIFTED, lambda w, x, s, t: gain * x)
    assert not result.requires_grad


def test_low_precision_velocity_keeps_fp32_latents():
    result = run_stream(14, SHIFTED, lambda *args: predict_in_context(*args).bfloat16())
    assert result.dtype == torch.float32


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("noise", {"noise": torch.zeros(3, 12, 4, 5)}),
        ("pinned", {"pinned": None}),
        ("pinned", {"pinned": torch.zeros(3, 2, 4, 5)}),
        ("order", {"order": [0, 0]}),
        ("order", {"order": [0]}),
    ],
)
def test_refuses_what_does_not_fit_the_group(argument, change):
    group = plan_group(13, 23, True, window=8, overlap=3, horizon=2)
    schedule = FlowSchedule(2, 5.0)
    fitting = {"noise": noise_of(group), "pinned": torch.zeros(3, 3, 4, 5), "overlap": 3}
    with pytest.raises(InvalidArgument) as caught:
        denoise_group(
            group, predict_in_context, schedule, make_solver("euler", schedule),
            **{**fitting, **change},
        )  # fmt: skip
    assert caught.value.argument == argument
