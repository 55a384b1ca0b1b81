"""Does a mouth follow the sound, as SyncNet sees it: opt-in, with the user's own weights.

Faces, sound and distances are prepared as the authors' published pipeline prepares them (Chung &
Zisserman 2016), so that confidences mean what they mean elsewhere; the face is the mesh's instead
of a detector's box. The file must be safetensors and have the digest that the settings name.

Legend: F frames at 25 fps, S samples at 16 kHz, N windows of five frames, D = 1024.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from skyreels_rt.data.dependencies import opencv
from skyreels_rt.data.measures import SyncNetScores
from skyreels_rt.data.mfcc import COLUMNS_PER_SECOND, cepstra
from skyreels_rt.data.shards import FPS
from skyreels_rt.errors import ModelError, NonFinite, WeightsMismatch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from skyreels_rt.models.syncnet import SyncNet

MAX_LAG = 15
"""Frames looked at on both sides: the confidence is a median over all of them."""

_MAX_FILE_BYTES = 256 << 20  # the published weights have 55 MB
_COLUMNS_PER_FRAME = COLUMNS_PER_SECOND // FPS
_BATCH = 8  # windows embedded at a time
_STEADY = 13  # frames of the median that steadies the face's place
_MARGIN = 0.4  # of the face's half side, around it; below the chin twice that
_GREY = 110  # beyond the picture
_UNUSED = "num_batches_tracked"  # of batch norms, in files of newer torch


class Embedder(Protocol):
    """What :class:`skyreels_rt.models.syncnet.SyncNet` does, with its shapes."""

    def embed_pictures(self, frames: Tensor) -> Tensor:
        """From (F, 224, 224, 3) to (F - 4, D)."""

    def embed_sound(self, windows: Tensor) -> Tensor:
        """From (N, 13, 20) to (N, D)."""


def load_syncnet(path: Path, sha256: str) -> SyncNet:
    """Read the user's weights.

    Parameters
    ----------
    path : Path
        Safetensors under the published names; ``skyreels-rt data convert-syncnet`` makes it.
    sha256 : str
        Digest that its bytes must have, 64 hexadecimal digits in lower case.

    Raises
    ------
    ModelError
        The file is absent, too large, not safetensors, or has another digest.
    WeightsMismatch
        It does not hold exactly the network's tensors.
    NonFinite
        A tensor holds NaN or infinity.
    """
    data = _read(path)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ModelError(
            f"syncnet.file: expected a file with SHA-256 {sha256}, got {path} with {found}.",
            stage="data",
            hint="Take the file that you checked, or name its digest in syncnet.sha256.",
        )
    return syncnet_from(data, path)


def _read(path: Path) -> bytes:
    """All bytes of the file, so that those that are checked are those that are used."""
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            raise ModelError(
                f"syncnet.file: expected at most {_MAX_FILE_BYTES} bytes, got {path} with {size}.",
                stage="data",
            )
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"syncnet.file: expected a readable file, got {path} ({error.strerror or error}).",
            stage="data",
            hint="Make it with skyreels-rt data convert-syncnet, or empty syncnet.file.",
        ) from error


def syncnet_from(data: bytes, path: Path) -> SyncNet:
    """Make the network of the bytes of a safetensors file.

    Parameters
    ----------
    data : bytes
        The file.
    path : Path
        Its name, for errors.

    Returns
    -------
    SyncNet
        In float32 on the CPU, without gradients.

    Raises
    ------
    ModelError, WeightsMismatch, NonFinite
        As :func:`load_syncnet`.
    """
    import torch
    from safetensors.torch import load

    from skyreels_rt.models.syncnet import SyncNet
    from skyreels_rt.weights.files import reading_safetensors

    with reading_safetensors(path):
        stored = {name: t for name, t in load(data).items() if not name.endswith(_UNUSED)}
    with torch.device("meta"):
        network = SyncNet()
    wanted = network.state_dict()
    missing = tuple(sorted(set(wanted) - set(stored)))
    unexpected = tuple(sorted(set(stored) - set(wanted)))
    misshaped = tuple(
        f"{name}: expected {tuple(wanted[name].shape)} floating point, "
        f"got {tuple(stored[name].shape)} {stored[name].dtype}"
        for name in sorted(set(stored) & set(wanted))
        if stored[name].shape != wanted[name].shape or not stored[name].is_floating_point()
    )
    if missing or unexpected or misshaped:
        kinds = {"missing": missing, "unexpected": unexpected, "misshaped": misshaped}
        lines = [f"  {kind} ({len(names)}): {'; '.join(names)}" for kind, names in kinds.items()]
        raise WeightsMismatch(
            "\n".join([f"{path}: not a SyncNet.", *lines]),
            missing=missing,
            unexpected=unexpected,
            misshaped=misshaped,
        )
    bad = [name for name, tensor in stored.items() if not tensor.isfinite().all()]
    if bad:
        raise NonFinite(f"{path}: NaN or infinity in {bad[0]}.", stage="data")
    network.load_state_dict({n: t.float() for n, t in stored.items()}, assign=True)
    return network.eval().requires_grad_(False)


def face_squares(landmarks: NDArray[np.float32]) -> NDArray[np.float64]:
    """Where the face is in every frame, steadied by a running median.

    Parameters
    ----------
    landmarks : ndarray, shape (F, 468, 2), float32
        Meshes, in pixels.

    Returns
    -------
    ndarray, shape (F, 3), float64
        x and y of the middle of the face's box, and half its longer side.
    """
    low, high = landmarks.min(axis=1), landmarks.max(axis=1)
    half = (high - low).max(axis=1, keepdims=True) / 2
    squares = np.concatenate([(low + high) / 2, half], axis=1).astype(np.float64)
    padded = np.pad(squares, ((_STEADY // 2, _STEADY // 2), (0, 0)), mode="edge")
    runs = np.lib.stride_tricks.sliding_window_view(padded, _STEADY, axis=0)
    return np.asarray(np.median(runs, axis=-1))


def face_picture(frame: NDArray[np.uint8], square: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Cut the face out as the network wants it: lower half in the middle, grey beyond the picture.

    Parameters
    ----------
    frame : ndarray, shape (H, W, 3), uint8
        RGB.
    square : ndarray, shape (3,), float64
        One row of :func:`face_squares`.

    Returns
    -------
    ndarray, shape (224, 224, 3), uint8
        Blue before green before red.
    """
    from skyreels_rt.models.syncnet import FACE_SIDE

    cv = opencv()
    x, y, half = (float(value) for value in square)
    reach = half * (1 + _MARGIN)
    left, right = round(x - reach), round(x + reach)
    top, bottom = round(y - half), round(y + half * (1 + 2 * _MARGIN))
    height, width = frame.shape[:2]
    inside = frame[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    beyond = (-min(0, top), max(0, bottom - height), -min(0, left), max(0, right - width))
    if 0 in inside.shape:  # the mesh left the picture
        return np.full((FACE_SIDE, FACE_SIDE, 3), _GREY, np.uint8)
    whole = cv.copyMakeBorder(inside, *beyond, cv.BORDER_CONSTANT, value=(_GREY, _GREY, _GREY))
    face: NDArray[np.uint8] = cv.resize(whole, (FACE_SIDE, FACE_SIDE))[..., ::-1]
    return face


def syncnet_scores(
    faces: Iterable[NDArray[np.uint8]], samples: NDArray[np.float32], network: Embedder
) -> SyncNetScores | None:
    """Compare the faces of a clip with its sound.

    Parameters
    ----------
    faces : iterable of ndarray, shape (224, 224, 3), uint8
        From :func:`face_picture`, one a frame; taken one at a time.
    samples : ndarray, shape (S,), float32
        Sound that starts with the clip, 640 samples a frame.
    network : Embedder
        Usually a :class:`~skyreels_rt.models.syncnet.SyncNet`.

    Returns
    -------
    SyncNetScores or None
        A positive lag says that the mouth is later than the sound, as in :mod:`.sync`. None where
        the clip has fewer windows than lags.
    """
    import torch

    from skyreels_rt.models.syncnet import WINDOW_COLUMNS

    with torch.inference_mode():
        pictures = _embedded(faces, network)
        columns = torch.from_numpy(cepstra(samples)).float() if len(samples) else torch.zeros(13, 0)
        if columns.shape[1] < WINDOW_COLUMNS:
            return None
        windows = columns.unfold(1, WINDOW_COLUMNS, _COLUMNS_PER_FRAME).transpose(0, 1)
        # The last window of pictures has no whole window of sound beside it.
        count = min(len(pictures), len(windows))
        if count < 2 * MAX_LAG + 1:
            return None
        sound = torch.cat([network.embed_sound(w) for w in windows[:count].split(_BATCH)])
        distances = mean_distances(pictures[:count], sound)
    best = int(distances.argmin())
    return SyncNetScores(
        confidence=float(distances.median() - distances[best]),
        lag=MAX_LAG - best,
        distance=float(distances[best]),
    )


def mean_distances(pictures: Tensor, sound: Tensor) -> Tensor:
    """Mean distance of the points of a clip at every lag.

    Sound before and after the clip counts as a point at the origin, as in the published measure.

    Parameters
    ----------
    pictures, sound : Tensor, shape (N, D), float32
        Points of the windows that begin with the same frames.

    Returns
    -------
    Tensor, shape (31,), float32
        Entry k compares window i with the sound of window i + k - 15.
    """
    import torch

    count = len(pictures)
    padded = torch.nn.functional.pad(sound, (0, 0, MAX_LAG, MAX_LAG))
    shifts = range(2 * MAX_LAG + 1)
    distance = torch.nn.functional.pairwise_distance
    return torch.stack([distance(pictures, padded[k : k + count]).mean() for k in shifts])


def _embedded(faces: Iterable[NDArray[np.uint8]], network: Embedder) -> Tensor:
    """Points of all windows, a few at a time: frames of a long clip are never held together."""
    import torch

    from skyreels_rt.models.syncnet import EMBEDDING_DIM, WINDOW_FRAMES

    points: list[Tensor] = []
    held: list[NDArray[np.uint8]] = []
    for face in faces:
        held.append(face)
        if len(held) == _BATCH + WINDOW_FRAMES - 1:
            points.append(network.embed_pictures(torch.from_numpy(np.stack(held))))
            held = held[_BATCH:]
    if len(held) >= WINDOW_FRAMES:
        points.append(network.embed_pictures(torch.from_numpy(np.stack(held))))
    return torch.cat(points) if points else torch.zeros(0, EMBEDDING_DIM)
