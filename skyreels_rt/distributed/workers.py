"""Worker processes of one engine: started together, watched by a thread, ended together.

Each worker has three pipes. *Requests* go down its standard input; when that ends (the engine
closed, or its process is gone), the worker leaves at once. *Status* comes back as short lines: a
sign of life twice a second with a count of the work done, and one reply to every request. *Data*
(frames) comes from rank 0 alone, so that a slow reader never hides a status.

The watching thread needs no collective to find a fault and none to end it: a worker that died, that
is silent, or that gets no further ends the whole group by SIGKILL, which closes the pipes and so
wakes whoever waits on them.
"""

from __future__ import annotations

import os
import selectors
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from numpy.typing import NDArray

from skyreels_rt.distributed.messages import (
    Message,
    encoded,
    error_facts,
    error_of,
    read_message,
    write_parts,
)
from skyreels_rt.distributed.worker_process import WorkerProcess
from skyreels_rt.errors import (
    AdmissionRefused,
    InvalidArgument,
    SessionStateError,
    SkyReelsError,
    WorkerDied,
    WorkerFailed,
    WorkerTimeout,
)

START: Final = 0
"""Number of the first request, which has ``start_s`` instead of ``step_s``."""

_TICK_S = 0.2
_GRACE_S = 5.0
_LEAVE_S = 2.0
_SECONDARY = ("peer_failed", "worker_failed")  # codes of what often follows another rank's error
_OUT_OF_STEP = (*_SECONDARY, "out_of_memory")  # codes after which ranks may wait for each other


@dataclass(frozen=True)
class Timeouts:
    """How long an engine waits for its workers.

    Attributes
    ----------
    start_s : float
        For the model to be loaded.
    step_s : float
        For a worker with a job to get further: a block of the transformer, a step, a decoded
        latent. Time in which nobody takes finished frames does not count.
    silence_s : float
        For a sign of life, which an idle or slow worker gives, a stopped one not.

    Raises
    ------
    InvalidArgument
        A time is not positive.
    """

    start_s: float = 600.0
    step_s: float = 30.0
    silence_s: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int | float) or not value > 0:
                raise InvalidArgument(
                    f"timeouts.{name}", expected="a positive number", got=repr(value)
                )


@dataclass(frozen=True)
class RankStatus:
    """What is known of one worker.

    Attributes
    ----------
    rank, pid : int
        Which one, and its process.
    is_alive : bool
        Whether the process runs.
    work : int
        Units of work it did so far.
    silence_s : float
        Seconds since its last sign of life.
    error : str or None
        Code of the error that its last reply held.
    usage : dict
        What its last request took: ``seconds``, ``sent_bytes`` by axis; and ``peak_rss``, bytes of
        its whole life.
    """

    rank: int
    pid: int
    is_alive: bool
    work: int
    silence_s: float
    error: str | None
    usage: Mapping[str, Any]


class WorkerGroup:
    """Workers that take the same requests, one at a time.

    A group lives once: after a fault every call raises it.

    Parameters
    ----------
    command : sequence of str
        Program and arguments of a worker; ``--rank``, ``--size`` and the descriptors of its pipes
        are added.
    size : int
        Number of workers.
    timeouts : Timeouts
        How long they may take.
    environment : mapping of str to str
        Of the workers.

    Raises
    ------
    WorkerFailed
        A process cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        size: int,
        *,
        timeouts: Timeouts,
        environment: Mapping[str, str],
    ) -> None:
        self.timeouts = timeouts
        self._owner = os.getpid()
        self._changed = threading.Condition()  # guards what follows, and what the workers said
        self._fault: SkyReelsError | None = None
        self._closed = self._reading = False
        self._is_usable = True
        self._request = -1  # number of the latest request
        self._grace_s = 0.0  # since the first error of a reply, while others are missing
        self._workers: list[WorkerProcess] = []
        self._sending = threading.Lock()
        self.on_end: Callable[[], None] | None = None
        """Called from another thread once the group has ended, however."""
        try:
            for rank in range(size):
                self._workers.append(WorkerProcess.started(command, rank, size, environment))
        except OSError as error:
            self._end(patience_s=0.0)
            raise WorkerFailed(f"A worker cannot be started: {error.strerror}.") from error
        self._thread = threading.Thread(target=self._watch, name="skyreels-rt-watch", daemon=True)
        self._thread.start()

    @property
    def size(self) -> int:
        """Number of workers."""
        return len(self._workers)

    @property
    def is_usable(self) -> bool:
        """Whether it takes further calls, or at least raises its own fault for them.

        False after an error that left the workers out of step: the group was ended, and a new one
        can do what is asked next.
        """
        return self._closed or (self._is_usable and not isinstance(self._fault, WorkerFailed))

    def call(
        self,
        kind: str,
        facts: Mapping[str, Any] | None = None,
        arrays: Mapping[str, NDArray[Any]] | None = None,
    ) -> Call:
        """Send a request to every worker.

        Raises
        ------
        InvalidArgument
            An array cannot be sent; nothing was.
        AdmissionRefused
            The request before it is not done.
        WorkerDied, WorkerTimeout
            A worker did, now or earlier.
        SessionStateError
            The group is closed.
        """
        with self._changed:
            self._require_running()
            if any(worker.replied != self._request for worker in self._workers):
                raise AdmissionRefused(
                    "The workers have another job at hand.",
                    stage="worker",
                    hint="They take one at a time: finish or close the other, or load one more.",
                )
            given = {"request": self._request + 1, **(facts or {})}
            parts = encoded(Message(kind, given, arrays or {}))
            self._request += 1
            self._grace_s = 0.0
            for worker in self._workers:
                worker.error, worker.answer, worker.stall_s = None, None, 0.0
        self._send(parts)
        return Call(self)

    def require_running(self) -> None:
        """Raise what ended the group, if anything did.

        Raises
        ------
        WorkerDied, WorkerTimeout
            A worker did.
        SessionStateError
            The group was closed or given up.
        """
        with self._changed:
            self._require_running()

    def cancel(self) -> None:
        """Ask the workers to stop what they do; they reply as soon as they have."""
        with self._changed:
            if self._closed or self._fault is not None:
                return
        self._send(encoded(Message("cancel")))

    def give_up(self) -> None:
        """Let the workers be ended; the group can be replaced."""
        with self._changed:
            self._is_usable = self._fault is not None
            self._changed.notify_all()

    def status(self) -> tuple[RankStatus, ...]:
        """What is known of each worker, in the order of ranks."""
        with self._changed:
            return tuple(
                RankStatus(
                    worker.rank,
                    worker.process.pid,
                    worker.process.returncode is None,
                    worker.work,
                    worker.silence_s,
                    None if worker.error is None else worker.error.code,
                    dict(worker.usage),
                )
                for worker in self._workers
            )

    def close(self) -> None:
        """End all workers; every later call raises. Does nothing in a forked child."""
        if os.getpid() != self._owner:
            return
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        # Whoever is still sending waits for a worker that does not listen.
        is_idle = self._sending.acquire(timeout=_TICK_S)
        if is_idle:
            self._sending.release()
        self._end(patience_s=_LEAVE_S if is_idle else 0.0)
        for worker in self._workers:
            os.close(worker.status)
            if worker.data is not None and not self._reading:
                worker.data.close()

    # ---------------------------------------------------------------------------------- internals

    def _send(self, parts: Sequence[bytes | memoryview]) -> None:
        """Write a message to every worker; one that is gone is the watching thread's matter."""
        try:
            with self._sending:
                for worker in self._workers:
                    write_parts(worker.requests, parts)
        except (OSError, ValueError):  # a closed pipe is a ValueError
            self._wait(lambda: not self._is_running())
            with self._changed:
                self._require_running()

    def _is_running(self) -> bool:
        return self._fault is None and self._is_usable and not self._closed

    def _require_running(self) -> None:
        """Raise what ended the group; the lock is held."""
        if self._fault is not None:
            raise error_of(error_facts(self._fault))  # a new one, with its own traceback
        if self._closed or not self._is_usable:
            raise SessionStateError("The workers were ended.", stage="worker")

    def _wait(self, condition: Callable[[], bool]) -> None:
        """Wait for what the watching thread brings about: a reply, or the end of the group."""
        with self._changed:
            while not condition():
                # A timeout, so that Ctrl-C is seen at once on every platform.
                self._changed.wait(1.0)

    def _watch(self) -> None:
        """Read status lines and judge the workers, until the group ends."""
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.status, selectors.EVENT_READ, worker)
            before = time.monotonic()
            while self._is_running():
                events = selector.select(_TICK_S)
                now = time.monotonic()
                # Never much more than a tick: after a pause of this process (Ctrl-Z, a laptop's
                # sleep) the workers have not been silent for as long as the clock says.
                elapsed, before = min(now - before, 2 * _TICK_S), now
                with self._changed:
                    try:
                        for key, _ in events:
                            key.data.read_status()
                        self._fault = self._found_fault(elapsed)
                    except WorkerFailed as error:
                        self._fault = error
                    if self._fault is None and self._grace_s > _GRACE_S:
                        self._is_usable = False
                    self._changed.notify_all()
                if events:
                    time.sleep(0.01)  # an ended pipe stays readable until its process is gone, too
        if not self._closed:
            self._end(patience_s=0.0)
        if self.on_end is not None:
            self.on_end()

    def _found_fault(self, elapsed: float) -> SkyReelsError | None:
        """Judge every worker after ``elapsed`` more seconds; the lock is held."""
        for worker in self._workers:
            code = worker.process.poll()
            if code is not None:
                signal, exit_code = (-code, None) if code < 0 else (None, code)
                return WorkerDied(worker.rank, signal, exit_code)
        waiting = [worker for worker in self._workers if worker.replied != self._request]
        is_starting = self._request == START and bool(waiting)
        for worker in self._workers:
            worker.silence_s += elapsed
            if worker.silence_s > self.timeouts.silence_s and not is_starting:
                return WorkerTimeout(worker.rank, worker.silence_s, "gave no sign of life")
        if any(worker.error is not None for worker in self._workers) and waiting:
            self._grace_s += elapsed
        limit = self.timeouts.start_s if is_starting else self.timeouts.step_s
        for worker in waiting:
            worker.stall_s += elapsed if is_starting or self._reading else 0.0
        stuck = [worker for worker in waiting if worker.stall_s > limit]
        if stuck:
            # Workers wait for each other: the one that is furthest behind holds up the others.
            last = min(stuck, key=lambda worker: worker.work)
            return WorkerTimeout(last.rank, last.stall_s, "got no further")
        return None

    def _end(self, *, patience_s: float) -> None:
        """End every process and reap it."""
        deadline = time.monotonic() + patience_s
        for worker in self._workers:
            if patience_s == 0.0:
                worker.process.kill()
            with suppress(OSError):
                worker.requests.close()
        for worker in self._workers:
            worker.end(deadline)

    def _messages(self) -> Iterator[Message]:
        """What rank 0 sends for the request at hand, up to its end."""
        stream = self._workers[0].data
        assert stream is not None
        while True:
            with self._changed:
                self._reading = not stream.closed
            if stream.closed:
                self._outcome()
            try:
                message = read_message(stream)
            except BaseException:  # Ctrl-C: what follows of the message would be lost
                self.give_up()
                raise
            finally:
                with self._changed:
                    self._reading = False
            if message is None:
                self._outcome()
                raise WorkerFailed("Worker 0 closed its pipe.", stage="worker")
            if message.kind == "end":
                return
            yield message

    def _outcome(self) -> Mapping[str, Any]:
        """Wait for all replies, or the end of the group; raise what went wrong, if anything."""
        request = self._request

        def is_settled() -> bool:
            done = all(worker.replied == request for worker in self._workers)
            return done or not self._is_running()

        with self._changed:
            self._reading = True  # whoever waits for replies waits for the workers to get further
        try:
            self._wait(is_settled)
        finally:
            with self._changed:
                self._reading = False
        with self._changed:
            if self._fault is not None:
                self._require_running()
            errors = [worker.error for worker in self._workers if worker.error is not None]
            if errors:
                first = min(errors, key=lambda error: error.code in _SECONDARY)
                alike = len(errors) == self.size and len({error.code for error in errors}) == 1
                if not alike or first.code in _OUT_OF_STEP:
                    self.give_up()  # unless all refused alike, ranks may be at other exchanges
                raise first
            self._require_running()
            return self._workers[0].answer or {}


class Call:
    """A request under way. Made by :meth:`WorkerGroup.call`."""

    def __init__(self, group: WorkerGroup) -> None:
        self._group = group
        self._has_ended = False

    def messages(self) -> Iterator[Message]:
        """What rank 0 sends, up to its end; then :meth:`result` has what all said.

        Raises
        ------
        WorkerDied, WorkerTimeout
            A worker did; within moments, whatever the others do.
        SkyReelsError
            What the job raised in a worker.
        """
        if not self._has_ended:
            yield from self._group._messages()
            self._has_ended = True

    def result(self) -> Mapping[str, Any]:
        """What rank 0 replied, once every rank has.

        Raises
        ------
        WorkerDied, WorkerTimeout
            A worker did.
        SkyReelsError
            What the request raised in a worker: the error of the lowest rank that failed by itself.
        """
        for _ in self.messages():
            pass
        return self._group._outcome()

    def cancel(self) -> None:
        """Ask the workers to stop; :meth:`messages` or :meth:`result` then raises Cancelled."""
        self._group.cancel()

    def abandon(self) -> None:
        """Stop the job and wait until every rank has; end the group if that takes long."""
        timer = threading.Timer(_GRACE_S, self._group.give_up)
        timer.start()
        try:
            self._group.cancel()
            self.result()
        except SkyReelsError:
            pass  # it was given up, whatever it met
        finally:
            timer.cancel()
