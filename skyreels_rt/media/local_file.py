"""Open a local media file and tell what it is from its first bytes.

Nothing here follows a reference to another file or host: a playlist, a script or an address is not
a media file, whatever its name says. Decoders get the open file and the name of its format.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from skyreels_rt.errors import MediaError, SkyReelsError

SNIFF_BYTES: Final = 64
_ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+[:,]")
_MOV_ATOMS: Final = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"})


def open_local(source: str | Path, *, stage: str) -> BinaryIO:
    """Open the regular local file ``source`` for reading.

    Parameters
    ----------
    source : str or Path
        Path of a file. Addresses (``http:``, ``concat:`` ...) are never opened.
    stage : {"image", "audio", "video"}
        What the file is wanted for; named in errors.

    Raises
    ------
    MediaError
        The file is missing, unreadable, empty, a directory or not a regular file, or ``source``
        is an address.
    """
    try:
        # The checks below look at what was opened, not at what the name may stand for by then.
        file = open(source, "rb", opener=_open_without_waiting)  # noqa: SIM115 - handed on
    except IsADirectoryError as error:
        hint = "Name one file inside it."
        raise _refused(source, stage, "a directory", hint) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        if _ADDRESS.match(str(source)):
            hint = "Addresses are never opened: download the media and pass a path."
        else:
            hint = "Check the path."
        raise _refused(source, stage, "no such file", hint) from error
    except (OSError, ValueError) as error:
        raise _unreadable(source, stage, error) from error
    try:
        _require_regular(os.fstat(file.fileno()), source, stage)
    except BaseException:
        file.close()
        raise
    return file


def _open_without_waiting(path: str, flags: int) -> int:
    """Open without blocking: a pipe must be refused, not waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def _require_regular(status: os.stat_result, source: str | Path, stage: str) -> None:
    """Raise unless an open file is a regular one that holds something."""
    if not stat.S_ISREG(status.st_mode):
        raise _refused(source, stage, "not a regular file", "Write the stream to a file first.")
    if status.st_size == 0:
        raise _refused(source, stage, "an empty file", "Check how the file was written.")


def sniff_format(file: BinaryIO) -> str | None:
    """Name of the audio or video container that ``file`` begins with, or None.

    The position of ``file`` is 0 afterwards. Known names: ``wav``, ``flac``, ``ogg``, ``mp3``,
    ``aac``, ``mov``, ``matroska``, ``avi``, ``aiff``.
    """
    file.seek(0)
    head = file.read(SNIFF_BYTES)
    if head[:3] == b"ID3" and len(head) >= 10:
        # An ID3v2 tag (size in four 7-bit bytes) stands before MP3 and sometimes raw AAC.
        size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0)))  # noqa: B905
        file.seek(10 + size)
        found = _mpeg_audio(file.read(SNIFF_BYTES))
    else:
        found = _container(head) or _mpeg_audio(head)
    file.seek(0)
    return found


@contextmanager
def decoding(source: str | Path, *, stage: str) -> Iterator[None]:
    """Turn whatever a decoder raises inside the block into a MediaError naming ``source``.

    Decoders meet hostile bytes with any exception (struct, index, value errors), so all are caught;
    errors of this library and a full memory pass unchanged.
    """
    try:
        yield
    except (SkyReelsError, MemoryError):
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise MediaError(
            f"{stage} {str(source)!r}: expected a complete, undamaged {stage} file, got data that "
            f"cannot be decoded ({reason}).",
            stage=stage,
            hint="Play the file in a media player to check it, or export it again.",
        ) from error


def _container(head: bytes) -> str | None:
    """Container of ``head`` by its signature."""
    four, form = head[:4], head[8:12]
    if four in (b"RIFF", b"RF64") and form == b"WAVE":
        return "wav"
    if four == b"RIFF" and form == b"AVI ":
        return "avi"
    if four == b"FORM" and form in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[4:8] in _MOV_ATOMS:
        return "mov"
    return {b"fLaC": "flac", b"OggS": "ogg", b"\x1aE\xdf\xa3": "matroska"}.get(four)


def _mpeg_audio(head: bytes) -> str | None:
    """``mp3`` or ``aac`` if ``head`` begins with such a frame header (ISO 11172-3, 13818-7)."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    if head[1] & 0xF6 == 0xF0:
        return "aac"
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    # Layer I (3) is not accepted: a UTF-16 byte order mark looks like one.
    is_frame = version != 1 and layer in (1, 2) and bitrate not in (0, 15) and rate != 3
    return "mp3" if is_frame else None


def _refused(source: str | Path, stage: str, got: str, hint: str) -> MediaError:
    return MediaError(
        f"{stage} {str(source)!r}: expected a readable local file, got {got}.",
        stage=stage,
        hint=hint,
    )


def _unreadable(source: str | Path, stage: str, error: Exception) -> MediaError:
    reason = getattr(error, "strerror", None) or "not a valid path"
    return _refused(source, stage, reason, "Check the path and its permissions.")
