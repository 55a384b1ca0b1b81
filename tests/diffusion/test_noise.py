"""Noise belongs to a latent's place on the timeline and to nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skyreels_rt.diffusion.noise import timeline_noise
from skyreels_rt.errors import InvalidArgument

SHAPE = (4, 3, 5)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    first=st.integers(0, 2**40),
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=4),
)
def test_any_chunking_gives_the_same_noise(seed, first, cuts):
    whole = timeline_noise(seed, first, sum(cuts), SHAPE)
    parts, at = [], first
    for count in cuts:
        parts.append(timeline_noise(seed, at, count, SHAPE))
        at += count
    assert torch.equal(whole, torch.cat(parts, dim=1))


def test_a_longer_run_has_the_same_prefix():
    assert torch.equal(timeline_noise(3, 0, 9, SHAPE)[:, :4], timeline_noise(3, 0, 4, SHAPE))


def test_shape_and_dtype():
    noise = timeline_noise(0, 5, 2, SHAPE)
    assert noise.shape == (4, 2, 3, 5)
    assert noise.dtype == torch.float32
    assert noise.device.type == "cpu"
    assert timeline_noise(0, 5, 0, SHAPE).shape == (4, 0, 3, 5)


def test_global_rng_is_neither_read_nor_moved():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = timeline_noise(1, 0, 3, SHAPE)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(first, timeline_noise(1, 0, 3, SHAPE))


def test_frames_seeds_and_far_indices_differ():
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (2**32, 0), (2**63, 0), (2**64 - 1, 0)]
    places += [(0, 2**32), (0, 2**32 + 1), (0, 2**33), (0, 2**63 + 5), (0, 2**70)]
    drawn = [timeline_noise(seed, index, 1, SHAPE) for seed, index in places]
    for i, one in enumerate(drawn):
        assert not any(torch.equal(one, other) for other in drawn[:i]), places[i]


def test_no_two_latents_of_an_hour_share_their_noise():
    # 32 bits of seed and a plain hash would collide in one such run of seventeen.
    seen = {float(timeline_noise(7, i, 1, (1, 4, 4)).double().sum()) for i in range(2000)}
    assert len(seen) == 2000


def test_noise_is_standard_normal_and_uncorrelated():
    noise = timeline_noise(11, 0, 200, (4, 8, 8)).double()
    count = noise.numel()
    limit = 5 / count**0.5  # five standard errors
    assert abs(noise.mean()) < limit
    assert abs(noise.var() - 1) < limit * 2**0.5
    assert abs((noise[:, 1:] * noise[:, :-1]).mean()) < limit


@pytest.mark.parametrize(
    ("argument", "values"),
    [("seed", (-1, 0, 1)), ("seed", (2**64, 0, 1)), ("first", (0, -1, 1)), ("count", (0, 0, -1))],
)
def test_refuses_numbers_out_of_range(argument, values):
    with pytest.raises(InvalidArgument) as caught:
        timeline_noise(*values, SHAPE)
    assert caught.value.argument == argument
