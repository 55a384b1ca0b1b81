"""One clip while its frames pass by: what is measured of it, and what is kept to cut it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from skyreels_rt.data.dependencies import opencv
from skyreels_rt.data.faces import FaceTrack
from skyreels_rt.data.measures import ClipScores, PictureScores
from skyreels_rt.data.picture import PictureGauge
from skyreels_rt.data.shards import FPS, SAMPLE_RATE
from skyreels_rt.data.speech import speech_scores
from skyreels_rt.data.sync import sync_scores
from skyreels_rt.runtime.timing import StageClock

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from skyreels_rt.conditioning.face import FaceFinder
    from skyreels_rt.data.settings import DataSettings
    from skyreels_rt.data.soundtrack import SoundTrack

SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
_THUMBNAIL_FRAME, _THUMBNAIL_HEIGHT = 12, 96
_SHARE_FOR_SYNC = 0.5  # of the frames must show a face for its mouth to be compared


@dataclass(frozen=True)
class Crop:
    """Square of the source's picture.

    Attributes
    ----------
    left, top, side : int
        Pixels, inside the picture.
    """

    left: int
    top: int
    side: int


class ClipGauge:
    """Measures one clip.

    Parameters
    ----------
    start : int
        Frame of the source that it begins with, at 25 fps.
    settings : DataSettings
        What to do.
    finder : FaceFinder
        Shared by all clips.
    clock : StageClock
        Gets the seconds by stage.
    """

    def __init__(
        self, start: int, settings: DataSettings, finder: FaceFinder, clock: StageClock
    ) -> None:
        self.start = start
        self.track = FaceTrack(finder, settings.clips.look_every)
        self.thumbnail: NDArray[np.uint8] | None = None
        """Small picture of it, shape (H, W, 3), once it is half a second long."""
        self._settings = settings
        self._clock = clock
        self._picture = PictureGauge()
        self._size = (0, 0)

    @property
    def num_frames(self) -> int:
        """Frames so far."""
        return len(self.track.frames)

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Take the next frame, shape (H, W, 3), uint8."""
        is_look = self.num_frames % self._settings.clips.look_every == 0
        self._size = frame.shape[:2]
        with self._clock.measure("picture"):
            self._picture.add(frame, look_for_text=is_look)
            if self.num_frames <= _THUMBNAIL_FRAME and is_look:
                self.thumbnail = _shrunk(frame)
        with self._clock.measure("faces"):
            self.track.add(frame)

    def scores(self, sound: SoundTrack, source_fps: float) -> ClipScores:
        """Scores of the finished clip."""
        first = self.start * SAMPLES_PER_FRAME
        last = first + self.num_frames * SAMPLES_PER_FRAME
        with self._clock.measure("sound"):
            samples = sound.cut(first, last)
            speech = speech_scores(samples, sound.speech(first, last))
        sync = None
        max_lag = self._settings.sync.max_lag
        if self.track.share >= _SHARE_FOR_SYNC and self.num_frames > 2 * max_lag:
            with self._clock.measure("sync"):
                sync = sync_scores(self.track.openings(), samples, max_lag)
        picture = PictureScores(
            source_fps=source_fps,
            duration_s=self.num_frames / FPS,
            black_share=self._picture.black_share,
            frozen_s=self._picture.longest_still / FPS,
            text_area=self._picture.text_area,
        )
        return ClipScores(picture, self.track.scores(), speech, sync)

    def crop(self) -> Crop:
        """Square around the head over the whole clip, moved into the picture."""
        boxes = np.array([f.face.box for f in self.track.frames if f is not None])
        height, width = self._size
        tall = float((boxes[:, 3] - boxes[:, 1]).max())
        side = min(height, width, round(self._settings.output.head_room * tall))
        middle_x = float((boxes[:, 0].min() + boxes[:, 2].max()) / 2)
        middle_y = float((boxes[:, 1].min() + boxes[:, 3].max()) / 2)
        left = int(np.clip(round(middle_x - side / 2), 0, width - side))
        top = int(np.clip(round(middle_y - side / 2), 0, height - side))
        return Crop(left, top, side)


def _shrunk(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    cv = opencv()
    width = max(1, round(frame.shape[1] * _THUMBNAIL_HEIGHT / frame.shape[0]))
    small: NDArray[np.uint8] = cv.resize(
        frame, (min(width, 4 * _THUMBNAIL_HEIGHT), _THUMBNAIL_HEIGHT), interpolation=cv.INTER_AREA
    )
    return small
