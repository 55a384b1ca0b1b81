"""A live session for asyncio: the same calls as coroutines, computed in threads of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from skyreels_rt.errors import SessionStateError
from skyreels_rt.media.image import ImageInput
from skyreels_rt.types import FrameChunk

if TYPE_CHECKING:
    from skyreels_rt.live.session import Interruption, LiveSession

ResultT = TypeVar("ResultT")


class AsyncSession:
    """What ``async with engine.open_session(...)`` gives; see :class:`LiveSession` for the calls.

    The event loop never computes: frames are made in one thread, calls that may wait run in
    another. Both end with the session. A task that is cancelled while it awaits a chunk loses none:
    the next one gets it.

    Parameters
    ----------
    session : LiveSession
        What does the work.
    """

    def __init__(self, session: LiveSession) -> None:
        self._session = session
        self._frames = ThreadPoolExecutor(1, thread_name_prefix="skyreels-frames")
        self._calls = ThreadPoolExecutor(1, thread_name_prefix="skyreels-calls")
        self._control = ThreadPoolExecutor(1, thread_name_prefix="skyreels-control")
        self._next: asyncio.Future[FrameChunk | None] | None = None

    async def push_audio(self, pcm: NDArray[np.float32], sample_rate: int) -> None:
        """See :meth:`LiveSession.push_audio`; waits without blocking the loop."""
        if self._session.settings.on_full == "raise":
            self._session.push_audio(pcm, sample_rate)
        elif not self._session.offer_audio(pcm, sample_rate):
            await self._run(self._calls, lambda: self._session.push_audio(pcm, sample_rate))

    async def end_audio(self) -> None:
        """See :meth:`LiveSession.end_audio`."""
        self._session.end_audio()

    async def __aiter__(self) -> AsyncIterator[FrameChunk]:
        """All frames to the end of the speech."""
        while True:
            if self._next is None:
                loop = asyncio.get_running_loop()
                self._next = loop.run_in_executor(self._frames, self._session.next_chunk)
            chunk = await asyncio.shield(self._next)
            self._next = None
            if chunk is None:
                return
            yield chunk

    async def interrupt(self) -> Interruption:
        """See :meth:`LiveSession.interrupt`.

        A chunk that is finished but was not awaited yet counts as spoken and comes next.
        """
        return await self._run(self._control, self._session.interrupt)

    async def set_prompt(self, prompt: str) -> None:
        """See :meth:`LiveSession.set_prompt`."""
        await self._run(self._control, lambda: self._session.set_prompt(prompt))

    async def set_image(self, image: ImageInput) -> None:
        """See :meth:`LiveSession.set_image`."""
        await self._run(self._control, lambda: self._session.set_image(image))

    async def snapshot(self) -> bytes:
        """See :meth:`LiveSession.snapshot`."""
        return await self._run(self._control, self._session.snapshot)

    async def close(self) -> None:
        """See :meth:`LiveSession.close`; the threads have ended when it returns.

        The session closes even if the task that waits here is cancelled.
        """
        loop = asyncio.get_running_loop()
        await asyncio.shield(loop.run_in_executor(None, self._close))
        if self._next is not None:
            await asyncio.gather(self._next, return_exceptions=True)  # nobody will ask for it
            self._next = None

    @property
    def buffered_s(self) -> float:
        """See :attr:`LiveSession.buffered_s`."""
        return self._session.buffered_s

    async def _run(self, threads: ThreadPoolExecutor, call: Callable[[], ResultT]) -> ResultT:
        if self._session.is_closed:
            raise SessionStateError("The session is closed.", stage="session")
        return await asyncio.get_running_loop().run_in_executor(threads, call)

    def _close(self) -> None:
        self._session.close()
        for threads in (self._frames, self._calls, self._control):
            threads.shutdown(wait=True, cancel_futures=True)
