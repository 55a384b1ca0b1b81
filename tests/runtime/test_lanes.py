"""Lanes: in place, and the order of a side stream's calls, against a stand-in for CUDA."""

from contextlib import contextmanager
from types import SimpleNamespace
from weakref import ref

import pytest
import torch

from skyreels_rt.runtime.lanes import InPlace, SideStream, lane_for


def test_in_place_is_done_at_once():
    lane = lane_for(torch.device("cpu"))
    assert isinstance(lane, InPlace)
    pending = lane.start(lambda: 5)
    assert pending.is_done()
    assert pending.result() == 5
    tensor = torch.ones(3)
    assert lane.to_host(tensor) is tensor
    with pytest.raises(ZeroDivisionError):
        lane.start(lambda: 1 // 0)


@pytest.fixture
def cuda(monkeypatch):
    """What a side stream is asked to do, in order."""
    log = []

    class Stream:
        def __init__(self, device, priority):
            assert priority < 0, "frames are waited for"

        def wait_stream(self, other):
            log.append(f"wait for {other}")

        def synchronize(self):
            log.append("wait for all")

    class Event:
        passed = False

        def record(self, stream):
            log.append("record")

        def query(self):
            return self.passed

        def synchronize(self):
            log.append("wait for event")

    @contextmanager
    def on(stream):
        log.append("enter")
        yield
        log.append("leave")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "main")
    return SimpleNamespace(log=log, Event=Event)


def test_a_side_stream_starts_behind_the_main_one_and_keeps_what_it_reads(cuda):
    lane = lane_for(torch.device("cuda", 0))
    assert isinstance(lane, SideStream)
    source = torch.ones(2)
    alive = ref(source)

    def work(tensor=source):
        cuda.log.append("work")
        return tensor.shape

    pending = lane.start(work)
    assert cuda.log == ["wait for main", "enter", "work", "record", "leave"]
    del work, source
    assert alive() is not None, "kernels still read it"
    assert not pending.is_done()
    cuda.Event.passed = True
    assert pending.is_done()
    assert pending.result() == (2,)
    assert cuda.log[-1] == "wait for event"
    del pending
    assert alive() is None


def test_work_that_fails_leaves_nothing_running(cuda):
    def work():
        raise MemoryError

    with pytest.raises(MemoryError):
        lane_for(torch.device("cuda", 0)).start(work)
    assert cuda.log[-1] == "wait for all"
