"""Finished videos from speech: the calls that every kind of engine has."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from skyreels_rt.distributed.workers import RankStatus
from skyreels_rt.media.video import Video
from skyreels_rt.media.video_writer import VideoWriter
from skyreels_rt.offline import GenerationSummary, Job
from skyreels_rt.options import GenerateOptions
from skyreels_rt.types import FrameChunk


@dataclass(frozen=True)
class EngineFacts:
    """What a report says about an engine.

    Attributes
    ----------
    name : str
        Model name or folder.
    device : str
        Where it runs; ``"cpu,cpu"`` for workers.
    threads : int
        CPU threads of each process.
    kernel_plan : dict
        Chosen implementation of every operator.
    """

    name: str
    device: str
    threads: int
    kernel_plan: dict[str, Any]


class VideoMaker(ABC):
    """What :class:`.engine.Engine` and :class:`.worker_engine.WorkerEngine` have in common."""

    @property
    @abstractmethod
    def facts(self) -> EngineFacts:
        """Model, device and kernels, for reports."""

    @property
    def workers(self) -> tuple[RankStatus, ...]:
        """What is known of each worker process; none where there are none."""
        return ()

    @property
    def writes_files(self) -> bool:
        """Whether this process is the one that writes files."""
        return True

    @abstractmethod
    def close(self) -> None:
        """End what the engine started, processes and groups of them; it is of no more use."""

    @abstractmethod
    def open_job(self, audio: str | Path | NDArray[Any], options: GenerateOptions) -> Job:
        """Check every input, in the order a caller would fix them, and open a job.

        Takes and raises the same as :meth:`generate`.
        """

    def generate(
        self,
        audio: str | Path | NDArray[Any],
        **options: Unpack[GenerateOptions],
    ) -> Video:
        """Make a talking video and hold it in memory.

        Parameters
        ----------
        audio : path or ndarray, shape (S,) or (S, channels)
            Speech; an array needs ``sample_rate``.
        **options
            See :class:`GenerateOptions`. Give ``image``, ``video``, both, or only a ``prompt``.

        Returns
        -------
        Video
            Frames, sound and ``save``. For long jobs use :meth:`generate_file` or :meth:`stream`.

        Raises
        ------
        SkyReelsError
            A typed error for every unusable input; see :mod:`skyreels_rt.errors`.
        """
        with self.open_job(audio, options) as job:
            chunks = list(job.chunks())
            return Video(
                frames=np.concatenate([chunk.frames for chunk in chunks]),
                audio=np.concatenate([chunk.audio for chunk in chunks]),
                sample_rate=job.sample_rate,
                fps=job.settings.fps,
                steps=job.steps,
            )

    def stream(
        self, audio: str | Path | NDArray[Any], **options: Unpack[GenerateOptions]
    ) -> Iterator[FrameChunk]:
        """Make a talking video and yield it chunk by chunk, in constant memory.

        Takes and raises the same as :meth:`generate`; the inputs are checked before the first
        chunk is asked for.
        """
        job = self.open_job(audio, options)

        def chunks() -> Iterator[FrameChunk]:
            with job:
                yield from job.chunks()

        return chunks()

    def generate_file(
        self,
        path: str | Path,
        audio: str | Path | NDArray[Any],
        **options: Unpack[GenerateOptions],
    ) -> GenerationSummary:
        """Make a talking video straight into an MP4 file, in constant memory.

        Takes and raises the same as :meth:`generate`, and :class:`OutputError` when ``path`` cannot
        be written. Until the job is done nothing exists under ``path``.

        Returns
        -------
        GenerationSummary
        """
        start = time.perf_counter()
        with self.open_job(audio, options) as job:
            settings = job.settings
            with _writer(path, job) if self.writes_files else nullcontext() as writer:
                for chunk in job.chunks():
                    if writer is not None:
                        with job.clock.measure("encode"):
                            writer.write(chunk.frames, chunk.audio)
            return GenerationSummary(
                num_frames=job.num_frames_done,
                fps=settings.fps,
                seed=settings.seed,
                seconds=time.perf_counter() - start,
                stage_seconds=dict(job.clock.seconds),
                settings=settings,
                steps=job.steps,
            )


def _writer(path: str | Path, job: Job) -> VideoWriter:
    return VideoWriter(
        path,
        fps=job.settings.fps,
        height=job.settings.height,
        width=job.settings.width,
        sample_rate=job.sample_rate,
        channels=job.channels,
    )
