"""Blocks in host memory: the same bytes, two sets of buffers, no block used while it is away."""

import numpy as np
import pytest
import torch
from torch import nn

import skyreels_rt as rt
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.runtime.offload import BlockOffload

CPU = torch.device("cpu")


def blocks(count=5):
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(count)]


def matrices(block):
    return [p for p in block.parameters() if p.ndim == 2]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_blocks_compute_from_the_buffers_and_give_the_same_bytes(count):
    stack = blocks(count)
    x = torch.randn(3, 8)
    expected = x
    for block in stack:
        expected = block(expected)
    offload = BlockOffload(stack, CPU)
    at_home = {p.data_ptr() for block in stack for p in matrices(block)}
    for _ in range(2):
        y, places = x, set()
        for index in offload.resident():
            y = stack[index](y)
            places |= {p.data_ptr() for p in matrices(stack[index])}
            others = [b for k, b in enumerate(stack) if k != index]
            assert {p.data_ptr() for b in others for p in matrices(b)} <= at_home
        assert torch.equal(y, expected)
        assert not places & at_home
        assert len(places) == 2 * min(2, count)
    assert offload.host_bytes == count * 2 * 8 * 16 * 4
    assert offload.device_bytes == min(2, count) * 2 * 8 * 16 * 4


def test_the_next_block_is_fetched_while_one_computes():
    stack = blocks(3)
    offload = BlockOffload(stack, CPU)
    for index in offload.resident():
        if index == 0:
            # A change at home comes too late for the block that is already under way ...
            first = matrices(stack[1])[0].data.clone()
            matrices(stack[1])[0].data.zero_()
            matrices(stack[2])[0].data.zero_()
        if index == 1:
            assert torch.equal(matrices(stack[1])[0], first)
        if index == 2:  # ... and in time for the one after.
            assert not matrices(stack[2])[0].any()


def test_parts_of_a_block_come_alone():
    stack = blocks(2)
    offload = BlockOffload(stack, CPU)
    home = [[p.data_ptr() for p in matrices(block)] for block in stack]
    for index in offload.resident("0."):
        now = [p.data_ptr() for p in matrices(stack[index])]
        assert now[0] != home[index][0]
        assert now[1] == home[index][1]


def test_a_pass_that_breaks_off_leaves_everything_at_home_for_the_next():
    stack = blocks(3)
    offload = BlockOffload(stack, CPU)
    home = [p.data_ptr() for block in stack for p in matrices(block)]
    going = offload.resident()
    next(going)
    next(going)
    for index in offload.resident():
        assert index == 0
        break
    del going
    list(offload.resident())
    assert [p.data_ptr() for block in stack for p in matrices(block)] == home


def test_blocks_may_differ_in_shape_and_type():
    stack = [nn.Linear(8, 8), nn.Linear(8, 9).double(), nn.Linear(3, 8)]
    before = [block.weight.data.clone() for block in stack]
    offload = BlockOffload(stack, CPU)
    for index in offload.resident():
        assert torch.equal(stack[index].weight, before[index])
    with pytest.raises(InvalidArgument, match="offload"):
        BlockOffload([], CPU)


def frames(engine):
    speech = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    return engine.generate(
        speech, sample_rate=16_000, image=np.full((128, 128, 3), 90, np.uint8), prompt="a man",
        num_steps=2, text_guidance_scale=2.0,
    ).frames  # fmt: skip


@pytest.mark.parametrize("quantization", [None, "fp8"])
def test_an_offloaded_engine_gives_the_same_bytes(quantization):
    plain = rt.Engine.from_pretrained("tiny-random", quantization=quantization)
    away = rt.Engine.from_pretrained("tiny-random", quantization=quantization, offload=True)
    assert np.array_equal(frames(plain), frames(away))
    assert "host memory" in away.describe()
    assert ("fp8" in away.describe()) == (quantization is not None)
    here, there = plain.estimate(5.0), away.estimate(5.0)
    assert there.host > 0 == here.host
    assert there.weights < here.weights
    assert there.fits and "host weights" in there.describe()


def test_a_snapshot_of_a_quantised_engine_goes_on_in_an_offloaded_one():
    engines = [
        rt.Engine.from_pretrained("tiny-random", quantization="fp8", offload=offload)
        for offload in (False, True)
    ]
    speech = 0.1 * np.random.default_rng(0).standard_normal(80_000).astype(np.float32)
    with engines[0].open_session(
        image=np.full((128, 128, 3), 90, np.uint8), num_steps=1
    ) as session:
        session.push_audio(speech, 16_000)
        session.end_audio()
        chunks = session.frames()
        next(chunks)
        snapshot = session.snapshot()
        rest = np.concatenate([chunk.frames for chunk in chunks])
    with engines[1].restore_session(snapshot) as session:
        again = np.concatenate([chunk.frames for chunk in session.frames()])
    assert np.array_equal(rest, again)
    with pytest.raises(InvalidArgument, match="model"):
        rt.Engine.from_pretrained("tiny-random").restore_session(snapshot)


def test_an_estimate_says_what_does_not_fit():
    estimate = rt.MemoryEstimate(4, 3, 2, 1, available=9)
    assert estimate.total == 10 and estimate.fits is False
    assert estimate.describe().endswith("does not fit")
    assert rt.MemoryEstimate(1, 1, 1, 1).fits is None


@pytest.mark.gpu
def test_on_cuda_the_copies_overlap_and_give_the_same_bytes():
    device = torch.device("cuda")
    torch.manual_seed(0)
    stack = [nn.Linear(2048, 2048) for _ in range(12)]
    here = [nn.Linear(2048, 2048).cuda() for _ in range(12)]
    for block, other in zip(stack, here, strict=True):
        other.load_state_dict(block.state_dict())
    x = torch.randn(4096, 2048, device=device)
    expected = x
    for block in here:
        expected = block(expected).relu()
    offload = BlockOffload(stack, device)
    for _ in range(5):
        y = x
        for index in offload.resident():
            assert stack[index].weight.is_cuda
            y = stack[index](y).relu()
        assert torch.equal(y, expected)
    assert not stack[0].weight.is_cuda and stack[0].weight.is_pinned()
    assert stack[0].bias.is_cuda


@pytest.mark.gpu
@pytest.mark.parametrize("quantization", [None, "fp8_weight"])
def test_an_offloaded_engine_on_cuda_gives_the_same_bytes(quantization):
    options = {"device": "cuda", "quantization": quantization}
    plain = rt.Engine.from_pretrained("tiny-random", **options)
    away = rt.Engine.from_pretrained("tiny-random", offload=True, **options)
    assert np.array_equal(frames(plain), frames(away))
