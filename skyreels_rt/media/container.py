"""Open an audio/video container through PyAV with its demuxer named and its codecs listed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from skyreels_rt.errors import MediaError
from skyreels_rt.media.local_file import decoding, open_local, sniff_format

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.stream import VideoStream

_DEMUXERS: Final = {
    "mov": "mov",
    "matroska": "matroska",
    "avi": "avi",
    "mp3": "mp3",
    "aac": "aac",
    "aiff": "aiff",
    "flac": "flac",
}
# Decoders by FFmpeg's names. The common ones only: rare ones are where decoder bugs live.
AUDIO_CODECS: Final = frozenset({
    "aac", "mp3", "mp3float", "mp2", "mp2float", "opus", "libopus", "vorbis", "libvorbis", "flac",
    "alac", "ac3", "eac3", "pcm_u8", "pcm_s8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be",
    "pcm_s32le", "pcm_s32be", "pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be", "pcm_alaw",
    "pcm_mulaw",
})  # fmt: skip
VIDEO_CODECS: Final = frozenset({
    "h264", "hevc", "av1", "libdav1d", "vp8", "vp9", "libvpx", "libvpx-vp9", "mpeg4", "mjpeg",
    "prores", "ffv1", "rawvideo",
})  # fmt: skip


@contextmanager
def open_container(source: str | Path, *, stage: str) -> Iterator[InputContainer]:
    """Open the media file ``source``; closed, with its file, when the block ends.

    Parameters
    ----------
    source : str or Path
        A local file.
    stage : {"audio", "video"}
        What the file is wanted for; named in errors.

    Raises
    ------
    MediaError
        The file cannot be read, begins like none of the known containers, or is damaged.
    """
    import av

    with open_local(source, stage=stage) as file:
        kind = sniff_format(file)
        if kind not in _DEMUXERS:
            raise unknown_format(source, stage)
        with decoding(source, stage=stage):
            container = av.open(
                file,
                mode="r",
                format=_DEMUXERS[kind],
                metadata_errors="replace",
                # Second wall behind the named demuxer: no protocol at all for nested opens.
                container_options={
                    "protocol_whitelist": "none",
                    "codec_whitelist": ",".join(sorted(AUDIO_CODECS | VIDEO_CODECS)),
                },
            )
        with container:
            yield container


def require_codec(
    stream: AudioStream | VideoStream, allowed: frozenset[str], source: str | Path, *, stage: str
) -> None:
    """Raise a MediaError unless the decoder of ``stream`` is one of ``allowed``."""
    # FFmpeg gives no codec context to a stream that it knows no decoder for.
    name = stream.codec_context.name if stream.codec_context else "unknown"
    if name not in allowed:
        raise MediaError(
            f"{stage} {str(source)!r}: expected a common codec, got {name!r}.",
            stage=stage,
            hint="Convert it to H.264 video or AAC, FLAC or WAV sound first.",
        )


def unknown_format(source: str | Path, stage: str) -> MediaError:
    """Error for a file that begins like no container we know."""
    audio = "WAV, FLAC, Ogg, MP3, AAC, AIFF or the sound of MP4, MOV, MKV, WebM or AVI"
    expected = audio if stage == "audio" else "MP4, MOV, MKV, WebM or AVI"
    return MediaError(
        f"{stage} {str(source)!r}: expected {expected}, got a file that begins like none of them.",
        stage=stage,
        hint="The content decides, not the name; playlists and scripts are not followed.",
    )
