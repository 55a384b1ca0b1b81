"""Streaming conversion of speech to the 16 kHz mono signal that every audio encoder here takes.

The resampler is libsoxr's streaming one at quality "HQ" (a linear-phase filter with 20 bits of
precision). Its output does not depend on how the input was cut; the tests hold it to that.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import numpy as np

from skyreels_rt.errors import InvalidArgument, NonFinite
from skyreels_rt.media.audio_file import (
    MAX_SAMPLE_RATE,
    MIN_SAMPLE_RATE,
    AudioSource,
    in_blocks,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPEECH_RATE = 16_000
"""Sample rate of the signal that encoders take, in Hz."""

# 36 dB over full scale: no float recording is that hot, 16-bit integers cast to float are.
_MAX_PEAK = 64.0


class SpeechResampler:
    """Turns blocks of PCM of any size into mono samples at 16 kHz.

    Any cutting of the same input gives the same bytes in total. Input at 16 kHz passes through
    unchanged (mono: bit for bit). Otherwise the output trails the input by the filter's delay,
    at most 41 ms at 44.1 and 48 kHz and 115 ms at 8 kHz (measured with soxr 1.1), until
    :meth:`finish`.

    Parameters
    ----------
    sample_rate : int
        Rate of the input in Hz, 1000 to 384000.
    channels : int
        Channels C of the input, at least 1. They are averaged in float32, in order.

    Raises
    ------
    InvalidArgument
        ``sample_rate`` or ``channels`` is out of range.
    """

    def __init__(self, sample_rate: int, channels: int) -> None:
        if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
            raise InvalidArgument(
                "sample_rate",
                expected=f"{MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz",
                got=sample_rate,
                stage="audio",
            )
        if channels < 1:
            raise InvalidArgument("channels", expected=">= 1", got=channels, stage="audio")
        self._sample_rate = sample_rate
        self._channels = channels
        self._num_in = 0
        self._num_out = 0
        self._finished = False
        self._stream = None
        if sample_rate != SPEECH_RATE:
            import soxr

            self._stream = soxr.ResampleStream(
                sample_rate, SPEECH_RATE, 1, dtype="float32", quality="HQ"
            )

    def push(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the next samples and return what has become ready.

        Parameters
        ----------
        block : ndarray, shape (S, C), float32 in [-1, 1]
            The next S >= 0 samples. Moderate overshoot is let through.

        Returns
        -------
        ndarray, shape (T,), float32
            New mono samples at 16 kHz, T >= 0; never a view of ``block``.

        Raises
        ------
        InvalidArgument
            Wrong shape or dtype, samples far outside [-1, 1], or :meth:`finish` was called.
        NonFinite
            ``block`` holds NaN or infinity. Nothing of it was taken.
        """
        self._check(block)
        mono = _mix_down(block)
        self._num_in += len(mono)
        ready = mono if self._stream is None else self._resample(mono, last=False)
        self._num_out += len(ready)
        return ready

    def finish(self) -> NDArray[np.float32]:
        """End the signal and return its tail.

        All of the output together then has ``floor(num_in * 16000 / sample_rate + 1/2)`` samples.

        Returns
        -------
        ndarray, shape (T,), float32
            The last samples at 16 kHz, T >= 0.

        Raises
        ------
        InvalidArgument
            The signal was finished before.
        """
        self._check_open("finish")
        self._finished = True
        if self._stream is None:
            return np.zeros(0, np.float32)
        tail = self._resample(np.zeros(0, np.float32), last=True)
        # soxr rounds the same way; the length is our contract, so it does not hang on its version.
        total = (2 * self._num_in * SPEECH_RATE + self._sample_rate) // (2 * self._sample_rate)
        missing = total - self._num_out
        tail = np.pad(tail[:missing], (0, max(0, missing - len(tail))))
        self._num_out = total
        return tail

    def _resample(self, mono: NDArray[np.float32], *, last: bool) -> NDArray[np.float32]:
        """Push ``mono`` through soxr."""
        assert self._stream is not None
        ready: NDArray[np.float32] = self._stream.resample_chunk(mono, last=last)
        return ready

    def _check_open(self, call: str) -> None:
        """Raise if the signal has ended."""
        if self._finished:
            raise InvalidArgument(
                call,
                expected="no call after finish()",
                got="a finished signal",
                stage="audio",
                hint="Open a new SpeechResampler for the next signal.",
            )

    def _check(self, block: NDArray[np.float32]) -> None:
        """Raise unless ``block`` continues this signal."""
        self._check_open("push")
        if block.dtype != np.float32 or block.ndim != 2 or block.shape[1] != self._channels:
            raise InvalidArgument(
                "block",
                expected=f"float32 of shape (samples, {self._channels})",
                got=f"{block.dtype} of shape {block.shape}",
                stage="audio",
            )
        if not block.size:
            return
        peak = max(float(block.max()), -float(block.min()))
        if not math.isfinite(peak):
            raise NonFinite(
                "block: NaN or infinity in the samples.",
                stage="audio",
                hint="Check the decoder or the microphone source.",
            )
        if peak > _MAX_PEAK:
            raise InvalidArgument(
                "block",
                expected="samples in [-1, 1]",
                got=f"a peak of {peak:g}",
                stage="audio",
                hint="Divide 16-bit samples by 32768.",
            )


class ResampledAudio(AudioSource):
    """An audio source at another rate, all channels kept; opened again by every :meth:`blocks`.

    Parameters
    ----------
    source : AudioSource
        What to read.
    sample_rate : int
        Rate in Hz to give it.
    """

    def __init__(self, source: AudioSource, sample_rate: int) -> None:
        super().__init__(source.name, sample_rate, source.channels, None)
        self._source = source

    def _decode(self, block_samples: int) -> Generator[NDArray[np.float32], None, None]:
        yield from in_blocks(self._chunks(block_samples), block_samples)

    def _chunks(self, block_samples: int) -> Iterator[NDArray[np.float32]]:
        import soxr

        stream = soxr.ResampleStream(
            self._source.sample_rate, self.sample_rate, self.channels, dtype="float32"
        )
        for block in self._source.blocks(block_samples):
            yield stream.resample_chunk(block).reshape(-1, self.channels)
        rest = stream.resample_chunk(np.zeros((0, self.channels), np.float32), last=True)
        yield rest.reshape(-1, self.channels)


def _mix_down(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean over the channels of ``block`` (S, C), shape (S,), freshly allocated."""
    mono: NDArray[np.float32] = block[:, 0].copy()
    # One channel after the other: numpy's own sum changes its order with the array's layout.
    for channel in range(1, block.shape[1]):
        mono += block[:, channel]
    if block.shape[1] > 1:
        mono /= np.float32(block.shape[1])
    return mono
