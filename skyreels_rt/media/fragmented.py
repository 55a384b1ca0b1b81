"""Write H.264 video with AAC sound as fragmented MP4, to a stream, while the frames are being made.

What comes out is what a browser's MediaSource, a pipe or a socket takes: one initialisation
segment, then one fragment (``moof`` and ``mdat``) a call, complete the moment the call returns.
FFmpeg makes the packets and the initialisation segment. The fragments' boxes are written here,
because FFmpeg's muxer ends a fragment only when it has seen the packet after it, which for live
speech may be a long wait, and keeps an index that grows. Boxes: ISO/IEC 14496-12, 8.8; names of
codecs: RFC 6381.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import av
import numpy as np
from numpy.typing import NDArray

from skyreels_rt.errors import InvalidArgument, OutputError, SkyReelsError
from skyreels_rt.media.encoder import SYNTHETIC_MARK, TrackEncoder, TrackSettings

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet

KEYFRAME_SECONDS: Final = 2.0
_PROBE_SAMPLES: Final = 4_096
_START_CODE: Final = b"\0\0\1"
_SPS: Final = 7
# Sample flags (8.8.3.1): does a sample depend on others, and can decoding start at it?
_SYNC: Final = 0x0200_0000
_NOT_SYNC: Final = 0x0101_0000
# Flags of tfhd: offsets count from the moof. Of trun: data offset, duration, size, flags.
_BASE_IS_MOOF: Final = 0x02_0000
_TRUN_FIELDS: Final = 0x000701


@dataclass(frozen=True)
class Segment:
    """A piece of the stream that is only whole as a whole.

    Attributes
    ----------
    data : bytes
        The initialisation segment (``ftyp``, ``moov``) or one fragment (``moof``, ``mdat``).
    kind : {"init", "media"}
        Which of both; the first segment of a stream is the only ``"init"``.
    num_frames : int
        Frames inside; 0 for ``"init"`` and for a last fragment that holds sound alone.
    pts : Fraction
        Time of its first frame in seconds, exact.
    is_keyframe : bool
        Whether playing can start here: the initialisation segment and the stream from here on are
        a valid stream.
    """

    data: bytes
    kind: str
    num_frames: int
    pts: Fraction
    is_keyframe: bool


@dataclass(frozen=True)
class _Sample:
    """An encoded packet: time and length in units of its track."""

    data: bytes
    time: int
    duration: int
    is_keyframe: bool


class FragmentedWriter:
    """Encoder of one live fragmented MP4 stream. Not thread-safe; its state has constant size.

    Parameters
    ----------
    fps, height, width, sample_rate, channels, crf, preset, threads
        As in :class:`skyreels_rt.media.encoder.TrackSettings`.
    keyframe_seconds : float
        A fragment starts with a keyframe at least this often, 0 for every fragment.
    synthetic_mark : str or None
        Text of the ``comment`` tag that says that the video is synthetic; None writes none, for
        callers that mark their output by other means.

    Raises
    ------
    InvalidArgument
        A parameter is out of its range.

    Notes
    -----
    Frame ``n`` has the time ``n / fps`` and sample ``n`` the time ``n / sample_rate``, exactly; an
    edit list hides the delay of the AAC encoder. Sound comes in packets of 1024 samples and up to
    two packets behind its frames. The last packet is decoded whole; its stated duration says where
    the sound ends.
    """

    def __init__(
        self,
        *,
        fps: int,
        height: int,
        width: int,
        sample_rate: int | None = None,
        channels: int = 1,
        crf: int = 23,
        preset: str = "veryfast",
        threads: int = 1,
        keyframe_seconds: float = KEYFRAME_SECONDS,
        synthetic_mark: str | None = SYNTHETIC_MARK,
    ) -> None:
        if not 0 <= keyframe_seconds <= 3600:
            raise InvalidArgument("keyframe_seconds", expected="0 to 3600", got=keyframe_seconds)
        settings = TrackSettings(
            fps, height, width, sample_rate, channels,
            crf=crf, preset=preset, threads=threads, live=True,
        )  # fmt: skip
        self._closed = False
        self._keyframe_frames = keyframe_seconds * fps
        self._last_keyframe = -(10**9)
        self._sequence = 0
        self._packets: list[Packet[Any]] = []
        with self._guard():
            opening = _Opening.make(settings, synthetic_mark)
            # Encoders belong to a container in PyAV; nothing is ever muxed into this one.
            self._owner = av.open(io.BytesIO(), "w", format="mp4")
            self._tracks = TrackEncoder(self._owner, settings, self._packets.extend)
        self._timescales, self._starts = opening.timescales, opening.starts
        self.init = Segment(opening.data, "init", 0, Fraction(0), True)
        self.mime_type = f'video/mp4; codecs="{", ".join(opening.codecs)}"'

    init: Segment
    """The initialisation segment, known before the first frame."""
    mime_type: str
    """Type with the codecs of the real streams, as MediaSource wants it."""

    @property
    def num_frames(self) -> int:
        """Frames written so far."""
        return self._tracks.num_frames

    def write(self, frames: NDArray[np.uint8], audio: NDArray[np.float32] | None = None) -> Segment:
        """Encode frames and the sound that belongs to them.

        Parameters
        ----------
        frames : ndarray, shape (F, height, width, 3), uint8
            RGB, at least one.
        audio : ndarray, shape (S, channels), float32 in [-1, 1], optional
            Sound that follows the sound written so far, normally of exactly these frames; louder
            samples are clipped. None stands for silence up to the end of these frames.

        Returns
        -------
        Segment
            The fragment of these frames.

        Raises
        ------
        InvalidArgument
            Wrong shape or dtype, no frame, or sound for a writer without ``sample_rate``.
        NonFinite
            ``audio`` holds NaN or infinity.
        OutputError
            The writer is closed, or an encoder failed.
        """
        self._tracks.check(frames, audio)
        if len(frames) == 0:
            raise InvalidArgument("frames", expected="at least one frame", got="none")
        first = self.num_frames
        is_keyframe = first - self._last_keyframe >= self._keyframe_frames
        if is_keyframe:
            self._last_keyframe = first
        with self._guard():
            self._tracks.write(frames, audio, keyframe=is_keyframe)
            return self._fragment(first, is_keyframe)

    def finish(self) -> Segment | None:
        """Close the writer; the last fragment, or None when nothing waited for it.

        Sound shorter than the video ends in silence. Finishing again gives None.
        """
        if self._closed:
            return None
        first = self.num_frames
        with self._guard():
            if first:
                self._tracks.finish()
            segment = self._fragment(first, False) if self._packets else None
        self.close()
        return segment

    def close(self) -> None:
        """Give the encoders up without a last fragment; closing again does nothing."""
        self._closed = True
        self._packets.clear()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Whatever fails inside closes the writer; a foreign error becomes an OutputError."""
        if self._closed:
            raise OutputError("The writer is closed.", stage="output", hint="Open a new one.")
        try:
            yield
        except BaseException as error:
            self.close()
            if isinstance(error, SkyReelsError) or not isinstance(error, Exception):
                raise
            raise OutputError(
                f"A frame cannot be encoded ({type(error).__name__}).", stage="output"
            ) from error

    def _fragment(self, first: int, is_keyframe: bool) -> Segment:
        """The packets encoded since the last fragment, as a fragment."""
        tracks: list[list[_Sample]] = [[] for _ in self._timescales]
        for packet in self._packets:
            assert packet.pts is not None
            is_video = packet.stream_index == 0
            duration = 1 if is_video else packet.duration or 0
            index = packet.stream_index
            scale = packet.time_base * self._timescales[index]
            tracks[index].append(
                _Sample(
                    data=_length_prefixed(bytes(packet)) if is_video else bytes(packet),
                    time=int(packet.pts * scale) - self._starts[index],
                    duration=int(duration * scale),
                    is_keyframe=packet.is_keyframe,
                )
            )
        self._packets.clear()
        self._sequence += 1
        return Segment(
            data=_moof_and_mdat(self._sequence, tracks),
            kind="media",
            num_frames=len(tracks[0]),
            pts=Fraction(first, self._tracks.settings.fps),
            is_keyframe=is_keyframe,
        )


@dataclass(frozen=True)
class _Opening:
    """What a stream begins with, from a short stream of the same settings.

    FFmpeg knows the edit list only when it has seen the first packets, so one frame and some
    silence are encoded for it to look at. ``starts`` are the times of the first packets.
    """

    data: bytes
    timescales: tuple[int, ...]
    starts: tuple[int, ...]
    codecs: tuple[str, ...]

    @classmethod
    def make(cls, settings: TrackSettings, mark: str | None) -> _Opening:
        """The opening of every stream with these settings."""
        file = io.BytesIO()
        options = {"movflags": "empty_moov+delay_moov+default_base_moof+skip_trailer"}
        container: OutputContainer = av.open(file, "w", format="mp4", container_options=options)
        starts: dict[int, int] = {}

        def emit(packets: list[Packet[Any]]) -> None:
            for packet in packets:
                starts.setdefault(packet.stream_index, packet.pts or 0)
                container.mux(packet)

        with container:
            if mark is not None:
                container.metadata["comment"] = mark
            tracks = TrackEncoder(container, replace(settings, threads=1), emit)
            silence = None
            if tracks.audio is not None:
                silence = np.zeros((_PROBE_SAMPLES, settings.channels), np.float32)
            tracks.write(np.zeros((1, settings.height, settings.width, 3), np.uint8), silence)
            tracks.finish()
            streams = [stream for stream in (tracks.video, tracks.audio) if stream is not None]
            codecs = ["avc1." + _avc_profile(tracks.video.codec_context.extradata or b"").hex()]
            if tracks.audio is not None:
                # The first five bits of an AudioSpecificConfig are the object type.
                object_type = (tracks.audio.codec_context.extradata or b"\x10")[0] >> 3
                codecs.append(f"mp4a.40.{object_type}")
            timescales = tuple((stream.time_base or Fraction(1)).denominator for stream in streams)
        return cls(
            data=_up_to_moov(file.getvalue()),
            timescales=timescales,
            starts=tuple(starts[index] for index in range(len(streams))),
            codecs=tuple(codecs),
        )


def _up_to_moov(data: bytes) -> bytes:
    """The boxes of ``data`` before its first fragment."""
    position = 0
    while position < len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        position += size
        if kind == b"moov":
            return data[:position]
    raise OutputError("FFmpeg wrote no moov box.", stage="output")


def _nal_units(data: bytes) -> Iterator[bytes]:
    """NAL units of an Annex B byte stream (H.264, B.1)."""
    for unit in data.split(_START_CODE)[1:]:
        # A start code of four bytes leaves its first zero with the unit before.
        yield unit.rstrip(b"\0")


def _avc_profile(extradata: bytes) -> bytes:
    """Profile, constraints and level: three bytes of the sequence parameter set."""
    for unit in _nal_units(extradata):
        if unit[0] & 0x1F == _SPS:
            return unit[1:4]
    raise OutputError("The encoder named no H.264 profile.", stage="output")


def _length_prefixed(data: bytes) -> bytes:
    """An Annex B access unit with lengths instead of start codes (ISO/IEC 14496-15)."""
    return b"".join(struct.pack(">I", len(unit)) + unit for unit in _nal_units(data))


def _moof_and_mdat(sequence: int, tracks: list[list[_Sample]]) -> bytes:
    """One fragment; tracks without samples have no part in it."""
    present = [(number + 1, samples) for number, samples in enumerate(tracks) if samples]

    def moof(payload_start: int) -> bytes:
        boxes, offset = (
            [_full_box(b"mfhd", 0, 0, struct.pack(">I", sequence % 2**32))],
            payload_start,
        )
        for track_id, samples in present:
            boxes.append(_traf(track_id, samples, offset))
            offset += sum(len(sample.data) for sample in samples)
        return _box(b"moof", *boxes)

    header = len(moof(0)) + 8  # the offsets have a fixed width: once to measure, once for good
    payload = (sample.data for _, samples in present for sample in samples)
    return moof(header) + _box(b"mdat", *payload)


def _traf(track_id: int, samples: list[_Sample], data_offset: int) -> bytes:
    """A track's part of a fragment; ``data_offset`` counts from the start of the moof."""
    rows = b"".join(
        struct.pack(">III", s.duration, len(s.data), _SYNC if s.is_keyframe else _NOT_SYNC)
        for s in samples
    )
    return _box(
        b"traf",
        _full_box(b"tfhd", 0, _BASE_IS_MOOF, struct.pack(">I", track_id)),
        _full_box(b"tfdt", 1, 0, struct.pack(">Q", samples[0].time)),
        _full_box(b"trun", 0, _TRUN_FIELDS, struct.pack(">Ii", len(samples), data_offset), rows),
    )


def _box(kind: bytes, *content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, content)), kind) + b"".join(content)


def _full_box(kind: bytes, version: int, flags: int, *content: bytes) -> bytes:
    return _box(kind, struct.pack(">I", version << 24 | flags), *content)
