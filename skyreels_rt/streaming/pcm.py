"""PCM from a byte stream or an audio file, in blocks, at the pace of speech or as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import RawIOBase
from typing import Any, BinaryIO, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from skyreels_rt.errors import InvalidArgument, MediaError
from skyreels_rt.media.encoder import AAC_SAMPLE_RATES

SampleFormat = Literal["s16le", "f32le"]
Pace = Literal["real-time", "fast"]

BLOCK_SECONDS: Final = 0.02
_DTYPES: Final[dict[str, np.dtype[Any]]] = {"s16le": np.dtype("<i2"), "f32le": np.dtype("<f4")}


@dataclass(frozen=True)
class PCMFormat:
    """Layout of raw samples.

    Attributes
    ----------
    sample_format : {"s16le", "f32le"}
        Signed 16-bit or 32-bit float, little-endian, channels interleaved.
    sample_rate : int
        Samples per second, one that AAC knows.
    channels : int
        1 to 8.
    """

    sample_format: SampleFormat = "s16le"
    sample_rate: int = 16_000
    channels: int = 1

    def __post_init__(self) -> None:
        if self.sample_format not in get_args(SampleFormat):
            raise InvalidArgument(
                "sample_format", expected=" or ".join(_DTYPES), got=repr(self.sample_format)
            )
        if self.sample_rate not in AAC_SAMPLE_RATES:
            raise InvalidArgument(
                "sample_rate",
                expected=f"one of {', '.join(map(str, AAC_SAMPLE_RATES))}",
                got=self.sample_rate,
                hint="Resample the sound first.",
            )
        if not 1 <= self.channels <= 8:
            raise InvalidArgument("channels", expected="1 to 8", got=self.channels)

    @property
    def bytes_per_sample(self) -> int:
        """Bytes of one sample of all channels."""
        return _DTYPES[self.sample_format].itemsize * self.channels

    def decode(self, data: bytes) -> NDArray[np.float32]:
        """Samples (S, channels), float32, of whole samples of ``data``.

        Raises
        ------
        InvalidArgument
            ``data`` ends inside a sample.
        """
        if len(data) % self.bytes_per_sample:
            raise InvalidArgument(
                "data", expected=f"a multiple of {self.bytes_per_sample} bytes", got=len(data)
            )
        samples = np.frombuffer(data, _DTYPES[self.sample_format]).reshape(-1, self.channels)
        scale = 32768 if self.sample_format == "s16le" else 1
        floats: NDArray[np.float32] = np.divide(samples, np.float32(scale), dtype=np.float32)
        return floats


def block_samples(sample_rate: int) -> int:
    """Samples of a block of ``BLOCK_SECONDS``."""
    return max(1, round(sample_rate * BLOCK_SECONDS))


def read_pcm(stream: RawIOBase | BinaryIO, layout: PCMFormat) -> Iterator[NDArray[np.float32]]:
    """Blocks (S, channels) of ``BLOCK_SECONDS`` from ``stream`` until it ends; the last is shorter.

    Raises
    ------
    MediaError
        The stream ends inside a sample.
    """
    size = block_samples(layout.sample_rate) * layout.bytes_per_sample
    while data := _read_whole(stream, size):
        if len(data) % layout.bytes_per_sample:
            raise MediaError(
                f"audio: expected whole samples of {layout.bytes_per_sample} bytes, got a stream "
                "that ends inside one.",
                stage="audio",
                hint="Check --format and --channels.",
            )
        yield layout.decode(data)


def _read_whole(stream: RawIOBase | BinaryIO, size: int) -> bytes:
    """``size`` bytes, less only at the end; an unbuffered stream gives what a pipe holds."""
    data = stream.read(size) or b""
    while data and len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data


def paced(
    blocks: Iterable[NDArray[np.float32]],
    sample_rate: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[NDArray[np.float32]]:
    """Hand each block out when its last sample would have been spoken.

    ``sleep`` may be an event's ``wait``: a true result ends the blocks.
    """
    start, samples = clock(), 0
    for block in blocks:
        samples += len(block)
        wait = start + samples / sample_rate - clock()
        if wait > 0 and sleep(wait):
            return
        yield block
