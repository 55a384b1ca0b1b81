"""Speech that a client sent ahead of what its session takes."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

import numpy as np
from numpy.typing import NDArray

PIECE_SECONDS: Final = 0.1
"""Speech is handed on in pieces of at most this length, so that an interruption finds the rest."""


class Backlog:
    """A queue of samples that holds about ``seconds``; for one sender and one taker.

    Parameters
    ----------
    seconds : float
        What may wait; the sender waits beyond it.
    sample_rate : int
        Samples per second.
    """

    def __init__(self, seconds: float, sample_rate: int) -> None:
        self._limit = int(seconds * sample_rate)
        self._piece = max(1, int(PIECE_SECONDS * sample_rate))
        self._pieces: deque[NDArray[np.float32]] = deque()
        self._changed = asyncio.Condition()
        self._samples = 0
        self._ended = False

    @property
    def samples(self) -> int:
        """Samples that wait."""
        return self._samples

    async def put(self, samples: NDArray[np.float32]) -> None:
        """Add samples (S,) when the ones before them leave room."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._samples <= self._limit)
            for start in range(0, len(samples), self._piece):
                self._pieces.append(samples[start : start + self._piece])
            self._samples += len(samples)
            self._changed.notify_all()

    async def end(self) -> None:
        """Say that nothing follows what waits."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def take(self) -> NDArray[np.float32] | None:
        """The next piece, or None, once, when the end is reached; waits for either."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._pieces or self._ended)
            if not self._pieces:
                self._ended = False
                return None
            piece = self._pieces.popleft()
            self._samples -= len(piece)
            self._changed.notify_all()
            return piece

    async def clear(self) -> None:
        """Drop what waits, and an end that was not reached."""
        async with self._changed:
            self._pieces.clear()
            self._samples = 0
            self._ended = False
            self._changed.notify_all()
