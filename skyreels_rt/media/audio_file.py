"""Sound from a file or an array, as a stream of float32 blocks in constant memory.

WAV, FLAC and Ogg are read by libsndfile, everything else by FFmpeg through PyAV, both from a file
that we opened and whose format we read from its first bytes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from skyreels_rt.errors import InvalidArgument, MediaError, NonFinite
from skyreels_rt.media.container import (
    AUDIO_CODECS,
    open_container,
    require_codec,
    unknown_format,
)
from skyreels_rt.media.local_file import decoding, open_local, sniff_format

if TYPE_CHECKING:
    from av import AudioFrame
    from av.container import InputContainer

MAX_CHANNELS: Final = 8
MIN_SAMPLE_RATE: Final = 1_000
MAX_SAMPLE_RATE: Final = 384_000
MIN_AUDIO_SECONDS: Final = 0.01
# libsndfile writes 2**63 - 1 for a FLAC stream that does not say how long it is.
_UNKNOWN_LENGTH: Final = 2**62
# The last packet of a codec holds padding: at most one frame, 2,048 samples for HE-AAC.
_MAX_PADDING: Final = 2_048
_DTYPES: Final = {"u8": "u1", "s16": "i2", "s32": "i4", "flt": "f4", "dbl": "f8"}
_FULL_SCALE: Final = {"u1": 2.0**7, "i2": 2.0**15, "i4": 2.0**31}


class AudioSource(ABC):
    """Sound that can be read, from the start, any number of times.

    Attributes
    ----------
    name : str
        Path, or ``"<array>"``; used in errors.
    sample_rate : int
        Hz, 1,000 to 384,000.
    channels : int
        1 to ``MAX_CHANNELS``.
    num_samples : int or None
        Samples per channel where the header says it exactly (WAV, FLAC, Ogg, arrays), else None.
    """

    def __init__(self, name: str, sample_rate: int, channels: int, num_samples: int | None) -> None:
        self.name = name
        self.sample_rate = sample_rate
        self.channels = channels
        self.num_samples = num_samples

    def blocks(self, block_samples: int = 16_000) -> Iterator[NDArray[np.float32]]:
        """Read the sound from its start.

        Closing the iterator closes the file.

        Parameters
        ----------
        block_samples : int
            Samples per channel of every block but the last, >= 1.

        Yields
        ------
        ndarray, shape (S, channels), float32
            Integer samples scaled to [-1, 1); float samples as they are stored. The caller's own.

        Raises
        ------
        InvalidArgument
            ``block_samples`` is not positive.
        MediaError
            The file is gone, damaged, changed since it was opened, or ends before
            ``MIN_AUDIO_SECONDS``.
        NonFinite
            A block holds NaN or infinity; blocks before it were delivered.
        """
        if block_samples < 1:
            raise InvalidArgument("block_samples", expected=">= 1", got=block_samples)
        return self._checked(block_samples)

    def _checked(self, block_samples: int) -> Iterator[NDArray[np.float32]]:
        """Blocks of ``_decode`` after the checks that need the samples."""
        total = 0
        with closing(self._decode(block_samples)) as blocks:
            for block in blocks:
                if not np.isfinite(block).all():
                    raise NonFinite(
                        f"audio {self.name!r}: expected finite samples, got NaN or infinity "
                        f"between {total / self.sample_rate:.2f} s and "
                        f"{(total + len(block)) / self.sample_rate:.2f} s.",
                        stage="audio",
                        hint="Replace those samples, for example by silence.",
                    )
                total += len(block)
                yield block
        _require_length(self.name, total, self.sample_rate)

    @abstractmethod
    def _decode(self, block_samples: int) -> Generator[NDArray[np.float32], None, None]:
        """Yield blocks of ``block_samples`` samples, the last one shorter; a generator."""


def in_blocks(
    chunks: Iterable[NDArray[np.float32]], block_samples: int
) -> Iterator[NDArray[np.float32]]:
    """Cut a stream of chunks (S, channels) of any length into blocks; the last one is shorter."""
    held: list[NDArray[np.float32]] = []
    size = 0
    for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size < block_samples:
            continue
        joined = np.concatenate(held)
        whole = size - size % block_samples
        for start in range(0, whole, block_samples):
            yield joined[start : start + block_samples].copy()
        held, size = [joined[whole:]], size - whole
    if size:
        yield np.concatenate(held)


def open_audio(source: str | Path | NDArray[Any], sample_rate: int | None = None) -> AudioSource:
    """Open sound for reading; only the header (and at most one packet) is read.

    Parameters
    ----------
    source : str, Path or ndarray
        A local file: WAV, FLAC, Ogg, MP3, AAC, AIFF, or the first audio track of MP4, MOV, MKV,
        WebM or AVI, recognised by content. Or samples, shape (S,) or (S, C), float in about
        [-1, 1] or int16; the array is not copied.
    sample_rate : int, optional
        Hz of an array; a file knows its own.

    Returns
    -------
    AudioSource

    Raises
    ------
    MediaError
        The file is missing, damaged, disguised or of an unknown format; sound with no samples,
        shorter than ``MIN_AUDIO_SECONDS``, of more than ``MAX_CHANNELS`` channels or a rate out of
        range.
    InvalidArgument
        An array without ``sample_rate``, of a wrong shape or dtype; a file with ``sample_rate``.
    """
    if isinstance(source, np.ndarray):
        return _ArrayAudio(source, sample_rate)
    if not isinstance(source, str | Path):
        raise InvalidArgument(
            "audio",
            expected="a path or a numpy array",
            got=type(source).__name__,
            stage="audio",
            hint="One voice a video: the two speakers of MultiTalk's dialogues are not run.",
        )
    if sample_rate is not None:
        raise InvalidArgument(
            "sample_rate", expected="None for a file", got=sample_rate, stage="audio"
        )
    with open_local(source, stage="audio") as file:
        kind = sniff_format(file)
    if kind is None:
        raise unknown_format(source, "audio")
    if kind in ("wav", "flac", "ogg"):
        opened = _open_sndfile(source)
        if opened is not None:
            return opened
    return _open_track(source)


class _ArrayAudio(AudioSource):
    """Samples in memory."""

    def __init__(self, samples: NDArray[Any], sample_rate: int | None) -> None:
        if (
            not isinstance(sample_rate, int | np.integer)
            or not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE
        ):
            raise InvalidArgument(
                "sample_rate",
                expected=f"{MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz for an array",
                got=sample_rate,
                stage="audio",
            )
        columns = samples[:, None] if samples.ndim == 1 else samples
        if columns.ndim != 2 or not 1 <= columns.shape[1] <= MAX_CHANNELS:
            raise InvalidArgument(
                "audio",
                expected=f"shape (samples,) or (samples, channels <= {MAX_CHANNELS})",
                got=f"shape {samples.shape}",
                stage="audio",
            )
        if columns.dtype != np.int16 and columns.dtype.kind != "f":
            raise InvalidArgument(
                "audio", expected="float or int16 samples", got=f"{samples.dtype}", stage="audio"
            )
        super().__init__("<array>", int(sample_rate), columns.shape[1], len(columns))
        _require_length(self.name, len(columns), self.sample_rate)
        self._samples = columns

    def _decode(self, block_samples: int) -> Generator[NDArray[np.float32], None, None]:
        for start in range(0, len(self._samples), block_samples):
            yield _to_float(self._samples[start : start + block_samples])


class _SndFileAudio(AudioSource):
    """WAV, FLAC or Ogg through libsndfile."""

    def _decode(self, block_samples: int) -> Generator[NDArray[np.float32], None, None]:
        import soundfile

        total, expected = 0, self.num_samples or 0
        with open_local(self.name, stage="audio") as file:
            with decoding(self.name, stage="audio"):
                reader = soundfile.SoundFile(file)
            with reader:
                _require_same(self, reader.samplerate, reader.channels)
                while total < expected:
                    with decoding(self.name, stage="audio"):
                        block = reader.read(block_samples, dtype="float32", always_2d=True)
                    if not len(block):
                        raise _too_short(self.name, total, expected)
                    total += len(block)
                    yield block


class _TrackAudio(AudioSource):
    """First audio track of a container, through PyAV."""

    def _decode(self, block_samples: int) -> Generator[NDArray[np.float32], None, None]:
        with open_container(self.name, stage="audio") as container:
            chunks = _without_padding(self._chunks(container), _declared_samples(container))
            yield from in_blocks(chunks, block_samples)

    def _chunks(self, container: InputContainer) -> Iterator[NDArray[np.float32]]:
        """Yield decoded frames as float32 (S, channels)."""
        frames = container.decode(container.streams.audio[0])
        while True:
            with decoding(self.name, stage="audio"):
                frame = next(frames, None)
                if frame is None:
                    return
                _require_same(self, frame.sample_rate, frame.layout.nb_channels)
                chunk = _to_float(_columns(frame, self.channels))
            yield chunk


def _open_sndfile(source: str | Path) -> AudioSource | None:
    """Source read by libsndfile; None for a FLAC stream of unknown length, which it cannot end."""
    import soundfile

    with (
        open_local(source, stage="audio") as file,
        decoding(source, stage="audio"),
        soundfile.SoundFile(file) as reader,
    ):
        rate, channels, frames = reader.samplerate, reader.channels, reader.frames
        is_flac = reader.format == "FLAC"
    if is_flac and frames >= _UNKNOWN_LENGTH:
        return None
    _require_format(source, rate, channels)
    _require_length(source, frames, rate)
    return _SndFileAudio(str(source), rate, channels, frames)


def _open_track(source: str | Path) -> AudioSource:
    """Source read by PyAV; decodes one frame because headers of HE-AAC lie about the rate."""
    with open_container(source, stage="audio") as container:
        if not container.streams.audio:
            raise MediaError(
                f"audio {str(source)!r}: expected an audio track, got a file without one.",
                stage="audio",
                hint="Pass the speech as a file of its own.",
            )
        stream = container.streams.audio[0]
        require_codec(stream, AUDIO_CODECS, source, stage="audio")
        with decoding(source, stage="audio"):
            frame = next(container.decode(stream), None)
            if frame is None:
                raise _empty(source)
            rate, channels = frame.sample_rate, frame.layout.nb_channels
    _require_format(source, rate, channels)
    return _TrackAudio(str(source), rate, channels, None)


def _declared_samples(container: InputContainer) -> int | None:
    """Read the samples that an MP4 edit list leaves after encoder delay, None if it says none."""
    stream = container.streams.audio[0]
    if "mov" not in container.format.name or not stream.duration or not stream.time_base:
        return None
    samples = stream.duration * stream.time_base * stream.rate
    return int(samples) if samples.denominator == 1 and samples > 0 else None


def _without_padding(
    chunks: Iterator[NDArray[np.float32]], expected: int | None
) -> Iterator[NDArray[np.float32]]:
    """``chunks`` cut at ``expected`` samples, unless more follows than padding can be."""
    total, held = 0, list[NDArray[np.float32]]()
    for chunk in chunks:
        keep = len(chunk) if expected is None else max(0, expected - total)
        total += len(chunk)
        if keep:
            yield chunk[:keep]
        if keep < len(chunk):
            held.append(chunk[keep:])
        if expected is not None and total > expected + _MAX_PADDING:
            yield from held
            held, expected = [], None


def _columns(frame: AudioFrame, channels: int) -> NDArray[Any]:
    """View of a decoded frame's samples, shape (S, channels)."""
    # Not to_ndarray(): for 8 planes (7.1) PyAV runs past the pointers and reads a ninth.
    dtype = _DTYPES[frame.format.name.removesuffix("p")]
    if frame.format.is_planar:
        planes = frame.planes[:channels]
        return np.stack([np.frombuffer(p, dtype, frame.samples) for p in planes], axis=1)
    return np.frombuffer(frame.planes[0], dtype, frame.samples * channels).reshape(-1, channels)


def _to_float(samples: NDArray[Any]) -> NDArray[np.float32]:
    """Copy to float32, integers scaled so that full scale is 1."""
    kind = samples.dtype.str[1:]
    if kind not in _FULL_SCALE:
        return np.array(samples, dtype=np.float32, order="C")
    # float64 until the end: 32-bit integers do not fit float32 before they are scaled.
    centred = samples.astype(np.float64, order="C") - (128.0 if kind == "u1" else 0.0)
    return (centred / _FULL_SCALE[kind]).astype(np.float32)


def _require_format(source: str | Path, rate: int, channels: int) -> None:
    if not 1 <= channels <= MAX_CHANNELS:
        raise MediaError(
            f"audio {str(source)!r}: expected 1 to {MAX_CHANNELS} channels, got {channels}.",
            stage="audio",
            hint="Mix it down to mono or stereo.",
        )
    if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise MediaError(
            f"audio {str(source)!r}: expected {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz, "
            f"got {rate} Hz.",
            stage="audio",
            hint="Resample it, for example to 16 kHz.",
        )


def _require_same(source: AudioSource, rate: int, channels: int) -> None:
    if (rate, channels) != (source.sample_rate, source.channels):
        raise MediaError(
            f"audio {source.name!r}: expected {source.sample_rate} Hz and {source.channels} "
            f"channels throughout, got {rate} Hz and {channels}.",
            stage="audio",
            hint="Convert it to one constant format, and do not change it while it is read.",
        )


def _require_length(source: str | Path, samples: int, rate: int) -> None:
    if samples == 0:
        raise _empty(source)
    if samples < math.ceil(MIN_AUDIO_SECONDS * rate):
        raise MediaError(
            f"audio {str(source)!r}: expected at least {MIN_AUDIO_SECONDS} s, got {samples} "
            f"samples at {rate} Hz.",
            stage="audio",
            hint="Pass the whole utterance.",
        )


def _empty(source: str | Path) -> MediaError:
    return MediaError(
        f"audio {str(source)!r}: expected sound, got no samples.",
        stage="audio",
        hint="Check how the file was recorded.",
    )


def _too_short(name: str, total: int, expected: int) -> MediaError:
    return MediaError(
        f"audio {name!r}: expected the {expected} samples of its header, got {total}.",
        stage="audio",
        hint="The file is truncated or its header is wrong: export it again.",
    )
