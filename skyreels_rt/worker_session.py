"""A live session whose computing is done by worker processes.

:class:`.live.session.LiveSession` is the same as over an engine of one process: it queues speech,
waits, interrupts. Its core is a :class:`WorkerCore`, which turns each call into one request to all
workers, and speech that was pushed meanwhile goes along with it. Every worker holds a
:class:`HostedSession`; all do the same, and rank 0 sends frames.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from skyreels_rt.distributed.messages import Message
from skyreels_rt.distributed.workers import Call, WorkerGroup
from skyreels_rt.errors import SkyReelsError
from skyreels_rt.group_need import GroupNeed
from skyreels_rt.job import JobSettings, settings_facts, settings_from
from skyreels_rt.live.snapshot import pack_snapshot
from skyreels_rt.scene import load_portrait
from skyreels_rt.types import FrameChunk, PartState

if TYPE_CHECKING:
    from skyreels_rt.components import Components
    from skyreels_rt.live.session import LiveSession
    from skyreels_rt.session import Session

_PACKED = "packed"  # the one tensor of a state that the workers packed: a snapshot's bytes


@dataclass(frozen=True)
class SpeechFacts:
    """Speech that the workers took; a :class:`.live.core.CoreSpeech`."""

    num_samples: int
    channels: int | None
    sample_rate: int | None


@dataclass(frozen=True)
class ClockFacts:
    """Seconds that a worker computed, by stage; a :class:`.live.core.CoreClock`."""

    seconds: dict[str, float]


class WorkerCore:
    """A :class:`.live.core.LiveCore` in worker processes.

    Parameters
    ----------
    engine : object
        Kept alive until the session is.
    group : WorkerGroup
        The workers; the session ends with them.
    opening : Call
        The request that opens it, sent.
    asking : Lock
        Held during each request: the workers take one at a time.
    """

    def __init__(
        self,
        engine: object,
        group: WorkerGroup,
        opening: Call,
        asking: threading.Lock,
    ) -> None:
        self._engine = engine
        self._group = group
        self._asking = asking
        self._is_cancelled: Callable[[], bool] = lambda: False
        self._pending: list[NDArray[np.float32]] = []
        self._sample_rate = 0
        self._ending = self._closed = False
        self._facts = opening.result()
        self.settings: JobSettings = settings_from(self._facts["settings"])
        """Resolved options."""

    @property
    def is_open(self) -> bool:
        """Whether the workers still hold the session."""
        return not self._closed and self._group.is_usable

    def until(self, is_cancelled: Callable[[], bool]) -> WorkerCore:
        """The same core, which asks ``is_cancelled`` whether frames are still wanted."""
        self._is_cancelled = is_cancelled
        return self

    def require(self) -> None:
        """Raise what ended the workers, if anything did (:meth:`.WorkerGroup.require_running`)."""
        self._group.require_running()

    def tell(self, session: LiveSession) -> None:
        """Wake whoever waits in ``session`` when the workers end."""
        wake = weakref.WeakMethod(session.wake)

        def on_end() -> None:
            waken = wake()
            if waken is not None:
                waken()

        self._group.on_end = on_end

    def stop(self) -> None:
        """Let the workers leave the chunk at hand, within a step."""
        with suppress(SkyReelsError):  # they may be gone, which the next call says
            self._group.cancel()

    # ------------------------------------------------------------------------------------- calls

    def push_audio(self, pcm: NDArray[np.float32], sample_rate: int) -> None:
        """Keep speech (S, channels) for the next request."""
        self._pending.append(pcm)
        self._sample_rate = sample_rate

    def end_audio(self) -> None:
        """Let the next request say that the speech ends."""
        self._ending = True

    def next_chunk(self) -> FrameChunk | None:
        """Frames of the next latent, or None while the audio pushed so far allows none.

        Raises
        ------
        Cancelled
            ``is_cancelled`` said so, or :meth:`stop` was called.
        WorkerDied, WorkerTimeout
            A worker did.
        NonFinite
            NaN or infinity appeared.
        """
        message = self._ask("live_next", looks=True)
        return None if message is None else chunk_of(message)

    def rewind(self) -> None:
        """Forget all speech and all latents behind the last delivered frame."""
        self._pending.clear()
        self._ending = False
        self._ask("live_rewind")

    def set_prompt(self, prompt: str) -> None:
        """Show something else from the next group on."""
        self._ask("live_prompt", {"prompt": prompt})

    def set_portrait(self, portrait: NDArray[np.uint8]) -> None:
        """Show someone else (H, W, 3) from the next group on; the workers crop."""
        self._ask("live_portrait", arrays={"portrait": portrait})

    def state(self) -> PartState:
        """The session as the workers packed it; see :func:`snapshot_of`."""
        message = self._ask("live_state")
        assert message is not None
        return PartState({}, {_PACKED: torch.from_numpy(message.arrays[_PACKED])})

    def close(self) -> None:
        """Let the workers free everything."""
        if self._closed:
            return
        self._closed = True
        with suppress(SkyReelsError):  # they may be gone, and then there is nothing to free
            self._ask("live_close")

    def _ask(
        self,
        kind: str,
        facts: Mapping[str, Any] | None = None,
        arrays: Mapping[str, NDArray[Any]] | None = None,
        *,
        looks: bool = False,
    ) -> Message | None:
        """Send a request with all speech that came meanwhile; what rank 0 sent back, if anything.

        With ``looks`` it can be cancelled: whoever cancels says so first and then calls
        :meth:`stop`, so what is not seen here stops the request that was sent.
        """
        given = {**(facts or {}), "sample_rate": self._sample_rate, "ending": self._ending}
        sent = dict(arrays or {})
        if self._pending:
            sent["pcm"] = np.concatenate(self._pending)
        with self._asking:
            call = self._group.call(kind, given, sent)
            self._pending.clear()
            if looks and self._is_cancelled():
                call.cancel()
            messages = list(call.messages())
            self._facts = call.result() or self._facts  # a closing one has none
        return messages[0] if messages else None

    # ------------------------------------------------------------------------------------- facts

    @property
    def speech(self) -> SpeechFacts:
        """The speech that the workers took."""
        facts = self._facts
        return SpeechFacts(facts["num_samples"], facts["channels"], facts["sample_rate"])

    @property
    def clock(self) -> ClockFacts:
        """Seconds of rank 0, by stage."""
        return ClockFacts(self._facts["seconds"])

    @property
    def audio_ended(self) -> bool:
        """Whether the speech has an end."""
        return self._ending or bool(self._facts["audio_ended"])

    @property
    def is_finished(self) -> bool:
        """Whether every frame was delivered."""
        return bool(self._facts["is_finished"])

    @property
    def num_frames_done(self) -> int:
        """Frames delivered so far."""
        return int(self._facts["num_frames_done"])

    @property
    def latency_s(self) -> Fraction:
        """Seconds of speech that the first group needs."""
        return Fraction(*self._facts["latency_s"])

    @property
    def missing_s(self) -> Fraction:
        """Seconds of speech that the next group still needs."""
        return Fraction(*self._facts["missing_s"])

    @property
    def group_need(self) -> GroupNeed:
        """The group at hand, if it is a full one, and the speech that it waits for."""
        first, stop, numerator, denominator = self._facts["group_need"]
        return GroupNeed(first, stop, Fraction(numerator, denominator))


class HostedSession:
    """One worker's part of a live session.

    Parameters
    ----------
    components : Components
        The worker's model.
    session : Session
        What computes, the same in every worker.
    send : callable
        Sends a message to the engine, if this worker is the one that does.
    """

    def __init__(
        self, components: Components, session: Session, send: Callable[[Message], None]
    ) -> None:
        self._components = components
        self._session = session
        self._send = send

    def answer(self, request: Message) -> dict[str, Any]:
        """Do what a :class:`WorkerCore` asks for, and say how the session is; raises the same."""
        session = self._session
        if "pcm" in request.arrays:
            session.push_audio(request.arrays["pcm"], request.facts["sample_rate"])
        if request.facts["ending"]:
            session.end_audio()
        match request.kind:
            case "live_next":
                chunk = session.next_chunk()
                if chunk is not None:
                    self._send(chunk_message(chunk))
            case "live_rewind":
                session.rewind()
            case "live_prompt":
                session.set_prompt(request.facts["prompt"])
            case "live_portrait":
                image = request.arrays["portrait"]
                session.set_portrait(load_portrait(self._components, session.settings, image))
            case "live_state":
                packed = pack_snapshot(self._components, session.state())
                self._send(Message("state", {}, {_PACKED: np.frombuffer(packed, np.uint8)}))
        return self.facts()

    def close(self) -> None:
        """Free everything."""
        self._session.close()

    def facts(self) -> dict[str, Any]:
        """How the session is, as JSON data."""
        session, need = self._session, self._session.group_need
        return {
            "num_samples": session.speech.num_samples,
            "channels": session.speech.channels,
            "sample_rate": session.speech.sample_rate,
            "seconds": dict(session.clock.seconds),
            "audio_ended": session.audio_ended,
            "is_finished": session.is_finished,
            "num_frames_done": session.num_frames_done,
            "latency_s": session.latency_s.as_integer_ratio(),
            "missing_s": session.missing_s.as_integer_ratio(),
            "group_need": [need.first_frame, need.stop_frame, *need.seconds.as_integer_ratio()],
        }

    def opening(self) -> dict[str, Any]:
        """The same with the resolved options, in answer to the request that opened it."""
        return {**self.facts(), "settings": settings_facts(self._session.settings)}


def snapshot_of(state: PartState) -> bytes:
    """Bytes of a snapshot from what :meth:`WorkerCore.state` gave."""
    return state.tensors[_PACKED].numpy().tobytes()


def chunk_message(chunk: FrameChunk) -> Message:
    """A chunk on its way from rank 0."""
    facts = {
        "sample_rate": chunk.sample_rate,
        "pts": [chunk.pts.numerator, chunk.pts.denominator],
        "index": chunk.index,
    }
    return Message("chunk", facts, {"frames": chunk.frames, "audio": np.asarray(chunk.audio)})


def chunk_of(message: Message) -> FrameChunk:
    """The chunk that :func:`chunk_message` was given."""
    facts = message.facts
    return FrameChunk(
        frames=message.arrays["frames"],
        audio=message.arrays["audio"],
        sample_rate=facts["sample_rate"],
        pts=Fraction(*facts["pts"]),
        index=facts["index"],
    )
