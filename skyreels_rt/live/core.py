"""What computes in a live session: a session of this process, or one that workers hold."""

from __future__ import annotations

from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from skyreels_rt.group_need import GroupNeed
from skyreels_rt.job import JobSettings
from skyreels_rt.types import FrameChunk, PartState


class CoreSpeech(Protocol):
    """What a core knows of the speech it was given."""

    @property
    def num_samples(self) -> int:
        """Samples so far."""

    @property
    def channels(self) -> int | None:
        """Channels; None before the first sample."""

    @property
    def sample_rate(self) -> int | None:
        """Samples a second; None before the first sample."""


class CoreClock(Protocol):
    """Where a core's time went."""

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage."""


class LiveCore(Protocol):
    """What a :class:`.live.session.LiveSession` asks for; one call at a time.

    :class:`skyreels_rt.session.Session` says what each call does.
    """

    @property
    def settings(self) -> JobSettings:
        """Resolved options."""

    @property
    def speech(self) -> CoreSpeech:
        """The speech it was given."""

    @property
    def clock(self) -> CoreClock:
        """Seconds of computing, by stage."""

    @property
    def audio_ended(self) -> bool:
        """Whether the speech has an end."""

    @property
    def is_finished(self) -> bool:
        """Whether every frame was delivered."""

    @property
    def num_frames_done(self) -> int:
        """Frames delivered so far."""

    @property
    def latency_s(self) -> Fraction:
        """Seconds of speech that the first group needs."""

    @property
    def missing_s(self) -> Fraction:
        """Seconds of speech that the next group still needs."""

    @property
    def group_need(self) -> GroupNeed:
        """The group at hand, if it is a full one, and the speech that it waits for."""

    def push_audio(self, pcm: NDArray[np.float32], sample_rate: int) -> None:
        """Take speech."""

    def end_audio(self) -> None:
        """Take the end of the speech."""

    def next_chunk(self) -> FrameChunk | None:
        """Compute the frames of the next latent; None while speech is missing."""

    def rewind(self) -> None:
        """Forget what was not delivered."""

    def set_prompt(self, prompt: str) -> None:
        """Show something else from the next group on."""

    def set_portrait(self, portrait: NDArray[np.uint8]) -> None:
        """Show someone else from the next group on."""

    def state(self) -> PartState:
        """What the session's ``pack`` makes a snapshot of."""

    def close(self) -> None:
        """Free everything; never raises."""
