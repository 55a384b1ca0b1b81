"""A live session: speech is pushed while it is spoken, frames are taken while they are made.

:class:`LiveSession` may be used from several threads: one pushes, one takes frames, any may
interrupt. It has no thread of its own; whoever takes frames computes them, in turns with the other
sessions of the engine. ``async with`` gives the same for asyncio
(:class:`skyreels_rt.live.asynchronous.AsyncSession`).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from skyreels_rt.audio.resample import SPEECH_RATE, SpeechResampler
from skyreels_rt.audio.speech_tail import checked_pcm
from skyreels_rt.errors import (
    Cancelled,
    InvalidArgument,
    QueueFull,
    SessionStateError,
    SkyReelsError,
)
from skyreels_rt.live.asynchronous import AsyncSession
from skyreels_rt.live.core import LiveCore
from skyreels_rt.live.observer import SessionObserver
from skyreels_rt.media.image import ImageInput
from skyreels_rt.runtime.turns import Turns
from skyreels_rt.types import FrameChunk, PartState

_PATIENCE_S = 5.0
"""Seconds that a push waits before it looks around."""

logger = logging.getLogger(__name__)

OnFull = Literal["wait", "raise"]
"""What a push does when more audio would wait than allowed."""


@dataclass(frozen=True)
class LiveSettings:
    """How a live session takes audio.

    Attributes
    ----------
    max_ahead_s : float
        Seconds of pushed audio that may wait for their frames.
    on_full : {"wait", "raise"}
        What a push beyond that does.
    idle : bool
        Whether silence follows when the speech runs dry, so that the portrait keeps moving.
    """

    max_ahead_s: float = 10.0
    on_full: OnFull = "wait"
    idle: bool = False


@dataclass(frozen=True)
class Interruption:
    """Where speech was cut.

    Attributes
    ----------
    frame_index : int
        Frames delivered so far; the next frame has this index.
    seconds : Fraction
        Position in the audio up to which it was spoken, exact.
    """

    frame_index: int
    seconds: Fraction


class LiveSession:
    """Audio in, frames out, while both go on. Made by :meth:`Engine.open_session`.

    Parameters
    ----------
    open_core : callable
        Makes the session that computes, given what it shall ask for cancellation.
    settings : LiveSettings
        How audio is taken.
    pack : callable
        Writes a state as bytes (:func:`skyreels_rt.live.snapshot.pack_snapshot`).
    load_portrait : callable
        Reads an image in the output's shape.
    observer : SessionObserver
        Is told what happens.
    on_close : callable, optional
        Called once when the session closes.
    on_stop : callable, optional
        Called when the core shall stop computing, beside what ``open_core`` was given.
    require_core : callable, optional
        Raises if what computes is gone, and with it the session; whoever waits is told by
        :meth:`wake`.

    Raises
    ------
    InvalidArgument
        ``settings`` hold less audio than the first frames need.
    """

    def __init__(
        self,
        open_core: Callable[[Callable[[], bool]], LiveCore],
        settings: LiveSettings,
        *,
        pack: Callable[[PartState], bytes],
        load_portrait: Callable[[ImageInput], NDArray[np.uint8]],
        observer: SessionObserver,
        on_close: Callable[[], None] | None = None,
        on_stop: Callable[[], None] | None = None,
        require_core: Callable[[], None] | None = None,
    ) -> None:
        self._pack = pack
        self._load_portrait = load_portrait
        self._observer = observer
        self._on_close = on_close
        self._on_stop = on_stop
        self._require_core = require_core
        self._compute = Turns()  # held by whoever touches the core
        self._changed = threading.Condition()  # guards what follows
        self._inbox: deque[NDArray[np.float32]] = deque()
        self._closed = self._woken = False
        self._interrupts = 0  # interruptions under way
        self._cut = 0  # interruptions so far: a push that waits is part of what they drop
        self._taker: int | None = None  # thread that took frames last
        self._started = 0.0  # clock when playing could start
        self._core = core = open_core(self._must_stop)
        self.settings = settings
        self.fps = core.settings.fps
        self._format = _resampler_of(core)
        self._ending, self._pushed = core.audio_ended, core.speech.num_samples
        self._delivered = core.num_frames_done
        if settings.max_ahead_s < core.latency_s:
            core.close()
            raise InvalidArgument(
                "max_ahead_s",
                expected=f"at least the {float(core.latency_s):.2f} s the first frames need",
                got=settings.max_ahead_s,
            )

    # ---------------------------------------------------------------------------------- audio in

    def push_audio(self, pcm: NDArray[np.float32], sample_rate: int) -> None:
        """Add speech of any length.

        With ``on_full="wait"`` it waits, piece by piece, until another thread has taken frames; an
        interruption meanwhile drops the rest. The thread that takes the frames itself must not push
        more than ``max_ahead_s`` in between: it would wait for itself, which raises.

        Parameters
        ----------
        pcm : ndarray, shape (S,) or (S, channels), float32 in [-1, 1]
            Samples that follow the ones pushed before.
        sample_rate : int
            Samples per second; the same in every call.

        Raises
        ------
        InvalidArgument
            Wrong dtype or shape, or rate or channels changed. Nothing was taken.
        NonFinite
            NaN or infinity. Nothing was taken.
        QueueFull
            With ``on_full="raise"``: nothing was taken. Or the pushing thread would wait for
            itself: what fitted was taken.
        SessionStateError
            The session is closed, or its audio has ended.
        """
        block = checked_pcm(pcm)
        with self._changed:
            self._require_speaking("push_audio")
            self._check_format(block, sample_rate)
            if self.settings.on_full == "raise" and self._room() < len(block):
                raise QueueFull(
                    f"{self.buffered_s:.2f} s of audio wait for their frames, "
                    f"{len(block) / sample_rate:.2f} s more exceed {self.settings.max_ahead_s} s.",
                    stage="audio",
                    hint="Take frames first, push less at once, or use on_full='wait'.",
                )
            cut, taken = self._cut, 0
            while taken < len(block):
                taken += self._take(block[taken:])
                if taken < len(block):
                    self._wait_for_room()
                    if self._cut != cut:
                        return
                    self._require_speaking("push_audio")

    def offer_audio(self, pcm: NDArray[np.float32], sample_rate: int) -> bool:
        """Push if there is room for all of it now; whether it was taken. Raises the same."""
        block = checked_pcm(pcm)
        with self._changed:
            self._require_speaking("push_audio")
            self._check_format(block, sample_rate)
            fits = self._room() >= len(block)
            if fits:
                self._take(block)
            return fits

    def end_audio(self) -> None:
        """Say that no more speech comes. Saying it again does nothing.

        Raises
        ------
        SessionStateError
            The session is closed, or nothing was pushed.
        """
        with self._changed:
            self._require_open("end_audio")
            if self._pushed == 0:
                raise SessionStateError("end_audio: no audio came before its end.", stage="audio")
            self._ending = True
            self._changed.notify_all()

    # -------------------------------------------------------------------------------- frames out

    def frames(self) -> Iterator[FrameChunk]:
        """Frames that the audio so far allows; ends when more audio is needed.

        Raises
        ------
        SessionStateError
            The session is or was closed meanwhile.
        NonFinite
            NaN or infinity appeared; no frame that holds it is delivered.
        """
        while (chunk := self.next_chunk(wait=False)) is not None:
            yield chunk

    def __iter__(self) -> Iterator[FrameChunk]:
        """All frames to the end of the speech; waits for audio from other threads."""
        while (chunk := self.next_chunk()) is not None:
            yield chunk

    def next_chunk(self, *, wait: bool = True) -> FrameChunk | None:
        """Frames of the next latent; None at the end, or without ``wait`` if audio is missing.

        Raises the same as :meth:`frames`.
        """
        while True:
            with self._compute.hold():
                self._require_open("frames")
                self._taker = threading.get_ident()
                self._feed()
                chunk = self._computed()
                if chunk is not None:
                    self._note_delivery(chunk)
                    return chunk
                if self._core.is_finished:
                    self._observer.finished()
                    return None
            if not wait:
                return None
            self._wait_for_audio()

    # ------------------------------------------------------------------------------------ control

    def interrupt(self) -> Interruption:
        """Stop speaking: drop all speech whose frames were not delivered, within one step.

        The session goes on from the last delivered frame with whatever is pushed next, also after
        :meth:`end_audio`.

        Returns
        -------
        Interruption
            The position really spoken.

        Raises
        ------
        SessionStateError
            The session is closed.
        """
        started = time.monotonic()
        with self._changed:
            self._require_open("interrupt")
            self._interrupts += 1
        self._stop_core()
        try:
            with self._compute.hold():
                self._require_open("interrupt")
                self._core.rewind()
                with self._changed:
                    dropped = self.buffered_s
                    self._inbox.clear()
                    self._ending = self._core.is_finished
                    self._cut += 1
                    self._pushed = self._core.speech.num_samples
                    index = self._delivered
                    self._observer.interrupted(dropped_s=dropped, fps=self.fps, started=started)
        finally:
            with self._changed:
                self._interrupts -= 1
                self._changed.notify_all()
        return Interruption(index, Fraction(index, self.fps))

    def set_prompt(self, prompt: str) -> None:
        """Show something else from the next group of windows on.

        Raises
        ------
        SessionStateError
            The session is closed.
        InvalidArgument
            No string.
        """
        if not isinstance(prompt, str):
            raise InvalidArgument("prompt", expected="a string", got=type(prompt).__name__)
        with self._compute.hold():
            self._require_open("set_prompt")
            self._core.set_prompt(prompt)

    def set_image(self, image: ImageInput) -> None:
        """Show someone else from the next group of windows on.

        Parameters
        ----------
        image : path, PIL image or ndarray
            As in :class:`skyreels_rt.GenerateOptions`.

        Raises
        ------
        SkyReelsError
            What :meth:`Engine.generate` raises for an image; nothing changed.
        """
        portrait = self._load_portrait(image)
        with self._compute.hold():
            self._require_open("set_image")
            self._core.set_portrait(portrait)

    def snapshot(self) -> bytes:
        """The session between two chunks as bytes, for :meth:`Engine.restore_session`.

        Waits for a chunk that another thread computes. Holds pushed audio too; of a source video
        only the frames at hand.

        Raises
        ------
        SessionStateError
            The session is closed.
        """
        with self._compute.hold():
            self._require_open("snapshot")
            self._feed()
            return self._pack(self._core.state())

    def close(self) -> None:
        """Stop within one step and free everything; only a second close may follow."""
        with self._changed:
            first, self._closed = not self._closed, True
            self._inbox.clear()
            self._changed.notify_all()
        if first:
            self._stop_core()
            with self._compute.hold():
                self._core.close()
            self._observer.closed()
            if self._on_close is not None:
                self._on_close()

    def wake(self) -> None:
        """Let whoever waits for speech or for room look again: the core may be gone."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    # -------------------------------------------------------------------------------------- facts

    @property
    def latency_s(self) -> Fraction:
        """Seconds of audio that the first frames need: a window and the look-ahead."""
        return self._core.latency_s

    @property
    def buffered_s(self) -> float:
        """Seconds of pushed audio whose frames were not delivered."""
        if self._format is None:
            return 0.0
        return self._pushed / self._format.sample_rate - self._delivered / self.fps

    @property
    def num_pushed(self) -> int:
        """Samples pushed so far, counted from the first frame; an interruption takes some back."""
        return self._pushed

    @property
    def has_ended(self) -> bool:
        """Whether :meth:`end_audio` was called."""
        return self._ending

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def __enter__(self) -> LiveSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> AsyncSession:
        self._async = AsyncSession(self)
        return self._async

    async def __aexit__(self, *_: object) -> None:
        await self._async.close()

    # ---------------------------------------------------------------------------------- internals

    def _must_stop(self) -> bool:
        return self._closed or self._interrupts > 0

    def _require_open(self, call: str) -> None:
        if self._closed:
            raise SessionStateError(f"{call}: the session is closed.", stage="session")
        if self._require_core is not None:
            self._require_core()

    def _stop_core(self) -> None:
        if self._on_stop is not None:
            self._on_stop()

    def _require_speaking(self, call: str) -> None:
        self._require_open(call)
        if self._ending:
            raise SessionStateError(
                f"{call}: the audio of this session has ended.",
                stage="session",
                hint="Open a new session, or interrupt() before pushing other speech.",
            )

    def _check_format(self, block: NDArray[np.float32], sample_rate: int) -> None:
        """Raise for what the core would refuse: it takes blocks later, in another thread."""
        if not isinstance(sample_rate, int | np.integer) or isinstance(sample_rate, bool):
            raise InvalidArgument("sample_rate", expected="an integer", got=sample_rate)
        known = self._format
        if known is None:
            known = SpeechResampler(int(sample_rate), block.shape[1])
        if sample_rate != known.sample_rate:
            raise InvalidArgument("sample_rate", expected=str(known.sample_rate), got=sample_rate)
        known.check(block)
        self._format = known

    def _room(self) -> int:
        """Samples that may be pushed now; what the resampler holds back does not count."""
        assert self._format is not None
        ahead = self.settings.max_ahead_s + self._format.delay_s - self.buffered_s
        return max(0, int(ahead * self._format.sample_rate))

    def _take(self, block: NDArray[np.float32]) -> int:
        """Put what fits into the inbox; how many samples that were."""
        count = min(len(block), self._room())
        assert self._format is not None
        if count:
            self._inbox.append(block[:count].copy())
            self._pushed += count
            self._observer.pushed(Fraction(self._pushed, self._format.sample_rate))
            self._changed.notify_all()
        return count

    def _wait_for_room(self) -> None:
        """Wait until frames were taken; never for the thread at hand."""
        if self._taker == threading.get_ident():
            raise QueueFull(
                f"{self.settings.max_ahead_s} s of audio wait for their frames, and the thread "
                "that takes frames is the one that pushes.",
                stage="audio",
                hint="Push from another thread, push less at once, or raise max_ahead_s.",
            )
        if not self._changed.wait(_PATIENCE_S) and self._taker is None:
            logger.warning("push_audio waits, and no thread has ever taken frames")

    def _feed(self) -> None:
        """Give the core what was pushed; called with the core held."""
        with self._changed:
            blocks, ending = list(self._inbox), self._ending
            self._inbox.clear()
        for block in blocks:
            assert self._format is not None
            self._core.push_audio(block, self._format.sample_rate)
        if ending:
            self._core.end_audio()

    def _computed(self) -> FrameChunk | None:
        """The core's next chunk; None when audio is missing, or when it was told to stop."""
        try:
            return self._core.next_chunk()
        except Cancelled:
            return None
        except SkyReelsError as error:
            self._observer.failed(error)
            raise

    def _note_delivery(self, chunk: FrameChunk) -> None:
        with self._changed:
            self._observer.delivered(
                chunk,
                fps=self.fps,
                need=self._core.group_need,
                stages=self._core.clock.seconds,
            )
            if self._delivered == 0:
                self._started = time.monotonic()
            self._delivered = self._core.num_frames_done
            self._changed.notify_all()

    def _wait_for_audio(self) -> None:
        """Wait for anything new; with ``idle``, until playing would run dry, then add silence."""
        with self._changed:

            def is_new() -> bool:
                if self._closed or self._woken:
                    return True
                return self._interrupts == 0 and (bool(self._inbox) or self._ending)

            if not self.settings.idle:
                self._changed.wait_for(is_new)
            elif not self._changed.wait_for(is_new, self._seconds_to_dry()):
                self._take_silence()

    def _seconds_to_dry(self) -> float:
        """Seconds until a player that shows frames as they come has none left."""
        if self._delivered == 0:
            return 0.0
        played = time.monotonic() - self._started
        return max(0.0, self._delivered / self.fps - played)

    def _take_silence(self) -> None:
        """Push as much silence as the next group of frames needs."""
        if self._format is None:
            self._format = SpeechResampler(SPEECH_RATE, 1)
        rate = self._format.sample_rate
        count = math.ceil((self._core.missing_s + Fraction(self._format.delay_s)) * rate)
        self._take(np.zeros((max(1, count), self._format.channels), np.float32))


def _resampler_of(core: LiveCore) -> SpeechResampler | None:
    """What knows the format of the speech, once there is one."""
    if core.speech.channels is None or core.speech.sample_rate is None:
        return None
    return SpeechResampler(core.speech.sample_rate, core.speech.channels)
