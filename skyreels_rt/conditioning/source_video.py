"""Reads a source video with its edit mask as a stream, and lays generated pixels over it."""

from __future__ import annotations

import zlib
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from skyreels_rt.conditioning.portrait import cover_crop
from skyreels_rt.errors import InvalidArgument

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from skyreels_rt.conditioning.edit_mask import FrameMask
    from skyreels_rt.media.video_file import VideoSource


class SourceTrack:
    """The frames of a source video at the generated size, each with its edit weights.

    Holds one frame at a time, however long the video is.

    Parameters
    ----------
    video : VideoSource
        The video; this track starts at its first frame.
    mask : FrameMask
        Asked once per frame, in order.
    fps : int
        Frames per second of the generated video.
    height, width : int
        Pixels of the generated video.
    """

    def __init__(
        self, video: VideoSource, mask: FrameMask, fps: int, height: int, width: int
    ) -> None:
        self._frames = video.frames(fps)
        self._mask = mask
        self._size = (height, width)
        self._next_index = 0
        self._checksum = 0  # of the frames read so far

    def read(self, n: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Read the next ``n`` frames; fewer at the end of the video, none after it or after close.

        Returns
        -------
        frames : ndarray, shape (m, H, W, 3), uint8
            Source frames, m <= n.
        alpha : ndarray, shape (m, H, W), float32 in [0, 1]
            Weight of the edit: 0 keeps the source's bytes.

        Raises
        ------
        FaceNotFound
            From the mask: it follows a face, and none has been seen yet.
        MediaError
            From the video: it is damaged.
        """
        frames, alphas = [], []
        for source in islice(self._frames, n):
            frame = cover_crop(source, *self._size)
            alphas.append(self._mask.alpha(frame, self._next_index))
            frames.append(frame)
            self._checksum = zlib.crc32(frame.tobytes(), self._checksum)
            self._next_index += 1
        if not frames:
            return np.zeros((0, *self._size, 3), np.uint8), np.zeros((0, *self._size), np.float32)
        return np.stack(frames), np.stack(alphas)

    def position(self) -> dict[str, int]:
        """How far the video was read, for :meth:`seek`."""
        return {"frames": self._next_index, "checksum": self._checksum}

    def seek(self, position: dict[str, int]) -> None:
        """Read on from a :meth:`position` of the same video.

        The frames before it are read again: a mask that follows a face remembers them.

        Raises
        ------
        InvalidArgument
            The frames before it are not those of then.
        """
        while self._next_index < position["frames"] and len(self.read(1)[0]):
            pass
        if self.position() != position:
            raise InvalidArgument(
                "video", expected="the video of the snapshot", got="another, or another size"
            )

    def close(self) -> None:
        """End the track and let go of the video; safe to call twice."""
        release = getattr(self._frames, "close", None)
        if release is not None:
            release()
        self._frames = iter(())


def composite(
    generated: NDArray[np.uint8], source: NDArray[np.uint8], alpha: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Lay ``generated`` over ``source`` with weight ``alpha``, rounded half up.

    Where ``alpha`` is 0 the source's bytes come back exactly, where it is 1 the generated ones.

    Parameters
    ----------
    generated, source : ndarray, shape (F, H, W, 3), uint8
        RGB frames.
    alpha : ndarray, shape (F, H, W), float32 in [0, 1]
        Weight of the generated frames.

    Returns
    -------
    ndarray, shape (F, H, W, 3), uint8
        A new array.
    """
    result = source.copy()
    for target, new, weight in zip(result, generated, alpha, strict=True):
        (rows,), (columns,) = np.nonzero(weight.any(axis=1)), np.nonzero(weight.any(axis=0))
        if not len(rows):
            continue
        # Most of a frame is untouched: blend only the box around what is not.
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        old = target[box].astype(np.float32)
        blended = old + weight[box][..., None] * (new[box].astype(np.float32) - old)
        target[box] = np.floor(blended + np.float32(0.5)).astype(np.uint8)
    return result
