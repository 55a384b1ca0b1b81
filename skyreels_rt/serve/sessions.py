"""Opens and closes sessions so that no cancelled connection can lose one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from skyreels_rt.live.asynchronous import AsyncSession

if TYPE_CHECKING:
    from skyreels_rt.engine import Engine
    from skyreels_rt.live.session import LiveSession
    from skyreels_rt.options import LiveOptions

ResultT = TypeVar("ResultT")


class SessionKeeper:
    """Holds on to openings and closings that a cancelled task has let go of."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def session(self, engine: Engine, options: LiveOptions) -> AsyncIterator[AsyncSession]:
        """A session inside the ``async with`` block; closed afterwards, whatever happens."""
        opening = self._keep(asyncio.to_thread(engine.open_session, **options))
        try:
            session = AsyncSession(await asyncio.shield(opening))
        except asyncio.CancelledError:
            self._keep(_close_opened(opening))
            raise
        try:
            yield session
        finally:
            await asyncio.shield(self._keep(session.close()))

    def _keep(self, work: Coroutine[Any, Any, ResultT]) -> asyncio.Task[ResultT]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _close_opened(opening: asyncio.Task[LiveSession]) -> None:
    """Close a session that nobody waits for any more; a failed opening left nothing."""
    await asyncio.wait([opening])
    if not opening.cancelled() and opening.exception() is None:
        await asyncio.to_thread(opening.result().close)
