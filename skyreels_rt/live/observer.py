"""What a live session tells the outside about itself: metrics and log records."""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from fractions import Fraction

from skyreels_rt.errors import SkyReelsError
from skyreels_rt.group_need import GroupNeed
from skyreels_rt.runtime.metrics import EngineMetrics
from skyreels_rt.types import FrameChunk

logger = logging.getLogger(__name__)

_numbers = itertools.count(1)


class SessionObserver:
    """Counts one session's life into its engine's metrics; not thread-safe by itself.

    Parameters
    ----------
    metrics : EngineMetrics
        Of the engine.
    """

    def __init__(self, metrics: EngineMetrics) -> None:
        self._metrics = metrics
        self._opened = time.monotonic()
        self._arrivals: deque[tuple[Fraction, float]] = deque()  # seconds of speech, clock
        self._stages: dict[str, float] = {}
        self._outcome = "closed"
        self._is_first = True
        self.number = next(_numbers)
        """Number of the session in this process, for log records."""
        metrics.sessions_active.add(1)
        self._log(logging.INFO, "session opened")

    def pushed(self, seconds: Fraction) -> None:
        """Note that the speech now reaches ``seconds`` on the timeline."""
        self._arrivals.append((seconds, time.monotonic()))

    def delivered(
        self, chunk: FrameChunk, *, fps: int, need: GroupNeed, stages: dict[str, float]
    ) -> None:
        """Count a chunk; at the end of speech as if it had gone on in silence.

        Parameters
        ----------
        chunk : FrameChunk
            What was delivered.
        fps : int
            Frames per second.
        need : GroupNeed
            Its group, and the speech that a full one waits for.
        stages : dict of str to float
            Compute seconds of the session so far, by stage.
        """
        metrics, length = self._metrics, len(chunk.frames) / fps
        metrics.chunk_delivered(len(chunk.frames))
        spent = {name: sum_ - self._stages.get(name, 0.0) for name, sum_ in stages.items()}
        self._stages = dict(stages)
        for name, seconds in spent.items():
            if seconds > 0:
                metrics.stage_seconds.observe(seconds, stage=name)
        metrics.real_time_factor.observe(sum(spent.values()) / length)
        while len(self._arrivals) > 1 and self._arrivals[0][0] < need.seconds:
            self._arrivals.popleft()
        if not self._arrivals:
            return
        reached, clock = self._arrivals[0]
        due = clock + max(0.0, float(need.seconds - reached))
        late = max(0.0, time.monotonic() - due)
        if self._is_first:
            metrics.first_frame_seconds.observe(late)
            self._is_first = False
        metrics.chunk_seconds.observe(late)
        if late > (need.stop_frame - need.first_frame) / fps:
            metrics.deadline_misses.inc()

    def interrupted(self, *, dropped_s: float, fps: int, started: float) -> None:
        """Count an interruption that dropped ``dropped_s`` seconds of speech."""
        self._arrivals.clear()
        self._metrics.frames_dropped.inc(round(max(0.0, dropped_s) * fps))
        self._metrics.cancel_seconds.observe(time.monotonic() - started)
        self._log(logging.INFO, "session interrupted", dropped_s=round(dropped_s, 3))

    def finished(self) -> None:
        """Note that every frame was delivered."""
        self._outcome = "finished"

    def failed(self, error: SkyReelsError) -> None:
        """Count an error that stopped the computation."""
        self._outcome = "failed"
        self._metrics.faults.inc(code=error.code)
        self._log(logging.ERROR, "session failed", code=error.code)

    def closed(self) -> None:
        """Count the end of the session."""
        seconds = time.monotonic() - self._opened
        self._metrics.sessions_active.add(-1)
        self._metrics.sessions.inc(outcome=self._outcome)
        self._metrics.session_seconds.observe(seconds)
        self._log(logging.INFO, "session closed", outcome=self._outcome, seconds=round(seconds, 3))

    def _log(self, level: int, message: str, **facts: object) -> None:
        """One record whose facts a structured handler finds as attributes."""
        facts = {"session": self.number, **facts}
        words = " ".join(f"{name}={value}" for name, value in facts.items())
        logger.log(level, "%s %s", message, words, extra={"skyreels_rt": facts})
