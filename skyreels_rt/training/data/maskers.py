"""What lies over speech in the world: noise, other voices, hum, clicks, music, rooms, telephones.

Every sound is made here from a seed. Maskers are mono float32 at 16 kHz with unit RMS, made to be
mixed under speech at a signal-to-noise ratio; rooms and band limits change the speech itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.training.data.sentences import sample_sentence
from skyreels_rt.training.data.speech import SAMPLE_RATE, check_split, sample_voice, synthesise

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from skyreels_rt.training.data.speech import Split

MaskerKind = Literal["white", "pink", "brown", "babble", "hum", "clicks", "music"]
"""Kinds of background sound."""

KINDS: tuple[MaskerKind, ...] = ("white", "pink", "brown", "babble", "hum", "clicks", "music")
"""All kinds, in a fixed order."""

_PEAK = 0.98


@dataclass(frozen=True)
class Acoustics:
    """What happens to speech on its way to the microphone.

    Attributes
    ----------
    masker : str or None
        Kind of background sound, one of :data:`KINDS`; None for silence.
    snr_db : float
        Speech over masker, decibels.
    reverb_s : float
        Time in which the room's tail falls by 60 dB, 0 (dry) to 2 seconds.
    low_hz, high_hz : float
        Band that passes; 0 and 8000 pass everything.
    gain_db : float
        Level change at the end; never beyond full scale.
    """

    masker: MaskerKind | None = None
    snr_db: float = 20.0
    reverb_s: float = 0.0
    low_hz: float = 0.0
    high_hz: float = SAMPLE_RATE / 2
    gain_db: float = 0.0


def sample_acoustics(seed: int, *, difficulty: float = 0.5) -> Acoustics:
    """Draw acoustics.

    Parameters
    ----------
    seed : int
        Same seed, same acoustics.
    difficulty : float
        0 (always dry and silent) to 1 (mostly noisy, down to 0 dB).

    Returns
    -------
    Acoustics
        At difficulty d: a masker with probability 0.8 d at 25 - 25 d to 30 dB, a room with
        probability 0.5 d, a band limit with probability 0.3 d, a gain within 12 d dB.

    Raises
    ------
    InvalidArgument
        ``difficulty`` is outside 0-1.
    """
    if not 0.0 <= difficulty <= 1.0:
        raise InvalidArgument("difficulty", expected="0 to 1", got=difficulty)
    rng = np.random.default_rng([seed, 0x41434F55])
    # All numbers are drawn every time, so one choice never shifts the others.
    has_masker, has_room, has_band = rng.random(3) < difficulty * np.array([0.8, 0.5, 0.3])
    kind = KINDS[int(rng.integers(len(KINDS)))]
    snr_db = float(rng.uniform(25.0 - 25.0 * difficulty, 30.0))
    reverb_s, low_hz, high_hz = rng.uniform([0.1, 50.0, 2800.0], [0.8, 350.0, 6500.0])
    gain_db = float(rng.uniform(-12.0, 6.0)) * difficulty
    return Acoustics(
        masker=kind if has_masker else None,
        snr_db=snr_db,
        reverb_s=float(reverb_s) if has_room else 0.0,
        low_hz=float(low_hz) if has_band else 0.0,
        high_hz=float(high_hz) if has_band else SAMPLE_RATE / 2,
        gain_db=gain_db,
    )


def apply_acoustics(
    samples: NDArray[np.float32], acoustics: Acoustics, seed: int, *, split: Split = "train"
) -> NDArray[np.float32]:
    """Put speech into a room, under a masker, through a band and at a level.

    Parameters
    ----------
    samples : ndarray, shape (num_samples,), float32
        Speech at 16 kHz.
    acoustics : Acoustics
        What to do.
    seed : int
        Same seed, same noise and same room.
    split : {"train", "held_out"}
        Whose voices babble.

    Returns
    -------
    ndarray, shape (num_samples,), float32
        Inside [-0.98, 0.98]: scaled down as a whole where it would be louder.

    Raises
    ------
    InvalidArgument
        The samples are not mono float32 or empty, or a value is outside its range.
    """
    result = reverberate(samples, acoustics.reverb_s, seed)
    if acoustics.masker is not None:
        noise = masker(acoustics.masker, len(samples), seed, split=split)
        result = mix(result, noise, acoustics.snr_db)
    result = limit_band(result, acoustics.low_hz, acoustics.high_hz)
    result = result * np.float32(10.0 ** (acoustics.gain_db / 20.0))
    peak = float(np.abs(result).max())
    return result if peak <= _PEAK else result * np.float32(_PEAK / peak)


def masker(
    kind: MaskerKind, num_samples: int, seed: int, *, split: Split = "train"
) -> NDArray[np.float32]:
    """Background sound.

    Parameters
    ----------
    kind : str
        One of :data:`KINDS`. White, pink (-3 dB per octave) and brown (-6 dB) noise; babble of
        three to six voices; mains hum with harmonics; clicks; chord progressions with a melody.
    num_samples : int
        Length at 16 kHz, >= 1.
    seed : int
        Same seed, same sound.
    split : {"train", "held_out"}
        Whose voices babble.

    Returns
    -------
    ndarray, shape (num_samples,), float32
        RMS 1.

    Raises
    ------
    InvalidArgument
        Unknown kind or split, or no samples.
    MissingDependency
        Babble needs ``espeakng-loader``.
    """
    check_split(split)
    if kind not in KINDS:
        raise InvalidArgument("kind", expected=f"one of {', '.join(KINDS)}", got=repr(kind))
    if num_samples < 1:
        raise InvalidArgument("num_samples", expected="at least 1", got=num_samples)
    rng = np.random.default_rng([seed, 0x4D41534B, KINDS.index(kind)])
    if kind == "babble":
        sound = _babble(num_samples, rng, split)
    else:
        sound = _MAKERS[kind](num_samples, rng)
    rms = float(np.sqrt(np.mean(np.square(sound))))
    if rms < 1e-9:  # a very short piece can fall between two clicks or at the zero of a tone
        sound, rms = np.ones(num_samples), 1.0
    return (sound / rms).astype(np.float32)


def mix(
    samples: NDArray[np.float32], noise: NDArray[np.float32], snr_db: float
) -> NDArray[np.float32]:
    """Add noise at a signal-to-noise ratio.

    Parameters
    ----------
    samples, noise : ndarray, shape (num_samples,), float32
        Speech and what lies under it.
    snr_db : float
        ``10 log10(mean(samples²) / mean(noise²))`` afterwards, over the whole length, -30 to 60.

    Returns
    -------
    ndarray, shape (num_samples,), float32
        Speech unchanged plus scaled noise; silence stays silent.

    Raises
    ------
    InvalidArgument
        Different lengths, not mono float32, empty, or a ratio outside its range.
    """
    _check_samples("samples", samples)
    _check_samples("noise", noise)
    if samples.shape != noise.shape:
        raise InvalidArgument("noise", expected=f"shape {samples.shape}", got=noise.shape)
    if not -30.0 <= snr_db <= 60.0:
        raise InvalidArgument("snr_db", expected="-30 to 60", got=snr_db)
    signal_power = float(np.mean(np.square(samples, dtype=np.float64)))
    noise_power = float(np.mean(np.square(noise, dtype=np.float64)))
    if noise_power == 0.0:
        return samples.copy()
    scale = math.sqrt(signal_power / noise_power / 10.0 ** (snr_db / 10.0))
    return samples + noise * np.float32(scale)


def reverberate(samples: NDArray[np.float32], reverb_s: float, seed: int) -> NDArray[np.float32]:
    """Put a sound into a room.

    Parameters
    ----------
    samples : ndarray, shape (num_samples,), float32
        Dry sound at 16 kHz.
    reverb_s : float
        Time in which the tail falls by 60 dB, 0-2; 0 leaves the sound as it is.
    seed : int
        Same seed, same room.

    Returns
    -------
    ndarray, shape (num_samples,), float32
        Direct sound at its time, so lips stay in step, plus a tail of exponentially decaying noise
        6-14 dB below it in energy; the same RMS as before, cut at the old length.

    Raises
    ------
    InvalidArgument
        Not mono float32, empty, or a time outside its range.
    """
    _check_samples("samples", samples)
    if not 0.0 <= reverb_s <= 2.0:
        raise InvalidArgument("reverb_s", expected="0 to 2 seconds", got=reverb_s)
    if reverb_s == 0.0:
        return samples.copy()
    rng = np.random.default_rng([seed, 0x524F4F4D])
    length = max(int(reverb_s * SAMPLE_RATE), 2)
    tail = rng.standard_normal(length) * 10.0 ** (-3.0 * np.arange(length) / length)
    tail[: min(80, length // 2)] = 0.0  # the first reflection arrives 5 ms late: 1.7 m further
    wanted_energy = 10.0 ** (-float(rng.uniform(6.0, 14.0)) / 10.0)
    response = tail * math.sqrt(wanted_energy / float(np.sum(tail**2)))
    response[0] = 1.0
    size = 1 << (len(samples) + length - 1).bit_length()
    spectrum = np.fft.rfft(samples, size) * np.fft.rfft(response, size)
    wet = np.fft.irfft(spectrum, size)[: len(samples)]
    return _with_rms_of(wet, samples)


def limit_band(samples: NDArray[np.float32], low_hz: float, high_hz: float) -> NDArray[np.float32]:
    """Keep a band of frequencies, as a telephone or a small microphone does.

    Parameters
    ----------
    samples : ndarray, shape (num_samples,), float32
        Sound at 16 kHz.
    low_hz, high_hz : float
        Edges, 0 <= low_hz < high_hz <= 8000. Beyond an edge the level falls by 24 dB per octave
        (fourth-order Butterworth magnitude) without delay.

    Returns
    -------
    ndarray, shape (num_samples,), float32
        Filtered sound with the RMS it had.

    Raises
    ------
    InvalidArgument
        Not mono float32, empty, or the edges are out of order or range.
    """
    _check_samples("samples", samples)
    nyquist = SAMPLE_RATE / 2
    if not 0.0 <= low_hz < high_hz <= nyquist:
        raise InvalidArgument(
            "low_hz", expected=f"0 <= low_hz < high_hz <= {nyquist:.0f}", got=(low_hz, high_hz)
        )
    if low_hz == 0.0 and high_hz == nyquist:
        return samples.copy()
    # Twice the length of zeros keeps the circular filter's end from reaching the beginning.
    size = 1 << (2 * len(samples) - 1).bit_length()
    frequency = np.fft.rfftfreq(size, 1.0 / SAMPLE_RATE)
    gain = 1.0 / np.sqrt(1.0 + (frequency / high_hz) ** 8) if high_hz < nyquist else 1.0
    if low_hz > 0.0:
        gain = gain / np.sqrt(1.0 + (low_hz / np.maximum(frequency, 1e-3)) ** 8)
    filtered = np.fft.irfft(np.fft.rfft(samples, size) * gain, size)[: len(samples)]
    return _with_rms_of(filtered, samples)


def _check_samples(name: str, samples: NDArray[np.float32]) -> None:
    if samples.ndim != 1 or samples.dtype != np.float32 or not samples.size:
        raise InvalidArgument(
            name,
            expected="float32 of shape (num_samples,), not empty",
            got=f"{samples.dtype} of shape {samples.shape}",
        )


def _with_rms_of(sound: NDArray[np.float64], original: NDArray[np.float32]) -> NDArray[np.float32]:
    before = float(np.sqrt(np.mean(np.square(original, dtype=np.float64))))
    after = float(np.sqrt(np.mean(np.square(sound))))
    return (sound * (before / after if after > 0.0 else 0.0)).astype(np.float32)


def _coloured(num_samples: int, rng: np.random.Generator, slope: float) -> NDArray[np.float64]:
    """Noise whose amplitude falls as frequency to the power of ``slope``, flat below 30 Hz."""
    size = 1 << max(num_samples - 1, 1).bit_length()
    frequency = np.fft.rfftfreq(size, 1.0 / SAMPLE_RATE)
    spectrum = np.fft.rfft(rng.standard_normal(size)) * np.maximum(frequency, 30.0) ** -slope
    spectrum[0] = 0.0
    return np.fft.irfft(spectrum, size)[:num_samples]


def _white(num_samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.standard_normal(num_samples)


def _pink(num_samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return _coloured(num_samples, rng, 0.5)


def _brown(num_samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return _coloured(num_samples, rng, 1.0)


def _hum(num_samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Mains hum: 50 or 60 Hz with harmonics, swaying a little."""
    time = np.arange(num_samples) / SAMPLE_RATE
    base = 50.0 if rng.random() < 0.5 else 60.0
    sound = np.zeros(num_samples)
    for harmonic in range(1, 11):
        level = rng.uniform(0.2, 1.0) / harmonic
        sound += level * np.sin(2 * np.pi * (base * harmonic * time + rng.random()))
    return sound * (1.0 + 0.2 * np.sin(2 * np.pi * (rng.uniform(0.1, 0.6) * time + rng.random())))


def _clicks(num_samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Keyboard-like clicks, two to eight per second, each a short ringing decay."""
    sound = 0.01 * rng.standard_normal(num_samples)
    rate = rng.uniform(2.0, 8.0)
    position = rng.exponential(SAMPLE_RATE / rate)
    while position < num_samples:
        start = int(position)
        length = min(int(rng.uniform(0.004, 0.03) * SAMPLE_RATE), num_samples - start)
        time = np.arange(length)
        ringing = np.sin(2 * np.pi * rng.uniform(800.0, 5000.0) / SAMPLE_RATE * time)
        decay = np.exp(-5.0 * time / max(length, 1))
        hit = 0.6 * rng.standard_normal(length) + ringing
        sound[start : start + length] += rng.uniform(0.3, 1.0) * decay * hit
        position += rng.exponential(SAMPLE_RATE / rate)
    return sound


_PROGRESSIONS = ((0, 5, 7, 0), (0, 9, 5, 7), (9, 5, 0, 7), (0, 7, 9, 5), (2, 7, 0, 9))
_MAJOR_ROOTS = frozenset((0, 5, 7))
_SCALE = (0, 2, 4, 5, 7, 9, 11)


def _music(num_samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Four-chord progression with bass, a melody on the scale and a beat of noise."""
    sound = np.zeros(num_samples)
    beat = int(SAMPLE_RATE * 60.0 / rng.uniform(70.0, 150.0))
    key = 45 + int(rng.integers(12))
    roots = _PROGRESSIONS[int(rng.integers(len(_PROGRESSIONS)))]
    harmonics = np.arange(1, 7)
    timbre = rng.uniform(0.1, 1.0, 6) / harmonics
    with_drum = rng.random() < 0.5

    def play(start: int, beats: float, note: float, level: float) -> None:
        length = min(int(beats * beat), num_samples - start)
        time = np.arange(length) / SAMPLE_RATE
        frequency = 440.0 * 2.0 ** ((note - 69.0) / 12.0)
        audible = harmonics * frequency < SAMPLE_RATE / 2
        tone = np.zeros(length)
        for harmonic, amplitude in zip(harmonics[audible], timbre[audible], strict=True):
            tone += amplitude * np.sin(2 * np.pi * frequency * harmonic * time)
        # 10 ms in and out, or every note would click.
        fade = np.minimum(np.minimum(time, time[::-1]) / 0.01, 1.0) * np.exp(-1.5 * time)
        sound[start : start + length] += level * tone * fade

    for index, start in enumerate(range(0, num_samples, beat)):
        root = roots[(index // 4) % len(roots)]
        if index % 4 == 0:
            third = 4 if root in _MAJOR_ROOTS else 3
            for interval in (0, third, 7):
                play(start, 4, key + root + 12 + interval, 0.5)
            play(start, 4, key + root - 12, 0.8)
        if rng.random() < 0.8:
            play(start, 1, key + 24 + _SCALE[int(rng.integers(7))], rng.uniform(0.3, 0.9))
        if with_drum:
            length = min(SAMPLE_RATE // 20, num_samples - start)
            decay = np.exp(-np.arange(length) / (0.01 * SAMPLE_RATE))
            sound[start : start + length] += 0.6 * rng.standard_normal(length) * decay
    return sound


def _babble(num_samples: int, rng: np.random.Generator, split: Split) -> NDArray[np.float64]:
    """Three to six people who talk at once, never the voices of the other split."""
    sound = np.zeros(num_samples)
    for _ in range(int(rng.integers(3, 7))):
        voice_seed = int(rng.integers(2**31))
        voice = sample_voice(voice_seed, split)
        duration_s = min(max(num_samples / SAMPLE_RATE, 1.0), 15.0)
        text = sample_sentence(voice_seed, voice.language, split, duration_s=duration_s)
        speech = synthesise(text, voice, tail_s=0.2).samples
        # A random turn of the loop: the voices neither begin nor pause together.
        offset = int(rng.integers(len(speech)))
        repeats = -(-(num_samples + offset) // len(speech))
        sound += rng.uniform(0.4, 1.0) * np.tile(speech, repeats)[offset : offset + num_samples]
    return sound


_MAKERS: dict[str, Callable[[int, np.random.Generator], NDArray[np.float64]]] = {
    "white": _white,
    "pink": _pink,
    "brown": _brown,
    "hum": _hum,
    "clicks": _clicks,
    "music": _music,
}
