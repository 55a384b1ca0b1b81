"""Seconds a job spent in each stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class StageClock:
    """Adds up seconds by stage name. One per session; not shared between threads.

    Parameters
    ----------
    now : callable
        The clock: wall time by default; ``time.process_time`` counts the seconds of all cores.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Count the time inside the ``with`` block towards ``stage``."""
        start = self._now()
        try:
            yield
        finally:
            self.add(stage, self._now() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Count seconds that were measured elsewhere towards ``stage``."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
