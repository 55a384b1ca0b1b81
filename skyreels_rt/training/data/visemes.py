"""From phonemes to the movement of a mouth.

Each IPA symbol has a target shape; a phoneme of several symbols (diphthong, affricate) is walked
through in order. Overlapping dominance functions blend the targets into smooth tracks (Cohen and
Massaro 1993, "Modeling coarticulation in synthetic visual speech": T(t) = sum_i D_i(t) T_i /
sum_i D_i(t) with D_i(t) = a_i exp(-|t - c_i| / w_i)); each parameter has its own dominance, so lip
rounding spreads over consonants that do not care about it while a bilabial always closes.
"""

# IPA letters look like Latin ones to the linter.
# ruff: noqa: RUF001

from __future__ import annotations

import logging
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.training.data.mouth import MouthShape
from skyreels_rt.training.data.speech import PAUSE, SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from skyreels_rt.training.data.speech import PhonemeEvent

_LOG = logging.getLogger(__name__)

DEFAULT_LEAD_MS = 40.0
"""How far the lips run ahead of the sound they make; one frame at 25 fps."""

_QUIET, _LOUD = 0.3, 0.8
"""Factor on the opening of silent speech, and what full loudness adds to it."""

_MIN_CLOSED_PAUSE_S = 0.12
_CLOSED = 0.03
_SHUT_S = 0.020  # half a frame at 25 fps: at least one frame falls into every closure
_FLANK_S = 0.085


@dataclass(frozen=True)
class MouthTarget:
    """Shape of the mouth that a sound asks for, and how much it insists.

    Attributes
    ----------
    opening, width, rounding, teeth, tongue : float
        0-1: lips apart, corners apart (0.45 at rest), lips pushed forward, teeth seen, tongue seen.
    strength : float
        Dominance over the neighbours in all parameters but rounding, > 0.
    rounding_strength : float
        Dominance in rounding and width, > 0.
    is_closed : bool
        The lips must meet (p, b, m).
    """

    opening: float
    width: float
    rounding: float
    teeth: float
    tongue: float
    strength: float = 1.0
    rounding_strength: float = 1.0
    is_closed: bool = False


def _vowel(opening: float, width: float, rounding: float, teeth: float = 0.35) -> MouthTarget:
    return MouthTarget(opening, width, rounding, teeth, 0.2, 1.0, 1.0)


_REST = MouthTarget(0.0, 0.45, 0.1, 0.0, 0.0, 1.5, 0.7)
_BILABIAL = MouthTarget(0.0, 0.45, 0.15, 0.0, 0.0, 3.0, 0.3, is_closed=True)
_LABIODENTAL = MouthTarget(0.10, 0.55, 0.05, 0.9, 0.0, 2.5, 0.5)
_DENTAL = MouthTarget(0.22, 0.55, 0.05, 0.7, 1.0, 1.8, 0.3)
_ALVEOLAR = MouthTarget(0.16, 0.55, 0.05, 0.55, 0.5, 1.0, 0.25)
_SIBILANT = MouthTarget(0.14, 0.65, 0.05, 0.9, 0.15, 1.4, 0.5)
_LATERAL = MouthTarget(0.24, 0.55, 0.05, 0.4, 0.85, 0.9, 0.25)
_TAP = MouthTarget(0.20, 0.52, 0.10, 0.45, 0.6, 0.7, 0.25)
_HUSHING = MouthTarget(0.20, 0.30, 0.70, 0.8, 0.1, 1.4, 1.2)
_PALATAL = MouthTarget(0.22, 0.75, 0.05, 0.5, 0.3, 0.9, 0.6)
_VELAR = MouthTarget(0.20, 0.52, 0.10, 0.3, 0.1, 0.7, 0.2)
_GLOTTAL = MouthTarget(0.25, 0.50, 0.10, 0.3, 0.1, 0.2, 0.1)
_LABIOVELAR = MouthTarget(0.12, 0.12, 1.00, 0.05, 0.0, 1.6, 1.8)
_APPROXIMANT_R = MouthTarget(0.20, 0.32, 0.60, 0.3, 0.3, 1.0, 1.0)

_CLASSES: tuple[tuple[str, MouthTarget], ...] = (
    ("p b m ɓ", _BILABIAL),
    ("f v ɱ ʋ", _LABIODENTAL),
    ("θ ð", _DENTAL),
    ("t d n ʈ ɖ ɳ", _ALVEOLAR),
    ("s z ʂ ʐ", _SIBILANT),
    ("l ɭ ɫ ʎ ɬ", _LATERAL),
    ("r ɾ ɽ", _TAP),
    ("ʃ ʒ ɕ ʑ ɧ", _HUSHING),
    ("j ɲ c ɟ ç ʝ", _PALATAL),
    ("k g ɡ ŋ x ɣ q χ ʁ ʀ ɴ ɢ", _VELAR),
    ("h ɦ ʔ ħ ʕ", _GLOTTAL),
    ("w ʍ ɥ", _LABIOVELAR),
    ("ɹ ɻ", _APPROXIMANT_R),
    ("β ɸ", MouthTarget(0.08, 0.5, 0.2, 0.05, 0.0, 2.0, 0.4)),
    ("i", _vowel(0.34, 0.95, 0.00, 0.6)),
    ("ɪ", _vowel(0.42, 0.80, 0.00, 0.5)),
    ("ɨ ᵻ ɯ", _vowel(0.34, 0.65, 0.05, 0.5)),
    ("y ʏ", _vowel(0.30, 0.20, 0.95, 0.1)),
    ("e", _vowel(0.52, 0.85, 0.00, 0.5)),
    ("ɛ", _vowel(0.60, 0.78, 0.00, 0.45)),
    ("æ", _vowel(0.82, 0.80, 0.00, 0.45)),
    ("a", _vowel(0.92, 0.62, 0.05)),
    ("ɐ", _vowel(0.72, 0.58, 0.05)),
    ("ɑ", _vowel(0.95, 0.50, 0.10)),
    ("ʌ", _vowel(0.65, 0.52, 0.10)),
    ("ə ɘ", _vowel(0.45, 0.50, 0.10)),
    ("ɜ ɚ ɝ", _vowel(0.48, 0.42, 0.35)),
    ("ɤ", _vowel(0.42, 0.55, 0.10)),
    ("ø ɵ", _vowel(0.46, 0.28, 0.85, 0.15)),
    ("œ ɶ", _vowel(0.55, 0.35, 0.70, 0.2)),
    ("ɔ", _vowel(0.68, 0.32, 0.65, 0.2)),
    ("ɒ", _vowel(0.78, 0.40, 0.45, 0.25)),
    ("o", _vowel(0.54, 0.20, 0.90, 0.1)),
    ("ʊ", _vowel(0.40, 0.25, 0.80, 0.1)),
    ("u ʉ", _vowel(0.30, 0.10, 1.00, 0.05)),
    (PAUSE, _REST),
)

TARGETS: dict[str, MouthTarget] = {
    symbol: target for symbols, target in _CLASSES for symbol in symbols.split()
}
"""Target of each IPA symbol."""

# Marks that lengthen, release, voice or place a sound without moving the lips.
_MODIFIERS = frozenset("ˈˌː:ˑʰʱʲˠˤʼ˞.-|!~^*'`0123456789[]")
_SEPARATE_ROUNDING = frozenset("ʷᵝ")


@lru_cache(maxsize=4096)
def symbols_of(name: str) -> tuple[str, ...]:
    """IPA symbols of a phoneme name that have a target, in order.

    Parameters
    ----------
    name : str
        Name of a phoneme as espeak-ng writes it in IPA.

    Returns
    -------
    tuple of str
        Keys of :data:`TARGETS`, at least one. Stress, length, tone and other diacritics are left
        out. A symbol without a target is replaced by the nearest one of its plain letter, or by
        ``"ə"``; that is logged once per name.
    """
    found: list[str] = []
    unknown = False
    plain = "".join(c for c in unicodedata.normalize("NFD", name) if not unicodedata.combining(c))
    # NFD takes the cedilla off this one, which is a letter of its own in IPA.
    if "ç" in unicodedata.normalize("NFC", name):
        plain = plain.replace("c", "ç", 1)
    for symbol in plain:
        if symbol in _MODIFIERS:
            continue
        if symbol in _SEPARATE_ROUNDING:
            found.append("w")
        elif symbol in TARGETS:
            found.append(symbol)
        else:
            unknown = True
            nearest = unicodedata.normalize("NFKD", symbol)[:1].lower()
            found.append(nearest if nearest in TARGETS else "ə")
    if unknown:
        _LOG.warning("Phoneme %r has no mouth target of its own; %s is used.", name, found)
    return tuple(found) or ("j" if "ʲ" in name else "ə",)


def is_known(name: str) -> bool:
    """Whether every symbol of a phoneme name has a target or is a diacritic.

    Parameters
    ----------
    name : str
        Name of a phoneme in IPA.

    Returns
    -------
    bool
        False where :func:`symbols_of` would have to replace something.
    """
    letters = unicodedata.normalize("NFD", unicodedata.normalize("NFC", name).replace("ç", "c"))
    return all(
        symbol in TARGETS
        or symbol in _MODIFIERS
        or symbol in _SEPARATE_ROUNDING
        or unicodedata.combining(symbol)
        for symbol in letters
    )


def frame_loudness(
    samples: NDArray[np.float32], num_frames: int, *, fps: float = 25.0
) -> NDArray[np.float32]:
    """Loudness of the sound under each frame.

    Parameters
    ----------
    samples : ndarray, shape (num_samples,), float32
        Mono at 16 kHz.
    num_frames : int
        F, >= 1; frames after the end of the samples are silent.
    fps : float
        Frames per second, > 0.

    Returns
    -------
    ndarray, shape (F,), float32
        In [0, 1]: 0 at 40 dB below the loudest frame and under, 1 at the loudest.

    Raises
    ------
    InvalidArgument
        ``num_frames`` or ``fps`` is not positive.
    """
    _check_frames(num_frames, fps)
    edges = np.minimum((np.arange(num_frames + 1) * SAMPLE_RATE / fps).astype(int), len(samples))
    power = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    rms = np.sqrt(np.maximum(np.diff(power[edges]), 0.0) / np.maximum(np.diff(edges), 1))
    if not rms.max() > 0.0:
        return np.zeros(num_frames, np.float32)
    decibels = 20.0 * np.log10(np.maximum(rms / rms.max(), 1e-6))
    loudness: NDArray[np.float32] = np.clip(1.0 + decibels / 40.0, 0.0, 1.0).astype(np.float32)
    return loudness


def mouth_track(
    phonemes: Sequence[PhonemeEvent],
    num_frames: int,
    *,
    fps: float = 25.0,
    lead_ms: float = DEFAULT_LEAD_MS,
    loudness: NDArray[np.float32] | None = None,
) -> MouthShape:
    """Movement of the mouth for a sequence of phonemes.

    Parameters
    ----------
    phonemes : sequence of PhonemeEvent
        In time order; pauses included.
    num_frames : int
        F, >= 1. Frame ``i`` shows the mouth at ``(i + 0.5) / fps`` seconds.
    fps : float
        Frames per second, > 0.
    lead_ms : float
        The lips are where the sound will be after this many milliseconds, 0-200.
    loudness : ndarray, shape (F,), float32, optional
        From :func:`frame_loudness`; the opening grows with its square, from 0.3
        of the target in silence to 1.1 at the loudest frame.

    Returns
    -------
    MouthShape
        ``opening`` is at most 0.05 in a frame of every p, b and m and inside pauses of 120 ms and
        longer. Before and after the phonemes the mouth is at rest.

    Raises
    ------
    InvalidArgument
        A number is outside its range, or ``loudness`` has another length than F.
    """
    _check_frames(num_frames, fps)
    if not 0.0 <= lead_ms <= 200.0:
        raise InvalidArgument("lead_ms", expected="0 to 200", got=lead_ms)
    if loudness is not None and loudness.shape != (num_frames,):
        raise InvalidArgument("loudness", expected=f"shape ({num_frames},)", got=loudness.shape)
    times_F = (np.arange(num_frames, dtype=np.float64) + 0.5) / np.float64(fps) + lead_ms / 1000.0
    segments = _segments(phonemes, float(times_F[-1]))
    values_5F = _blend(segments, times_F)
    opening_F = values_5F[0]
    if loudness is not None:
        opening_F = np.minimum(opening_F * (_QUIET + _LOUD * loudness**2), 1.0)
    gate_F = _closure_gate(segments, times_F, 1.0 / fps)
    opening_F = gate_F * opening_F + (1.0 - gate_F) * np.minimum(opening_F, _CLOSED)
    # Teeth and tongue show only between the lips.
    visible_F = np.clip(opening_F / 0.15, 0.0, 1.0)
    return MouthShape(
        opening=opening_F.astype(np.float32),
        width=values_5F[1].astype(np.float32),
        rounding=values_5F[2].astype(np.float32),
        teeth=(values_5F[3] * visible_F).astype(np.float32),
        tongue=(values_5F[4] * visible_F).astype(np.float32),
    )


@dataclass(frozen=True)
class _Segment:
    """One symbol on the time axis, in seconds."""

    target: MouthTarget
    start_s: float
    stop_s: float
    is_pause: bool

    @property
    def centre_s(self) -> float:
        return 0.5 * (self.start_s + self.stop_s)


def _check_frames(num_frames: int, fps: float) -> None:
    if num_frames < 1:
        raise InvalidArgument("num_frames", expected="at least 1", got=num_frames)
    if not fps > 0.0:
        raise InvalidArgument("fps", expected="a positive number", got=fps)


def _segments(phonemes: Sequence[PhonemeEvent], last_s: float) -> list[_Segment]:
    """Symbols with their times; rest before the first and after the last phoneme."""
    segments = []
    start = min(phonemes[0].start_s if phonemes else 0.0, 0.0)
    segments.append(_Segment(_REST, start - 1.0, start, is_pause=True))
    for event in phonemes:
        symbols = symbols_of(event.name)
        # Of a diphthong or an affricate the first part is held longer.
        weights = [1.5] + [1.0] * (len(symbols) - 1)
        position = event.start_s
        for symbol, weight in zip(symbols, weights, strict=True):
            stop = position + (event.stop_s - event.start_s) * weight / sum(weights)
            segments.append(_Segment(TARGETS[symbol], position, stop, is_pause=symbol == PAUSE))
            position = stop
    end = segments[-1].stop_s
    segments.append(_Segment(_REST, end, max(end, last_s) + 1.0, is_pause=True))
    return segments


def _blend(segments: Sequence[_Segment], times_F: NDArray[np.float64]) -> NDArray[np.float64]:
    """Dominance-weighted mean of the targets, shape (5, F)."""
    start_S1 = np.array([[s.start_s] for s in segments])
    stop_S1 = np.array([[s.stop_s] for s in segments])
    # The target is held over the middle of the symbol; only beyond does dominance fall.
    hold_S1 = np.minimum(0.25 * (stop_S1 - start_S1), 0.04)
    pause_S1 = np.array([[s.is_pause] for s in segments])
    hold_S1 = np.where(pause_S1, 0.5 * (stop_S1 - start_S1) - 0.04, hold_S1).clip(0.0)
    distance_SF = np.abs(times_F[None, :] - 0.5 * (start_S1 + stop_S1))
    falloff_S1 = np.clip(0.4 * (stop_S1 - start_S1), 0.025, 0.05)
    exponent_SF = -np.maximum(distance_SF - hold_S1, 0.0) / falloff_S1
    # Only ratios matter: the largest term is kept at one, so distant frames do not underflow.
    shape_SF = np.exp(np.maximum(exponent_SF - exponent_SF.max(axis=0), -60.0))
    targets_S5 = np.array(
        [
            [
                getattr(s.target, name)
                for name in ("opening", "width", "rounding", "teeth", "tongue")
            ]
            for s in segments
        ]
    )
    insist_S5 = np.array(
        [
            [s.target.rounding_strength if k in (1, 2) else s.target.strength for k in range(5)]
            for s in segments
        ]
    )
    weights_5SF = insist_S5.T[:, :, None] * shape_SF[None]
    blended: NDArray[np.float64] = np.einsum("ksf,sk->kf", weights_5SF, targets_S5)
    clipped: NDArray[np.float64] = np.clip(blended / weights_5SF.sum(axis=1), 0.0, 1.0)
    return clipped


def _closure_gate(
    segments: Sequence[_Segment], times_F: NDArray[np.float64], frame_s: float
) -> NDArray[np.float64]:
    """Factor in [0, 1] per frame: 0 while the lips meet, raised-cosine flanks, 1 elsewhere."""
    gate_F = np.ones_like(times_F)
    half_frame = max(0.5 * frame_s, _SHUT_S) + 1e-6
    for segment in segments:
        length = segment.stop_s - segment.start_s
        if segment.target.is_closed:
            # The release belongs to the next sound, so the closure sits a little early.
            centre = segment.start_s + 0.45 * length
            half = max(0.3 * length, half_frame)
        elif segment.is_pause and length >= _MIN_CLOSED_PAUSE_S:
            centre, half = segment.centre_s, 0.5 * length - 0.05
        else:
            continue
        outside_F = np.clip((np.abs(times_F - centre) - half) / _FLANK_S, 0.0, 1.0)
        gate_F = np.minimum(gate_F, 0.5 - 0.5 * np.cos(np.pi * outside_F))
    return gate_F
