"""How a drawn head moves: smooth, deterministic by seed, and stable when a clip grows longer.

Each channel is band-limited noise: normal knots at a fixed distance, joined by a cubic B-spline.
Knots and blinks are drawn in time order from a generator of their own, so the first frames of a
longer clip are those of a shorter one. A loudness curve, if given, adds nods and brow raises, and
moves most blinks into the pauses of the speech, where people blink (Nakano and Kitazawa 2010,
"Eyeblink entrainment at breakpoints of speech"): what can be heard can be learned.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.training.data.identity import EXPRESSIONS, check_seed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# (smile, brow) that an expression rests at; values of this project, set by eye.
_REST = {
    "neutral": (0.10, 0.0),
    "smiling": (0.75, 0.1),
    "surprised": (0.15, 0.7),
    "serious": (0.0, -0.3),
}
# (standard deviation at amount 1, seconds between knots) of each channel; values of this project.
_CHANNELS = {
    "shift_x": (0.045, 0.9),
    "shift_y": (0.030, 0.8),
    "zoom": (0.012, 1.2),
    "yaw": (0.16, 0.8),
    "pitch": (0.08, 0.6),
    "roll": (0.045, 0.9),
}
_LIMITS = {
    "shift_x": 0.25, "shift_y": 0.2, "zoom": 0.06, "yaw": 0.5, "pitch": 0.35, "roll": 0.25,
}  # fmt: skip
_BLINK_CLOSE_S, _BLINK_HOLD_S, _BLINK_OPEN_S = 0.09, 0.04, 0.18
_PAUSE_LOUDNESS, _PAUSE_S, _PAUSES_APART_S = 0.25, 0.12, 1.0
_SPONTANEOUS = 0.25  # share of the usual blinks that is left to chance when somebody speaks


@dataclass(frozen=True, eq=False)
class Motion:
    """Motion of a head over a clip.

    Attributes
    ----------
    shift_x, shift_y : ndarray, shape (F,), float32
        Displacement of the head in head units (half face heights), right and down.
    zoom : ndarray, shape (F,), float32
        Relative change of size: 0 is none.
    yaw, pitch, roll : ndarray, shape (F,), float32
        Radians; positive looks to the right of the frame, down, and tilts clockwise.
    blink : ndarray, shape (F,), float32 in [0, 1]
        0 is open, 1 is closed.
    brow : ndarray, shape (F,), float32 in [-1, 1]
        Raised (positive) or drawn down.
    gaze_x, gaze_y : ndarray, shape (F,), float32 in [-1, 1]
        Where the eyes look: right, down.
    smile : ndarray, shape (F,), float32 in [0, 1]
        Corners of the mouth up.
    """

    shift_x: NDArray[np.float32]
    shift_y: NDArray[np.float32]
    zoom: NDArray[np.float32]
    yaw: NDArray[np.float32]
    pitch: NDArray[np.float32]
    roll: NDArray[np.float32]
    blink: NDArray[np.float32]
    brow: NDArray[np.float32]
    gaze_x: NDArray[np.float32]
    gaze_y: NDArray[np.float32]
    smile: NDArray[np.float32]

    @property
    def num_frames(self) -> int:
        """Number of frames F."""
        return len(self.yaw)

    def cut(self, start: int, stop: int) -> Motion:
        """Keep frames ``start .. stop - 1``."""
        return Motion(*(getattr(self, field.name)[start:stop] for field in fields(self)))

    @classmethod
    def still(cls, num_frames: int) -> Motion:
        """Make a motion without any: every channel 0.

        Parameters
        ----------
        num_frames : int, >= 1
            Length of the clip.

        Returns
        -------
        Motion
            Arrays of zeros.

        Raises
        ------
        InvalidArgument
            ``num_frames`` is below 1.
        """
        _check_num_frames(num_frames)
        return cls(*(np.zeros(num_frames, np.float32) for _ in fields(cls)))


def _check_num_frames(num_frames: int) -> None:
    whole = isinstance(num_frames, int | np.integer) and not isinstance(num_frames, bool)
    if not whole or num_frames < 1:
        raise InvalidArgument("num_frames", expected="an integer >= 1", got=repr(num_frames))


def _spline_noise(
    rng: np.random.Generator, num_frames: int, fps: float, seconds: float
) -> NDArray[np.float64]:
    """Band-limited noise of about unit variance, shape (F,), prefix-stable."""
    position = np.arange(num_frames) / (fps * seconds)
    knots = rng.standard_normal(int(position[-1]) + 4)
    index = position.astype(np.int64)
    t = position - index
    weights = (
        (1 - t) ** 3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
        t**3 / 6,
    )
    # A uniform cubic B-spline over white knots has variance 0.48 on average over a cell.
    total: NDArray[np.float64] = np.zeros(num_frames)
    for offset, weight in enumerate(weights):
        total += weight * knots[index + offset]
    total *= float(0.48**-0.5)
    return total


def _blink_starts(
    rng: np.random.Generator, seconds: float, mean_interval: float
) -> Iterator[float]:
    """Start times of blinks, in order: log-normal pauses, one blink in seven is a double one."""
    time = float(rng.uniform(0.3, mean_interval))
    while time < seconds:
        yield time
        pause = mean_interval * float(rng.lognormal(-0.18, 0.6))
        is_double = float(rng.random()) < 1 / 7
        time += 0.38 if is_double else max(pause, 0.6)


def _pause_starts(energy: NDArray[np.float64], fps: float) -> Iterator[float]:
    """Times, in order, at which a pause of the speech has lasted long enough to be one."""
    needed = max(1, round(_PAUSE_S * fps))
    quiet, has_spoken, last = 0, False, -np.inf
    for frame, loudness in enumerate(energy):
        quiet = quiet + 1 if loudness < _PAUSE_LOUDNESS else 0
        if quiet == needed and has_spoken and frame - last >= _PAUSES_APART_S * fps:
            last = frame
            yield frame / fps
        has_spoken |= quiet == 0


def _blinks(
    rng: np.random.Generator,
    num_frames: int,
    fps: float,
    rate: float,
    energy: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """Closing of the lids, shape (F,), in [0, 1]: fast down, slower up (people take 0.1-0.4 s)."""
    times = np.arange(num_frames) / fps
    closed = np.zeros(num_frames)
    if rate == 0:
        return closed
    heard: list[float] = [] if energy is None else list(_pause_starts(energy, fps))
    by_chance = 60 / (rate if energy is None else _SPONTANEOUS * rate)
    for start in [*heard, *_blink_starts(rng, num_frames / fps, by_chance)]:
        # Started on a frame, so that one frame of every blink is fully closed.
        since = times - round(start * fps) / fps
        down = np.clip(since / _BLINK_CLOSE_S, 0, 1)
        up = np.clip((since - _BLINK_CLOSE_S - _BLINK_HOLD_S) / _BLINK_OPEN_S, 0, 1)
        shape = down * down * (3 - 2 * down) * (1 - up * up * (3 - 2 * up))
        closed = np.maximum(closed, shape)
    return closed


def _gaze(
    rng: np.random.Generator, num_frames: int, fps: float, amount: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Saccades: the eyes rest for 0.5 to 2.5 s, mostly on the camera, and jump within 2 frames."""
    times = np.arange(num_frames) / fps
    gaze = np.zeros((2, num_frames))
    start, last = float(rng.uniform(0.4, 2.0)), np.zeros(2)
    while start < num_frames / fps:
        on_camera = float(rng.random()) < 0.45
        target = rng.uniform((-0.7, -0.35), (0.7, 0.35)) * (0.0 if on_camera else amount)
        jump = np.clip((times - start) * fps / 2, 0, 1)
        gaze += (target - last)[:, None] * (jump * jump * (3 - 2 * jump))
        last, start = target, start + float(rng.uniform(0.5, 2.5))
    return gaze[0], gaze[1]


def _follow(energy: NDArray[np.float64], fps: float, seconds: float) -> NDArray[np.float64]:
    """One-pole smoothing forward in time: causal, so that a longer clip starts the same."""
    keep = float(np.exp(-1 / (fps * seconds)))
    smoothed, state = np.empty(len(energy)), 0.0
    for index, value in enumerate(energy):
        state = keep * state + (1 - keep) * float(value)
        smoothed[index] = state
    return smoothed


def _check_energy(energy: NDArray[np.floating], num_frames: int) -> NDArray[np.float64]:
    values = np.asarray(energy, dtype=np.float64)
    if values.shape != (num_frames,):
        raise InvalidArgument("energy", expected=f"shape ({num_frames},)", got=values.shape)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise InvalidArgument("energy", expected="values in [0, 1]", got="values outside")
    return values


def sample_motion(
    seed: int,
    num_frames: int,
    fps: float = 25.0,
    energy: NDArray[np.floating] | None = None,
    *,
    amount: float = 1.0,
    posture: float = 0.0,
    expression: str = "neutral",
    blinks_per_minute: float = 17.0,
) -> Motion:
    """Draw the motion of a head; the global random state is neither read nor changed.

    Parameters
    ----------
    seed : int, >= 0
        The same seed gives the same motion; a longer clip starts with the shorter one's frames.
    num_frames : int, >= 1
        Length F.
    fps : float, > 0
        Frames per second.
    energy : ndarray, shape (F,), floating in [0, 1], optional
        Loudness of the speech: adds nods and brow raises that follow it, and blinks in its pauses.
    amount : float, 0 to 2
        Scales head motion, gaze and nods: 0 is a head held still, 1 a calm speaker, 2 a lively one.
    posture : float, 0 to 2
        Scales a pose that is held over the whole clip and that the motion goes around.
    expression : str
        A name of `identity.EXPRESSIONS`: where smile and brows rest.
    blinks_per_minute : float, 0 to 60
        Mean rate without speech; adults in conversation blink 10 to 25 times a minute. With speech
        a quarter of it, and once in every pause of 0.12 s or more, at most once a second.

    Returns
    -------
    Motion
        Arrays over F frames.

    Raises
    ------
    InvalidArgument
        An argument is outside its range.
    """
    check_seed(seed)
    _check_num_frames(num_frames)
    if not (np.isfinite(fps) and fps > 0):
        raise InvalidArgument("fps", expected="a number > 0", got=fps)
    if not 0 <= amount <= 2:
        raise InvalidArgument("amount", expected="0 to 2", got=amount)
    if not 0 <= posture <= 2:
        raise InvalidArgument("posture", expected="0 to 2", got=posture)
    if not 0 <= blinks_per_minute <= 60:
        raise InvalidArgument("blinks_per_minute", expected="0 to 60", got=blinks_per_minute)
    if expression not in EXPRESSIONS:
        raise InvalidArgument("expression", expected=f"one of {EXPRESSIONS}", got=repr(expression))
    # One generator per channel: a channel's knots do not depend on how many another one drew.
    streams = {
        name: np.random.default_rng([seed, 0x307, number])
        for number, name in enumerate([*_CHANNELS, "blink", "brow", "gaze", "smile", "posture"])
    }
    held = dict(zip(_CHANNELS, streams["posture"].standard_normal(len(_CHANNELS)), strict=True))
    head = {
        name: posture * deviation * held[name]
        + amount * deviation * _spline_noise(streams[name], num_frames, fps, seconds)
        for name, (deviation, seconds) in _CHANNELS.items()
    }
    smile_rest, brow_rest = _REST[expression]
    brow = brow_rest + 0.18 * _spline_noise(streams["brow"], num_frames, fps, 0.7)
    smile = smile_rest + 0.10 * _spline_noise(streams["smile"], num_frames, fps, 1.1)
    loud = None if energy is None else _check_energy(energy, num_frames)
    if loud is not None:
        accent = _follow(loud, fps, 0.12) - _follow(loud, fps, 0.8)
        head["pitch"] = head["pitch"] + amount * 0.22 * accent
        head["shift_y"] = head["shift_y"] + amount * 0.05 * accent
        brow = brow + 0.9 * np.clip(accent, 0, None)
    gaze_x, gaze_y = _gaze(streams["gaze"], num_frames, fps, min(amount, 1.0))

    def clipped(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float32]:
        return np.clip(values, low, high).astype(np.float32)

    return Motion(
        **{name: clipped(head[name], -limit, limit) for name, limit in _LIMITS.items()},
        blink=clipped(_blinks(streams["blink"], num_frames, fps, blinks_per_minute, loud), 0, 1),
        brow=clipped(brow, -1, 1),
        gaze_x=clipped(gaze_x, -1, 1),
        gaze_y=clipped(gaze_y, -1, 1),
        smile=clipped(smile, 0, 1),
    )
