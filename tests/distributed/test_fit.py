"""Meshes that do not fit are refused, with the nearest that do."""

import pytest
import torch

import skyreels_rt as rt
from skyreels_rt.distributed.axis import split_evenly
from skyreels_rt.distributed.fit import (
    require_even_heads,
    require_heads,
    require_job,
    require_world,
)
from skyreels_rt.distributed.mesh import open_mesh
from skyreels_rt.distributed.usp import SequenceShard
from skyreels_rt.errors import InvalidArgument, InvalidMesh


def refused(call, *arguments, **options):
    with pytest.raises(InvalidMesh) as caught:
        call(*arguments, **options)
    for text in caught.value.suggestions:
        if text != "no axis":
            call(rt.Parallel.from_text(text), *arguments[1:], **options)  # a suggestion must fit
    return caught.value


def test_axes_must_use_every_rank():
    require_world(rt.Parallel(window=2, ulysses=2), 4)
    error = refused(require_world, rt.Parallel(window=3), 4)
    assert error.suggestions == ("window=4", "window=2,guidance=2", "window=2,ulysses=2")
    assert "3 ranks" in str(error)
    assert refused(require_world, rt.Parallel(), 2).suggestions[0] == "window=2"
    assert refused(require_world, rt.Parallel(window=2), 1).suggestions == ("no axis",)


def test_every_ulysses_rank_needs_a_head():
    require_heads(rt.Parallel(ulysses=3), 3)
    error = refused(require_heads, rt.Parallel(ulysses=4), 3)
    assert error.suggestions[0] == "window=4"
    assert all(rt.Parallel.from_text(text).ulysses <= 3 for text in error.suggestions)


def test_even_heads_where_asked_strictly():
    """12 heads on 5 ranks and 10 on 4 run unevenly; who insists is told what divides."""
    require_even_heads(rt.Parallel(ulysses=4), 12)
    for ranks, heads in ((5, 12), (4, 10)):
        require_heads(rt.Parallel(ulysses=ranks), heads)
        error = refused(require_even_heads, rt.Parallel(ulysses=ranks), heads)
        assert all(heads % rt.Parallel.from_text(t).ulysses == 0 for t in error.suggestions)
    assert split_evenly(12, 5) == (3, 3, 2, 2, 2)


def test_no_rank_without_work():
    job = {"num_passes": 2, "num_heads": 12}
    require_job(rt.Parallel(window=4, guidance=2), horizon=4, **job)
    error = refused(require_job, rt.Parallel(window=4), horizon=2, **job)
    assert error.argument == "parallel.window"
    assert "2 windows" in str(error)
    error = refused(require_job, rt.Parallel(guidance=3), horizon=8, **job)
    assert error.argument == "parallel.guidance"
    assert error.suggestions == ("window=3", "ulysses=3", "ring=3")


def test_a_single_process_is_a_mesh_of_one():
    mesh = open_mesh(rt.Parallel(), torch.device("cpu"))
    assert mesh.is_writer
    assert mesh.sent_bytes == {}
    assert mesh.any(True)
    assert not mesh.any(False)
    assert mesh.describe() == "one rank"
    mesh.wait_for_all()
    with pytest.raises(InvalidMesh, match="one rank, or 2 processes"):
        open_mesh(rt.Parallel(window=2), torch.device("cpu"))
    shard = SequenceShard(mesh, 5)
    assert (shard.start, shard.stop) == (0, 5)


def test_torchrun_variables_are_numbers(monkeypatch):
    monkeypatch.setenv("RANK", "first")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidArgument, match="RANK"):
        open_mesh(rt.Parallel(window=2), torch.device("cpu"))


@pytest.mark.parametrize(("count", "parts"), [(0, 3), (1, 3), (7, 3), (9, 3)])
def test_shares_differ_by_one_at_most(count, parts):
    sizes = split_evenly(count, parts)
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    assert list(sizes) == sorted(sizes, reverse=True)
