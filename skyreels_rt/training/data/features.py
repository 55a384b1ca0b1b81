"""The parts of a face that move in every frame: eyes with lids and brows, and the mouth.

They are drawn into patches of the head's layer, at fixed texels, so that a chunk of frames is one
batch. Legend: N frames, H W texels of a patch, RGB in 0 to 255; parameters have shape (N, 1, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from skyreels_rt.training.data.identity import EYE_COLORS, Identity, skin_color
from skyreels_rt.training.data.painting import Layer, light_direction, mixed, strands
from skyreels_rt.training.data.portrait import MOUTH_V, brow_color, shadow_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[np.float32]

# Geometry in head units, set by eye; the opening is the height between the lips at their middle.
EYE_HALF_WIDTH, EYE_HALF_HEIGHT = 0.168, 0.088
MAX_OPENING, UPPER_SHARE = 0.25, 0.22
MOUTH_BOX = (-0.50, MOUTH_V - 0.26, 0.50, MOUTH_V + 0.40)


@dataclass(frozen=True, eq=False)
class Patch:
    """A rectangle of the head's layer.

    Attributes
    ----------
    rows, cols : slice
        Texels of the layer.
    u, v : Tensor, shape (H, W), fp32
        Head coordinates.
    skin : Tensor, shape (3, H, W), fp32
        What is under the feature.
    light : Tensor, shape (H, W), fp32
        Brightness of the skin relative to its base colour.
    grain : Tensor, shape (H, W), fp32
        Strand texture, about [-1, 1], for brows.
    """

    rows: slice
    cols: slice
    u: Tensor
    v: Tensor
    skin: Tensor
    light: Tensor
    grain: Tensor


def cut_patch(identity: Identity, layer: Layer, box: tuple[float, float, float, float]) -> Patch:
    """Cut a rectangle out of the painted skin.

    Parameters
    ----------
    identity : Identity
        Whose skin.
    layer : Layer
        The head without eyes, brows and mouth.
    box : tuple of float
        Left, top, right, bottom in head units. The width becomes a multiple of 8 texels, so that
        vectorised arithmetic has no tail that rounds differently.

    Returns
    -------
    Patch
        Copies; the layer stays as it is.
    """
    left = int((box[0] - layer.left) * layer.density)
    top = int((box[1] - layer.top) * layer.density)
    width = -(-int((box[2] - box[0]) * layer.density + 1) // 8) * 8
    height = int((box[3] - box[1]) * layer.density) + 1
    rows, cols = slice(top, top + height), slice(left, left + width)
    skin = np.ascontiguousarray(layer.color[:, rows, cols])
    base = float(np.mean(skin_color(identity)))
    u, v = np.ascontiguousarray(layer.u[rows, cols]), np.ascontiguousarray(layer.v[rows, cols])
    grain = strands(u - 0.7 * v, v, identity.detail_seed + 2, (67, 101, 149))
    return Patch(
        rows,
        cols,
        torch.from_numpy(u),
        torch.from_numpy(v),
        torch.from_numpy(skin),
        torch.from_numpy(np.clip(skin.mean(0) / base, 0.45, 1.25)),
        torch.from_numpy(grain),
    )


def eye_box(identity: Identity, side: int) -> tuple[float, float, float, float]:
    """Rectangle that an eye and its brow stay in.

    Parameters
    ----------
    identity : Identity
        Whose eye.
    side : int
        -1 for the eye on the left of the frame, 1 for the other.

    Returns
    -------
    tuple of float
        Left, top, right, bottom in head units.
    """
    center = side * identity.eye_spacing
    reach = 1.45 * EYE_HALF_WIDTH * identity.eye_size
    # The two boxes do not meet at the middle line.
    inner = min(reach, identity.eye_spacing - 0.02)
    left, right = (reach, inner) if side < 0 else (inner, reach)
    return center - left, identity.eye_height - 0.44, center + right, identity.eye_height + 0.16


def _color(values: Array | tuple[float, float, float]) -> Tensor:
    return torch.tensor(np.asarray(values, np.float32).reshape(3, 1, 1).copy())


def _cover(distance: Tensor, texels: float) -> Tensor:
    """Antialiased coverage from a signed distance in head units, positive inside."""
    return distance.mul(texels / 1.3).add_(0.5).clamp_(0.0, 1.0)


def _lay(canvas: Tensor, color: Tensor, alpha: Tensor) -> None:
    """Lay a colour (3, ...) over the canvas (N, 3, H, W) with opacity alpha (N, H, W) or (H, W)."""
    canvas.lerp_(color, alpha.unsqueeze(-3))


def draw_eye(
    identity: Identity, patch: Patch, side: int, density: float, pose: Mapping[str, Tensor]
) -> Tensor:
    """Draw one eye with its lids and brow over the skin.

    Parameters
    ----------
    identity : Identity
        Whose eye.
    patch : Patch
        From `cut_patch` with `eye_box`.
    side : int
        -1 for the eye on the left of the frame, 1 for the other.
    density : float
        Texels per head unit.
    pose : mapping of str to Tensor, shape (N, 1, 1), fp32
        ``blink``, ``brow``, ``gaze_x``, ``gaze_y``, ``smile`` as in `motion.Motion`.

    Returns
    -------
    Tensor, shape (N, 3, H, W), fp32
        RGB of the patch.
    """
    num_frames = len(pose["blink"])
    canvas = patch.skin.expand(num_frames, -1, -1, -1).clone()
    half_u, half_v = EYE_HALF_WIDTH * identity.eye_size, EYE_HALF_HEIGHT * identity.eye_size
    du, dv = patch.u - side * identity.eye_spacing, patch.v - identity.eye_height
    # x runs from the inner corner (-1) to the outer one (1), whichever eye it is.
    x = side * du / half_u
    y = dv + identity.eye_tilt * side * du
    arc = (1 - x * x).clamp_min(0.0)
    skew = 1 + 0.16 * x
    upper_open = -half_v * (0.25 * arc + 0.75 * arc.sqrt()) / skew
    lower = half_v * 0.50 * arc * (1 + 0.1 * x)
    smile, blink = pose["smile"], pose["blink"]
    lower = lower * (1 - 0.35 * smile)
    widen = 1 + 0.12 * pose["brow"].clamp_min(0.0)
    resting = upper_open * widen
    upper = resting + (lower - 0.004 - resting) * blink
    inside = torch.minimum(y - upper, lower - y)
    # Beyond the corners both lids lie on one line, whose soft edges would draw it.
    inside = torch.minimum(inside, (1 - x.abs()) * half_u)
    _draw_eyeball(identity, patch, canvas, (du, y, inside, y - upper), density, pose)
    _draw_lids(identity, canvas, (x, y, upper, lower, resting), density, pose)
    _draw_brow(identity, patch, canvas, (x, dv), density, pose)
    return canvas


def _draw_eyeball(
    identity: Identity,
    patch: Patch,
    canvas: Tensor,
    shape: tuple[Tensor, Tensor, Tensor, Tensor],
    density: float,
    pose: Mapping[str, Tensor],
) -> None:
    du, y, inside, below_lid = shape
    size = identity.eye_size
    visible = _cover(inside, density)
    ball = torch.tensor([238.0, 234.0, 230.0]).reshape(3, 1, 1) * (0.45 + 0.55 * patch.light)
    # The upper lid's shadow and the roundness of the ball.
    shade = (1 - below_lid.clamp(0, 0.05) * 20).clamp(0, 1) * 0.42 + 5.5 * du * du
    white = ball * (1 - shade.clamp(0, 0.6)).unsqueeze(1)
    radius = 0.083 * size
    gu, gv = du - 0.062 * size * pose["gaze_x"], y + 0.008 - 0.040 * size * pose["gaze_y"]
    distance = (gu * gu + gv * gv).sqrt()
    iris = _color(EYE_COLORS[identity.eye_color])
    # Lighter opposite the light, a dark ring at the rim, rays towards the pupil.
    lu, lv, _ = light_direction(identity.light_angle)
    glow = 1.0 - (gu * lu + gv * lv) * (4.2 / size) + 0.12 * patch.grain
    rim = 1 - 0.62 * ((distance / radius - 0.74) * 4).clamp(0, 1)
    tone = iris * (glow * rim).clamp(0.2, 1.7).unsqueeze(1)
    tone *= (1 - 0.40 * (1 - below_lid.clamp(0, 0.05) * 20)).unsqueeze(1)
    white.lerp_(tone.clamp_(0, 255), _cover(radius - distance, density).unsqueeze(1))
    _lay(white, _color((12, 10, 12)), _cover(0.036 * size - distance, density))
    spot_u, spot_v = gu - 0.034 * size * np.sign(lu or 1.0), gv + 0.034 * size
    spot = _cover(0.019 * size - (spot_u * spot_u + spot_v * spot_v).sqrt(), density)
    _lay(white, _color((255, 255, 255)), 0.94 * spot)
    soft_u, soft_v = gu + 0.036 * size * np.sign(lu or 1.0), gv - 0.036 * size
    soft = _cover(0.010 * size - (soft_u * soft_u + soft_v * soft_v).sqrt(), density)
    _lay(white, _color((235, 240, 250)), 0.45 * soft)
    canvas.lerp_(white, visible.unsqueeze(1))


def _draw_lids(
    identity: Identity,
    canvas: Tensor,
    shape: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    density: float,
    pose: Mapping[str, Tensor],
) -> None:
    x, y, upper, lower, resting = shape
    skin = skin_color(identity)
    is_woman = identity.sex == "woman"
    within = ((1.0 - x.abs()) * 9).clamp(0, 1)
    # The lid that has come down over the ball: smooth skin, darker towards its edge.
    lid = _cover(torch.minimum(y - resting - 0.004, upper - y), density) * within
    _lay(canvas, _lid_color(identity), lid)
    near = ((1.06 - x.abs()) * 12).clamp(0, 1)
    thick = (0.0165 if is_woman else 0.0105) * identity.eye_size * (1 + 0.35 * x)
    lash = _cover(thick - (y - upper + 0.4 * thick).abs(), density) * near
    _lay(canvas, _color((34, 22, 20)), 0.92 * lash)
    if is_woman:
        # A wing of lashes beyond the outer corner.
        wing = 0.010 - (y - upper + 0.26 * (x - 0.86).clamp_min(0) * identity.eye_size).abs()
        tip = _cover(wing, density) * ((x - 0.80) * 10).clamp(0, 1) * ((1.22 - x) * 9).clamp(0, 1)
        _lay(canvas, _color((34, 22, 20)), 0.85 * tip)
    rim = _cover(0.006 - (y - lower - 0.003).abs(), density) * within
    _lay(canvas, _color(shadow_of(skin) * 0.72), 0.55 * rim)
    crease_at = resting - 0.030 - 0.022 * pose["brow"].clamp_min(-0.5) + 0.012 * pose["blink"]
    crease = _cover(0.007 - (y - crease_at).abs(), density) * within
    _lay(canvas, _color(shadow_of(skin) * 0.85), 0.60 * crease)


def _lid_color(identity: Identity) -> Tensor:
    skin = skin_color(identity)
    lid = mixed(skin, shadow_of(skin).ravel(), 0.30)
    makeup = 0.16 if identity.sex == "woman" else 0.0
    return _color(mixed(lid.ravel(), (168, 92, 104), makeup))


def _draw_brow(
    identity: Identity,
    patch: Patch,
    canvas: Tensor,
    shape: tuple[Tensor, Tensor],
    density: float,
    pose: Mapping[str, Tensor],
) -> None:
    x, y = shape
    size = identity.eye_size
    rise = 0.075 * pose["brow"]
    along = ((x + 1.15) / 2.35).clamp(0, 1)
    arch = identity.brow_arch * (1 - 0.55 * (x - 0.30) * (x - 0.30))
    middle = -0.205 * size - arch + identity.brow_tilt * -x - rise
    thick = 0.030 * identity.brow_thickness * (1 - 0.72 * along * along)
    edge = 0.004 * patch.grain
    cover = _cover(thick + edge - (y - middle).abs(), density * 0.7)
    ends = ((x + 1.12) * 5).clamp(0, 1) * ((1.22 - x) * 6).clamp(0, 1)
    alpha = cover * ends * (0.80 + 0.14 * patch.grain)
    _lay(canvas, _color(brow_color(identity)), alpha.clamp(0, 1))


def draw_mouth(
    identity: Identity, patch: Patch, density: float, pose: Mapping[str, Tensor]
) -> Tensor:
    """Draw lips and the inside of the mouth over the skin.

    Parameters
    ----------
    identity : Identity
        Whose mouth.
    patch : Patch
        From `cut_patch` with `MOUTH_BOX`.
    density : float
        Texels per head unit.
    pose : mapping of str to Tensor, shape (N, 1, 1), fp32
        ``gap`` (height between the lips at their middle, head units, before the jaw's stretch),
        ``width``, ``rounding``, ``teeth``, ``tongue``, ``smile`` in [0, 1].

    Returns
    -------
    Tensor, shape (N, 3, H, W), fp32
        RGB of the patch.
    """
    gap, rounding, smile = pose["gap"], pose["rounding"], pose["smile"]
    canvas = patch.skin.expand(len(gap), -1, -1, -1).clone()
    opened = gap / MAX_OPENING
    half = 0.285 * identity.mouth_width * (0.80 + 0.36 * pose["width"]) * (1 - 0.40 * rounding)
    half = half * (1 + 0.10 * smile) * (1 - 0.06 * opened)
    x = patch.u / half
    square = x * x
    arc = (1 - square).clamp_min(0.0)
    root = arc.sqrt()
    # Corners of a smile go up, of an open mouth slightly down.
    lift = mouth_lift(smile, rounding)
    seam = MOUTH_V + 0.010 - lift * (square.clamp_max(1.6) - 0.25)
    inner_x = (patch.u / (0.90 * half)) ** 2
    inner = (1 - inner_x).clamp_min(0.0)
    profile = inner + (inner.sqrt() - inner) * (0.35 + 0.5 * rounding)
    inner_top = seam - UPPER_SHARE * gap * profile
    inner_low = seam + (1 - UPPER_SHARE) * gap * profile
    full = 0.056 * identity.lip_fullness * (1 + 0.30 * rounding - 0.16 * smile - 0.12 * opened)
    dip = (1 - (x / 0.30) ** 2).clamp_min(0.0)
    outer_top = inner_top - full * (0.30 * root + 0.85 * arc - 0.26 * dip * dip)
    outer_low = inner_low + 1.22 * full * (0.35 * root + 0.65 * arc)
    y = patch.v
    ends = (1 - x.abs()) * half
    lips = _cover(torch.minimum(torch.minimum(y - outer_top, outer_low - y), ends), density)
    _draw_lips(identity, patch, canvas, (x, seam, outer_top, outer_low, full, lips), density)
    mouth = (y, patch.u / half, inner_top, inner_low, gap)
    inside = _draw_inside(mouth, density, pose)
    hole = _cover(torch.minimum(y - inner_top, inner_low - y), density)
    # A closed mouth has no hole: the ramp of the coverage would leave half a texel of it.
    hole = hole * (gap * density).clamp(0, 1) * (inner_x < 1)
    canvas.lerp_(inside, hole.unsqueeze(1))
    line = _cover(0.0075 - torch.minimum((y - inner_top).abs(), (y - inner_low).abs()), density)
    line = line * ((1.03 - x.abs()) * 14).clamp(0, 1)
    _lay(canvas, _color((66, 22, 24)), 0.62 * line)
    corner = 0.022 - ((x.abs() - 1.0) * half).abs() - (y - seam).abs()
    _lay(canvas, _color(shadow_of(skin_color(identity)) * 0.75), 0.55 * _cover(corner, density / 4))
    return canvas


def mouth_lift(smile: Tensor, rounding: Tensor) -> Tensor:
    """Height of the corners of the mouth over its middle.

    Parameters
    ----------
    smile, rounding : Tensor, any shape, fp32 in [0, 1]
        As in `draw_mouth`.

    Returns
    -------
    Tensor, shape of the arguments, fp32
        Head units; a quarter of it lowers the middle of the seam.
    """
    return (0.012 + 0.068 * smile) * (1 - 0.5 * rounding)


def _lip_color(identity: Identity) -> Array:
    skin = skin_color(identity)
    natural = mixed(skin, (176, 74, 76), 0.44)
    return mixed(natural.ravel(), (186, 36, 52), 0.55 * identity.lip_red)


def _draw_lips(
    identity: Identity,
    patch: Patch,
    canvas: Tensor,
    shape: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    density: float,
) -> None:
    x, seam, outer_top, outer_low, full, lips = shape
    y = patch.v
    color = _color(_lip_color(identity))
    is_upper = _cover(seam - y, density * 0.5)
    fine = 0.04 * patch.grain
    tone = (0.62 + 0.40 * patch.light) * (1.06 - 0.26 * is_upper + fine)
    shaded = color * tone.clamp(0.3, 1.3).unsqueeze(1)
    # A soft highlight on the lower lip, a thin one along the upper lip's edge.
    center = outer_low - 0.62 * full
    gloss = (1 - ((y - center) / (0.45 * full)) ** 2).clamp_min(0) * (
        1 - (x / 0.55) ** 2
    ).clamp_min(0)
    shaded.lerp_(_color((255, 226, 220)), (0.40 * gloss).clamp(0, 1).unsqueeze(1))
    edge = (1 - ((y - outer_top) / (0.35 * full)) ** 2).clamp_min(0) * (1 - x * x).clamp_min(0)
    shaded.lerp_(_color((255, 220, 210)), (0.12 * edge).clamp(0, 1).unsqueeze(1))
    canvas.lerp_(shaded.clamp_(0, 255), lips.unsqueeze(1))


def _draw_inside(
    shape: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    density: float,
    pose: Mapping[str, Tensor],
) -> Tensor:
    y, x, top, low, gap = shape
    depth = ((y - top) / gap.clamp_min(1e-3)).clamp(0, 1)
    cavity = _color((44, 10, 14)) + _color((34, 10, 10)) * depth.unsqueeze(1)
    # The tongue lies on the lower lip's side and rises with its parameter.
    rise = (0.15 + 0.75 * pose["tongue"]) * (1 - UPPER_SHARE) * gap * 0.72
    hump = low - rise * (1 - (x / 0.72) ** 2).clamp_min(0)
    groove = 1 - 0.18 * (1 - (x / 0.07) ** 2).clamp_min(0)
    flesh = _color((196, 88, 92)) * ((0.70 + 0.35 * (1 - depth)) * groove).unsqueeze(1)
    seen = _cover(y - hump, density * 0.8) * (pose["tongue"] * 4).clamp(0, 1)
    cavity.lerp_(flesh, (0.92 * seen).unsqueeze(1))
    round_x = (1 - 0.16 * (x / 0.8) ** 2).clamp(0.3, 1)
    white = torch.tensor([240.0, 234.0, 222.0]).reshape(3, 1, 1)
    # Gaps between the teeth: a thin darker line every tooth, wider teeth in the middle.
    phase = x * (3.4 - 0.7 * x.abs())
    gapline = ((phase - phase.round()).abs() - 0.5).abs().neg().add(0.055).clamp_min(0) * 3.2
    tone = (round_x - gapline).clamp(0, 1) * (1 - 0.28 * (1 - (y - top).clamp(0, 0.04) * 25))
    upper = 0.078 * pose["teeth"] * (1 - 0.55 * x * x).clamp_min(0)
    band = _cover(torch.minimum(top + upper - y, 0.80 - x.abs()), density)
    lower = 0.030 * pose["teeth"] * (1 - 0.9 * x * x).clamp_min(0)
    below = _cover(torch.minimum(y - low + lower, 0.66 - x.abs()), density) * 0.75
    shown = (pose["teeth"] * 6).clamp(0, 1)
    cavity.lerp_(white * (0.72 * tone).unsqueeze(1), (below * shown).unsqueeze(1))
    cavity.lerp_(white * tone.unsqueeze(1), (band * shown).unsqueeze(1))
    return cavity
