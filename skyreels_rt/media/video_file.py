"""Frames from a video file or an array, resampled to a constant rate, in constant memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from skyreels_rt.errors import InvalidArgument, MediaError
from skyreels_rt.media.container import VIDEO_CODECS, open_container, require_codec
from skyreels_rt.media.image import MAX_IMAGE_PIXELS, reorient, require_frame_size
from skyreels_rt.media.local_file import decoding

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

ItemT = TypeVar("ItemT")
Orientation = tuple[bool, bool, bool]

MAX_FPS: Final = 240
# Longest time one frame may stand: a forged timestamp must not ask for hours of one picture.
MAX_HOLD_SECONDS: Final = 60
# Containers round timestamps (Matroska to 1 ms); a frame this early still counts as on time.
_TOLERANCE: Final = Fraction(1, 1000)
# ISO/IEC 23091-2 matrix coefficients -> swscale's colour spaces.
_MATRICES: Final = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}
_HD_HEIGHT: Final = 720
_ACCURATE: Final = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


class VideoSource(ABC):
    """A video that can be read, from the start, any number of times.

    Attributes
    ----------
    name : str
        Path, or ``"<array>"``; used in errors.
    width, height : int
        Pixels of a frame, upright. Non-square pixels are not stretched.
    fps : Fraction
        Average frame rate.
    num_frames : int or None
        Frames stored, where the header says it.
    has_audio : bool
        True if :func:`skyreels_rt.media.audio_file.open_audio` finds a track in the same file.
    """

    def __init__(
        self,
        name: str,
        *,
        width: int,
        height: int,
        fps: Fraction,
        num_frames: int | None,
        has_audio: bool,
    ) -> None:
        self.name = name
        self.width = width
        self.height = height
        self.fps = fps
        self.num_frames = num_frames
        self.has_audio = has_audio

    def frames(self, fps: int) -> Iterator[NDArray[np.uint8]]:
        """Read the frames from the start at a constant rate.

        Output frame ``n`` is the latest source frame whose time is at most ``n / fps``, counted
        from the first frame. Equal rates give every frame once. Closing the iterator closes the
        file.

        Parameters
        ----------
        fps : int
            Output frames per second, 1 to ``MAX_FPS``.

        Yields
        ------
        ndarray, shape (height, width, 3), uint8
            RGB, upright, a new array each.

        Raises
        ------
        InvalidArgument
            ``fps`` is out of range.
        MediaError
            The file is gone or damaged, or a frame stands longer than ``MAX_HOLD_SECONDS``.
        """
        if not isinstance(fps, int) or not 1 <= fps <= MAX_FPS:
            raise InvalidArgument("fps", expected=f"an integer, 1 to {MAX_FPS}", got=fps)
        return self._frames(fps)

    @abstractmethod
    def _frames(self, fps: int) -> Iterator[NDArray[np.uint8]]:
        """Frames at ``fps``; a generator."""


def open_video(
    source: str | Path | NDArray[np.uint8], fps: float | Fraction | None = None
) -> VideoSource:
    """Open a video for reading; only the header and the first frame are read.

    Parameters
    ----------
    source : str, Path or ndarray
        A local MP4, MOV, MKV, WebM or AVI file, recognised by content. Or RGB frames, shape
        (F, H, W, 3), uint8; the array is not copied.
    fps : float or Fraction, optional
        Frame rate of an array; a file knows its own.

    Returns
    -------
    VideoSource

    Raises
    ------
    MediaError
        The file is missing, damaged, disguised, of an unknown format or without a video track; a
        frame is larger than ``MAX_IMAGE_PIXELS`` or smaller than 16 pixels a side.
    InvalidArgument
        An array without ``fps``, of a wrong shape or dtype; a file with ``fps``.
    """
    if isinstance(source, np.ndarray):
        return _ArrayVideo(source, fps)
    if not isinstance(source, str | Path):
        raise InvalidArgument(
            "video", expected="a path or a numpy array", got=type(source).__name__, stage="video"
        )
    if fps is not None:
        raise InvalidArgument("fps", expected="None for a file", got=fps, stage="video")
    return _open_file(source)


class _ArrayVideo(VideoSource):
    """Frames in memory."""

    def __init__(self, frames: NDArray[np.uint8], fps: float | Fraction | None) -> None:
        is_rate = fps is not None and 0 < fps <= MAX_FPS  # false for NaN
        rate = Fraction(fps or 0).limit_denominator(1001) if is_rate else Fraction(0)
        if rate == 0:
            raise InvalidArgument(
                "fps", expected=f"0 to {MAX_FPS} for an array", got=fps, stage="video"
            )
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
            raise InvalidArgument(
                "video",
                expected="uint8 frames of shape (F >= 1, H, W, 3)",
                got=f"{frames.dtype} {frames.shape}",
                stage="video",
            )
        num_frames, height, width, _ = frames.shape
        require_frame_size("<array>", width, height, stage="video")
        super().__init__(
            "<array>",
            width=width,
            height=height,
            fps=rate,
            num_frames=num_frames,
            has_audio=False,
        )
        self._array = frames

    def _frames(self, fps: int) -> Iterator[NDArray[np.uint8]]:
        timed = ((index / self.fps, index) for index in range(len(self._array)))
        for index in _resample(timed, fps, 1 / self.fps, self.name):
            yield self._array[index].copy()


class _FileVideo(VideoSource):
    """First video track of a container, through PyAV."""

    def _frames(self, fps: int) -> Iterator[NDArray[np.uint8]]:
        with open_container(self.name, stage="video") as container:
            stream = _video_stream(container, self.name)
            reformatter = VideoReformatter()
            timed = self._timed(container, stream)
            orientation: Orientation | None = None
            for frame in _resample(timed, fps, 1 / self.fps, self.name):
                with decoding(self.name, stage="video"):
                    # Once: PyAV's side data and its frame hold each other until a collection.
                    if orientation is None:
                        orientation = _orientation(frame)
                    pixels = self._rgb(frame, reformatter, orientation)
                yield pixels

    def _timed(
        self, container: InputContainer, stream: VideoStream
    ) -> Iterator[tuple[Fraction, VideoFrame]]:
        """Yield decoded frames with their times in seconds."""
        decoded = container.decode(stream)
        # AVI has no presentation times; its decoding times are even and in output order.
        clock = "dts" if container.format.name == "avi" else "pts"
        time = Fraction(0)
        while True:
            with decoding(self.name, stage="video"):
                frame = next(decoded, None)
            if frame is None:
                return
            require_frame_size(self.name, frame.width, frame.height, stage="video")
            ticks: int | None = getattr(frame, clock)
            if ticks is not None and frame.time_base:
                time = ticks * frame.time_base
            yield time, frame
            time += 1 / self.fps

    def _rgb(
        self, frame: VideoFrame, reformatter: VideoReformatter, orientation: Orientation
    ) -> NDArray[np.uint8]:
        """Upright RGB pixels of ``frame``; a change of size within the file is scaled away."""
        turned = orientation[0]
        rgb = reformatter.reformat(
            frame,
            width=self.height if turned else self.width,
            height=self.width if turned else self.height,
            format="rgb24",
            src_colorspace=_matrix(frame),
            src_color_range=_range(frame),
            dst_color_range=ColorRange.JPEG,
            interpolation=_ACCURATE,
        )
        pixels = np.asarray(rgb.to_ndarray(), dtype=np.uint8)
        return reorient(pixels, *orientation) if any(orientation) else pixels


def _open_file(source: str | Path) -> VideoSource:
    """Source of a file: the header is checked before the first frame is decoded."""
    with open_container(source, stage="video") as container:
        stream = _video_stream(container, source)
        with decoding(source, stage="video"):
            frame = next(container.decode(stream), None)
            rate = stream.average_rate or stream.guessed_rate or stream.base_rate
            if frame is None or not rate or rate <= 0:
                raise MediaError(
                    f"video {str(source)!r}: expected frames at a known rate, got "
                    f"{'none' if frame is None else 'no rate'}.",
                    stage="video",
                    hint="Export it again with a constant frame rate.",
                )
            width, height = frame.width, frame.height
            if _orientation(frame)[0]:
                width, height = height, width
            return _FileVideo(
                str(source),
                width=width,
                height=height,
                fps=Fraction(rate),
                num_frames=stream.frames or None,
                has_audio=bool(container.streams.audio),
            )


def _video_stream(container: InputContainer, source: str | Path) -> VideoStream:
    """First video track that is not a cover picture, set up for decoding within the limits."""
    for stream in container.streams.video:
        if stream.disposition & Disposition.attached_pic:
            continue
        require_codec(stream, VIDEO_CODECS, source, stage="video")
        context = stream.codec_context
        require_frame_size(str(source), context.width, context.height, stage="video")
        # The decoder re-reads the size from the stream itself, which may lie to the container.
        context.options = {"max_pixels": str(2 * MAX_IMAGE_PIXELS)}
        context.thread_count = 2
        return stream
    raise MediaError(
        f"video {str(source)!r}: expected a video track, got a file without one.",
        stage="video",
        hint="Pass a still picture as image=, sound as audio=.",
    )


def _resample(
    timed: Iterator[tuple[Fraction, ItemT]], fps: int, duration: Fraction, name: str
) -> Iterator[ItemT]:
    """Items at constant ``fps``: each output time takes the latest item not later than it."""
    index, start, held = 0, None, None
    for time, item in timed:
        if start is None:
            start = time
        elif held is not None:
            if time - held[0] > MAX_HOLD_SECONDS:
                raise MediaError(
                    f"video {name!r}: expected a new frame within {MAX_HOLD_SECONDS} s, got a gap "
                    f"of {float(time - held[0]):.0f} s.",
                    stage="video",
                    hint="Its timestamps are damaged: export it again.",
                )
            while Fraction(index, fps) + _TOLERANCE < time - start:
                yield held[1]
                index += 1
        held = (time, item)
    if start is None or held is None:
        return
    end = held[0] - start + min(duration, Fraction(MAX_HOLD_SECONDS))
    while Fraction(index, fps) + _TOLERANCE < end:
        yield held[1]
        index += 1


def _matrix(frame: VideoFrame) -> Colorspace | None:
    """Colour matrix of ``frame``: its tag, else by height as players do; None for RGB."""
    if frame.format.is_rgb:
        return None
    untagged = Colorspace.ITU709 if frame.height >= _HD_HEIGHT else Colorspace.ITU601
    return _MATRICES.get(int(frame.colorspace), untagged)


def _range(frame: VideoFrame) -> ColorRange:
    """Full or limited range of ``frame``."""
    is_full = int(frame.color_range) == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    return ColorRange.JPEG if is_full or frame.format.is_rgb else ColorRange.MPEG


def _orientation(frame: VideoFrame) -> Orientation:
    """Axis swap and mirrors of the display matrix (ISO/IEC 14496-12 §6.2.2), if there is one."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return (False, False, False)
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), dtype=np.int32).tolist()
    if abs(b) > abs(a):
        return (True, c < 0, b < 0)
    return (False, a < 0, d < 0)
