"""What live costs in lip sync: the streamed video against the same speech generated offline.

Live, a group of windows is final before the next one is begun; offline, all windows are denoised
together. Nobody knows the true mouth of recorded speech, so both are held against its loudness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skyreels_rt.conditioning.face import Face, FaceFinder, face_available
from skyreels_rt.evaluation.mouth import mouth_opening
from skyreels_rt.evaluation.sync import correlation, energy_sync, without_moving_mean
from skyreels_rt.report import Row

if TYPE_CHECKING:
    from skyreels_rt.evaluation.identity import Box

MAX_SYNC_LOSS = 0.03
MAX_SYNC_S = 120.0
"""Seconds of video that are compared: their frames are held in memory."""

_CORNERS, _SEAM = (61, 291), (13, 14)  # mesh points: corners of the mouth, inner lips
_MARGIN = 1.5  # width of the box over that of the lips, as the measure wants it
_SEAM_DEPTH = 0.18  # where the measure looks for the seam: this share of the width below the top


@dataclass(frozen=True)
class SyncLoss:
    """Lip sync of a live video and of its offline twin.

    Attributes
    ----------
    live, offline : float
        Correlation of mouth opening and speech energy at the peak within 4 frames.
    live_lag, offline_lag : int
        Frames by which the mouth is late there.
    agreement : float
        Correlation of the two openings, a moving mean of 1 s removed.
    """

    live: float
    offline: float
    live_lag: int
    offline_lag: int
    agreement: float

    def rows(self) -> list[Row]:
        """Rows ``stream.sync_*`` of docs/benchmarks.md."""
        return [
            Row("stream.sync_live", self.live, "correlation", better="higher"),
            Row("stream.sync_offline", self.offline, "correlation", better="higher"),
            Row("stream.sync_loss", self.offline - self.live, "correlation", MAX_SYNC_LOSS),
            Row("stream.sync_agreement", self.agreement, "correlation", better="higher"),
        ]

    def details(self) -> dict[str, Any]:
        """What no row says."""
        return {"live_lag": self.live_lag, "offline_lag": self.offline_lag}


def lips_box(face: Face) -> Box:
    """Box of a found mouth for :func:`skyreels_rt.evaluation.mouth.mouth_opening`."""
    left, right = (face.landmarks[point] for point in _CORNERS)
    seam = face.landmarks[list(_SEAM)].mean(axis=0)
    width = _MARGIN * float(np.linalg.norm(right - left))
    centre, top = float(left[0] + right[0]) / 2, float(seam[1]) - _SEAM_DEPTH * width
    sides = (centre - width / 2, top, centre + width / 2, top + width / 2)
    return tuple(round(side) for side in sides)  # type: ignore[return-value]


def sync_loss(
    live: NDArray[np.uint8],
    offline: NDArray[np.uint8],
    voice: NDArray[np.float32],
    sample_rate: int,
    fps: int,
) -> SyncLoss | str:
    """Compare two videos of the same speech and portrait.

    Parameters
    ----------
    live, offline : ndarray, shape (F, H, W, 3), uint8
        The streamed video, and the offline one.
    voice : ndarray, shape (S, channels), float32
        The speech, as long as the videos or longer.
    sample_rate, fps : int
        Samples and frames per second.

    Returns
    -------
    SyncLoss or str
        Or the reason why it cannot be measured.
    """
    if not face_available():
        return "needs the [face] extra"
    face = FaceFinder().find(offline[0])
    if face is None:
        return "no face was found in the video"
    box, count = lips_box(face), min(len(live), len(offline))
    mono = voice.mean(axis=1, dtype=np.float32)
    openings = [mouth_opening(frames[:count], box) for frames in (live, offline)]
    (live_lag, ours), (offline_lag, theirs) = (
        energy_sync(opening, mono, sample_rate, fps) for opening in openings
    )
    moving = [without_moving_mean(opening, 1.0, fps) for opening in openings]
    return SyncLoss(ours, theirs, live_lag, offline_lag, correlation(*moving))
