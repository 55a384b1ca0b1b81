"""Supervision of worker processes, with stand-ins that die, hang and fail on request."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from skyreels_rt.distributed.workers import Timeouts, WorkerGroup
from skyreels_rt.errors import (
    AdmissionRefused,
    InvalidArgument,
    OutOfMemory,
    SessionStateError,
    WorkerDied,
    WorkerFailed,
    WorkerTimeout,
)

STAND_IN = (sys.executable, "-P", str(Path(__file__).with_name("stand_in_worker.py")))


def start(size=2, *, environment=(), **timeouts):
    quick = {"start_s": 60.0, "step_s": 1.0, "silence_s": 1.0, **timeouts}
    return WorkerGroup(
        STAND_IN, size, timeouts=Timeouts(**quick), environment={**os.environ, **dict(environment)}
    )


@pytest.fixture
def group(assert_gone):
    started = start()
    started.call("start").result()
    yield started
    started.close()
    assert_gone([one.pid for one in started.status()])


def test_requests_and_arrays_reach_every_worker_and_come_back(group):
    sent = {"a": np.arange(12, dtype=">i2").reshape(3, 4).T, "none": np.zeros((0, 3), np.float32)}
    call = group.call("echo", {"text": "grüß"}, sent)
    (message,) = call.messages()
    assert message.facts["text"] == "grüß"
    for name, array in sent.items():
        np.testing.assert_array_equal(message.arrays[name], array)
    assert call.result() == {"pid": group.status()[0].pid}
    assert [one.error for one in group.status()] == [None, None]


@pytest.mark.parametrize(
    "rank, how", [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSEGV)]
)
def test_a_death_during_a_job_is_raised_now_and_ever_after(group, rank, how, assert_gone, raised):
    call = group.call("work_slowly", {"units": 1000})
    os.kill(group.status()[rank].pid, how)
    for raising in (call.result, call.result, lambda: group.call("echo")):
        error = raised(raising, WorkerDied)
        assert (error.rank, error.signal, error.exit_code) == (rank, how, None)
    assert_gone([one.pid for one in group.status()])


def test_a_death_between_jobs_is_raised_by_the_next(group, assert_gone, raised):
    os.kill(group.status()[1].pid, signal.SIGKILL)
    assert_gone([one.pid for one in group.status()])
    assert raised(lambda: group.call("echo").result(), WorkerDied).rank == 1


def test_an_exit_is_a_death_with_its_code(group, raised):
    error = raised(group.call("leave", {"code": 3, "ranks": [1]}).result, WorkerDied)
    assert (error.rank, error.signal, error.exit_code) == (1, None, 3)


@pytest.mark.parametrize("ranks", ["0", "1", "0,1"])
def test_a_death_during_start_is_raised(ranks, assert_gone, raised):
    group = start(environment={"DIES_AT_START": ranks})
    try:
        error = raised(lambda: group.call("start").result(), WorkerDied, 10.0)
        assert str(error.rank) in ranks.split(",")
        assert error.signal == signal.SIGKILL
    finally:
        group.close()
    assert_gone([one.pid for one in group.status()])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_worker_is_a_timeout(group, rank, assert_gone, raised):
    call = group.call("work_slowly", {"units": 1000, "ranks": [1 - rank]})
    os.kill(group.status()[rank].pid, signal.SIGSTOP)
    error = raised(call.result, WorkerTimeout)
    assert error.rank == rank
    assert "no sign of life" in str(error)
    assert_gone([one.pid for one in group.status()])
    assert raised(lambda: group.call("echo"), WorkerTimeout).rank == rank


def test_a_worker_stopped_between_jobs_is_a_timeout_too(group, assert_gone, raised):
    os.kill(group.status()[1].pid, signal.SIGSTOP)
    assert_gone([one.pid for one in group.status()])
    assert raised(lambda: group.call("echo"), WorkerTimeout).rank == 1


def test_a_worker_that_gets_no_further_is_told_from_a_slow_one(group, raised):
    group.call("work_slowly", {"units": 50}).result()  # 2.5 s, with a limit of 1 s a unit
    error = raised(group.call("hang").result, WorkerTimeout)
    assert "no further" in str(error)


def test_of_stuck_workers_the_one_furthest_behind_is_named(group, raised):
    group.call("work_slowly", {"units": 3, "ranks": [0]}).result()
    assert raised(group.call("hang").result, WorkerTimeout).rank == 1


def test_a_reader_who_takes_his_time_is_no_stuck_worker(group):
    call = group.call("flood", {"chunks": 4})
    seen = []
    for message in call.messages():
        time.sleep(0.7)  # together far beyond the limit, while rank 0 waits to be read
        seen.append(message.facts["index"])
    assert seen == [0, 1, 2, 3]
    call.result()


def test_one_job_at_a_time(group):
    call = group.call("work_slowly", {"units": 5})
    with pytest.raises(AdmissionRefused):
        group.call("echo")
    call.result()
    group.call("echo").result()


def test_what_all_refuse_alike_is_raised_and_the_group_goes_on(group):
    with pytest.raises(InvalidArgument, match="number: expected one, got 2") as caught:
        group.call("refuse").result()
    assert (caught.value.argument, caught.value.expected) == ("number", "one")
    assert group.is_usable
    assert [one.error for one in group.status()] == ["invalid_argument", "invalid_argument"]
    group.call("echo").result()


@pytest.mark.parametrize(
    "kind, ranks, error",
    [
        ("run_out", [0, 1], OutOfMemory),
        ("run_out", [1], OutOfMemory),
        ("refuse", [0], InvalidArgument),
        ("fail", [1], WorkerFailed),
    ],
)
def test_an_error_that_leaves_workers_out_of_step_ends_the_group(
    group, kind, ranks, error, assert_gone, raised
):
    raised(group.call(kind, {"ranks": ranks}).result, error)
    assert not group.is_usable
    assert_gone([one.pid for one in group.status()])
    with pytest.raises(SessionStateError):
        group.call("echo")


def test_an_error_of_one_rank_does_not_wait_for_those_that_wait_for_it(
    group, monkeypatch, assert_gone, raised
):
    monkeypatch.setattr("skyreels_rt.distributed.workers._GRACE_S", 0.3)  # less than step_s
    raised(group.call("refuse_or_hang", {"refuses": 1}).result, InvalidArgument)
    assert not group.is_usable
    assert_gone([one.pid for one in group.status()])


def test_a_worker_that_babbles_is_a_fault_of_which_new_workers_know_nothing(group, raised):
    raised(group.call("babble", {"ranks": [1]}).result, WorkerFailed)
    assert not group.is_usable


def test_closing_does_not_wait_for_a_worker_that_takes_no_request(group):
    os.kill(group.status()[0].pid, signal.SIGSTOP)
    large = {"x": np.zeros(1 << 20)}
    raised_in_sender = []

    def send():
        with pytest.raises(SessionStateError) as caught:
            group.call("echo", {}, large)
        raised_in_sender.append(caught.value)

    sender = threading.Thread(target=send)
    sender.start()
    time.sleep(0.2)
    group.close()
    sender.join(5)
    assert len(raised_in_sender) == 1


def test_closing_ends_the_workers_and_every_call(group, assert_gone, raised):
    call = group.call("work_slowly", {"units": 1000})
    closer = threading.Timer(0.3, group.close)
    closer.start()
    raised(call.result, SessionStateError)
    closer.join()
    with pytest.raises(SessionStateError):
        group.call("echo")
    assert_gone([one.pid for one in group.status()])


def test_closing_with_messages_unread(group, assert_gone):
    call = group.call("flood", {"chunks": 100})
    messages = call.messages()
    next(messages)
    group.close()
    with pytest.raises(SessionStateError):
        list(messages)
    call.abandon()
    group.close()


def test_an_array_that_cannot_be_sent_leaves_the_group_as_it_was(group):
    with pytest.raises(InvalidArgument, match="x: expected an array"):
        group.call("echo", {}, {"x": np.zeros(2, complex)})
    group.call("echo").result()


def test_an_abandoned_job_that_does_not_stop_ends_the_group(group, monkeypatch, assert_gone):
    monkeypatch.setattr("skyreels_rt.distributed.workers._GRACE_S", 0.3)
    call = group.call("work_slowly", {"units": 1000})
    call.abandon()
    assert not group.is_usable
    assert_gone([one.pid for one in group.status()])


def test_a_closed_group_leaves_no_descriptor_and_no_thread():
    def held():
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    before = held()
    for _ in range(2):
        group = start()
        group.call("start").result()
        group.close()
    assert held() == before


@pytest.mark.parametrize("name", ["start_s", "step_s", "silence_s"])
def test_timeouts_must_be_positive(name):
    with pytest.raises(InvalidArgument, match=rf"timeouts\.{name}"):
        Timeouts(**{name: 0})
