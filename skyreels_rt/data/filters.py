"""The filters of the funnel: one small class each, a documented score between two bounds.

Bounds come from the settings. A score of None passes: it is missing because of something that an
earlier filter rejects, or because SyncNet, which is opt-in, is off.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from skyreels_rt.data.measures import ClipScores
from skyreels_rt.errors import InvalidArgument


@dataclass(frozen=True)
class Filter(ABC):
    """Keeps clips whose score lies between two bounds.

    Attributes
    ----------
    minimum, maximum : float or None
        Bounds that still pass; None for no bound.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = ""
    minimum: float | None = None
    maximum: float | None = None

    @classmethod
    def from_bounds(cls, bounds: Mapping[str, Any]) -> Self:
        """Build the filter from its table in the settings.

        Raises
        ------
        InvalidArgument
            Something else than finite ``minimum`` and ``maximum``.
        """
        numbers = [v for v in bounds.values() if isinstance(v, int | float) and math.isfinite(v)]
        if set(bounds) - {"minimum", "maximum"} or len(numbers) != len(bounds):
            raise InvalidArgument(
                f"filters.{cls.name}", expected="minimum, maximum or both", got=dict(bounds)
            )
        return cls(**{name: float(value) for name, value in bounds.items()})

    def bounds(self) -> dict[str, float]:
        """The bounds that are set, by name."""
        both = {"minimum": self.minimum, "maximum": self.maximum}
        return {name: value for name, value in both.items() if value is not None}

    @abstractmethod
    def score(self, clip: ClipScores) -> float | None:
        """Score of a clip; None where it cannot be had."""

    def passes(self, score: float | None) -> bool:
        """Whether a score lies between the bounds; None passes."""
        if score is None:
            return True
        above = self.minimum is None or score >= self.minimum
        return above and (self.maximum is None or score <= self.maximum)


class FrameRate(Filter):
    """Average frames per second of the source: too few cannot show speech."""

    name, unit = "frame_rate", "fps"

    def score(self, clip: ClipScores) -> float:
        """Frames per second."""
        return clip.picture.source_fps


class Duration(Filter):
    """Seconds of the clip."""

    name, unit = "duration", "s"

    def score(self, clip: ClipScores) -> float:
        """Seconds."""
        return clip.picture.duration_s


class BlackFrames(Filter):
    """Share of frames whose mean brightness is below 16 of 255."""

    name = "black_frames"

    def score(self, clip: ClipScores) -> float:
        """Share, 0 to 1."""
        return clip.picture.black_share


class Frozen(Filter):
    """Longest time in which nothing changes anywhere in the picture."""

    name, unit = "frozen", "s"

    def score(self, clip: ClipScores) -> float:
        """Seconds."""
        return clip.picture.frozen_s


class StaticText(Filter):
    """Share of the picture covered by lines of text-like strokes that do not move."""

    name = "static_text"

    def score(self, clip: ClipScores) -> float:
        """Share, 0 to 1."""
        return clip.picture.text_area


class FaceShare(Filter):
    """Share of frames in which a face is found and followed."""

    name = "face_share"

    def score(self, clip: ClipScores) -> float:
        """Share, 0 to 1."""
        return clip.face.share


class ExtraFaces(Filter):
    """Share of looks (five a second) that find more than one face."""

    name = "extra_faces"

    def score(self, clip: ClipScores) -> float:
        """Share, 0 to 1."""
        return clip.face.extra_share


class FaceSize(Filter):
    """Median height of the face, forehead to chin, in pixels of the source."""

    name, unit = "face_size", "px"

    def score(self, clip: ClipScores) -> float | None:
        """Pixels."""
        return clip.face.height_px


class Pose(Filter):
    """95th percentile of the head's turn to the side or tilt, estimated from the mesh."""

    name, unit = "pose", "degrees"

    def score(self, clip: ClipScores) -> float | None:
        """Degrees."""
        return clip.face.turn_degrees


class Exposure(Filter):
    """Median brightness of the face, 0 to 255."""

    name = "exposure"

    def score(self, clip: ClipScores) -> float | None:
        """Grey level."""
        return clip.face.luma


class Sharpness(Filter):
    """How much of the face's detail a second blur takes away (Crete et al. 2007), median."""

    name = "sharpness"

    def score(self, clip: ClipScores) -> float | None:
        """0 (blurred) to 1."""
        return clip.face.sharpness


class Occlusion(Filter):
    """Fifth percentile of how well the lower face agrees with the mesh and with itself."""

    name = "occlusion"

    def score(self, clip: ClipScores) -> float | None:
        """0 to 1."""
        return clip.face.certainty


class SpeechShare(Filter):
    """Share of the time in which Silero VAD hears speech."""

    name = "speech"

    def score(self, clip: ClipScores) -> float:
        """Share, 0 to 1."""
        return clip.speech.share


class SignalToNoise(Filter):
    """Level where there is speech over the level where there is none."""

    name, unit = "snr", "dB"

    def score(self, clip: ClipScores) -> float | None:
        """Decibels."""
        return clip.speech.snr_db


class Clipping(Filter):
    """Share of samples on the flat tops that overload leaves."""

    name = "clipping"

    def score(self, clip: ClipScores) -> float:
        """Share, 0 to 1."""
        return clip.speech.clipped_share


class Loudness(Filter):
    """Gated loudness after ITU-R BS.1770."""

    name, unit = "loudness", "LUFS"

    def score(self, clip: ClipScores) -> float:
        """LUFS."""
        return clip.speech.loudness_lufs


class SyncPeak(Filter):
    """Best correlation of mouth opening and speech energy over all lags."""

    name = "sync_peak"

    def score(self, clip: ClipScores) -> float | None:
        """-1 to 1."""
        return clip.sync.peak if clip.sync else None


class SyncMargin(Filter):
    """The best correlation minus the best one elsewhere: whether the lag is certain."""

    name = "sync_margin"

    def score(self, clip: ClipScores) -> float | None:
        """0 to 2."""
        return clip.sync.margin if clip.sync else None


class SyncLag(Filter):
    """Distance of picture and sound, which is corrected up to the bound."""

    name, unit = "sync_lag", "frames"

    def score(self, clip: ClipScores) -> float | None:
        """Frames, without sign."""
        return float(abs(clip.sync.lag)) if clip.sync else None


class SyncNetConfidence(Filter):
    """SyncNet's confidence that mouth and sound belong together; only with the user's weights."""

    name = "syncnet_confidence"

    def score(self, clip: ClipScores) -> float | None:
        """Median distance over the lags minus the least one, 0 and more."""
        return clip.syncnet.confidence if clip.syncnet else None


class SyncNetOffset(Filter):
    """Distance of picture and sound by SyncNet, after the correction; only with its weights."""

    name, unit = "syncnet_offset", "frames"

    def score(self, clip: ClipScores) -> float | None:
        """Frames, without sign."""
        return float(abs(clip.syncnet.lag)) if clip.syncnet else None


FILTERS: tuple[type[Filter], ...] = (
    FrameRate, Duration, BlackFrames, Frozen, StaticText, FaceShare, ExtraFaces, FaceSize, Pose,
    Exposure, Sharpness, Occlusion, SpeechShare, SignalToNoise, Clipping, Loudness, SyncPeak,
    SyncMargin, SyncLag, SyncNetConfidence, SyncNetOffset,
)  # fmt: skip
"""All filters, in the order of the funnel: a clip's reason is the first one it fails."""
