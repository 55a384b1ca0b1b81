"""Whether a mouth follows the sound: opening against the energy of voiced speech, over lags.

The paper filters with SyncNet; this needs no network: correlation of the gap between the lips with
the energy at 600 to 4,000 Hz, compressed by a power, both without their mean over a second. Band
and power were chosen on drawn clips of another seed than the tests' and on one recording.

Legend: F frames, S samples at 16 kHz.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from skyreels_rt.data.measures import SyncScores
from skyreels_rt.data.shards import FPS, SAMPLE_RATE
from skyreels_rt.evaluation.sync import correlation, without_moving_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BAND_HZ = (600.0, 4_000.0)
_WINDOW = 1_024
_POWER = 0.3
_NEAR = 4  # frames around the best lag that are the same peak


def speech_curve(samples: NDArray[np.float32], num_frames: int) -> NDArray[np.float64]:
    """Compressed energy of the band that opens mouths, at the middle of every frame.

    Parameters
    ----------
    samples : ndarray, shape (S,), float32
        Mono at 16 kHz that starts with the clip.
    num_frames : int, >= 1
        Frames F at 25 fps.

    Returns
    -------
    ndarray, shape (F,), float64
    """
    step = SAMPLE_RATE // FPS
    padded = np.zeros(num_frames * step + _WINDOW, np.float64)
    kept = samples[: num_frames * step]
    padded[_WINDOW // 2 : _WINDOW // 2 + len(kept)] = kept
    starts = np.arange(num_frames) * step + step // 2
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[starts]
    power = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW), axis=1)) ** 2
    hertz = np.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE)
    band = (hertz >= _BAND_HZ[0]) & (hertz < _BAND_HZ[1])
    return np.asarray(power[:, band].sum(axis=1) ** _POWER)


def sync_scores(
    openings: NDArray[np.float64], samples: NDArray[np.float32], max_lag: int
) -> SyncScores:
    """Compare a mouth with the sound.

    Parameters
    ----------
    openings : ndarray, shape (F,), float64
        Gap between the lips in any unit; F > ``max_lag`` + 2.
    samples : ndarray, shape (S,), float32
        Mono at 16 kHz that starts with the clip.
    max_lag : int
        Frames looked at on both sides.

    Returns
    -------
    SyncScores
        A positive lag says that the mouth is later than the sound.
    """
    mouth = without_moving_mean(openings, 1.0, FPS)
    voice = without_moving_mean(speech_curve(samples, len(openings)), 1.0, FPS)
    lags = np.arange(-max_lag, max_lag + 1)
    values = np.array([_at_lag(mouth, voice, int(lag)) for lag in lags])
    best = int(values.argmax())
    elsewhere = np.abs(lags - lags[best]) > _NEAR
    margin = float(values[best] - values[elsewhere].max()) if elsewhere.any() else 0.0
    return SyncScores(peak=float(values[best]), lag=int(lags[best]), margin=margin)


def _at_lag(mouth: NDArray[np.float64], voice: NDArray[np.float64], lag: int) -> float:
    """Correlation if the mouth is ``lag`` frames later than the voice."""
    count = len(mouth)
    late = mouth[max(lag, 0) : count + min(lag, 0)]
    early = voice[max(-lag, 0) : count - max(lag, 0)]
    return correlation(late, early)
