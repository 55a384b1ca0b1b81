"""What a source file is, from its header and first packets; or why it cannot be used."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from skyreels_rt.errors import MediaError, SkyReelsError
from skyreels_rt.media.container import open_container
from skyreels_rt.media.local_file import decoding
from skyreels_rt.media.video_file import open_video

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

MAX_PIXELS: Final = 4096 * 2304
MAX_SOURCE_S: Final = 6 * 3600
_PACKETS: Final = 400
_UNEVEN: Final = 0.25  # share of the usual distance of frames by which a steady rate may miss it


class SourceRefused(SkyReelsError):
    """A source cannot be used as a whole.

    Attributes
    ----------
    reason : str
        Machine-readable: ``unreadable``, ``no_video``, ``no_audio``, ``too_large``, ``too_long``,
        ``unreadable_sound``.
    """

    code = "source_refused"

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail, stage="data")
        self.reason = reason


@dataclass(frozen=True)
class Probe:
    """A usable source.

    Attributes
    ----------
    width, height : int
        Pixels, upright.
    fps : float
        Average frame rate.
    sound_delay_s : float
        Seconds by which the sound track starts after the picture.
    notes : tuple of str
        What was unusual and is taken care of: ``variable_frame_rate``, ``rotated``,
        ``delayed_sound``.
    """

    width: int
    height: int
    fps: float
    sound_delay_s: float
    notes: tuple[str, ...]


def probe_source(path: Path) -> Probe:
    """Look at a file without decoding more than a frame.

    Raises
    ------
    SourceRefused
        It is broken, empty, disguised, too large, too long, or lacks picture or sound.
    """
    try:
        with open_container(path, stage="video") as container:
            _require_tracks(container)
            stream = _picture_track(container)
            delay = _start_s(container.streams.audio[0]) - _start_s(stream)
            notes = _notes(container, stream)
        video = open_video(path)
    except MediaError as error:
        raise SourceRefused("unreadable", _without_folder(error, path)) from error
    if abs(delay) >= 0.005:
        notes.append("delayed_sound")
    return Probe(video.width, video.height, float(video.fps), delay, tuple(notes))


def _require_tracks(container: InputContainer) -> None:
    """Refuse what the pipeline has no use for."""
    if _picture_track(container) is None:
        raise SourceRefused("no_video", "The file holds no video track.")
    if not container.streams.audio:
        raise SourceRefused("no_audio", "The file holds no audio track.")
    for stream in container.streams.video:
        context = stream.codec_context
        if context is not None and context.width * context.height > MAX_PIXELS:
            size = f"{context.width} x {context.height}"
            raise SourceRefused("too_large", f"Frames of {size} are larger than {MAX_PIXELS}.")
    seconds = (container.duration or 0) / 1_000_000
    if seconds > MAX_SOURCE_S:
        raise SourceRefused("too_long", f"{seconds:.0f} s is longer than {MAX_SOURCE_S} s.")


def _picture_track(container: InputContainer) -> Any:  # noqa: ANN401 - a stream of PyAV or None
    from av.stream import Disposition

    moving = (s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
    return next(moving, None)


def _start_s(stream: Any) -> float:  # noqa: ANN401 - any stream of PyAV
    """Time of the first sample or frame."""
    if stream.start_time is None or stream.time_base is None:
        return 0.0
    return float(stream.start_time * stream.time_base)


def _notes(container: InputContainer, stream: VideoStream) -> list[str]:
    """Whether the frame rate varies or the picture is turned, from the first packets."""
    notes = []
    with decoding(container.name, stage="video"):
        packets = islice(container.demux(stream), _PACKETS)
        # AVI has no presentation times; its decoding times are in order.
        clock = "dts" if container.format.name == "avi" else "pts"
        found = (getattr(packet, clock) for packet in packets)
        times = sorted(time for time in found if time is not None)
        container.seek(0)
        frame = next(container.decode(stream), None)
    steps = np.diff(np.array(times, np.float64))
    if len(steps) > 1 and np.abs(steps / max(float(np.median(steps)), 1e-9) - 1).max() > _UNEVEN:
        notes.append("variable_frame_rate")
    if frame is not None and frame.rotation:
        notes.append("rotated")
    return notes


def _without_folder(error: MediaError, path: Path) -> str:
    """Message without the machine's folders, so that a manifest does not depend on them."""
    return error.message.replace(str(path), path.name)
