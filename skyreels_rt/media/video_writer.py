"""Write H.264 video with AAC sound to an MP4 file while the frames are being made.

The file grows under a hidden name beside the target and takes the target's name only when it is
complete. While it grows it is a fragmented MP4, playable up to the last finished fragment even if
the process is killed; when it is closed it becomes an ordinary one (FFmpeg's hybrid mode). Memory
does not grow with the frames written, but for FFmpeg's sample index (11 MB an hour, measured).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from skyreels_rt.errors import InvalidArgument, OutputError, SkyReelsError
from skyreels_rt.media.encoder import SYNTHETIC_MARK, TrackEncoder, TrackSettings

if TYPE_CHECKING:
    from av.container import OutputContainer


class VideoWriter:
    """Encoder of one MP4 file, used as a context manager.

    Leaving the block normally completes the file; leaving it by an exception removes what was
    written and leaves a file that stood under the name before as it was. Not thread-safe.

    Parameters
    ----------
    path : str or Path
        Target; its suffix is ``.mp4`` and its folder exists.
    fps : int
        Frames per second, 1 to 240.
    height, width : int
        Pixels of a frame, even (4:2:0 chroma), 16 or more.
    sample_rate : int, optional
        Hz of the sound, one of ``AAC_SAMPLE_RATES``; None writes no sound track.
    channels : int
        Channels of the sound given to :meth:`write`, 1 to 8; more than two are mixed down to
        stereo (WAVE channel order).
    crf : int
        x264's constant quality, 0 to 51, lower is better.
    preset : str
        x264's speed preset.
    threads : int
        Encoder threads, 1 or more. The bytes of the file depend on it.
    synthetic_mark : str or None
        Text of the ``comment`` tag that says that the video is synthetic; None writes none, for
        callers that mark their output by other means.

    Raises
    ------
    InvalidArgument
        A parameter is out of its range.
    OutputError
        The file cannot be created.

    Notes
    -----
    Frames are converted with the BT.709 matrix to limited range and the stream says so. Frame ``n``
    has the time ``n / fps`` and sample ``n`` the time ``n / sample_rate``, exactly.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: int,
        height: int,
        width: int,
        sample_rate: int | None = None,
        channels: int = 1,
        crf: int = 18,
        preset: str = "veryfast",
        threads: int = 2,
        synthetic_mark: str | None = SYNTHETIC_MARK,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() != ".mp4":
            raise InvalidArgument("path", expected="a name ending in .mp4", got=path)
        self._settings = TrackSettings(
            fps, height, width, sample_rate, channels, crf=crf, preset=preset, threads=threads
        )
        self._closed = False
        self._resources = ExitStack()
        self._temporary = self.path.with_name(f".{secrets.token_hex(8)}.part")
        with self._guard():
            self._refuse_directory()
            self._container = self._open_container(synthetic_mark)
            self._tracks = TrackEncoder(self._container, self._settings, self._container.mux)

    @property
    def num_frames(self) -> int:
        """Frames written so far."""
        return self._tracks.num_frames

    def write(self, frames: NDArray[np.uint8], audio: NDArray[np.float32] | None = None) -> None:
        """Append frames and the sound that belongs to them.

        Parameters
        ----------
        frames : ndarray, shape (F, height, width, 3), uint8
            RGB; F may be 0.
        audio : ndarray, shape (S, channels), float32 in [-1, 1], optional
            Sound that follows the sound written so far, normally of exactly these frames; louder
            samples are clipped. None stands for silence up to the end of these frames.

        Raises
        ------
        InvalidArgument
            Wrong shape or dtype, or sound for a writer without ``sample_rate``.
        NonFinite
            ``audio`` holds NaN or infinity.
        OutputError
            The file cannot be written, or the writer is closed. Nothing is left of it.
        """
        self._tracks.check(frames, audio)
        with self._guard():
            self._tracks.write(frames, audio)

    def close(self) -> None:
        """Complete the file and give it its name; sound shorter than the video ends in silence.

        Closing again does nothing.

        Raises
        ------
        OutputError
            The file cannot be completed, or no frame was written. Nothing is left of it.
        """
        if self._closed:
            return
        with self._guard():
            if self.num_frames == 0:
                raise OutputError(
                    f"{self.path}: expected at least one frame before close(), got none.",
                    stage="output",
                    hint="Call abort() to give the file up.",
                )
            self._tracks.finish()
            self._resources.close()
            self._temporary.replace(self.path)
            self._closed = True

    def abort(self) -> None:
        """Stop and remove what was written; does nothing after :meth:`close`."""
        if self._closed:
            return
        self._closed = True
        # The file is going away: what its muxer still complains about does not matter.
        with suppress(Exception):
            self._resources.close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Whatever fails inside removes the file; a foreign error becomes an OutputError."""
        if self._closed:
            raise OutputError(
                f"{self.path}: the writer is closed.", stage="output", hint="Open a new one."
            )
        try:
            yield
        except BaseException as error:
            self.abort()
            if isinstance(error, SkyReelsError) or not isinstance(error, Exception):
                raise
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise OutputError(
                f"{self.path}: cannot be written ({reason}).",
                stage="output",
                hint="Check that the folder exists, may be written to and has space.",
            ) from error

    def _refuse_directory(self) -> None:
        """Raise now what would otherwise come after the last frame."""
        if self.path.is_dir():
            raise OutputError(
                f"{self.path}: expected the name of a file, got a directory.",
                stage="output",
                hint="Add a file name.",
            )

    def _open_container(self, mark: str | None) -> OutputContainer:
        """Container over the new temporary file; both are closed by ``_resources``."""
        import av

        # Python's file and not FFmpeg's: a full disk then raises instead of being logged.
        file = self._resources.enter_context(self._temporary.open("xb"))
        given = self._settings
        # delay_moov keeps the edit list that hides the AAC encoder's delay.
        options = {
            "movflags": "hybrid_fragmented+delay_moov",
            # Edit lists count in this unit: milliseconds, the default, would round the lengths.
            "movie_timescale": str(math.lcm(given.fps, given.sample_rate or 1_000)),
        }
        container: OutputContainer = self._resources.enter_context(
            av.open(file, "w", format="mp4", container_options=options)
        )
        if mark is not None:
            container.metadata["comment"] = mark
        return container
