"""Draws a talking portrait: an identity, a motion and a mouth become frames with ground truth.

The head is painted once, on a texture in head units. In every frame eyes, brows and mouth are drawn
into it, and one warp brings it to the frame: rigid motion, a shift that grows with depth (yaw and
pitch: the middle of the face moves more than its outline, the nose most) and the jaw, which pulls
the lower face down. A second layer holds neck, shoulders and the hair behind them; it follows the
head at its top and hardly at the shoulders. Warps are evaluated on every fourth pixel and
interpolated; masks are evaluated on the interpolated coordinates, so they are exact.

Legend: F frames, N frames of a chunk, S pixels per side, H W pixels of a region.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.training.data import features, hair, portrait
from skyreels_rt.training.data.mouth import MouthShape
from skyreels_rt.training.data.painting import Layer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from skyreels_rt.training.data.identity import Identity
    from skyreels_rt.training.data.motion import Motion

# Texels per pixel: enough that the bilinear lookup does not soften edges visibly.
_HEAD_TEXELS, _BODY_TEXELS = 1.35, 1.15
_CHUNK = 8  # frames drawn together: amortises call overhead while a chunk stays in the cache
_STEP = 4  # pixels between warp nodes
_PIVOT_V = 0.95  # the head tilts about the top of the neck
_JAW_DROP = 0.11  # how far the chin goes down when the mouth is open at most, head units
_JAW_TOP, _JAW_FULL, _JAW_WIDE = 0.47, 0.98, 0.88
_SIZES = (32, 1024)


@dataclass(frozen=True, eq=False)
class RenderedClip:
    """A drawn clip and what is known about it.

    Attributes
    ----------
    frames : ndarray, shape (F, S, S, 3), uint8
        RGB.
    face_mask : ndarray, shape (F, S, S), bool
        Visible skin of the face with eyes and mouth, without hair and ears.
    mouth_mask : ndarray, shape (F, S, S), bool
        Lips and what is between them, with a margin.
    jaw_mask : ndarray, shape (F, S, S), bool
        Everything that the mouth can change: the mouth's surroundings and the lower face.
    eye_mask : ndarray, shape (F, S, S), bool
        Both eyes with lids and lashes.
    opening_px : ndarray, shape (F,), float32
        Distance between the lips at the middle of the mouth, along the head's axis, in pixels.
    """

    frames: NDArray[np.uint8]
    face_mask: NDArray[np.bool_]
    mouth_mask: NDArray[np.bool_]
    jaw_mask: NDArray[np.bool_]
    eye_mask: NDArray[np.bool_]
    opening_px: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Scene:
    """What is painted once for an identity at a size.

    Attributes
    ----------
    background : Tensor, shape (3, S, S)
        RGB.
    body, head : Tensor, shape (C, H, W)
        Premultiplied RGB and alpha; the head has a fifth channel, the visible face.
    body_origin, head_origin : tuple of float
        Left, top and texels per head unit.
    patches : tuple of (Patch, over, keep)
        Left eye, right eye, mouth: with the colour of what lies over it (hair, glasses) and the
        share of it that stays visible.
    extent : tuple of float
        Left, top, right, bottom of the head's opaque part.
    """

    background: Tensor
    body: Tensor
    head: Tensor
    body_origin: tuple[float, float, float]
    head_origin: tuple[float, float, float]
    patches: tuple[tuple[features.Patch, Tensor, Tensor], ...]
    extent: tuple[float, float, float, float]


def _paint_body(identity: Identity, size: int) -> Layer:
    scale, margin = identity.head_scale, 0.4
    layer = Layer(
        -identity.head_x / scale - margin,
        -1.75,
        (1 - identity.head_x) / scale + margin,
        (1 - identity.head_y) / scale + margin,
        _BODY_TEXELS * scale * size,
    )
    hair.paint_back_hair(identity, layer)
    portrait.paint_torso(identity, layer)
    hair.paint_front_locks(identity, layer)
    return layer


@lru_cache(maxsize=4)
def _paint_scene(identity: Identity, size: int) -> _Scene:
    """Paint the still parts; cached because an identity usually speaks more than one clip."""
    density = _HEAD_TEXELS * identity.head_scale * size
    corners = (-1.3, -1.7, 1.3, 1.35, density)
    skin, over = Layer(*corners), Layer(*corners)
    face = portrait.paint_face(identity, skin)
    hair.shade_under_hair(identity, skin, face)
    hair.paint_beard(identity, skin)
    portrait.glasses_layer(identity, over)
    hair.paint_front_hair(identity, over)
    keep = 1 - over.alpha
    head = np.concatenate(
        [skin.color * keep + over.color, [skin.alpha * keep + over.alpha], [face * keep]]
    )
    boxes = (
        features.eye_box(identity, -1), features.eye_box(identity, 1), features.MOUTH_BOX,
    )  # fmt: skip
    patches = []
    for box in boxes:
        patch = features.cut_patch(identity, skin, box)
        region = (patch.rows, patch.cols)
        patches.append(
            (patch, torch.from_numpy(over.color[:, *region].copy()),
             torch.from_numpy(keep[region] * (skin.alpha[region] > 0)))
        )  # fmt: skip
    rows, cols = np.nonzero(head[3] > 0)
    extent = (
        skin.left + cols.min() / density,
        skin.top + rows.min() / density,
        skin.left + (cols.max() + 1) / density,
        skin.top + (rows.max() + 1) / density,
    )
    body = _paint_body(identity, size)
    return _Scene(
        background=torch.from_numpy(portrait.paint_background(identity, size)),
        body=torch.from_numpy(np.concatenate([body.color, body.alpha[None]])),
        head=torch.from_numpy(head.astype(np.float32)),
        body_origin=(body.left, body.top, body.density),
        head_origin=(skin.left, skin.top, density),
        patches=tuple(patches),
        extent=extent,
    )


def _smoothstep(low: float, high: float, values: Tensor) -> Tensor:
    t = ((values - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _rigid(u: Tensor, v: Tensor, pose: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Bring places in the frame (head units) back to the head at rest."""
    x, y = u - pose["shift_x"], v - pose["shift_y"] - _PIVOT_V
    zoom = 1 + pose["zoom"]
    cos, sin = pose["cos_roll"] / zoom, pose["sin_roll"] / zoom
    return cos * x + sin * y, cos * y - sin * x + _PIVOT_V


def _bend(u: Tensor, v: Tensor, pose: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Undo yaw, pitch and jaw: from the upright head to the texture; also the jaw's weight."""
    depth = (1 - u * u - (v * v) * 0.62).clamp_min(0)
    nose = (1 - u * u * 11 - (v - 0.14) * (v - 0.14) * 7).clamp_min(0)
    relief = 0.07 + 0.27 * depth + 0.12 * nose * nose
    u = u - pose["sin_yaw"] * relief
    # A turned head is narrower on the side it turns to.
    u = u * (1 + 0.10 * pose["sin_yaw"] * u)
    v = v - pose["sin_pitch"] * 0.85 * relief
    weight = _smoothstep(_JAW_TOP, _JAW_FULL, v) * _smoothstep(_JAW_WIDE, 0.5, u.abs())
    weight = weight * _smoothstep(1.44, 1.2, v)
    return u, v - _JAW_DROP * pose["opening"] * weight, weight


def _nodes(identity: Identity, size: int, box: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """Head units of every fourth pixel of a box (left, top, right, bottom, multiples of 4)."""
    scale = identity.head_scale * size
    xs = torch.arange(box[0], box[2] + _STEP, _STEP, dtype=torch.float32)
    ys = torch.arange(box[1], box[3] + _STEP, _STEP, dtype=torch.float32)
    u = (xs + 0.5 - identity.head_x * size) / scale
    v = (ys + 0.5 - identity.head_y * size) / scale
    return u.reshape(1, 1, -1), v.reshape(1, -1, 1)


def _between_nodes(values: Tensor, box: tuple[int, int, int, int], size: int) -> Tensor:
    """Interpolate node values (N, C, h, w) to the pixels of the box that are in the frame.

    Written with plain arithmetic: the library's resampling rounds differently at the ends of its
    vector loops, so that its bytes depend on the number of threads.
    """
    phase = torch.arange(_STEP, dtype=torch.float32) / _STEP
    left, right = values[..., :-1, None], values[..., 1:, None]
    wide = (left + (right - left) * phase).flatten(-2)
    upper, lower = wide[..., :-1, None, :], wide[..., 1:, None, :]
    full = (upper + (lower - upper) * phase.reshape(-1, 1)).flatten(-3, -2)
    return full[:, :, : min(box[3], size) - box[1], : min(box[2], size) - box[0]]


def _look_up(texture: Tensor, places: Tensor, origin: tuple[float, float, float]) -> Tensor:
    """Bilinear lookup of a texture (N, C, H, W) at head units (N, 2, h, w); 0 outside."""
    left, top, density = origin
    height, width = texture.shape[-2:]
    grid = torch.stack(
        [
            (places[:, 0] - left) * (2 * density / width) - 1,
            (places[:, 1] - top) * (2 * density / height) - 1,
        ],
        dim=-1,
    )
    return F.grid_sample(texture, grid, mode="bilinear", align_corners=False)


def _head_box(identity: Identity, motion: Motion, scene: _Scene, size: int) -> tuple[int, ...]:
    """Pixels the head may touch over the clip, on the lattice of warp nodes, inside the frame."""
    roll = float(np.abs(np.sin(motion.roll)).max())
    tilt = 2.7 * roll + 1.4 * float(np.abs(motion.zoom).max()) * 1.3 + 0.06
    reach_u = float(np.abs(motion.shift_x).max() + 0.62 * np.abs(np.sin(motion.yaw)).max()) + tilt
    reach_v = float(np.abs(motion.shift_y).max() + 0.50 * np.abs(np.sin(motion.pitch)).max()) + tilt
    scale, left, top = identity.head_scale * size, identity.head_x * size, identity.head_y * size
    low = ((scene.extent[0] - reach_u) * scale + left, (scene.extent[1] - reach_v) * scale + top)
    high = (
        (scene.extent[2] + reach_u) * scale + left,
        (scene.extent[3] + reach_v + _JAW_DROP) * scale + top,
    )
    box = [max(0, int(value) // _STEP * _STEP) for value in low]
    last = -(-size // _STEP) * _STEP
    box += [min(last, -(-int(np.ceil(value)) // _STEP) * _STEP) for value in high]
    return tuple(box)


def _pose(motion: Motion, mouth: MouthShape) -> dict[str, Tensor]:
    """Every parameter of the clip as (F, 1, 1) tensors, angles as sines and cosines."""
    values = {field.name: getattr(motion, field.name) for field in fields(motion)}
    for angle in ("yaw", "pitch", "roll"):
        values[f"sin_{angle}"] = np.sin(values[angle].astype(np.float64))
    values["cos_roll"] = np.cos(motion.roll.astype(np.float64))
    values |= {field.name: getattr(mouth, field.name) for field in fields(mouth)}
    values["gap"] = np.asarray(mouth.opening, np.float64) * features.MAX_OPENING
    return {
        name: torch.from_numpy(np.asarray(value, np.float32).copy()).reshape(-1, 1, 1)
        for name, value in values.items()
    }


def _draw_head(identity: Identity, scene: _Scene, pose: dict[str, Tensor]) -> Tensor:
    """Draw eyes, brows and mouth into copies of the head: (N, 5, H, W)."""
    head = scene.head.expand(len(pose["gap"]), -1, -1, -1).clone()
    density = scene.head_origin[2]
    left, right, lips = scene.patches
    for (patch, over, keep), colors in (
        (left, features.draw_eye(identity, left[0], -1, density, pose)),
        (right, features.draw_eye(identity, right[0], 1, density, pose)),
        (lips, features.draw_mouth(identity, lips[0], density, pose)),
    ):
        head[:, :3, patch.rows, patch.cols] = colors.mul_(keep).add_(over)
    return head


def _masks(
    identity: Identity, places: Tensor, pose: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Mouth, jaw and eye masks (N, h, w) from texture coordinates and jaw weight (N, 3, h, w)."""
    u, v, jaw = places[:, 0], places[:, 1], places[:, 2]
    low = portrait.MOUTH_V - 0.16
    half = 0.5 * (0.36 + 0.80 * pose["gap"])
    mouth = (u * (1 / 0.46)).square() + ((v - low - half) / half).square() < 1
    box = features.MOUTH_BOX
    near = (u.abs() < box[2] + 0.05) & (v > box[1] - 0.05) & (v < box[3] + 0.05)
    half_u = 1.32 * features.EYE_HALF_WIDTH * identity.eye_size
    half_v = 1.8 * features.EYE_HALF_HEIGHT * identity.eye_size
    across = (u.abs() - identity.eye_spacing) / half_u
    down = (v - identity.eye_height + 0.02) / half_v
    # Fourth powers: lids and lashes reach into the corners, where an ellipse would cut them.
    eyes = across.square().square() + down.square().square() < 1
    return mouth, (jaw > 0) | near, eyes


def _opening_px(
    identity: Identity, motion: Motion, pose: dict[str, Tensor], size: int
) -> NDArray[np.float32]:
    """Gap between the lips as the warp shows it: the texture's gap seen through yaw, pitch, jaw."""
    lift = features.mouth_lift(pose["smile"], pose["rounding"])
    seam = (portrait.MOUTH_V + 0.010 + 0.25 * lift).reshape(-1).numpy()
    gap = pose["gap"].reshape(-1).numpy()
    v = torch.linspace(0.0, 1.4, 561).reshape(1, -1, 1)
    u = torch.zeros_like(pose["gap"])
    for _ in range(3):
        u = u - _bend(u, torch.full_like(u, portrait.MOUTH_V), pose)[0]
    seen = _bend(u.expand(-1, v.shape[1], -1), v, pose)[1][..., 0].numpy()
    column = v.reshape(-1).numpy()
    span = np.empty(len(gap))
    for index, line in enumerate(seen):
        top = seam[index] - features.UPPER_SHARE * gap[index]
        ends = np.interp([top, top + gap[index]], line, column)
        span[index] = ends[1] - ends[0]
    return np.asarray(span * (1 + motion.zoom) * identity.head_scale * size, np.float32)


def _check(motion: Motion, mouth: MouthShape, size: int) -> None:
    whole = isinstance(size, int | np.integer) and not isinstance(size, bool)
    if not whole or not _SIZES[0] <= size <= _SIZES[1]:
        raise InvalidArgument("size", expected=f"{_SIZES[0]} to {_SIZES[1]} pixels", got=repr(size))
    num_frames = motion.num_frames
    if num_frames < 1:
        raise InvalidArgument("motion", expected="at least one frame", got=num_frames)
    for name, part in (("motion", motion), ("mouth", mouth)):
        for field in fields(part):
            values = np.asarray(getattr(part, field.name))
            where = f"{name}.{field.name}"
            if values.shape != (num_frames,):
                raise InvalidArgument(where, expected=f"shape ({num_frames},)", got=values.shape)
            if not np.isfinite(values).all():
                raise InvalidArgument(where, expected="finite values", got="NaN or infinity")
            if name == "mouth" and (values.min() < 0 or values.max() > 1):
                got = f"{values.min():.3g} to {values.max():.3g}"
                raise InvalidArgument(where, expected="values in [0, 1]", got=got)


def render(identity: Identity, motion: Motion, mouth: MouthShape, size: int) -> RenderedClip:
    """Draw a clip on the CPU.

    Parameters
    ----------
    identity : Identity
        Who is drawn.
    motion : Motion
        F frames of head motion, blinks, brows, gaze and smile.
    mouth : MouthShape
        F frames of mouth shape.
    size : int, 32 to 1024
        Pixels per side S.

    Returns
    -------
    RenderedClip
        Frames and ground truth. The same arguments give the same bytes; a frame's bytes depend
        neither on the other frames of the clip nor on the number of threads.

    Raises
    ------
    InvalidArgument
        ``size`` is out of range, lengths differ, or a value is not finite or outside [0, 1].
    """
    _check(motion, mouth, size)
    scene = _paint_scene(identity, size)
    pose = _pose(motion, mouth)
    num_frames = motion.num_frames
    frames = torch.empty(num_frames, size, size, 3, dtype=torch.uint8)
    masks = torch.zeros(4, num_frames, size, size, dtype=torch.bool)
    last = -(-size // _STEP) * _STEP
    whole = (0, 0, last, last)
    left, top, right, bottom = _head_box(identity, motion, scene, size)
    box = (left, top, right, bottom)
    region = (slice(top, min(bottom, size)), slice(left, min(right, size)))
    body_nodes, head_nodes = _nodes(identity, size, whole), _nodes(identity, size, box)
    follow = 0.15 + 0.85 * _smoothstep(1.75, 0.75, body_nodes[1])
    with torch.inference_mode():
        for start in range(0, num_frames, _CHUNK):
            now = slice(start, start + _CHUNK)
            part = {name: values[now] for name, values in pose.items()}
            u, v = _rigid(*body_nodes, part)
            u = body_nodes[0] + follow * (u - body_nodes[0])
            v = body_nodes[1] + follow * (v - body_nodes[1])
            places = _between_nodes(torch.stack([u, v], dim=1), whole, size)
            count = len(part["gap"])
            body = _look_up(scene.body.expand(count, -1, -1, -1), places, scene.body_origin)
            canvas = torch.addcmul(body[:, :3], scene.background, 1 - body[:, 3:4])
            bent = _bend(*_rigid(*head_nodes, part), part)
            places = _between_nodes(torch.stack(bent, dim=1), box, size)
            head = _look_up(_draw_head(identity, scene, part), places[:, :2], scene.head_origin)
            behind = canvas[:, :, *region]
            behind.mul_(1 - head[:, 3:4]).add_(head[:, :3])
            canvas.add_(0.5).clamp_(0, 255)
            frames[now] = canvas.permute(0, 2, 3, 1)
            found = (head[:, 4] > 0.5, *_masks(identity, places, part))
            for index, mask in enumerate(found):
                masks[index, now, *region] = mask
    return RenderedClip(
        frames=frames.numpy(),
        face_mask=masks[0].numpy(),
        mouth_mask=masks[1].numpy(),
        jaw_mask=masks[2].numpy(),
        eye_mask=masks[3].numpy(),
        opening_px=_opening_px(identity, motion, pose, size),
    )
