"""The sound of a source on the clock of its picture, read forwards in constant memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from skyreels_rt.audio.resample import SpeechResampler
from skyreels_rt.data.shards import SAMPLE_RATE
from skyreels_rt.data.speech import WINDOW, VoiceDetector
from skyreels_rt.errors import MediaError, NonFinite
from skyreels_rt.media.audio_file import open_audio

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]


class SoundTrack:
    """Mono sound at 16 kHz whose sample 0 belongs to the first frame.

    Parameters
    ----------
    path : Path
        A file with an audio track.
    delay_s : float
        Seconds by which the track starts after the picture; silence fills them, or what comes
        before the picture is dropped.
    voice : VoiceDetector, optional
        Judges every window once.
    stop_at_damage : bool
        Take damage for the end of the track instead of raising.

    Raises
    ------
    MediaError
        The track cannot be read.
    """

    def __init__(
        self,
        path: Path,
        delay_s: float,
        voice: VoiceDetector | None = None,
        *,
        stop_at_damage: bool = False,
    ) -> None:
        source = open_audio(path)
        self._blocks = source.blocks(source.sample_rate)
        self._resampler: SpeechResampler | None = SpeechResampler(
            source.sample_rate, source.channels
        )
        self._voice = voice
        self._stop_at_damage = stop_at_damage
        if voice is not None:
            voice.reset()
        self._first = 0
        self._held = np.zeros(0, np.float32)
        self._first_window = 0
        self._windows = np.zeros(0, np.float32)
        self._to_drop = max(0, -round(delay_s * SAMPLE_RATE))
        self._take(np.zeros(max(0, round(delay_s * SAMPLE_RATE)), np.float32))

    def cut(self, start: int, stop: int) -> Samples:
        """Samples ``start .. stop - 1``; silence before the track and after it.

        Parts before an earlier :meth:`forget` are gone.

        Raises
        ------
        MediaError, NonFinite, InvalidArgument
            The track is damaged on the way, or holds samples far outside [-1, 1].
        """
        while self._resampler is not None and self._first + len(self._held) < stop:
            self._read()
        result = np.zeros(stop - start, np.float32)
        first, last = max(start, self._first), min(stop, self._first + len(self._held))
        if first < last:
            result[first - start : last - start] = self._held[
                first - self._first : last - self._first
            ]
        return result

    def speech(self, start: int, stop: int) -> NDArray[np.float32]:
        """Probabilities of speech in the windows that begin in samples ``start .. stop - 1``.

        As far as the track was read; call :meth:`cut` first.
        """
        first, last = -(-start // WINDOW), -(-stop // WINDOW)
        return self._windows[max(0, first - self._first_window) : last - self._first_window]

    def forget(self, before: int) -> None:
        """Drop what lies before sample ``before``."""
        count = min(max(0, before - self._first), len(self._held))
        self._held, self._first = self._held[count:].copy(), self._first + count
        count = min(max(0, before // WINDOW - self._first_window), len(self._windows))
        self._windows = self._windows[count:].copy()
        self._first_window += count

    def _read(self) -> None:
        """Take the next second; at the end the resampler's tail."""
        assert self._resampler is not None
        try:
            block = next(self._blocks, None)
        except (MediaError, NonFinite):
            if not self._stop_at_damage:
                raise
            block = None
        if block is None:
            tail, self._resampler = self._resampler.finish(), None
            self._take(tail)
        else:
            self._take(self._resampler.push(block))

    def _take(self, samples: Samples) -> None:
        dropped = min(self._to_drop, len(samples))
        self._to_drop -= dropped
        samples = samples[dropped:]
        self._held = np.concatenate([self._held, samples])
        if self._voice is not None:
            self._windows = np.concatenate([self._windows, self._voice.push(samples)])
