"""One WebSocket connection from its first message to its end."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from skyreels_rt.errors import (
    AdmissionRefused,
    InvalidArgument,
    MediaError,
    SessionStateError,
    SkyReelsError,
)
from skyreels_rt.media.fragmented import FragmentedWriter, Segment
from skyreels_rt.media.image import read_image
from skyreels_rt.media.portraits import portrait_path
from skyreels_rt.options import LiveOptions, resolve_settings
from skyreels_rt.serve.admission import Access, Places, bearer_token
from skyreels_rt.serve.backlog import Backlog
from skyreels_rt.serve.metrics import ServeMetrics
from skyreels_rt.serve.protocol import (
    Command,
    Refused,
    ServeLimits,
    StartRequest,
    error_event,
    parse_command,
    parse_start,
)
from skyreels_rt.serve.sessions import SessionKeeper
from skyreels_rt.streaming.needs import AudioNeeds
from skyreels_rt.streaming.pcm import PCMFormat
from skyreels_rt.streaming.statistics import LiveStatistics

if TYPE_CHECKING:
    from skyreels_rt.engine import Engine
    from skyreels_rt.live.asynchronous import AsyncSession
    from skyreels_rt.types import FrameChunk

BACKLOG_SECONDS: Final = 30.0
PROGRESS_SECONDS: Final = 0.25
NORMAL_CLOSE: Final = 1000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """What all connections of a server share."""

    engine: Engine
    limits: ServeLimits
    access: Access
    places: Places
    metrics: ServeMetrics
    sessions: SessionKeeper = field(default_factory=SessionKeeper)


class Conversation:
    """Receives, makes and sends for one client; :meth:`run` returns when the socket is closed.

    Parameters
    ----------
    socket : WebSocket
        Not accepted yet.
    service : Service
        The server.
    """

    def __init__(self, socket: WebSocket, service: Service) -> None:
        self._socket, self._service = socket, service
        self._limits = service.limits
        self._sending = asyncio.Lock()
        self._received_bytes = 0
        self._received_samples = 0
        self._audio_ended = False
        self._last_sign = time.monotonic()

    async def run(self) -> None:
        """Hold the conversation; every failure becomes an ``error`` event and a close code."""
        outcome = "finished"
        try:
            with self._service.places.connection(), self._service.metrics.connected():
                self._service.access.require_origin(
                    self._socket.headers.get("origin"), self._socket.headers.get("host")
                )
                await self._socket.accept()
                await self._talk()
        except WebSocketDisconnect:
            outcome = "left"
        except Exception as error:  # whatever it is, the client is told and the server goes on
            refusal = _refusal(error)
            outcome = refusal.reason
            if outcome == "internal":
                logger.exception("a connection failed")
            await self._refuse(refusal)
        finally:
            self._service.metrics.closed(outcome)

    async def _talk(self) -> None:
        try:
            async with asyncio.timeout(self._limits.start_timeout_s):
                request = await self._first_message()
                picture = await self._picture(request)
        except TimeoutError:
            raise Refused("timeout", "The first messages did not come in time.") from None
        with self._service.places.session():
            options: LiveOptions = {
                "image": await asyncio.to_thread(_image, request, picture),
                "prompt": request.prompt or None,
                "horizon": request.horizon,
                "seed": request.seed,
                "idle": request.idle,
            }
            async with self._service.sessions.session(self._service.engine, options) as session:
                await self._stream(session, request)
        await self._socket.close(NORMAL_CLOSE)

    async def _first_message(self) -> StartRequest:
        message = await self._receive()
        if isinstance(message, bytes):
            raise Refused("malformed", "message: expected JSON first, got binary.")
        request = parse_start(message, self._limits)
        given = bearer_token(self._socket.headers.get("authorization")) or request.token
        if not self._service.access.knows(given):
            raise Refused(
                "unauthorized", "token: missing or wrong.",
                hint="Send it as the field token of the first message or as a bearer token.",
            )  # fmt: skip
        return request

    async def _picture(self, request: StartRequest) -> bytes | None:
        if request.image_bytes is None:
            return None
        message = await self._receive()
        if isinstance(message, str) or len(message) != request.image_bytes:
            raise Refused(
                "malformed", f"image: expected a binary message of {request.image_bytes} bytes."
            )
        return message

    # --------------------------------------------------------------------------------- the stream

    async def _stream(self, session: AsyncSession, request: StartRequest) -> None:
        """Send ``started``, then everything at once until all frames are delivered."""
        parts = self._service.engine.components
        settings = resolve_settings(parts, {"horizon": request.horizon}, LiveOptions)
        needs = AudioNeeds(parts, settings)
        statistics = LiveStatistics(needs, settings.fps)
        backlog = Backlog(BACKLOG_SECONDS, request.sample_rate)
        writer = await asyncio.to_thread(
            FragmentedWriter,
            fps=settings.fps,
            height=settings.height,
            width=settings.width,
            sample_rate=request.sample_rate,
        )
        try:
            await self._send_event(
                {
                    "type": "started",
                    "mime_type": writer.mime_type,
                    "fps": settings.fps,
                    "width": settings.width,
                    "height": settings.height,
                    "sample_rate": request.sample_rate,
                    "first_frames_need_s": float(needs.first().seconds),
                    "max_seconds": self._limits.max_seconds,
                }
            )
            await self._send_segment(writer.init)
            await _first_of(
                self._deliver(session, writer, statistics),
                self._listen(session, backlog, statistics, request.sample_rate),
                _feed(session, backlog, request.sample_rate),
            )
        finally:
            writer.close()

    async def _deliver(
        self, session: AsyncSession, writer: FragmentedWriter, statistics: LiveStatistics
    ) -> None:
        """Encode and send every chunk, and say how it goes."""
        told = 0.0
        fps = self._service.engine.components.generation.fps
        async for chunk in session:
            if chunk.index > (self._limits.max_seconds + BACKLOG_SECONDS) * fps:
                raise self._too_long()
            await self._send_segment(await asyncio.to_thread(_encode, writer, chunk))
            latency = statistics.delivered(chunk)
            self._service.metrics.chunk_seconds.observe(latency)
            self._last_sign = time.monotonic()
            if self._last_sign - told >= PROGRESS_SECONDS:
                told = self._last_sign
                await self._send_event(_progress(statistics))
        last = await asyncio.to_thread(writer.finish)
        if last is not None:
            await self._send_segment(last)
        await self._send_event(_progress(statistics) | {"type": "ended"})

    async def _listen(
        self,
        session: AsyncSession,
        backlog: Backlog,
        statistics: LiveStatistics,
        sample_rate: int,
    ) -> None:
        """Take PCM and commands until the client goes; ends only by an exception."""
        layout = PCMFormat("s16le", sample_rate, 1)
        while True:
            try:
                message = await asyncio.wait_for(self._receive(), self._limits.idle_timeout_s)
            except TimeoutError:
                if time.monotonic() - self._last_sign < self._limits.idle_timeout_s:
                    continue
                raise Refused(
                    "timeout", "Nothing was said and nothing was made for long."
                ) from None
            self._last_sign = time.monotonic()
            if isinstance(message, str):
                await self._obey(parse_command(message, self._limits), session, backlog, statistics)
                continue
            if self._audio_ended:
                raise Refused("wrong_state", "audio: the audio has ended.")
            if len(message) % layout.bytes_per_sample:
                raise Refused("malformed", "audio: expected whole 16-bit samples.")
            samples = layout.decode(message)[:, 0]
            self._received_samples += len(samples)
            if self._received_samples > self._limits.max_seconds * sample_rate:
                raise self._too_long()
            statistics.pushed(len(samples) / sample_rate)
            await backlog.put(samples)

    async def _obey(
        self,
        command: Command,
        session: AsyncSession,
        backlog: Backlog,
        statistics: LiveStatistics,
    ) -> None:
        if command.name == "end_audio":
            if not self._received_samples:
                raise Refused("wrong_state", "end_audio: no audio came before its end.")
            self._audio_ended = True
            await backlog.end()
            statistics.ended()
        elif command.name == "set_prompt":
            await session.set_prompt(command.prompt)
        else:
            await backlog.clear()
            cut = await session.interrupt()
            self._audio_ended = False
            statistics.interrupted()
            await self._send_event(
                {
                    "type": "interrupted",
                    "frame_index": cut.frame_index,
                    "seconds": float(cut.seconds),
                }
            )

    def _too_long(self) -> Refused:
        return Refused(
            "too_large", f"audio: expected at most {self._limits.max_seconds:g} s a session.",
            hint="Open a new session.",
        )  # fmt: skip

    # ------------------------------------------------------------------------------- the socket

    async def _receive(self) -> str | bytes:
        """The next message, within the limits on bytes."""
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1006))
        text: str | None = message.get("text")
        data: bytes = message.get("bytes") or b""
        size = len(data) if text is None else len(text.encode("utf-8", "surrogatepass"))
        self._received_bytes += size
        self._service.metrics.received_bytes.inc(size)
        if size > self._limits.max_message_bytes:
            limit = self._limits.max_message_bytes
            raise Refused("too_large", f"message: expected at most {limit} bytes.")
        if self._received_bytes > self._limits.max_bytes:
            limit = self._limits.max_bytes
            raise Refused("too_large", f"connection: expected at most {limit} bytes.")
        return data if text is None else text

    async def _send_segment(self, segment: Segment) -> None:
        await self._send({"bytes": segment.data}, len(segment.data))

    async def _send_event(self, event: dict[str, Any]) -> None:
        text = json.dumps(event)
        await self._send({"text": text}, len(text))

    async def _send(self, content: dict[str, Any], size: int) -> None:
        try:
            async with asyncio.timeout(self._limits.send_timeout_s), self._sending:
                await self._socket.send({"type": "websocket.send", **content})
        except TimeoutError:
            raise Refused("timeout", "The client took no message for long.") from None
        self._service.metrics.sent_bytes.inc(size)

    async def _refuse(self, refusal: Refused) -> None:
        """Send the error and close; before the socket is accepted this is HTTP 403."""
        try:
            async with asyncio.timeout(self._limits.start_timeout_s):
                if self._socket.application_state is WebSocketState.CONNECTED:
                    event = error_event(refusal.reason, refusal.message, refusal.hint)
                    await self._send_event(event)
                await self._socket.close(refusal.close_code, refusal.reason)
        except (WebSocketDisconnect, Refused, RuntimeError, TimeoutError):
            pass  # it has gone already


def _refusal(error: Exception) -> Refused:
    """What a client is told about ``error``."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, AdmissionRefused):
        return Refused("busy", error.message, hint=error.hint)
    if isinstance(error, MediaError):
        return Refused("unusable_media", error.message, hint=error.hint)
    if isinstance(error, InvalidArgument):
        return Refused("malformed", error.message, hint=error.hint)
    if isinstance(error, SessionStateError):
        return Refused("wrong_state", error.message, hint=error.hint)
    code = error.code if isinstance(error, SkyReelsError) else "error"
    return Refused("internal", f"The server failed ({code}).", hint="Its log says more.")


def _image(request: StartRequest, picture: bytes | None) -> NDArray[np.uint8] | Path | None:
    """The portrait asked for: pixels, a path, or None."""
    if picture is not None:
        return read_image(picture)
    return None if request.portrait is None else portrait_path(request.portrait)


def _encode(writer: FragmentedWriter, chunk: FrameChunk) -> Segment:
    return writer.write(chunk.frames, chunk.audio)


def _progress(statistics: LiveStatistics) -> dict[str, Any]:
    figures = statistics.figures()
    return {
        "type": "progress",
        "frames": figures.frames,
        "seconds": round(figures.seconds, 3),
        "rtf": round(figures.rtf, 3),
        "first_frame_s": _rounded(figures.first_frame_s),
        "latency_s": _rounded(figures.chunk_p50_s),
        "buffered_s": round(figures.buffered_s, 3),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


async def _feed(session: AsyncSession, backlog: Backlog, sample_rate: int) -> None:
    """Hand speech on as the session takes it; ends only by an exception."""
    while True:
        piece = await backlog.take()
        if piece is None:
            await session.end_audio()
        else:
            await session.push_audio(np.ascontiguousarray(piece), sample_rate)


async def _first_of(*work: Coroutine[Any, Any, None]) -> None:
    """Run everything until the first ends, stop the rest, and raise what that one raised."""
    tasks = [asyncio.ensure_future(part) for part in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
