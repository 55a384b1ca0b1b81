"""Latencies of a live session, seen from outside: when speech went in and when frames came out.

A chunk is due when the speech that its group waits for has been pushed. The last groups of a
speech wait for more than comes, look-ahead and all, and become ready together when it ends. They
are due when that much would have been pushed, had the speech gone on in silence: a player wants
them one after the other, at the pace of the ones before. Speech that is pushed faster than it is
spoken makes chunks due faster than a player wants them; that is counted as it is.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from skyreels_rt.streaming.needs import AudioNeeds
from skyreels_rt.types import FrameChunk

MAX_LATENCIES: Final = 10_000
"""Latest chunks that the percentiles look at."""


@dataclass(frozen=True)
class LiveFigures:
    """State of a live session at one moment.

    Attributes
    ----------
    frames : int
        Frames delivered.
    seconds : float
        Seconds of video delivered.
    rtf : float
        Seconds spent on groups that were ready ÷ seconds of video; below 1 keeps up. 0 before the
        first chunk.
    first_frame_s : float or None
        From the moment the first chunk is due to that chunk.
    chunk_p50_s, chunk_p95_s : float or None
        From the moment a chunk is due to the chunk, 0 if that is earlier; over the latest chunks.
    late : int
        Chunks whose latency exceeds the length of their group's new frames, so that a player which
        keeps one group in hand waits for them.
    buffered_s : float
        Speech pushed that no frame was delivered for.
    head_start_s : float
        Playing must begin this long after the first frame to never wait for a chunk.
    """

    frames: int
    seconds: float
    rtf: float
    first_frame_s: float | None
    chunk_p50_s: float | None
    chunk_p95_s: float | None
    late: int
    buffered_s: float
    head_start_s: float


class LiveStatistics:
    """Collects what went in and what came out; thread-safe, of constant size.

    Parameters
    ----------
    needs : AudioNeeds
        What the session's groups wait for.
    fps : int
        Frames per second.
    clock : callable
        Gives the time in seconds.
    """

    def __init__(
        self, needs: AudioNeeds, fps: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._needs, self._fps, self._clock = needs, fps, clock
        self._group = needs.first()
        self._lock = threading.Lock()
        self._pushed = 0.0
        self._arrivals: deque[tuple[float, float]] = deque()  # (seconds pushed, when)
        self._ended: float | None = None
        self._latencies: deque[float] = deque(maxlen=MAX_LATENCIES)
        self._first: tuple[float, float] | None = None  # (latency, when) of the first chunk
        self._frames = self._late = 0
        self._busy = self._head_start = 0.0
        self._idle_from = 0.0

    def pushed(self, seconds: float) -> None:
        """Note that ``seconds`` of speech went in just now."""
        with self._lock:
            self._pushed += seconds
            self._arrivals.append((self._pushed, self._clock()))

    def ended(self) -> None:
        """Note that no more speech comes: what is left is ready now."""
        with self._lock:
            self._ended = self._clock()

    def interrupted(self) -> None:
        """Note that speech without frames was dropped."""
        with self._lock:
            self._pushed = self._frames / self._fps
            self._arrivals.clear()
            self._ended = None

    def delivered(self, chunk: FrameChunk) -> float:
        """Note a chunk that came out just now, and return its latency in seconds, >= 0."""
        now = self._clock()
        with self._lock:
            while chunk.index >= self._group.stop_frame:
                self._group = self._needs.after(self._group)
            needed = float(self._group.seconds)
            ready = self._ready_at(needed, now)
            lacking = 0.0 if self._ended is None else max(0.0, needed - self._pushed)
            latency = max(0.0, now - ready - lacking)
            self._latencies.append(latency)
            group = self._group
            self._late += latency > (group.stop_frame - group.first_frame) / self._fps
            if self._first is None:
                self._first = (latency, now)
            self._frames = chunk.index + len(chunk.frames)
            behind = now - self._first[1] - chunk.index / self._fps
            self._head_start = max(self._head_start, behind)
            self._busy += now - max(ready, self._idle_from)
            self._idle_from = now
            return latency

    def figures(self) -> LiveFigures:
        """The figures so far."""
        with self._lock:
            seconds = self._frames / self._fps
            return LiveFigures(
                frames=self._frames,
                seconds=seconds,
                rtf=self._busy / seconds if seconds else 0.0,
                first_frame_s=None if self._first is None else self._first[0],
                chunk_p50_s=percentile(self._latencies, 50),
                chunk_p95_s=percentile(self._latencies, 95),
                late=self._late,
                buffered_s=max(0.0, self._pushed - seconds),
                head_start_s=self._head_start,
            )

    def _ready_at(self, needed: float, now: float) -> float:
        """When ``needed`` seconds of speech had been pushed; arrivals before that are forgotten."""
        while len(self._arrivals) > 1 and self._arrivals[0][0] < needed - 1e-6:
            self._arrivals.popleft()
        if self._arrivals and self._arrivals[0][0] >= needed - 1e-6:
            return self._arrivals[0][1]
        return now if self._ended is None else self._ended


def percentile(values: deque[float] | list[float], rank: int) -> float | None:
    """The value at ``rank`` percent (1 to 100, nearest rank), or None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[-(-len(ordered) * rank // 100) - 1]
