"""Streaming conversion of speech to the 16 kHz mono signal that every audio encoder here takes.

The resampler is libsoxr's at quality "HQ" (a linear-phase filter with 20 bits of precision), run on
pages of a fixed grid with the input around them. So the output does not depend on how the input was
cut, and what a stream remembers is a few milliseconds of samples, which a snapshot can hold.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from skyreels_rt.errors import InvalidArgument, NonFinite
from skyreels_rt.media.audio_file import (
    MAX_SAMPLE_RATE,
    MIN_SAMPLE_RATE,
    AudioSource,
    in_blocks,
)
from skyreels_rt.types import PartState

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPEECH_RATE = 16_000
"""Sample rate of the signal that encoders take, in Hz."""

_PAGE = 320  # output samples of a page, at least: 20 ms
_REACH_S = 0.02  # of the filter at 8 kHz and more; with 20 ms around a page the error is 2e-7
_REACH_RATE = 8_000  # below it the filter is longer

# 36 dB over full scale: no float recording is that hot, 16-bit integers cast to float are.
_MAX_PEAK = 64.0


class SpeechResampler:
    """Turns blocks of PCM of any size into mono samples at 16 kHz.

    Any cutting of the same input gives the same bytes in total. Input at 16 kHz passes through
    unchanged (mono: bit for bit). Otherwise the output trails the input by one page and the
    filter's reach until :meth:`finish`: 40 ms at 8, 24, 32, 44.1, 48 and 96 kHz, and more at rates
    that have no 20 ms grid in common with 16 kHz.

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
        self.sample_rate = sample_rate
        """Rate of the input in Hz."""
        self.channels = channels
        """Channels of the input."""
        unit = SPEECH_RATE // math.gcd(SPEECH_RATE, sample_rate)
        self._page_out = unit * -(-_PAGE // unit)
        self._page_in = self._page_out * sample_rate // SPEECH_RATE
        reach = _REACH_S * max(1.0, _REACH_RATE / sample_rate) * sample_rate
        self._margin = math.ceil(reach / self._page_in)  # pages before and after
        self._num_in = 0
        self._num_out = 0
        self._finished = False
        self._first = 0  # input sample of _held[0]
        self._held = np.zeros(0, np.float32)

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
        self.check(block)
        mono = _mix_down(block)
        self._num_in += len(mono)
        if self.sample_rate == SPEECH_RATE:
            self._num_out += len(mono)
            return mono
        self._held = np.concatenate([self._held, mono])
        done, whole = self._num_out // self._page_out, self._num_in // self._page_in
        pages = [self._page(page) for page in range(done, max(done, whole - self._margin))]
        self._forget()
        return np.concatenate(pages) if pages else np.zeros(0, np.float32)

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
        if self.sample_rate == SPEECH_RATE:
            return np.zeros(0, np.float32)
        total = (2 * self._num_in * SPEECH_RATE + self.sample_rate) // (2 * self.sample_rate)
        missing = total - self._num_out
        page = self._num_out // self._page_out
        tail = self._converted(page, self._num_in)[:missing]
        self._num_out, self._held = total, self._held[:0]
        return np.pad(tail, (0, missing - len(tail)))

    @property
    def delay_s(self) -> float:
        """Seconds that the output trails the input, at most."""
        if self.sample_rate == SPEECH_RATE:
            return 0.0
        return (1 + self._margin) * self._page_in / self.sample_rate

    def state(self) -> PartState:
        """Everything a later :meth:`restored` needs; for 16 kHz input that holds no samples."""
        facts = {
            "sample_rate": self.sample_rate,
            "channels": self.channels,
            "num_in": self._num_in,
            "num_out": self._num_out,
            "first": self._first,
            "finished": self._finished,
        }
        return PartState(facts, {"held": torch.from_numpy(self._held.copy())})

    @classmethod
    def restored(cls, state: PartState) -> SpeechResampler:
        """Resampler that goes on where :meth:`state` was taken."""
        facts = state.facts
        resampler = cls(facts["sample_rate"], facts["channels"])
        resampler._num_in, resampler._num_out = facts["num_in"], facts["num_out"]
        resampler._first, resampler._finished = facts["first"], facts["finished"]
        resampler._held = state.tensors["held"].cpu().numpy().copy()
        return resampler

    def _page(self, page: int) -> NDArray[np.float32]:
        """Output samples of one page whose surroundings have arrived."""
        stop = (page + 1 + self._margin) * self._page_in
        self._num_out += self._page_out
        return self._converted(page, stop)[: self._page_out]

    def _converted(self, page: int, stop: int) -> NDArray[np.float32]:
        """Output from the start of ``page`` on, made of the input up to ``stop``."""
        import soxr

        start = max(0, page - self._margin)
        around = self._held[start * self._page_in - self._first : stop - self._first]
        made: NDArray[np.float32] = soxr.resample(
            around, self.sample_rate, SPEECH_RATE, quality="HQ"
        )
        return made[(page - start) * self._page_out :]

    def _forget(self) -> None:
        """Drop what no page to come looks at."""
        page = self._num_out // self._page_out - self._margin
        first = max(0, page) * self._page_in
        self._held = self._held[first - self._first :].copy()
        self._first = first

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

    def check(self, block: NDArray[np.float32]) -> None:
        """Raise what :meth:`push` would raise, without taking ``block``."""
        self._check_open("push")
        if block.dtype != np.float32 or block.ndim != 2 or block.shape[1] != self.channels:
            raise InvalidArgument(
                "block",
                expected=f"float32 of shape (samples, {self.channels})",
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
