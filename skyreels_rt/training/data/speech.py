"""Synthetic speech with phoneme times, from the formant synthesiser espeak-ng.

The shared library and its data come from the package ``espeakng-loader`` and are driven through
ctypes (espeak-ng 1.52, ``speak_lib.h``). Every timbre is made by rules; no recording of a person is
involved. The library keeps hidden state between utterances (flutter phase, oscillators, random
numbers), so it is unloaded and loaded again for each one: 0.25 ms, and the same text and voice give
the same bits whatever was spoken before.
"""

from __future__ import annotations

import ctypes
import importlib
import locale
import os
import random
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from skyreels_rt.errors import InvalidArgument, MissingDependency, SkyReelsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Split = Literal["train", "held_out"]
"""Which side of the division between training and evaluation something belongs to."""

SAMPLE_RATE = 16_000
"""Samples per second of everything this module returns."""

PAUSE = "_"
"""Name of the events during which nobody speaks."""

MAX_TEXT_LENGTH = 2_000
"""Longest text in characters that :func:`synthesise` takes."""

LANGUAGES = (
    *("en", "en-us", "en-gb-scotland", "en-029", "de", "fr", "fr-be", "es", "es-419", "it"),
    *("pt", "pt-br", "nl", "sv", "pl", "cs", "ru", "tr", "fi", "id"),
)
"""Languages and accents by their espeak-ng names."""

# The variants `Reed` and `caleb` are left out: they draw from the C library's global `rand`.
TRAIN_VARIANTS = (
    *("", "m1", "m2", "m3", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f5", "klatt", "klatt3"),
    *("klatt4", "klatt6", "croak", "whisper", "adam", "anika", "announcer", "aunty", "belinda"),
    *("boris", "david", "edward", "grandma", "gustave", "ian", "iven2", "iven4", "kaukovalta"),
    *("marcelo", "max", "miguel", "norbert", "pablo", "quincy", "robert", "robosoft4", "robosoft6"),
    *("robosoft8", "steph", "travis", "zac"),
)
"""Timbres of the training split."""

HELD_OUT_VARIANTS = (
    *("m4", "f4", "klatt2", "klatt5", "benjamin", "edward2", "grandpa", "iven3", "linda", "rob"),
    *("shelby", "steph2", "victor"),
)
"""Timbres that only evaluation hears."""

_NATIVE_RATE = 22_050
_LEVEL_RMS = 0.1  # -20 dBFS at volume 100; timbres differ by 20 dB as the library makes them
_PEAK = 0.98
_SILENT = 64.0  # of 32768: -54 dBFS; pauses and closures are exact zeros, echoes are not
_STOPS = frozenset("pbtdkgɡqɢcɟʈɖ")  # noqa: RUF001  (IPA has its own g)
_MIN_CLOSURE_S = 0.008
_CLOSURE_IN_PAUSE_S = 0.06

_OUTPUT_SYNCHRONOUS = 2
_INIT_PHONEMES_AS_IPA_NO_EXIT = 0x1 | 0x2 | 0x8000
_CHARS_UTF8 = 1
_EVENT_END, _EVENT_PHONEME = 0, 7
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_NATIVE_VOLUME = 60  # loud timbres clip at the default of 100

_LOCK = threading.Lock()  # the library keeps one global voice and one global output


@dataclass(frozen=True)
class Voice:
    """How a text is spoken.

    Attributes
    ----------
    language : str
        One of :data:`LANGUAGES`.
    variant : str
        Timbre: one of :data:`TRAIN_VARIANTS` or :data:`HELD_OUT_VARIANTS`; ``""`` is the plain one.
    pitch, pitch_range : int
        Base pitch and its movement, 0-100.
    rate : int
        Words per minute, 80-350.
    volume : int
        Loudness, 5-100; 100 is -20 dBFS RMS over the spoken part, 50 is 6 dB less.

    Raises
    ------
    InvalidArgument
        A value is outside its range or list.
    """

    language: str = "en-us"
    variant: str = ""
    pitch: int = 50
    pitch_range: int = 50
    rate: int = 175
    volume: int = 100

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise InvalidArgument(
                "language", expected=f"one of {', '.join(LANGUAGES)}", got=self.language
            )
        if self.variant not in TRAIN_VARIANTS + HELD_OUT_VARIANTS:
            raise InvalidArgument(
                "variant", expected="one of TRAIN_VARIANTS or HELD_OUT_VARIANTS", got=self.variant
            )
        ranges = {
            "pitch": (0, 100),
            "pitch_range": (0, 100),
            "rate": (80, 350),
            "volume": (5, 100),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidArgument(name, expected=f"{low} to {high}", got=value)


@dataclass(frozen=True)
class PhonemeEvent:
    """One phoneme and the time it takes.

    Attributes
    ----------
    name : str
        IPA as espeak-ng writes it, at most 8 bytes, stress marks first; :data:`PAUSE` for silence.
    start_s, stop_s : float
        Seconds from the first sample, ``start_s < stop_s``. A stop's closure belongs to the stop.
    """

    name: str
    start_s: float
    stop_s: float


@dataclass(frozen=True)
class Speech:
    """Speech and what is said when.

    Attributes
    ----------
    samples : ndarray, shape (num_samples,), float32
        Mono, :data:`SAMPLE_RATE`, inside [-1, 1].
    phonemes : tuple of PhonemeEvent
        In order, without gap or overlap from 0 to :attr:`duration_s`.
    """

    samples: NDArray[np.float32]
    phonemes: tuple[PhonemeEvent, ...]

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE


def check_split(split: str) -> None:
    """Refuse a split that does not exist.

    Parameters
    ----------
    split : str
        ``"train"`` or ``"held_out"``.

    Raises
    ------
    InvalidArgument
        ``split`` is neither.
    """
    if split not in ("train", "held_out"):
        raise InvalidArgument("split", expected="'train' or 'held_out'", got=repr(split))


def sample_voice(seed: int, split: Split, *, languages: Sequence[str] = LANGUAGES) -> Voice:
    """Draw a voice.

    Parameters
    ----------
    seed : int
        Same seed, same voice.
    split : {"train", "held_out"}
        No timbre (variant) is in both.
    languages : sequence of str
        Languages to choose from.

    Returns
    -------
    Voice
        Rate 120-230 words per minute, pitch 15-85, pitch range 20-90, volume 50-100.

    Raises
    ------
    InvalidArgument
        Unknown split or language, or no language.
    """
    check_split(split)
    if not languages:
        raise InvalidArgument("languages", expected="at least one language", got="none")
    rng = random.Random(f"voice:{split}:{seed}")
    variants = TRAIN_VARIANTS if split == "train" else HELD_OUT_VARIANTS

    def between(low: int, high: int) -> int:
        return low + int(rng.random() * (high - low + 1))

    return Voice(
        language=languages[between(0, len(languages) - 1)],
        variant=variants[between(0, len(variants) - 1)],
        pitch=between(15, 85),
        pitch_range=between(20, 90),
        rate=between(120, 230),
        volume=between(50, 100),
    )


def synthesise(text: str, voice: Voice, *, lead_s: float = 0.0, tail_s: float = 0.0) -> Speech:
    """Speak a text.

    Parameters
    ----------
    text : str
        1 to :data:`MAX_TEXT_LENGTH` characters in the language of the voice. Markup is read aloud.
    voice : Voice
        Who speaks.
    lead_s, tail_s : float
        Seconds of digital silence before and after, 0-60.

    Returns
    -------
    Speech
        The same text, voice and silences give the same bits, whatever was spoken before.

    Raises
    ------
    MissingDependency
        ``espeakng-loader`` is not installed.
    InvalidArgument
        The text is empty, too long or has nothing to speak; a silence is outside its range.

    Notes
    -----
    Synthesis is serialised by one lock in the process. While it runs, the C library's character
    locale may be UTF-8; it is put back afterwards.
    """
    if not text.strip() or len(text) > MAX_TEXT_LENGTH or "\0" in text:
        raise InvalidArgument(
            "text",
            expected=f"1 to {MAX_TEXT_LENGTH} characters with words and no NUL",
            got=f"{len(text)} characters",
        )
    for name, value in (("lead_s", lead_s), ("tail_s", tail_s)):
        if not 0.0 <= value <= 60.0:
            raise InvalidArgument(name, expected="0 to 60 seconds", got=value)
    with _LOCK:
        pcm, marks = _speak(text, voice)
    spoken = pcm[np.abs(pcm) > _SILENT]
    if not spoken.size:
        raise InvalidArgument("text", expected="something that can be spoken", got="silence")

    import soxr

    events = _tile(marks, pcm)
    voiced = soxr.resample(pcm / np.float32(32768.0), _NATIVE_RATE, SAMPLE_RATE, quality="HQ")
    rms = float(np.sqrt(np.mean(np.square(spoken / 32768.0, dtype=np.float64))))
    peak = float(np.abs(voiced).max())
    gain = min(_LEVEL_RMS * voice.volume / 100.0 / rms, _PEAK / peak)
    lead, tail = round(lead_s * SAMPLE_RATE), round(tail_s * SAMPLE_RATE)
    samples = np.zeros(lead + len(voiced) + tail, np.float32)
    samples[lead : lead + len(voiced)] = voiced * np.float32(gain)
    return Speech(samples, _place(events, lead, len(voiced), len(samples)))


class _EventId(ctypes.Union):
    _fields_ = (
        ("number", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("string", ctypes.c_char * 8),
    )


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


def _paths() -> tuple[str, str]:
    """Paths of the shared library and of the folder that holds its data."""
    try:
        loader = importlib.import_module("espeakng_loader")
    except ImportError as error:
        raise MissingDependency(
            "Synthesising speech needs the package espeakng-loader.",
            stage="data",
            hint="Run: pip install skyreels-rt[train]",
        ) from error
    return str(loader.get_library_path()), str(loader.get_data_path())


def _speak(text: str, voice: Voice) -> tuple[NDArray[np.float32], list[tuple[str, int]]]:
    """PCM (num_samples,) in int16 units at 22050 Hz, and (IPA name, first sample) of each phoneme.

    The caller holds the lock.
    """
    library_path, data_path = _paths()
    character_locale = locale.setlocale(locale.LC_CTYPE)
    library = ctypes.CDLL(library_path)
    chunks: list[bytes] = []
    marks: list[tuple[str, int]] = []

    def receive(wave: ctypes._Pointer[ctypes.c_short], count: int, events: object) -> int:
        if count > 0:
            chunks.append(ctypes.string_at(wave, 2 * count))
        position = 0
        while (event := events[position]).type != _EVENT_END:  # type: ignore[index]
            if event.type == _EVENT_PHONEME:
                # A long name is cut at 8 bytes, perhaps inside a character.
                marks.append((bytes(event.id.string).decode("utf-8", "ignore"), event.sample))
            position += 1
        return 0

    callback = _Callback(receive)
    try:
        rate = library.espeak_Initialize(
            _OUTPUT_SYNCHRONOUS, 0, os.fsencode(data_path), _INIT_PHONEMES_AS_IPA_NO_EXIT
        )
        if rate != _NATIVE_RATE:
            raise SkyReelsError(
                f"espeak-ng answered {rate} where its sample rate of {_NATIVE_RATE} was expected.",
                stage="data",
                hint="Install espeakng-loader 0.2.4 again.",
            )
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        library.espeak_SetSynthCallback(callback)
        _configure(library, voice)
        encoded = text.encode("utf-8")
        library.espeak_Synth(
            encoded, ctypes.c_size_t(len(encoded) + 1), 0, 1, 0, _CHARS_UTF8, None, None
        )
        library.espeak_Synchronize()
    finally:
        library.espeak_Terminate()
        _unload(library, library_path)
        locale.setlocale(locale.LC_CTYPE, character_locale)
    return np.frombuffer(b"".join(chunks), np.int16).astype(np.float32), marks


def _configure(library: ctypes.CDLL, voice: Voice) -> None:
    name = f"{voice.language}+{voice.variant}" if voice.variant else voice.language
    if library.espeak_SetVoiceByName(name.encode("ascii")) != 0:
        raise InvalidArgument("voice", expected="a voice that espeak-ng knows", got=name)
    for parameter, value in (
        (_RATE, voice.rate),
        (_VOLUME, _NATIVE_VOLUME),
        (_PITCH, voice.pitch),
        (_RANGE, voice.pitch_range),
    ):
        library.espeak_SetParameter(parameter, value, 0)


def _unload(library: ctypes.CDLL, path: str) -> None:
    """Remove the library from the process, and with it every hidden state."""
    loader = ctypes.CDLL(None)
    loader.dlclose(ctypes.c_void_p(library._handle))
    loader.dlopen.restype = ctypes.c_void_p
    if loader.dlopen(os.fsencode(path), os.RTLD_NOLOAD | os.RTLD_NOW) is not None:
        raise SkyReelsError(
            "espeak-ng stays loaded, so speech would depend on what was spoken before.",
            stage="data",
            hint="Let nothing else in this process load it; musl never unloads, use glibc.",
        )


def _tile(marks: list[tuple[str, int]], pcm: NDArray[np.float32]) -> list[tuple[str, int]]:
    """Name and first sample of consecutive events that cover the PCM without gap."""
    quiet = np.abs(pcm) <= _SILENT
    bounds = [position for _, position in marks[1:]] + [len(pcm)]
    events: list[tuple[str, int]] = [(PAUSE, 0)]
    for (name, start), stop in zip(marks, bounds, strict=True):
        if stop <= start or name.startswith("("):  # "(en)": a word of another language follows
            continue
        if not name:
            # Nameless: a pause, or a short release that belongs to the phoneme before it.
            if not quiet[start:stop].all() or events[-1][0] == PAUSE:
                continue
            name = PAUSE  # noqa: PLW2901
        if name.strip("ˈˌ")[:1] in _STOPS:
            start = _closure_start(quiet, events[-1], start)  # noqa: PLW2901
        if start <= events[-1][1]:
            events.pop()
        events.append((name, start))
    return events


def _closure_start(quiet: NDArray[np.bool_], previous: tuple[str, int], start: int) -> int:
    """First sample of the silence before a release: espeak-ng marks a stop at its release."""
    name, earliest = previous
    if name == PAUSE:
        earliest = max(earliest, start - int(_CLOSURE_IN_PAUSE_S * _NATIVE_RATE))
    loud = np.flatnonzero(~quiet[earliest:start])
    first = earliest + int(loud[-1]) + 1 if loud.size else earliest
    return first if start - first >= _MIN_CLOSURE_S * _NATIVE_RATE else start


def _place(
    events: list[tuple[str, int]], lead: int, num_voiced: int, num_samples: int
) -> tuple[PhonemeEvent, ...]:
    """Events in seconds of the finished samples, with the silences around them."""
    starts = [
        (name, lead + min(position * SAMPLE_RATE / _NATIVE_RATE, num_voiced))
        for name, position in events
    ]
    if lead:
        starts = [(PAUSE, 0.0)] + [s for s in starts if s != (PAUSE, float(lead))]
    if num_samples > lead + num_voiced and starts[-1][0] != PAUSE:
        starts.append((PAUSE, float(lead + num_voiced)))
    stops = [position for _, position in starts[1:]] + [float(num_samples)]
    return tuple(
        PhonemeEvent(name, start / SAMPLE_RATE, stop / SAMPLE_RATE)
        for (name, start), stop in zip(starts, stops, strict=True)
    )
