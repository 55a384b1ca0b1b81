"""The benchmark of step graphs, with a recorder that needs no GPU."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from skyreels_rt.bench.graphs import GRAPH_CASES, KINDS, measure_graphs
from skyreels_rt.bench.scaling import ScalingCase
from skyreels_rt.distributed.cost_model import StepShape
from skyreels_rt.errors import GraphCaptureFailed, InvalidArgument
from skyreels_rt.testing.graph_recorder import RerunRecorder
from skyreels_rt.testing.tiny import TinyModel

CPU = torch.device("cpu")
SMALL = StepShape(window=5, overlap=2, num_windows=1, num_passes=2, height=4, width=4)
CASE = ScalingCase("small", "a tiny model", TinyModel().transformer, SMALL)


class Counting(RerunRecorder):
    made: ClassVar[list[RerunRecorder]] = []

    def __init__(self, device):
        super().__init__()
        assert device == CPU
        self.made.append(self)


@pytest.mark.parametrize("image_dim", [None, 32])
def test_rows_of_every_kind_and_side(image_dim):
    case = replace(CASE, config=replace(CASE.config, image_dim=image_dim))
    seen = []
    Counting.made.clear()
    report = measure_graphs(
        command="test", device=CPU, dtype=torch.float32, repeats=5, cases=(case,),
        recorder=Counting, on_row=seen.append,
    )  # fmt: skip
    assert seen == report.rows
    rows = {row.name: row for row in report.rows}
    assert set(rows) == {
        "graphs.small.buffers",
        *(f"graphs.small.{kind}.{what}" for kind in KINDS
          for what in ("eager_seconds", "graph_seconds", "ratio")),
    }  # fmt: skip
    (recorder,) = Counting.made
    # A recording for each kind, a replay for each of its steps, the warm ones too.
    assert (recorder.num_recorded, recorder.num_replayed) == (3, 3 * (5 + 2))
    assert rows["graphs.small.buffers"].value > 0


def test_what_is_refused():
    with pytest.raises(InvalidArgument, match="device: expected a CUDA device"):
        measure_graphs(command="test", device=CPU)
    with pytest.raises(InvalidArgument, match="repeats"):
        measure_graphs(command="test", device=CPU, repeats=2, recorder=Counting)

    class Unable(Counting):
        def record(self, work):
            raise GraphCaptureFailed("aten.x cannot be captured.", operation="aten.x")

    with pytest.raises(GraphCaptureFailed, match=r"aten\.x"):
        measure_graphs(
            command="test", device=CPU, dtype=torch.float32, repeats=5,
            cases=(replace(CASE, name="other"),), recorder=Unable,
        )  # fmt: skip
    assert {case.name for case in GRAPH_CASES} == {"14b_window", "14b_live", "1b_live"}


@pytest.mark.gpu
def test_on_cuda():
    report = measure_graphs(command="test", device=torch.device("cuda"), repeats=5, cases=(CASE,))
    assert len(report.rows) == 10
