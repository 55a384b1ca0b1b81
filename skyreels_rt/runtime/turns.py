"""Who may compute: sessions share an engine in turns, one unit of work each, and not too many."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from skyreels_rt.errors import AdmissionRefused, Cancelled

_LOOK_S = 0.02
"""Seconds between two looks of a waiting thread at whether it was cancelled."""


class Turns:
    """A lock that is granted first come, first served, and can be passed on in between.

    A unit is one denoising step or one decoded latent. Kernels use every core or the whole device,
    so two units at once would only slow each other down.

    Parameters
    ----------
    on_wait : callable, optional
        Told the seconds that each taker waited.
    """

    def __init__(self, on_wait: Callable[[float], None] | None = None) -> None:
        self._on_wait = on_wait
        self._guard = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Event] = deque()

    @contextmanager
    def hold(self, is_cancelled: Callable[[], bool] | None = None) -> Iterator[Turn]:
        """Wait for a turn and keep it inside the ``with`` block.

        Raises
        ------
        Cancelled
            ``is_cancelled`` returned True while waiting.
        """
        turn = Turn(self, is_cancelled)
        turn.take()
        try:
            yield turn
        finally:
            if turn.is_held:
                self.release()

    def acquire(self, is_cancelled: Callable[[], bool] | None) -> None:
        """Wait for the turn; see :meth:`hold`."""
        start = time.monotonic()
        self._wait(is_cancelled)
        if self._on_wait is not None:
            self._on_wait(time.monotonic() - start)

    def _wait(self, is_cancelled: Callable[[], bool] | None) -> None:
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            granted = threading.Event()
            self._waiting.append(granted)
        while not granted.wait(None if is_cancelled is None else _LOOK_S):
            assert is_cancelled is not None
            if is_cancelled() and self._leave(granted):
                raise Cancelled("Cancelled while waiting for other sessions.", stage="schedule")

    @property
    def num_waiting(self) -> int:
        """Sessions that wait."""
        with self._guard:
            return len(self._waiting)

    def _leave(self, granted: threading.Event) -> bool:
        """Stop waiting; False if the turn was granted in this moment."""
        with self._guard:
            if granted.is_set():
                return False
            self._waiting.remove(granted)
            return True

    def release(self) -> None:
        """Give the turn to whoever waits longest."""
        with self._guard:
            if self._waiting:
                self._waiting.popleft().set()  # handed over: nobody can slip in between
            else:
                self._taken = False


class Turn:
    """A turn that :meth:`Turns.hold` gave.

    Parameters
    ----------
    turns : Turns
        Whose turn it is.
    is_cancelled : callable, optional
        Asked while waiting.
    """

    def __init__(self, turns: Turns, is_cancelled: Callable[[], bool] | None) -> None:
        self._turns = turns
        self._is_cancelled = is_cancelled
        self.is_held = False

    def take(self) -> None:
        """Wait for it."""
        self._turns.acquire(self._is_cancelled)
        self.is_held = True

    def pass_on(self) -> None:
        """Let everyone who waits go first, then go on; raises like :meth:`Turns.hold`."""
        if self._turns.num_waiting == 0:
            return
        self.is_held = False
        self._turns.release()
        self.take()


class Gate:
    """Counts the open sessions and lets no more than a limit in.

    Parameters
    ----------
    limit : int
        Sessions that may be open at once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._guard = threading.Lock()
        self._count = 0

    @property
    def count(self) -> int:
        """Sessions that are open."""
        return self._count

    def enter(self) -> Callable[[], None]:
        """Let one session in; returns what it calls, once or more often, when it leaves.

        Raises
        ------
        AdmissionRefused
            The limit is reached.
        """
        with self._guard:
            if self._count >= self.limit:
                raise AdmissionRefused(
                    f"{self._count} sessions are open, the most this engine may run.",
                    stage="schedule",
                    hint="Close one, or load the engine with a higher max_sessions.",
                )
            self._count += 1
        left = threading.Event()

        def leave() -> None:
            with self._guard:
                if not left.is_set():
                    left.set()
                    self._count -= 1

        return leave
