"""Who is in the picture: following a face through a clip, describing it, and how it drifts.

The face is found by normalised correlation and followed by the forward-additive algorithm of Lucas
and Kanade (Baker & Matthews, "Lucas-Kanade 20 years on", IJCV 2004) with gain and offset removed
and Huber weights, so that blinks do not pull it away.
Legend: F frames, H W pixels, P pixels of a region.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from skyreels_rt.conditioning.color import lab
from skyreels_rt.errors import InvalidArgument

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Box = tuple[int, int, int, int]

_ROWS, _COLS = 6, 6  # cells of the descriptor's low-frequency picture
_STILL_SHARE = 0.62  # of a face's height from its top: below it the mouth and the jaw move
_HAIR_SHARE = 0.16  # of a face's height above it, where hair is
_SAMPLES = 48  # places per side that are read from a face
_BLOCK_S = 1.0  # distances of one second count as one: neighbours in time are alike
# Two-sided 95 % quantiles of Student's t for 2 to 10 degrees of freedom.
_STUDENT = (4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_LEVELS = ((4, 10), (2, 6), (1, 4))  # (pixels averaged, iterations), coarse to fine
_CHUNK = 32  # frames worked on together: long clips do not need much memory
_MAX_POINTS = 2000  # of a region at one level: more do not make the track steadier


@dataclass(frozen=True)
class Drift:
    """How fast a face leaves its portrait.

    Attributes
    ----------
    slope_per_s : float
        Growth of the distance to the portrait per second, in the distance's unit.
    slope_upper95 : float, >= 0
        Upper end of the 95 % interval of the slope's size, per second.
    relative_60s : float, >= 0
        ``slope_upper95`` over a minute as a share of the mean distance between two people.
    """

    slope_per_s: float
    slope_upper95: float
    relative_60s: float


def check_frames(frames: NDArray[np.uint8], name: str = "frames") -> None:
    """Refuse what is not a clip.

    Parameters
    ----------
    frames : ndarray, shape (F, H, W, 3), uint8
        RGB, F >= 1.
    name : str
        How the caller calls it.

    Raises
    ------
    InvalidArgument
        The shape or the type differs.
    """
    is_clip = isinstance(frames, np.ndarray) and frames.ndim == 4 and frames.shape[-1] == 3
    if not is_clip or frames.dtype != np.uint8 or len(frames) == 0:
        got = f"{getattr(frames, 'shape', type(frames))} {getattr(frames, 'dtype', '')}"
        raise InvalidArgument(name, expected="uint8 of shape (F, H, W, 3), F >= 1", got=got)


def check_box(box: Box, shape: tuple[int, ...], name: str) -> None:
    """Refuse a box that is not inside the picture.

    Parameters
    ----------
    box : tuple of int
        Left, top, right, bottom in pixels; right and bottom are the first ones outside.
    shape : tuple of int
        Height and width come first.
    name : str
        How the caller calls it.

    Raises
    ------
    InvalidArgument
        The box is under 8 pixels wide or high, or leaves the picture.
    """
    height, width = shape[:2]
    values = [int(value) for value in box] if len(box) == 4 else [0, 0, 0, 0]
    left, top, right, bottom = values
    inside = left >= 0 and top >= 0 and right <= width and bottom <= height
    if not inside or right - left < 8 or bottom - top < 8:
        raise InvalidArgument(
            name,
            expected=f"(left, top, right, bottom) in {width}x{height}, 8 pixels or more",
            got=tuple(box),
        )


def _gray(frames: NDArray[np.uint8]) -> Tensor:
    """Luma, (F, 1, H, W) fp32; green counts most, as in BT.601."""
    weights = torch.tensor([0.299, 0.587, 0.114])
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).float()
    luma: Tensor = pixels @ weights
    return luma.unsqueeze(1)


def _sample(pictures: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear lookup at pixel centres: pictures (F, C, H, W), x and y (F, P) give (F, C, P)."""
    height, width = pictures.shape[-2:]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1).unsqueeze(1)
    seen: Tensor = F.grid_sample(
        pictures, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return seen[:, :, 0]


def _solve_step(values: Tensor, target: Tensor, steepest: Tensor, pose: Tensor) -> Tensor:
    """One Gauss-Newton step (F, 4): values (F, P), target (P,), steepest (F, P, 4), pose (F, 4)."""
    centred = values - values.mean(1, keepdim=True)
    goal = target - target.mean()
    spread = centred.square().mean(1, keepdim=True).sqrt().clamp_min(1e-3)
    gain = goal.square().mean().sqrt().clamp_min(1e-3) / spread
    residual = goal - centred * gain
    scale = 2.5 * residual.abs().median(1, keepdim=True).values.clamp_min(0.3)
    weight = (scale / residual.abs().clamp_min(1e-6)).clamp_max(1.0)
    slope = steepest * gain.unsqueeze(-1)
    slope = slope - slope.mean(1, keepdim=True)
    weighted = slope * weight.unsqueeze(-1)
    hessian = torch.einsum("fpi,fpj->fij", weighted, slope)
    # Size and turn are held near 0: shut eyes would otherwise be found in a smaller face.
    hold = hessian.diagonal(dim1=1, dim2=2) * torch.tensor([0.05, 0.01, 0.0, 0.0])
    hessian = hessian + torch.diag_embed(hold + 1e-3 * hessian.diagonal(dim1=1, dim2=2) + 1e-6)
    right = torch.einsum("fpi,fp->fi", weighted, residual) - hold * pose
    step: Tensor = torch.linalg.solve(hessian, right)
    return step


def follow(
    frames: NDArray[np.uint8],
    box: Box,
    *,
    reference: NDArray[np.uint8] | None = None,
) -> NDArray[np.float64]:
    """Follow a region of the first frame (or of a reference picture) through a clip.

    Parameters
    ----------
    frames : ndarray, shape (F, H, W, 3), uint8
        The clip.
    box : tuple of int
        Left, top, right, bottom of the region in the reference.
    reference : ndarray, shape (H, W, 3), uint8, optional
        Where the box is; the clip's first frame by default.

    Returns
    -------
    ndarray, shape (F, 2, 3), float64
        Similarities (shift, turn, size) that bring a place (x, y, 1) of the reference to the
        frame, in pixels.

    Raises
    ------
    InvalidArgument
        Shapes differ, or the box leaves the picture.
    """
    check_frames(frames)
    still = frames[0] if reference is None else reference
    if still.shape != frames.shape[1:]:
        raise InvalidArgument("reference", expected=f"shape {frames.shape[1:]}", got=still.shape)
    check_box(box, still.shape, "box")
    template = _gray(still[None])
    middle = torch.tensor([(box[0] + box[2] - 1) / 2, (box[1] + box[3] - 1) / 2])
    half = max(box[2] - box[0], box[3] - box[1]) / 2
    # (a, b, x, y): size and turn about the middle, in units of half the region, and the shift.
    pose = _coarse_shift(frames, template, box)
    for start in range(0, len(frames), _CHUNK):
        now = slice(start, start + _CHUNK)
        gray, part = _gray(frames[now]), pose[now]
        for level in _LEVELS:
            part = _refine(gray, template, (box, middle, half), part, level)
        pose[now] = part
    a, b, x, y = (pose[:, index].double().numpy() for index in range(4))
    a, b = a / half, b / half
    cx, cy = float(middle[0]), float(middle[1])
    rows = [
        np.stack([1 + a, -b, cx + x - (1 + a) * cx + b * cy], axis=-1),
        np.stack([b, 1 + a, cy + y - b * cx - (1 + a) * cy], axis=-1),
    ]
    return np.stack(rows, axis=1)


def _coarse_shift(frames: NDArray[np.uint8], template: Tensor, box: Box) -> Tensor:
    """Poses (F, 4) with the shift of best normalised correlation, to four pixels.

    Gauss-Newton alone ends in the wrong place where a head moved by more than its features.
    """
    factor, reach = 4, 9
    goal = F.avg_pool2d(template, factor)
    left, top = box[0] // factor, box[1] // factor
    right, bottom = max(left + 2, box[2] // factor), max(top + 2, box[3] // factor)
    patch = goal[:, :, top:bottom, left:right]
    patch = patch - patch.mean()
    ones = torch.full_like(patch, 1 / patch.numel())
    norm = patch.square().sum().sqrt().clamp_min(1e-3) * patch.numel() ** 0.5
    offset = (torch.arange(2 * reach + 1) - reach).float()
    # A mild preference for the nearer of two equally good places.
    near = 1 - 0.004 * torch.hypot(offset[:, None], offset[None])
    scores = []
    for start in range(0, len(frames), _CHUNK):
        small = F.avg_pool2d(_gray(frames[start : start + _CHUNK]), factor)
        padded = F.pad(small, (reach,) * 4, mode="replicate")
        area = padded[:, :, top : bottom + 2 * reach, left : right + 2 * reach]
        mean, square = F.conv2d(area, ones), F.conv2d(area.square(), ones)
        spread = (square - mean.square()).clamp_min(1.0).sqrt()
        scores.append((F.conv2d(area, patch) / (spread * norm))[:, 0] * near)
    best = _steadiest(torch.cat(scores).flatten(1).numpy(), offset.numpy())
    pose = torch.zeros(len(frames), 4)
    pose[:, 2] = offset[best % len(offset)] * factor
    pose[:, 3] = offset[best // len(offset)] * factor
    return pose


def _steadiest(score: NDArray[np.float32], offset: NDArray[np.float32]) -> Tensor:
    """Choose a cell per frame (F,) by Viterbi: high score (F, C), and no jump without reason.

    A blink makes a wrong place look best for some frames; a head does not go there and back.
    """
    x, y = np.tile(offset, len(offset)), np.repeat(offset, len(offset))
    jump = 0.1 * np.maximum(np.hypot(x[:, None] - x, y[:, None] - y) - 1.5, 0)
    total, came = score[0].copy(), np.zeros(score.shape, np.int64)
    for index in range(1, len(score)):
        reached = total - jump
        came[index] = reached.argmax(1)
        total = reached[np.arange(len(total)), came[index]] + score[index]
    path = np.empty(len(score), np.int64)
    path[-1] = total.argmax()
    for index in range(len(score) - 1, 0, -1):
        path[index - 1] = came[index, path[index]]
    return torch.from_numpy(path)


def _refine(
    gray: Tensor,
    template: Tensor,
    region: tuple[Box, Tensor, float],
    pose: Tensor,
    level: tuple[int, int],
) -> Tensor:
    """Refine poses (F, 4) on pictures averaged over ``level[0]`` pixels."""
    factor, iterations = level
    box, middle, half = region
    small, goal = (F.avg_pool2d(picture, factor) for picture in (gray, template))
    area = (box[2] - box[0]) * (box[3] - box[1])
    step = max(float(factor), (area / _MAX_POINTS) ** 0.5)
    xs = torch.arange(box[0], box[2] - 0.5, step) - middle[0]
    ys = torch.arange(box[1], box[3] - 0.5, step) - middle[1]
    dy, dx = (part.reshape(-1) for part in torch.meshgrid(ys, xs, indexing="ij"))

    def lookup(pictures: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return _sample(pictures, (x + 0.5) / factor - 0.5, (y + 0.5) / factor - 0.5)

    target = lookup(goal, (dx + middle[0])[None], (dy + middle[1])[None])[0, 0]
    slope_y = F.pad(small[:, :, 2:] - small[:, :, :-2], (0, 0, 1, 1)) / (2 * factor)
    slope_x = F.pad(small[:, :, :, 2:] - small[:, :, :, :-2], (1, 1, 0, 0)) / (2 * factor)
    stack = torch.cat([small, slope_x, slope_y], dim=1)
    for _ in range(iterations):
        a, b = pose[:, :1] / half, pose[:, 1:2] / half
        x = middle[0] + pose[:, 2:3] + (1 + a) * dx - b * dy
        y = middle[1] + pose[:, 3:] + b * dx + (1 + a) * dy
        seen = lookup(stack, x, y)
        gx, gy = seen[:, 1], seen[:, 2]
        steepest = torch.stack(
            [(gx * dx + gy * dy) / half, (gy * dx - gx * dy) / half, gx, gy], dim=-1
        )
        change = _solve_step(seen[:, 0], target, steepest, pose)
        pose = pose + change.clamp(-2.0 * factor, 2.0 * factor)
    return pose


def warped(
    frames: NDArray[np.uint8],
    tracks: NDArray[np.float64],
    x: NDArray[np.floating],
    y: NDArray[np.floating],
) -> NDArray[np.float32]:
    """Read a clip at places of the reference picture.

    Parameters
    ----------
    frames : ndarray, shape (F, H, W, 3), uint8
        The clip.
    tracks : ndarray, shape (F, 2, 3), float64
        From `follow`.
    x, y : ndarray, shape (P, Q), floating
        Pixels of the reference picture.

    Returns
    -------
    ndarray, shape (F, P, Q, 3), float32 in [0, 255]
        Bilinear values; the picture's border is repeated outside.
    """
    places = np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    moved = torch.from_numpy(np.einsum("fij,jp->fip", tracks, places)).float()
    read = np.empty((len(frames), x.size, 3), np.float32)
    for start in range(0, len(frames), _CHUNK):
        now = slice(start, start + _CHUNK)
        pictures = torch.from_numpy(np.ascontiguousarray(frames[now])).permute(0, 3, 1, 2).float()
        seen = _sample(pictures, moved[now, 0], moved[now, 1])
        read[now] = seen.permute(0, 2, 1).numpy()
    return read.reshape(len(frames), *x.shape, 3)


def _describe(
    frames: NDArray[np.uint8], tracks: NDArray[np.float64], box: Box
) -> NDArray[np.float32]:
    """Descriptors (F, D) of a face whose box is in the reference of the tracks."""
    left, top, right, bottom = box
    wide, tall = right - left, bottom - top
    across = left + wide * (0.12 + 0.76 * (np.arange(_SAMPLES) + 0.5) / _SAMPLES)
    down = top + tall * _STILL_SHARE * (np.arange(_SAMPLES) + 0.5) / _SAMPLES
    face = lab(warped(frames, tracks, *np.meshgrid(across, down)))
    cell = (_SAMPLES // _ROWS, _SAMPLES // _COLS)
    cells = face.reshape(len(frames), _ROWS, cell[0], _COLS, cell[1], 3).mean(axis=(2, 4))
    above = np.linspace(top - _HAIR_SHARE * tall, top - 0.04 * tall, 8)
    middle = left + wide * np.linspace(0.3, 0.7, 16)
    hair = lab(warped(frames, tracks, *np.meshgrid(middle, above))).mean(axis=(1, 2))
    # Hair weighs as much as a row of the face: it is a large part of who one sees.
    parts = [
        cells.reshape(len(frames), -1),
        np.repeat(hair, _COLS, axis=0).reshape(len(frames), -1),
    ]
    joined = np.concatenate(parts, axis=1)
    return np.asarray(joined / np.sqrt(joined.shape[1] / 3), np.float32)


def identity_descriptor(frame: NDArray[np.uint8], face_box: Box) -> NDArray[np.float32]:
    """Describe who is in a picture by colours of face and hair; the mouth is left out.

    Parameters
    ----------
    frame : ndarray, shape (H, W, 3), uint8
        RGB.
    face_box : tuple of int
        Left, top, right, bottom of the visible skin of the face.

    Returns
    -------
    ndarray, shape (126,), float32
        Means of CIE Lab over 6 x 6 cells of the upper face, and of the hair above it; the
        Euclidean distance of two descriptors is the root mean square colour difference.

    Raises
    ------
    InvalidArgument
        ``frame`` is no picture, or the box leaves it.
    """
    frames = np.asarray(frame)[None]
    check_frames(frames, "frame")
    check_box(face_box, frame.shape, "face_box")
    stay = np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    return np.asarray(_describe(frames, stay, face_box)[0], np.float32)


def identity_distances(
    frames: NDArray[np.uint8], reference: NDArray[np.uint8], face_box: Box
) -> NDArray[np.float64]:
    """Measure how far the face of every frame is from that of a portrait.

    Parameters
    ----------
    frames : ndarray, shape (F, H, W, 3), uint8
        A clip.
    reference : ndarray, shape (H, W, 3), uint8
        The portrait, of the clip's size.
    face_box : tuple of int
        Left, top, right, bottom of the visible skin of the face in the portrait.

    Returns
    -------
    ndarray, shape (F,), float64
        Root mean square CIE Lab differences after the face is brought to the portrait's place.

    Raises
    ------
    InvalidArgument
        Shapes differ, or the box leaves the picture.
    """
    check_frames(frames)
    goal = identity_descriptor(reference, face_box)
    left, top, right, bottom = face_box
    still = (left, top, right, top + max(8, round(_STILL_SHARE * (bottom - top))))
    tracks = follow(frames, still, reference=reference)
    found = _describe(frames, tracks, face_box)
    return np.asarray(np.linalg.norm(found - goal, axis=1), np.float64)


def drift(
    distances: NDArray[np.floating], times_s: NDArray[np.floating], mean_between: float
) -> Drift:
    """Fit a line to distances over time; means of one second count as one observation.

    Parameters
    ----------
    distances : ndarray, shape (F,), floating
        From `identity_distances`.
    times_s : ndarray, shape (F,), floating
        When the frames are shown, ascending, over more than 3 seconds.
    mean_between : float, > 0
        Mean distance between the descriptors of two people.

    Returns
    -------
    Drift
        Slope, the upper end of its 95 % interval, and what that is after a minute.

    Raises
    ------
    InvalidArgument
        Shapes differ, values are not finite, or the clip is under 4 seconds.
    """
    values, times = np.asarray(distances, np.float64), np.asarray(times_s, np.float64)
    if values.ndim != 1 or values.shape != times.shape or not np.isfinite(values).all():
        raise InvalidArgument("distances", expected=f"finite, {times.shape}", got=values.shape)
    if not mean_between > 0:
        raise InvalidArgument("mean_between", expected="> 0", got=mean_between)
    block = ((times - times.min(initial=0.0)) / _BLOCK_S).astype(np.int64)
    _, member = np.unique(block, return_inverse=True)
    count = np.bincount(member)
    if len(count) < 4:
        raise InvalidArgument("times_s", expected="4 seconds or more", got=f"{len(count)} seconds")
    x = np.bincount(member, times) / count
    y = np.bincount(member, values) / count
    from_mean = x - x.mean()
    spread = float(np.square(from_mean).sum())
    slope = float(from_mean @ y) / spread
    residual = y - y.mean() - slope * from_mean
    freedom = len(x) - 2
    error = float(np.sqrt(np.square(residual).sum() / freedom / spread))
    # 1.96 + 2.5 / freedom is Student's quantile to 1 % beyond the table.
    quantile = _STUDENT[freedom - 2] if freedom <= 10 else 1.96 + 2.5 / freedom
    upper = abs(slope) + quantile * error
    return Drift(slope, upper, upper * 60 / mean_between)
