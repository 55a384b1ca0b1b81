"""Does one curve follow another: mouth and truth, mouth and sound.

Legend: F frames, S samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from skyreels_rt.errors import InvalidArgument

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Curve = NDArray[np.floating]

_FLAT = 1e-6  # a curve that varies by less than this share of its size is constant
_ENERGY_WINDOW = 1.5  # frames heard for the loudness of one


def _checked_curve(values: Curve, name: str) -> NDArray[np.float64]:
    curve = np.asarray(values, dtype=np.float64)
    if curve.ndim != 1 or len(curve) < 2 or not np.isfinite(curve).all():
        got = f"shape {curve.shape}" if curve.ndim != 1 or len(curve) < 2 else "NaN or infinity"
        raise InvalidArgument(name, expected="two or more finite values, shape (F,)", got=got)
    return curve


def _checked_pair(a: Curve, b: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = _checked_curve(a, "a"), _checked_curve(b, "b")
    if len(first) != len(second):
        raise InvalidArgument("b", expected=f"{len(first)} values as in a", got=len(second))
    return first, second


def _pearson(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    sizes = []
    for curve in (first, second):
        spread = float(curve.std())
        if spread <= _FLAT * max(1.0, float(np.abs(curve).max())):
            return 0.0
        sizes.append(spread)
    product = (first - first.mean()) * (second - second.mean())
    return float(np.clip(product.mean() / (sizes[0] * sizes[1]), -1.0, 1.0))


def correlation(a: Curve, b: Curve) -> float:
    """Pearson's correlation.

    Parameters
    ----------
    a, b : ndarray, shape (F,), floating
        Two curves, F >= 2.

    Returns
    -------
    float
        -1 to 1; 0 where either curve is constant, never NaN.

    Raises
    ------
    InvalidArgument
        Shapes differ, F is below 2, or a value is not finite.
    """
    return _pearson(*_checked_pair(a, b))


def best_lag(a: Curve, b: Curve, max_lag: int) -> tuple[int, float]:
    """Find the shift at which two curves agree best.

    Parameters
    ----------
    a, b : ndarray, shape (F,), floating
        Two curves.
    max_lag : int, 0 to F - 2
        Frames to look at on both sides.

    Returns
    -------
    lag : int
        Frames by which ``a`` is later than ``b``; the smallest of equally good ones.
    correlation : float
        Pearson's correlation of the overlap at that lag.

    Raises
    ------
    InvalidArgument
        The curves cannot be compared, or ``max_lag`` leaves no overlap.
    """
    first, second = _checked_pair(a, b)
    count = len(first)
    if not 0 <= max_lag <= count - 2:
        raise InvalidArgument("max_lag", expected=f"0 to {count - 2}", got=max_lag)
    best, found = 0, -2.0
    for lag in sorted(range(-max_lag, max_lag + 1), key=abs):
        late = first[max(lag, 0) : count + min(lag, 0)]
        early = second[max(-lag, 0) : count - max(lag, 0)]
        value = _pearson(late, early)
        if value > found + 1e-12:
            best, found = lag, value
    return best, found


def sync_at(a: Curve, b: Curve, tolerance: int = 1) -> float:
    """Best correlation within a tolerance of being in time.

    Parameters
    ----------
    a, b : ndarray, shape (F,), floating
        Two curves.
    tolerance : int, >= 0
        Frames that either may be late.

    Returns
    -------
    float
        -1 to 1; 0 where either curve is constant.

    Raises
    ------
    InvalidArgument
        As in `best_lag`.
    """
    return best_lag(a, b, tolerance)[1]


def speech_energy(
    audio: NDArray[np.float32], sample_rate: int, num_frames: int, fps: float
) -> NDArray[np.float64]:
    """Loudness of the sound at every frame.

    Parameters
    ----------
    audio : ndarray, shape (S,), floating in [-1, 1]
        Mono sound that starts with the video.
    sample_rate : int, > 0
        Samples per second.
    num_frames : int, >= 1
        Frames F of the video.
    fps : float, > 0
        Frames per second.

    Returns
    -------
    ndarray, shape (F,), float64
        Root mean square of 1.5 frames of sound, centred at the time n / fps of frame n; silence is
        heard outside the sound.

    Raises
    ------
    InvalidArgument
        The sound is not mono or not finite, or a number is out of its range.
    """
    samples = np.asarray(audio, dtype=np.float64)
    if samples.ndim != 1 or len(samples) == 0 or not np.isfinite(samples).all():
        raise InvalidArgument("audio", expected="finite mono samples (S,)", got=samples.shape)
    for name, value in (("sample_rate", sample_rate), ("num_frames", num_frames), ("fps", fps)):
        if not value > 0:
            raise InvalidArgument(name, expected="> 0", got=value)
    total = np.concatenate([[0.0], np.cumsum(samples**2)])
    centre = np.arange(num_frames) * sample_rate / fps
    half = 0.5 * _ENERGY_WINDOW * sample_rate / fps
    first = np.clip(np.round(centre - half), 0, len(samples)).astype(np.int64)
    last = np.clip(np.round(centre + half), 0, len(samples)).astype(np.int64)
    return np.asarray(np.sqrt(np.maximum(total[last] - total[first], 0) / (2 * half)))


def without_moving_mean(x: Curve, seconds: float, fps: float) -> NDArray[np.float64]:
    """Remove the slow part of a curve.

    Parameters
    ----------
    x : ndarray, shape (F,), floating
        A curve.
    seconds : float, > 0
        Length of the moving mean, centred; at the ends it is over what is there.
    fps : float, > 0
        Values per second.

    Returns
    -------
    ndarray, shape (F,), float64
        The curve minus its moving mean.

    Raises
    ------
    InvalidArgument
        The curve is too short or not finite, or a number is not positive.
    """
    curve = _checked_curve(x, "x")
    if not (seconds > 0 and fps > 0):
        raise InvalidArgument("seconds, fps", expected="> 0", got=(seconds, fps))
    reach = max(1, round(seconds * fps / 2))
    total = np.concatenate([[0.0], np.cumsum(curve)])
    index = np.arange(len(curve))
    first = np.maximum(index - reach, 0)
    last = np.minimum(index + reach + 1, len(curve))
    return np.asarray(curve - (total[last] - total[first]) / (last - first))


def energy_sync(
    opening: Curve,
    audio: NDArray[np.float32],
    sample_rate: int,
    fps: float,
    max_lag: int = 4,
) -> tuple[int, float]:
    """Agreement of a mouth with the loudness it should follow, where no truth is known.

    Parameters
    ----------
    opening : ndarray, shape (F,), floating
        From `mouth.mouth_opening`.
    audio : ndarray, shape (S,), floating in [-1, 1]
        Mono sound that starts with the video.
    sample_rate : int, > 0
        Samples per second.
    fps : float, > 0
        Frames per second.
    max_lag : int, >= 0
        Frames to look at on both sides.

    Returns
    -------
    lag : int
        Frames by which the mouth is later than the sound; people's lips are 1 to 3 frames early.
    correlation : float
        At that lag, after a moving mean of 1 s is removed from both.

    Raises
    ------
    InvalidArgument
        As in `speech_energy` and `best_lag`.
    """
    curve = _checked_curve(opening, "opening")
    energy = speech_energy(audio, sample_rate, len(curve), fps)
    return best_lag(
        without_moving_mean(curve, 1.0, fps), without_moving_mean(energy, 1.0, fps), max_lag
    )
