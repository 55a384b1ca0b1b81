"""Windows, groups, weights and fusion: the laws of BLF."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skyreels_rt.diffusion.blf import (
    Group,
    Window,
    num_kept_latents,
    plan_group,
    window_weights,
)
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.kernels import blf_velocity


@st.composite
def plans(draw):
    """Sizes of a stream: total latents, window, overlap, horizon."""
    window = draw(st.integers(1, 12))
    overlap = draw(st.integers(0, window - 1))
    horizon = draw(st.integers(1, 4))
    return draw(st.integers(0, 60)), {"window": window, "overlap": overlap, "horizon": horizon}


def drain(total, sizes, arrivals=()):
    """Groups of a stream whose latents become available at the counts in `arrivals`."""
    groups, emitted = [], 0
    for available, ended in [*((count, False) for count in arrivals), (total, True)]:
        while (group := plan_group(emitted, available, ended, **sizes)) is not None:
            assert group.stop > emitted, "a group that adds nothing would never end the stream"
            groups.append(group)
            emitted = group.stop
    return groups


@settings(deadline=None)
@given(plan=plans())
def test_every_latent_is_new_exactly_once_and_the_last_group_ends_at_the_end(plan):
    total, sizes = plan
    groups = drain(total, sizes)
    new = [n for group in groups for n in range(group.emitted, group.stop)]
    assert new == list(range(total))
    assert all(group.num_new > 0 for group in groups)
    assert (groups[-1].stop if groups else 0) == total


@settings(deadline=None)
@given(plan=plans(), data=st.data())
def test_groups_depend_on_content_only(plan, data):
    total, sizes = plan
    arrivals = sorted(data.draw(st.lists(st.integers(0, total), max_size=20)))
    assert drain(total, sizes, arrivals) == drain(total, sizes)
    assert drain(total, sizes, range(total + 1)) == drain(total, sizes)


@settings(deadline=None)
@given(plan=plans())
def test_shape_of_every_group(plan):
    total, sizes = plan
    window, overlap, horizon = sizes["window"], sizes["overlap"], sizes["horizon"]
    groups = drain(total, sizes)
    for number, group in enumerate(groups):
        windows = group.windows
        assert windows[0].start == group.start
        assert windows[-1].stop == group.stop
        # One short window only where fewer latents than a window exist in all.
        expected = window if total >= window else total
        assert all(w.length == expected for w in windows)
        assert all(a.start < b.start <= a.stop - overlap for a, b in pairwise(windows))
        assert len(windows) <= horizon
        assert 0 <= group.num_pinned <= num_kept_latents(window, overlap)
        assert group.num_pinned >= min(overlap, group.emitted)
        if number < len(groups) - 1:
            assert group.num_pinned == (overlap if number else 0)
            hops = {b.start - a.start for a, b in pairwise(windows)}
            assert hops <= {window - overlap}
            assert len(windows) == horizon


def test_first_later_and_final_group():
    sizes = {"window": 8, "overlap": 3, "horizon": 2}
    assert plan_group(0, 12, False, **sizes) is None
    first = plan_group(0, 40, False, **sizes)
    assert first == Group(0, 0, 13, (Window(0, 8), Window(5, 13)))
    assert plan_group(13, 22, False, **sizes) is None
    assert plan_group(13, 23, False, **sizes) == Group(10, 13, 23, (Window(10, 18), Window(15, 23)))
    # 14 latents of 10..: the second window is shifted back by one.
    assert plan_group(13, 22, True, **sizes) == Group(10, 13, 22, (Window(10, 18), Window(14, 22)))
    # One latent left: the window reaches back into what was shown.
    assert plan_group(13, 14, True, **sizes) == Group(6, 13, 14, (Window(6, 14),))
    assert plan_group(13, 13, True, **sizes) is None
    assert plan_group(0, 3, True, **sizes) == Group(0, 0, 3, (Window(0, 3),))
    assert plan_group(0, 0, True, **sizes) is None


def test_one_horizon_over_everything():
    group = plan_group(0, 14, True, window=8, overlap=3, horizon=10**9)
    assert group == Group(0, 0, 14, (Window(0, 8), Window(5, 13), Window(6, 14)))


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("window", {"window": 0, "overlap": 0}),
        ("overlap", {"overlap": 8}),
        ("overlap", {"overlap": -1}),
        ("horizon", {"horizon": 0}),
        ("emitted", {"emitted": -1}),
        ("available", {"emitted": 5, "available": 4}),
    ],
)
def test_plan_refuses(argument, values):
    call = {"emitted": 0, "available": 9, "window": 8, "overlap": 3, "horizon": 1, **values}
    with pytest.raises(InvalidArgument) as caught:
        plan_group(call.pop("emitted"), call.pop("available"), False, **call)
    assert caught.value.argument == argument


def defined_weight(group, window, latent, overlap, ramp):
    """Weight of `window` at `latent`, from the definition, as an exact fraction."""

    def raw(one):
        value = Fraction(1)
        if ramp == "linear" and one.start > group.start:
            value = min(value, Fraction(latent - one.start + 1, overlap + 1))
        if ramp == "linear" and one.stop < group.stop:
            value = min(value, Fraction(one.stop - latent, overlap + 1))
        return value

    return raw(window) / sum(raw(w) for w in group.windows if w.start <= latent < w.stop)


def check_weights(group, weights, overlap, ramp="linear"):
    """Weights are those of the definition and sum to 1."""
    total = torch.zeros(group.length, dtype=torch.float64)
    for window, weight in zip(group.windows, weights, strict=True):
        expected = [
            float(defined_weight(group, window, n, overlap, ramp))
            for n in range(window.start, window.stop)
        ]
        torch.testing.assert_close(weight, torch.tensor(expected), rtol=2**-23, atol=0)
        total[window.start - group.start : window.stop - group.start] += weight.double()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=2**-22, atol=0)


@settings(deadline=None)
@given(plan=plans(), ramp=st.sampled_from(["linear", "uniform"]))
def test_weights_follow_the_definition_and_sum_to_one(plan, ramp):
    total, sizes = plan
    for group in drain(total, sizes):
        weights = window_weights(group, sizes["overlap"], ramp)
        assert all(weight.dtype == torch.float32 for weight in weights)
        check_weights(group, weights, sizes["overlap"], ramp)


@settings(deadline=None)
@given(window=st.integers(1, 12), overlap=st.integers(0, 11), horizon=st.integers(1, 5))
def test_weights_are_symmetric_in_time_for_even_windows(window, overlap, horizon):
    overlap %= window
    total = window + (horizon - 1) * (window - overlap)
    group = plan_group(0, total, False, window=window, overlap=overlap, horizon=horizon)
    weights = window_weights(group, overlap)
    for weight, mirrored in zip(weights, reversed(weights), strict=True):
        assert torch.equal(weight, mirrored.flip(0))


def test_known_ramp():
    group = plan_group(0, 13, True, window=8, overlap=3, horizon=2)
    first, second = window_weights(group, 3)
    assert first.tolist() == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert second.tolist() == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


def test_unknown_ramp():
    group = plan_group(0, 13, True, window=8, overlap=3, horizon=2)
    with pytest.raises(InvalidArgument, match="ramp"):
        window_weights(group, 3, "cosine")


def planted_weights(group, overlap, fault):
    """Weights with one fault, made from the definition."""
    weights = []
    for window in group.windows:
        row = []
        for n in range(window.start, window.stop):
            up, down = n - window.start + 1, window.stop - n
            if fault == "off_by_one_ramp":
                up, down = up - 1, down - 1
            raw = min(
                1.0,
                up / (overlap + 1) if window.start > group.start else 1.0,
                down / (overlap + 1) if window.stop < group.stop else 1.0,
            )
            row.append(raw)
        weights.append(torch.tensor(row))
    if fault != "unnormalised":
        total = torch.zeros(group.length)
        for window, weight in zip(group.windows, weights, strict=True):
            total[window.start : window.stop] += weight
        weights = [
            weight / total[window.start : window.stop]
            for window, weight in zip(group.windows, weights, strict=True)
        ]
    return weights


def test_planted_faults_are_rejected():
    group = plan_group(0, 14, True, window=8, overlap=3, horizon=9)
    check_weights(group, planted_weights(group, 3, None), 3)
    for fault in ("unnormalised", "off_by_one_ramp"):
        with pytest.raises(AssertionError):
            check_weights(group, planted_weights(group, 3, fault), 3)
    with pytest.raises(AssertionError):
        check_weights(group, window_weights(group, 3, "uniform"), 3)


def fuse(predictions, group, weights):
    """The operator with one guidance pass of weight 1."""
    starts = [window.start - group.start for window in group.windows]
    velocities = [prediction[None] for prediction in predictions]
    return blf_velocity(velocities, starts, weights, [1.0], length=group.length)


def predictions_for(group, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, w.length, 3, 4, generator=generator) for w in group.windows]


@settings(deadline=None, max_examples=40)
@given(plan=plans(), ramp=st.sampled_from(["linear", "uniform"]), seed=st.integers(0, 99))
def test_fuse_equals_the_average_by_definition(plan, ramp, seed):
    total, sizes = plan
    for group in drain(total, sizes):
        predictions = predictions_for(group, seed)
        weights = window_weights(group, sizes["overlap"], ramp)
        fused = fuse(predictions, group, weights)
        assert fused.shape == (2, group.length, 3, 4)
        for n in range(group.start, group.stop):
            expected = sum(
                float(defined_weight(group, window, n, sizes["overlap"], ramp))
                * prediction[:, n - window.start].double()
                for window, prediction in zip(group.windows, predictions, strict=True)
                if window.start <= n < window.stop
            )
            got = fused[:, n - group.start].double()
            torch.testing.assert_close(got, expected, rtol=1.3e-6, atol=1e-5)


def test_where_one_window_covers_the_prediction_is_copied_bit_by_bit():
    group = plan_group(0, 13, True, window=8, overlap=3, horizon=2)
    predictions = predictions_for(group)
    predictions[0][:, 0, 0, 0] = torch.tensor([-0.0, 1e-42])
    fused = fuse(predictions, group, window_weights(group, 3))
    for at, source in ((slice(0, 5), predictions[0][:, :5]), (slice(8, 13), predictions[1][:, 3:])):
        assert torch.equal(fused[:, at].view(torch.int32), source.contiguous().view(torch.int32))
    single = plan_group(0, 6, True, window=8, overlap=3, horizon=2)
    alone = predictions_for(single)
    assert torch.equal(fuse(alone, single, window_weights(single, 3)), alone[0])


def test_low_precision_predictions_are_fused_in_fp32():
    group = plan_group(0, 13, True, window=8, overlap=3, horizon=2)
    low = [prediction.bfloat16() for prediction in predictions_for(group)]
    weights = window_weights(group, 3)
    fused = fuse(low, group, weights)
    assert fused.dtype == torch.float32
    assert torch.equal(fused, fuse([prediction.float() for prediction in low], group, weights))
