"""A job that is driven to its end: all the speech goes in, all the frames come out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from skyreels_rt.continuation import ContinuationSession
from skyreels_rt.errors import MediaError
from skyreels_rt.job import JobSettings
from skyreels_rt.media.audio_file import AudioSource
from skyreels_rt.progress import ProgressBar
from skyreels_rt.runtime.step_cache import StepRun
from skyreels_rt.runtime.timing import StageClock
from skyreels_rt.session import Session
from skyreels_rt.types import FrameChunk


@dataclass(frozen=True)
class GenerationSummary:
    """What a job did.

    Attributes
    ----------
    num_frames, fps : int
        Frames made, and their rate.
    seed : int
        Seed used.
    seconds : float
        Wall-clock seconds of the whole job.
    stage_seconds : dict of str to float
        Of them, by stage.
    settings : JobSettings
        Resolved options.
    steps : tuple of StepRun
        Which denoising steps each window computed, and which it skipped.
    """

    num_frames: int
    fps: int
    seed: int
    seconds: float
    stage_seconds: dict[str, float]
    settings: JobSettings
    steps: tuple[StepRun, ...] = ()

    @property
    def rtf(self) -> float:
        """Compute seconds per second of video; below 1 is faster than real time."""
        return self.seconds * self.fps / self.num_frames


class Job(Protocol):
    """An open job; leaving its ``with`` block ends it."""

    @property
    def settings(self) -> JobSettings:
        """Resolved options."""

    @property
    def sample_rate(self) -> int:
        """Of the sound that goes with the frames, in Hz."""

    @property
    def channels(self) -> int:
        """Of that sound."""

    @property
    def clock(self) -> StageClock:
        """Seconds by stage so far."""

    @property
    def steps(self) -> tuple[StepRun, ...]:
        """Which steps the windows denoised so far computed."""

    @property
    def num_frames_done(self) -> int:
        """Frames made so far."""

    def chunks(self) -> Iterator[FrameChunk]:
        """Finished frames, one chunk per latent."""

    def __enter__(self) -> Job: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass
class OfflineJob:
    """An open session and the speech that drives it; closes both. A :class:`Job`."""

    audio: AudioSource
    session: Session | ContinuationSession
    settings: JobSettings
    bar: ProgressBar | None

    @property
    def sample_rate(self) -> int:
        """Of the speech."""
        return self.audio.sample_rate

    @property
    def channels(self) -> int:
        """Of the speech."""
        return self.audio.channels

    @property
    def clock(self) -> StageClock:
        """Of the session."""
        return self.session.clock

    @property
    def steps(self) -> tuple[StepRun, ...]:
        """Of the session."""
        return self.session.steps

    @property
    def num_frames_done(self) -> int:
        """Of the session."""
        return self.session.num_frames_done

    def chunks(self) -> Iterator[FrameChunk]:
        """Push the speech block by block and yield what becomes ready."""
        for block in self.audio.blocks():
            self.session.push_audio(block, self.audio.sample_rate)
            yield from self.session.frames()
            if self.session.is_finished:  # the source video ended before the speech
                break
        else:
            self.session.end_audio()
            yield from self.session.frames()
        if self.session.num_frames_done == 0:
            raise MediaError("video: holds no frame at the model's frame rate.", stage="video")

    def __enter__(self) -> OfflineJob:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()
        if self.bar is not None:
            self.bar.close()
