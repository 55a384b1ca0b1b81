"""What is measured of a clip, before anything is judged.

Legend: F frames. Scores that cannot be had (the sharpness of a face that is not there) are None.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PictureScores:
    """Of the frames.

    Attributes
    ----------
    source_fps : float
        Average frame rate of the source.
    duration_s : float
        Length of the clip.
    black_share : float
        Frames that are black.
    frozen_s : float
        Longest time without any change.
    text_area : float
        Share of the picture under text that does not move.
    """

    source_fps: float
    duration_s: float
    black_share: float
    frozen_s: float
    text_area: float


@dataclass(frozen=True)
class FaceScores:
    """Of the face that is followed.

    Attributes
    ----------
    share : float
        Frames that show a face.
    extra_share : float
        Looks that found more than one.
    height_px : float or None
        Median height, forehead to chin.
    turn_degrees : float or None
        95th percentile of the turn to the side or of the tilt, whichever is larger.
    luma : float or None
        Median brightness, 0 to 255.
    sharpness : float or None
        Median over the frames, 0 (blurred) to 1.
    certainty : float or None
        Fifth percentile over the frames of how well face and mesh agree, 0 to 1.
    """

    share: float
    extra_share: float
    height_px: float | None
    turn_degrees: float | None
    luma: float | None
    sharpness: float | None
    certainty: float | None


@dataclass(frozen=True)
class SpeechScores:
    """Of the sound.

    Attributes
    ----------
    share : float
        Time with speech in it.
    snr_db : float or None
        Level of the speech over the level between it.
    clipped_share : float
        Samples on the plateaus that overload leaves.
    loudness_lufs : float
        Gated loudness; -70 for silence.
    """

    share: float
    snr_db: float | None
    clipped_share: float
    loudness_lufs: float


@dataclass(frozen=True)
class SyncScores:
    """Of mouth against speech.

    Attributes
    ----------
    peak : float
        Best correlation, -1 to 1.
    lag : int
        Frames by which the mouth is later than the sound, where it is.
    margin : float
        Peak minus the best correlation elsewhere.
    """

    peak: float
    lag: int
    margin: float


@dataclass(frozen=True)
class SyncNetScores:
    """Of mouth against sound, by SyncNet.

    Attributes
    ----------
    confidence : float
        Median of the mean distances at all lags, less the least of them.
    lag : int
        Frames by which the mouth is later than the sound, where the distance is least.
    distance : float
        That distance.
    """

    confidence: float
    lag: int
    distance: float


@dataclass(frozen=True)
class ClipScores:
    """Everything that the filters look at.

    Attributes
    ----------
    picture, face, speech
        Always there.
    sync : SyncScores or None
        None where there is no mouth or no speech to compare.
    syncnet : SyncNetScores or None
        Of the sound as it is cut out. None unless the settings name the network's file and the
        clip passed all else.
    """

    picture: PictureScores
    face: FaceScores
    speech: SpeechScores
    sync: SyncScores | None
    syncnet: SyncNetScores | None = None
