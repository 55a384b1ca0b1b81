"""The face of a clip, followed from frame to frame, and what its mesh tells.

Points are those of MediaPipe's canonical face mesh, as :mod:`skyreels_rt.conditioning.face` gives
them. Legend: F frames.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from skyreels_rt.conditioning.face import Face, FaceFinder, face_polygon, mouth_polygon
from skyreels_rt.data.dependencies import opencv
from skyreels_rt.data.measures import FaceScores
from skyreels_rt.data.picture import sharpness

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FOREHEAD, _CHIN, _NOSE_TIP = 10, 152, 1
_SIDES = (234, 454)
_EYE_CORNERS = (33, 263)
# Inner lips, upper and lower, left of the middle, in it, and right of it.
_LIP_PAIRS = ((82, 87), (13, 14), (312, 317))
_LIPS = (
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185,
)  # fmt: skip
_EYES = (
    (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246),
    (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466),
)
_NOSE_DEPTH = 0.9  # how far the nose stands out, in half widths of the face; ours
_MARGIN = 1.25  # of lips and eyes, about their middle: lashes, and lips that move
_SAME = 0.3  # overlap from which two boxes are one face
_MAX_SIDE = 256  # pixels of a face whose sharpness is measured
REGIONS = ("face", "mouth", "jaw", "eye")
"""Masks of a sample; they mean what the synthetic renderer's masks of these names mean."""


class FaceFrame(NamedTuple):
    """The face in one frame.

    Attributes
    ----------
    face : Face
        Box, certainty, mesh.
    height, opening, turn : float
        Pixels from forehead to chin; gap between the lips over it; degrees from looking ahead.
    """

    face: Face
    height: float
    opening: float
    turn: float


class FaceTrack:
    """Follows the main face through one clip.

    Parameters
    ----------
    finder : FaceFinder
        Shared by all clips of a worker.
    look_every : int
        Frames between two searches of the whole picture.
    """

    def __init__(self, finder: FaceFinder, look_every: int) -> None:
        self._finder = finder
        self._look_every = look_every
        self._looks = self._crowded = 0
        self._lumas: list[float] = []
        self._sharpness: list[float] = []
        self.frames: list[FaceFrame | None] = []
        """What was found in every frame so far."""

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Take the next frame, shape (H, W, 3), uint8."""
        last = self.frames[-1] if self.frames else None
        if len(self.frames) % self._look_every == 0:
            faces = self._finder.find_all(frame)
            self._looks += 1
            self._crowded += len(faces) > 1
            face = _main(faces, last.face if last else None)
            if face is not None:
                self._look_at(frame, face)
        else:
            face = self._finder.follow(frame, last.face) if last else None
        self.frames.append(_measured(face) if face is not None else None)

    @property
    def share(self) -> float:
        """Share of frames with a face."""
        return sum(f is not None for f in self.frames) / max(1, len(self.frames))

    def openings(self) -> NDArray[np.float64]:
        """Gap between the lips over the face's height, shape (F,); bridged where no face is."""
        known = [i for i, frame in enumerate(self.frames) if frame is not None]
        values = [frame.opening for frame in self.frames if frame is not None]
        return np.interp(np.arange(len(self.frames)), known, values)

    def landmarks(self) -> NDArray[np.float32]:
        """Mesh of every frame, shape (F, 468, 2); where no face is, that of the nearest frame."""
        known = np.array([i for i, frame in enumerate(self.frames) if frame is not None])
        nearest = known[np.abs(np.arange(len(self.frames))[:, None] - known).argmin(axis=1)]
        found = {i: frame.face.landmarks for i, frame in enumerate(self.frames) if frame}
        return np.stack([found[int(i)] for i in nearest])

    def scores(self) -> FaceScores:
        """What the filters look at."""
        found = [frame for frame in self.frames if frame is not None]
        extra = self._crowded / max(1, self._looks)
        if not found:
            return FaceScores(0.0, extra, None, None, None, None, None)
        return FaceScores(
            share=self.share,
            extra_share=extra,
            height_px=float(np.median([f.height for f in found])),
            turn_degrees=float(np.percentile([f.turn for f in found], 95)),
            luma=float(np.median(self._lumas)) if self._lumas else None,
            sharpness=float(np.median(self._sharpness)) if self._sharpness else None,
            certainty=float(np.percentile([f.face.score for f in found], 5)),
        )

    def _look_at(self, frame: NDArray[np.uint8], face: Face) -> None:
        """Measure brightness and sharpness inside the face's box."""
        cv = opencv()
        height, width = frame.shape[:2]
        left, top = max(0, int(face.box[0])), max(0, int(face.box[1]))
        right, bottom = min(width, math.ceil(face.box[2])), min(height, math.ceil(face.box[3]))
        if right - left < 8 or bottom - top < 8:
            return
        grey = cv.cvtColor(np.ascontiguousarray(frame[top:bottom, left:right]), cv.COLOR_RGB2GRAY)
        self._lumas.append(float(np.median(grey)))
        scale = _MAX_SIDE / max(grey.shape)
        if scale < 1:
            grey = cv.resize(grey, None, fx=scale, fy=scale, interpolation=cv.INTER_AREA)
        self._sharpness.append(sharpness(grey))


def _main(faces: list[Face], before: Face | None) -> Face | None:
    """Pick the face that was followed, or the largest and most certain one."""
    if before is not None:
        for face in faces:
            if _overlap(face.box, before.box) > _SAME:
                return face
    return faces[0] if faces else None


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two boxes."""
    across = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    down = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - across * down
    return across * down / both if both > 0 else 0.0


def _measured(face: Face) -> FaceFrame:
    points = face.landmarks.astype(np.float64)
    height = float(np.linalg.norm(points[_CHIN] - points[_FOREHEAD]))
    gaps = [np.linalg.norm(points[upper] - points[lower]) for upper, lower in _LIP_PAIRS]
    return FaceFrame(face, height, float(np.mean(gaps)) / max(height, 1e-6), _turn(points))


def _turn(points: NDArray[np.float64]) -> float:
    """Degrees to the side, from where the nose stands between the ears, or tilt if that is more."""
    right, left = points[_SIDES[0]], points[_SIDES[1]]
    across = left - right
    place = float((points[_NOSE_TIP] - right) @ across) / max(float(across @ across), 1e-9)
    yaw = math.atan((2 * place - 1) / _NOSE_DEPTH)
    eyes = points[_EYE_CORNERS[1]] - points[_EYE_CORNERS[0]]
    roll = math.atan2(float(eyes[1]), float(eyes[0]))
    return math.degrees(max(abs(yaw), abs(roll)))


def region_polygons(landmarks: NDArray[np.float32]) -> dict[str, list[NDArray[np.float32]]]:
    """Polygons of the regions that training weighs and edits.

    Parameters
    ----------
    landmarks : ndarray, shape (468, 2), float32
        Mesh of one frame.

    Returns
    -------
    dict of str to list of ndarray, shape (n, 2), float32
        For each of ``REGIONS``: face (hairline to chin), mouth (lips with a margin), jaw (all that
        speech moves) and eye (both), in the landmarks' pixels.
    """
    face = Face((0.0, 0.0, 0.0, 0.0), 1.0, landmarks)
    return {
        "face": [face_polygon(face)],
        "mouth": [_grown(landmarks[list(_LIPS)])],
        "jaw": [mouth_polygon(face)],
        "eye": [_grown(landmarks[list(eye)]) for eye in _EYES],
    }


def _grown(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Polygon scaled about its middle."""
    middle = points.mean(axis=0)
    return np.asarray(middle + (points - middle) * np.float32(_MARGIN), np.float32)
