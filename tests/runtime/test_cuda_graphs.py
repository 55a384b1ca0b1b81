"""Recorded steps: the bookkeeping with a recorder that runs the work again, and real graphs."""

import gc
import threading
import weakref
from dataclasses import dataclass

import pytest
import torch

import skyreels_rt as rt
from skyreels_rt.errors import GraphCaptureFailed, InvalidArgument
from skyreels_rt.runtime.cuda_graphs import CudaRecorder, Held, StepGraphs, step_graphs
from skyreels_rt.runtime.host_reads import HostRead, RefuseHostReads
from skyreels_rt.testing.graph_recorder import RerunRecorder


@dataclass(frozen=True)
class Context:
    keys: tuple[torch.Tensor, ...]
    image: torch.Tensor | None
    count: int = 1


def step(fresh, held):
    x, time = fresh
    context, scale = held
    total = x * scale + time
    for keys in context.keys:
        total = torch.tanh(total @ keys) * context.count
    return total, x - total


def values(seed, shape=(3, 4), device="cpu"):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def held_of(seed, count=1, layers=2, device="cpu"):
    keys = tuple(values(seed + k, (4, 4), device) for k in range(layers))
    return Held((Context(keys, None, count), values(seed + 9, (1,), device)))


def run_mixed(graphs, device="cpu"):
    """Runs that differ in shape, held tensors and constants, in turns: results and truth."""
    helds = [held_of(0, device=device), held_of(50, device=device), held_of(0, 3, device=device),
             held_of(7, layers=1, device=device)]  # fmt: skip
    results = []
    for seed in range(12):
        shape = (3, 4) if seed % 3 else (5, 4)
        fresh = (values(100 + seed, shape, device), values(seed, (1,), device))
        held = helds[seed % 4]
        results.append((graphs.run("toy", step, fresh, held), step(fresh, held.tree)))
    return results


def assert_equal_to_eager(graphs, device="cpu"):
    for got, expected in run_mixed(graphs, device):  # after all runs: nobody else's results
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_replays_equal_the_step_and_record_once_per_layout():
    recorder = RerunRecorder()
    graphs = StepGraphs(recorder, required=True)
    assert_equal_to_eager(graphs)
    # Two shapes x three layouts: two of the helds differ in values alone.
    assert recorder.num_recorded == 6
    assert recorder.num_replayed == 12
    assert_equal_to_eager(graphs)
    assert recorder.num_recorded == 6
    graphs.clear()
    assert graphs.kinds == ()
    assert_equal_to_eager(graphs)
    assert recorder.num_recorded == 12


class Frozen(RerunRecorder):
    """A graph that was captured on addresses which nobody fills again."""

    def record(self, work):
        results = work()
        return (lambda: None), results


class LateResults(RerunRecorder):
    """Replays one run behind: the results of the inputs before."""

    def record(self, work):
        results, before = work(), work()

        def replay():
            nonlocal before
            for place, result in zip(results, before, strict=True):
                place.copy_(result)
            before = work()

        return replay, results


@pytest.mark.parametrize("fault", [Frozen, LateResults])
def test_planted_stale_buffers_are_seen(fault):
    with pytest.raises(AssertionError):
        assert_equal_to_eager(StepGraphs(fault()))


def test_held_tensors_are_copied_when_they_are_others_and_only_then():
    """The contract, seen from its breach: a write to a held tensor behind its back is not seen."""
    graphs = StepGraphs(RerunRecorder())
    fresh, held = (values(1), values(2, (1,))), held_of(0)
    first = graphs.run("toy", step, fresh, held)
    held.tensors[0].mul_(2)
    again = graphs.run("toy", step, fresh, held)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(again[0], step(fresh, held.tree)[0])
    graphs.run("toy", step, fresh, held_of(5))
    assert torch.equal(graphs.run("toy", step, fresh, held)[0], step(fresh, held.tree)[0])


def test_one_tensor_in_two_places_is_one_buffer_and_another_layout():
    recorder, a, b = RerunRecorder(), values(1, (4, 4)), values(2, (4, 4))
    graphs, scale = StepGraphs(recorder), values(3, (1,))
    fresh = (values(4), values(5, (1,)))
    for keys in ((a, a), (a, b), (b, b), (b, a)):
        held = Held((Context(keys, None), scale))
        assert torch.equal(graphs.run("toy", step, fresh, held)[0], step(fresh, held.tree)[0])
    assert recorder.num_recorded == 2
    assert len(Held((Context((a, a), None), scale)).tensors) == 2


def test_strides_and_expanded_tensors():
    graphs = StepGraphs(RerunRecorder())
    pair = values(1, (3, 8))
    for x in (pair[:, 4:], values(2, (4, 3)).t(), values(3, (1, 4)).expand(3, 4)):
        fresh, held = (x, values(5, (1,))), held_of(0)
        assert torch.equal(graphs.run("toy", step, fresh, held)[0], step(fresh, held.tree)[0])
    assert len(graphs.kinds) == 3


def test_what_was_given_is_not_kept_alive():
    graphs = StepGraphs(RerunRecorder())
    held = held_of(0)
    fresh = (values(1), values(2, (1,)))
    graphs.run("toy", step, fresh, held)
    watched = [weakref.ref(tensor) for tensor in (*held.tensors, *fresh)]
    del held, fresh
    gc.collect()
    assert [ref() for ref in watched] == [None] * len(watched)


def test_the_least_used_makes_room():
    recorder = RerunRecorder()
    graphs, held = StepGraphs(recorder, limit=2), held_of(0)

    def run(rows):
        graphs.run("toy", step, (values(1, (rows, 4)), values(2, (1,))), held)

    for rows in (1, 2, 1, 3, 1):  # 3 takes the place of 2
        run(rows)
    assert recorder.num_recorded == 3
    assert len(graphs.kinds) == 2
    one = 4 * (4 + 1 + 4 + 4)  # fresh and results of a row, without held
    assert graphs.num_bytes == one * 4 - 4 * 2 + 4 * (2 * 16 + 1)
    with pytest.raises(InvalidArgument, match="limit"):
        StepGraphs(recorder, limit=0)


def reads_item(fresh, held):
    return (fresh[0] * float(fresh[1]),)


def picks_by_mask(fresh, held):
    return (fresh[0][fresh[0] > 0],)


def counts(fresh, held):
    return (fresh[0].nonzero(),)


def brings_numbers(fresh, held):
    return (fresh[0] * torch.tensor([1.0, 2.0, 3.0, 4.0]),)


def branches(fresh, held):
    return (fresh[0] if fresh[1] > 0 else -fresh[0],)


REFUSED = [
    (reads_item, "aten._local_scalar_dense"), (picks_by_mask, "aten.index.Tensor"),
    (counts, "aten.nonzero"), (brings_numbers, "aten.lift_fresh"),
    (branches, "aten._local_scalar_dense"),
]  # fmt: skip


@pytest.mark.parametrize(("work", "operation"), REFUSED)
def test_what_cannot_be_recorded_is_named(work, operation, caplog):
    fresh = (values(1), values(2, (1,)))
    with pytest.raises(GraphCaptureFailed) as caught:
        StepGraphs(RerunRecorder(), required=True).run("compute", work, fresh)
    assert operation in str(caught.value) and "'compute'" in str(caught.value)
    assert "(3, 4)" in str(caught.value) and 'graphs="auto"' in str(caught.value)
    assert operation in caught.value.operation
    graphs = StepGraphs(RerunRecorder())
    for _ in range(3):
        assert torch.equal(graphs.run("compute", work, fresh)[0], work(fresh, ())[0])
    assert graphs.kinds == ()
    assert caplog.text.count(operation) == 1  # said, and said once


def test_integer_indices_and_plain_numbers_are_fine():
    x = values(1)
    rows = torch.tensor([2, 0])
    with RefuseHostReads():
        y = torch.where(x > 0, x, -1.0)[rows] * 2.0
    assert y.shape == (2, 4)
    with pytest.raises(HostRead, match="from cpu to meta"), RefuseHostReads():
        x.to("meta")
    with pytest.raises(HostRead, match="from cpu to meta"), RefuseHostReads():
        torch.empty(3, 4, device="meta").copy_(x)
    with pytest.raises(HostRead, match="_local_scalar_dense"), RefuseHostReads():
        bool(x.isfinite().all())


def test_threads_get_their_own_results():
    graphs, failures = StepGraphs(RerunRecorder()), []

    def work(seed):
        held = held_of(seed)
        for turn in range(40):
            fresh = (values(1000 * seed + turn), values(turn, (1,)))
            if not torch.equal(graphs.run("toy", step, fresh, held)[0], step(fresh, held.tree)[0]):
                failures.append((seed, turn))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_the_option():
    cpu, cuda = torch.device("cpu"), torch.device("cuda:0")
    assert step_graphs("auto", cpu) is None
    assert step_graphs(False, cuda) is None
    assert step_graphs("auto", cuda, is_alone=False) is None
    assert step_graphs("auto", cuda, offloads=True) is None
    for where, options, why in (
        (cpu, {}, "the device cpu"), (cuda, {"is_alone": False}, "ranks"),
        (cuda, {"offloads": True}, "offload"),
    ):  # fmt: skip
        with pytest.raises(InvalidArgument, match=why):
            step_graphs(True, where, **options)
    for wrong in ("on", 1, None):
        with pytest.raises(InvalidArgument, match="graphs"):
            step_graphs(wrong, cpu)
    with pytest.raises(InvalidArgument, match="graphs: expected a CUDA device"):
        rt.Engine.from_pretrained("tiny-random", device="cpu", graphs=True)
    engine = rt.Engine.from_pretrained("tiny-random", device="cpu", graphs="auto")
    assert engine.components.graphs is None
    assert "graphs       none" in engine.describe()


@pytest.mark.gpu
def test_cuda_graphs_equal_the_step():
    graphs = StepGraphs(CudaRecorder(torch.device("cuda")), required=True)
    assert_equal_to_eager(graphs, "cuda")
    assert_equal_to_eager(graphs, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize(("work", "operation"), REFUSED)
def test_on_cuda_a_refused_step_leaves_the_device_usable(work, operation):
    graphs = StepGraphs(CudaRecorder(torch.device("cuda")), required=True)
    fresh = (values(1, device="cuda"), values(2, (1,), "cuda"))
    if work is brings_numbers:

        def work(fresh, held):
            return (fresh[0] * torch.tensor([1.0, 2.0, 3.0, 4.0], device="cuda"),)

    with pytest.raises(GraphCaptureFailed):
        graphs.run("compute", work, fresh)
    assert_equal_to_eager(graphs, "cuda")
