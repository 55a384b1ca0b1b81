"""Mel-frequency cepstra as SyncNet hears them: the conventions of HTK and python_speech_features.

Davis & Mermelstein, "Comparison of parametric representations for monosyllabic word recognition",
1980. Frames of 25 ms every 10 ms without a window, 512-point spectrum, 26 mel bands up to 8 kHz,
13 cepstra of which the first is replaced by the frame's log energy.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from skyreels_rt.data.shards import SAMPLE_RATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

COLUMNS_PER_SECOND = 100
_FRAME, _STEP, _FFT = 400, SAMPLE_RATE // COLUMNS_PER_SECOND, 512
_BANDS, _CEPSTRA, _LIFTER = 26, 13, 22
_PREEMPHASIS = 0.97
_FULL_SCALE = 32_768.0
_LEAST = float(np.finfo(np.float64).eps)  # stands for silence under the logarithm


def cepstra(samples: NDArray[np.float32]) -> Array:
    """Cepstra of a sound; column j hears samples 160 j to 160 j + 399.

    Parameters
    ----------
    samples : ndarray, shape (S,), float32
        Mono at 16 kHz in [-1, 1], S >= 1; heard as 16-bit integers.

    Returns
    -------
    ndarray, shape (13, T), float64
        T = 1 + ceil((S - 400) / 160), at least 1; silence follows the sound.
    """
    whole = np.clip(np.rint(samples.astype(np.float64) * _FULL_SCALE), -32_768, 32_767)
    sharpened = np.append(whole[0], whole[1:] - _PREEMPHASIS * whole[:-1])
    count = 1 + max(0, -(-(len(whole) - _FRAME) // _STEP))
    padded = np.zeros((count - 1) * _STEP + _FRAME)
    padded[: len(whole)] = sharpened
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::_STEP]
    power = np.abs(np.fft.rfft(frames, _FFT)) ** 2 / _FFT
    bands = np.log(_audible(power @ _mel_bands().T))
    result = bands @ _cosines().T
    result *= 1 + _LIFTER / 2 * np.sin(np.pi * np.arange(_CEPSTRA) / _LIFTER)
    result[:, 0] = np.log(_audible(power.sum(axis=1)))
    return np.asarray(result.T)


def _audible(power: Array) -> Array:
    return np.asarray(np.where(power == 0, _LEAST, power))


@cache
def _mel_bands() -> Array:
    """Triangles over the spectrum, shape (26, 257), their corners on whole bins."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, top, _BANDS + 2) / 2595) - 1)
    corners = np.floor((_FFT + 1) * hertz / SAMPLE_RATE)
    low, middle, high = (corners[i : i + _BANDS, None] for i in range(3))
    bins = np.arange(_FFT // 2 + 1)[None]
    rising = (bins - low) / (middle - low)
    falling = (high - bins) / (high - middle)
    return np.asarray(np.where(bins < middle, rising, falling).clip(0))


@cache
def _cosines() -> Array:
    """Orthonormal cosine transform of the second kind, shape (13, 26)."""
    order, place = np.arange(_CEPSTRA)[:, None], np.arange(_BANDS)[None]
    waves = np.cos(np.pi * order * (2 * place + 1) / (2 * _BANDS)) * np.sqrt(2 / _BANDS)
    waves[0] /= np.sqrt(2)
    return np.asarray(waves)
