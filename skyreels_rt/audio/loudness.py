"""Loudness of speech, and its normalisation before a wav2vec2 encoder.

Source of the measure: ITU-R BS.1770-4, with the filters for any sample rate that pyloudnorm derives
(csteinmetz1/pyloudnorm ``iirfilter.py``, after the Audio EQ Cookbook). MultiTalk, InfiniteTalk and
SkyReels-V3 bring speech to -23 LUFS with it (``loudness_norm``).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_S = 0.4
"""Seconds of a block whose energy is measured; blocks start every quarter of it."""

ABSOLUTE_GATE = -70.0
RELATIVE_GATE = -10.0
"""Blocks below -70 LUFS, and those 10 LU below the mean of the rest, do not count."""

_OFFSET = -0.691
_STEPS_A_BLOCK = 4
# The slower filter (38 Hz, both poles alike) has decayed far below float64 after this time.
_DECAY_S = 0.5

Biquad = tuple[tuple[float, float, float], tuple[float, float, float]]


def integrated_loudness(samples: NDArray[np.float32], sample_rate: int) -> float:
    """Gated loudness of mono samples, after K-weighting.

    Parameters
    ----------
    samples : ndarray, shape (T,), float32 in [-1, 1]
        Mono sound.
    sample_rate : int
        Samples per second.

    Returns
    -------
    float
        LUFS; minus infinity for silence, and for less than 0.4 s.
    """
    powers = _block_powers(samples, sample_rate)
    levels = _level(powers)
    loud = powers[levels >= ABSOLUTE_GATE]
    if not loud.size:
        return -math.inf
    threshold = float(_level(loud.mean())) + RELATIVE_GATE
    kept = powers[(levels >= ABSOLUTE_GATE) & (levels > threshold)]
    return float(_level(kept.mean()))


def normalise_loudness(
    samples: NDArray[np.float32], sample_rate: int, target: float
) -> NDArray[np.float64]:
    """Scale ``samples`` to a loudness; silence stays as it is.

    Parameters
    ----------
    samples : ndarray, shape (T,), float32 in [-1, 1]
        Mono sound.
    sample_rate : int
        Samples per second.
    target : float
        LUFS.

    Returns
    -------
    ndarray, shape (T,), float64
        Not clipped: an encoder does not mind.
    """
    loudness = integrated_loudness(samples, sample_rate)
    wide: NDArray[np.float64] = samples.astype(np.float64)
    if not math.isfinite(loudness):
        return wide
    return wide * float(10.0 ** ((target - loudness) / 20.0))


def _block_powers(samples: NDArray[np.float32], sample_rate: int) -> NDArray[np.float64]:
    """Mean square of every block of K-weighted ``samples``."""
    hop = round(BLOCK_S * sample_rate) // _STEPS_A_BLOCK
    num_hops = len(samples) // hop
    if num_hops < _STEPS_A_BLOCK:
        return np.zeros(0)
    weighted = _k_weighted(samples, sample_rate)[: num_hops * hop]
    energies = np.square(weighted).reshape(num_hops, hop).sum(axis=1)
    blocks = np.lib.stride_tricks.sliding_window_view(energies, _STEPS_A_BLOCK)
    powers: NDArray[np.float64] = blocks.sum(axis=1) / (_STEPS_A_BLOCK * hop)
    return powers


def _level(power: NDArray[np.float64] | np.floating) -> NDArray[np.float64]:
    """Loudness of a mean square."""
    with np.errstate(divide="ignore"):
        return np.asarray(_OFFSET + 10.0 * np.log10(power), np.float64)


def _k_weighted(samples: NDArray[np.float32], sample_rate: int) -> NDArray[np.float64]:
    """``samples`` through both filters, by one product of spectra.

    Their responses end (in float64) long before the padding does, so nothing wraps around.
    """
    length = len(samples) + round(_DECAY_S * sample_rate)
    size = 1 << (length - 1).bit_length()
    spectrum = np.fft.rfft(samples.astype(np.float64), size)
    return np.fft.irfft(spectrum * _k_response(size, sample_rate), size)[: len(samples)]


@lru_cache(maxsize=4)
def _k_response(size: int, sample_rate: int) -> NDArray[np.complex128]:
    """Frequency response of the K-weighting at the frequencies of a real transform of ``size``."""
    delay = np.exp(-2j * np.pi * np.arange(size // 2 + 1) / size)
    response = np.ones(size // 2 + 1, np.complex128)
    for numerator, denominator in (_high_shelf(sample_rate), _high_pass(sample_rate)):
        response *= np.polyval(numerator[::-1], delay) / np.polyval(denominator[::-1], delay)
    return response


def _high_shelf(sample_rate: int) -> Biquad:
    """The head's effect: +4 dB above 1.5 kHz, Q of a Butterworth filter."""
    gain = 10.0 ** (4.0 / 40.0)
    angle = 2.0 * math.pi * 1500.0 / sample_rate
    alpha, cos = math.sin(angle) / math.sqrt(2.0), math.cos(angle)
    slope = 2.0 * math.sqrt(gain) * alpha
    numerator = (
        gain * ((gain + 1) + (gain - 1) * cos + slope),
        -2.0 * gain * ((gain - 1) + (gain + 1) * cos),
        gain * ((gain + 1) + (gain - 1) * cos - slope),
    )
    denominator = (
        (gain + 1) - (gain - 1) * cos + slope,
        2.0 * ((gain - 1) - (gain + 1) * cos),
        (gain + 1) - (gain - 1) * cos - slope,
    )
    return numerator, denominator


def _high_pass(sample_rate: int) -> Biquad:
    """What is below 38 Hz does not count; Q 0.5."""
    angle = 2.0 * math.pi * 38.0 / sample_rate
    alpha, cos = math.sin(angle), math.cos(angle)
    numerator = ((1 + cos) / 2, -(1 + cos), (1 + cos) / 2)
    return numerator, (1 + alpha, -2.0 * cos, 1 - alpha)
