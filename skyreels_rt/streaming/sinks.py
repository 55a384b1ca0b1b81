"""Where a live video goes while it is made: fragmented MP4 or raw frames on a byte stream."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol

from skyreels_rt.errors import OutputError
from skyreels_rt.media.fragmented import FragmentedWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from skyreels_rt.types import FrameChunk

VideoFormat = Literal["mp4", "rgb24"]


class FrameSink(Protocol):
    """Takes chunks in order."""

    def write(self, chunk: FrameChunk) -> None:
        """Send a chunk out, all of it before the call returns.

        Raises
        ------
        OutputError
            The reader has gone, or the device is full.
        """
        ...

    def finish(self) -> None:
        """Send what is left; the byte stream stays open."""
        ...


class Mp4Sink:
    """Fragmented MP4, one fragment a chunk.

    Parameters
    ----------
    stream : BinaryIO
        Gets the bytes.
    fps : int
        Frames per second.
    """

    def __init__(self, stream: BinaryIO, fps: int) -> None:
        self._stream, self._fps = stream, fps
        self._writer: FragmentedWriter | None = None

    def write(self, chunk: FrameChunk) -> None:
        """Send a chunk as one fragment, the first after the initialisation segment."""
        if self._writer is None:
            _, height, width, _ = chunk.frames.shape
            self._writer = FragmentedWriter(
                fps=self._fps, height=height, width=width,
                sample_rate=chunk.sample_rate, channels=chunk.audio.shape[1],
            )  # fmt: skip
            _send(self._stream, self._writer.init.data)
        _send(self._stream, self._writer.write(chunk.frames, chunk.audio).data)

    def finish(self) -> None:
        """Send the last fragment."""
        last = self._writer.finish() if self._writer is not None else None
        if last is not None:
            _send(self._stream, last.data)


class RawSink:
    """Frames as they are: RGB, 8 bits a channel, row by row, without sound."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, chunk: FrameChunk) -> None:
        """Send the chunk's pixels."""
        _send(self._stream, chunk.frames.tobytes())

    def finish(self) -> None:
        """Nothing is left."""


def _send(stream: BinaryIO, data: bytes) -> None:
    with output_errors():
        stream.write(data)
        stream.flush()


@contextmanager
def output_errors(name: str = "the output") -> Iterator[None]:
    """Turn an error of the byte stream ``name`` inside the block into an OutputError."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{name}: cannot be written ({error.strerror}).",
            stage="output",
            hint="Check its folder, its space, and that whoever reads it still runs.",
        ) from error
