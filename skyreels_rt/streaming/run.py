"""One live session from beginning to end: a thread pushes speech, the caller gets chunks."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol, Self

from skyreels_rt.errors import SessionStateError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from skyreels_rt.streaming.statistics import LiveStatistics
    from skyreels_rt.types import FrameChunk


class OpenSession(Protocol):
    """The part of a live session that a run uses."""

    def push_audio(self, pcm: NDArray[np.float32], sample_rate: int, /) -> None:
        """Add speech; waits while the session holds too much of it."""

    def end_audio(self) -> None:
        """Say that no more speech comes."""

    def __iter__(self) -> Iterator[FrameChunk]:
        """Chunks until everything is delivered."""
        ...

    def close(self) -> None:
        """Give everything up."""


class LiveRun:
    """Feeds a session from a thread and iterates over its chunks.

    Leaving the block closes the session and stops the feeder; a feeder that waits for its source
    (standard input) is left behind as a daemon.

    Parameters
    ----------
    session : OpenSession
        An open session.
    blocks : iterable of ndarray, shape (S, channels), float32
        The speech, at the pace at which it shall be pushed.
    sample_rate : int
        Of the speech.
    statistics : LiveStatistics
        Told of every block and chunk.
    """

    def __init__(
        self,
        session: OpenSession,
        blocks: Iterable[NDArray[np.float32]],
        sample_rate: int,
        statistics: LiveStatistics,
    ) -> None:
        self._session, self._blocks, self._rate = session, blocks, sample_rate
        self._statistics = statistics
        self._stopped = threading.Event()
        self._failure: BaseException | None = None
        self._feeder = threading.Thread(target=self._feed, name="skyreels-rt feed", daemon=True)

    def __iter__(self) -> Iterator[FrameChunk]:
        """Chunks as they are made; an error of the speech's source comes out after the last."""
        self._feeder.start()
        try:
            for chunk in self._session:
                self._statistics.delivered(chunk)
                yield chunk
        except SessionStateError:
            if self._failure is None:
                raise
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._session.close()

    def _feed(self) -> None:
        try:
            try:
                self._push_blocks()
            finally:  # what was said before an error is still shown
                self._statistics.ended()
                self._session.end_audio()
        except BaseException as error:  # raised by the iterating thread
            if not self._stopped.is_set():
                # Of an end without any speech the cause says more than the end.
                source = error.__context__ if isinstance(error, SessionStateError) else None
                self._failure = source or error
                if isinstance(error, SessionStateError):
                    self._session.close()

    def _push_blocks(self) -> None:
        for block in self._blocks:
            if self._stopped.is_set():
                return
            # Counted when handed over: waiting in a full session is part of the latency.
            self._statistics.pushed(len(block) / self._rate)
            self._session.push_audio(block, self._rate)
