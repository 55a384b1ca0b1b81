"""A finished video in memory: frames, sound and rates."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.media.encoder import SYNTHETIC_MARK
from skyreels_rt.media.video_writer import VideoWriter
from skyreels_rt.runtime.step_cache import StepRun


@dataclass(frozen=True, eq=False)
class Video:
    """Frames and the sound that belongs to them.

    Attributes
    ----------
    frames : ndarray, shape (F, H, W, 3), uint8
        RGB.
    audio : ndarray, shape (S, C), float32 in [-1, 1], or None
        Sound from the first frame on.
    sample_rate : int or None
        Hz of ``audio``; None exactly if ``audio`` is.
    fps : int
        Frames per second.
    steps : tuple of StepRun
        Which denoising steps each window computed, and which it skipped; empty for a video that was
        not generated.

    Raises
    ------
    InvalidArgument
        A field has another shape or dtype, or ``audio`` and ``sample_rate`` do not go together.
    """

    frames: NDArray[np.uint8]
    audio: NDArray[np.float32] | None
    sample_rate: int | None
    fps: int
    steps: tuple[StepRun, ...] = ()

    def __post_init__(self) -> None:
        frames, audio = self.frames, self.audio
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
            raise InvalidArgument(
                "frames",
                expected="uint8 of shape (F, H, W, 3)",
                got=f"{frames.dtype} {frames.shape}",
            )
        if audio is not None and (audio.ndim != 2 or audio.dtype != np.float32):
            raise InvalidArgument(
                "audio", expected="float32 of shape (S, C)", got=f"{audio.dtype} {audio.shape}"
            )
        if (audio is None) != (self.sample_rate is None):
            raise InvalidArgument(
                "sample_rate", expected="a rate exactly if there is audio", got=self.sample_rate
            )
        if self.fps < 1:
            raise InvalidArgument("fps", expected=">= 1", got=self.fps)

    @property
    def num_frames(self) -> int:
        """Frames of the video."""
        return len(self.frames)

    @property
    def duration(self) -> Fraction:
        """Length of the picture in seconds, exact."""
        return Fraction(self.num_frames, self.fps)

    def save(
        self,
        path: str | Path,
        *,
        crf: int = 18,
        preset: str = "veryfast",
        synthetic_mark: str | None = SYNTHETIC_MARK,
    ) -> None:
        """Write H.264 + AAC to the MP4 file ``path``, replacing it only when complete.

        Parameters
        ----------
        path : str or Path
            Target ending in ``.mp4``.
        crf, preset, synthetic_mark
            As in :class:`skyreels_rt.media.video_writer.VideoWriter`.

        Raises
        ------
        InvalidArgument
            Another suffix, an odd height or width, or a sample rate AAC does not know.
        OutputError
            The file cannot be written; nothing is left under its name.
        """
        _, height, width, _ = self.frames.shape
        with VideoWriter(
            path,
            fps=self.fps,
            height=height,
            width=width,
            sample_rate=self.sample_rate,
            channels=1 if self.audio is None else self.audio.shape[1],
            crf=crf,
            preset=preset,
            synthetic_mark=synthetic_mark,
        ) as writer:
            # A second at a time, so that sound and picture are interleaved.
            for start in range(0, self.num_frames, self.fps):
                writer.write(self.frames[start : start + self.fps], self._sound(start))

    def _sound(self, start: int) -> NDArray[np.float32] | None:
        """Sound of the second that begins with frame ``start``; the last one takes the rest."""
        if self.audio is None or self.sample_rate is None:
            return None
        first = start // self.fps * self.sample_rate
        is_last = start + self.fps >= self.num_frames
        return self.audio[first:] if is_last else self.audio[first : first + self.sample_rate]
