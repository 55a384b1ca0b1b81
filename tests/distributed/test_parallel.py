"""The four numbers that say how a job is spread."""

import json

import pytest

import skyreels_rt as rt
from skyreels_rt.errors import InvalidArgument


def test_one_rank_by_default():
    assert rt.Parallel().world_size == 1
    assert rt.Parallel(window=2, guidance=3, ulysses=5, ring=7).world_size == 210


@pytest.mark.parametrize("name", ["window", "guidance", "ulysses", "ring"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True, None])
def test_sizes_are_whole_numbers(name, value):
    with pytest.raises(InvalidArgument, match=f"parallel.{name}"):
        rt.Parallel(**{name: value})


def test_there_are_three_passes_at_most():
    with pytest.raises(InvalidArgument, match="guidance"):
        rt.Parallel(guidance=4)


@pytest.mark.parametrize(
    "parallel", [rt.Parallel(), rt.Parallel(window=2), rt.Parallel(2, 3, 5, 7)]
)
def test_json_and_text_come_back(parallel):
    assert rt.Parallel.from_dict(json.loads(json.dumps(parallel.to_dict()))) == parallel
    assert rt.Parallel.from_text(str(parallel)) == parallel


@pytest.mark.parametrize(
    "text", ["cfg=2", "window", "window=", "window=x", "window=2,window=2", "window=-1", "=2"]
)
def test_other_texts_are_refused(text):
    with pytest.raises(InvalidArgument, match="parallel"):
        rt.Parallel.from_text(text)


def test_parallel_is_hashable_and_equal_by_value():
    assert len({rt.Parallel(window=2), rt.Parallel(window=2), rt.Parallel(ring=2)}) == 2
