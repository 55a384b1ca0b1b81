"""The parts of a portrait that hold still: background, body and the skin of the head.

Painted once per clip; eyes, brows and mouth are drawn over it in every frame (`features`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from skyreels_rt.training.data.identity import (
    BACKGROUND_COLORS,
    CLOTHING_COLORS,
    HAIR_COLORS,
    Identity,
    skin_color,
)
from skyreels_rt.training.data.painting import (
    Layer,
    bump,
    lambert,
    mixed,
    rgb,
    smoothstep,
    strands,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    AnyArray = NDArray[np.floating]

MOUTH_V = 0.53
# Styles whose hair hangs over the ears.
_EARS_HIDDEN = frozenset({"fringe", "bob", "long", "wavy", "curly", "afro"})


def nose_base(identity: Identity) -> float:
    """Height of the base of the nose.

    Parameters
    ----------
    identity : Identity
        Whose nose.

    Returns
    -------
    float
        v in head units.
    """
    return 0.26 + 0.22 * (identity.nose_length - 1.0)


def shadow_of(color: tuple[float, float, float] | AnyArray) -> Array:
    """Colour of skin in shadow: darker and warmer.

    Parameters
    ----------
    color : RGB
        Skin in the light.

    Returns
    -------
    ndarray, shape (3, 1, 1), float32
        Skin in the shadow.
    """
    return np.asarray(rgb(color) * rgb((0.66, 0.53, 0.50)), np.float32)


def face_outline(identity: Identity, layer: Layer) -> Array:
    """Implicit function of the face: negative inside, 0 on its outline.

    Parameters
    ----------
    identity : Identity
        Whose face.
    layer : Layer
        The grid.

    Returns
    -------
    ndarray, shape (H, W), float32
        The function.
    """
    u, v = np.abs(layer.u), layer.v
    taper = (0.36 - 0.17 * identity.jaw) * smoothstep(0.05, 1.0, v)
    across = u / (identity.face_width * (1.0 - taper))
    exponent = np.where(v > 0, 2.1 + 0.8 * identity.chin, 2.15)
    return np.asarray(across ** (2.15 + 0.5 * identity.jaw) + np.abs(v) ** exponent - 1, np.float32)


def paint_background(identity: Identity, size: int) -> Array:
    """Paint the background of the frame.

    Parameters
    ----------
    identity : Identity
        Kind and colour.
    size : int
        Pixels per side S.

    Returns
    -------
    ndarray, shape (3, S, S), float32 in [0, 255]
        RGB.
    """
    rng = np.random.default_rng([identity.detail_seed, 0xBAC])
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(axis, axis)
    bright = 1.04 - 0.16 * ((x - 0.5) ** 2 + (y - 0.45) ** 2)
    angle = rng.uniform(0, 2 * np.pi)
    if identity.background_kind == "gradient":
        bright += 0.22 * ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle))
    elif identity.background_kind == "shapes":
        for _ in range(7):
            cx, cy, radius = *rng.uniform(0.0, 1.0, 2), rng.uniform(0.08, 0.24)
            soft = rng.uniform(0.01, 0.06)
            distance = np.hypot(x - cx, y - cy) - radius
            step = smoothstep(soft, -soft, np.asarray(distance, np.float32))
            bright += rng.uniform(-0.10, 0.10) * step
    color = rgb(BACKGROUND_COLORS[identity.background_color])
    return np.clip(color * bright, 0, 255).astype(np.float32)


def _paint_neck(identity: Identity, layer: Layer) -> None:
    u, v = np.abs(layer.u), layer.v
    width = (0.40 if identity.sex == "man" else 0.335) * identity.face_width / 0.76
    edge = width + 0.04 * smoothstep(1.0, 0.6, v) + 0.55 * smoothstep(1.05, 1.62, v) ** 2
    neck = layer.coverage(np.maximum(u - edge, 0.3 - v))
    skin = skin_color(identity)
    layer.paint(skin, neck)
    dark = shadow_of(skin)
    side = np.clip(layer.u * -np.sign(identity.light_angle or 1.0) / width, -1, 1)
    round_off = smoothstep(0.45, 1.05, u / edge)
    layer.tint(dark, neck * np.clip(0.45 * round_off + 0.25 * identity.light_strength * side, 0, 1))
    # The head's own shadow on the neck, deeper in the middle.
    cast = smoothstep(1.40, 0.92, v + 0.25 * layer.u**2)
    layer.tint(mixed(dark.ravel(), (30, 14, 14), 0.12), neck * (0.28 + 0.6 * cast) * (cast > 0))
    tendon = bump(layer.u - 0.5 * (v - 1.2), v, (width * 0.55, 1.3), (0.035, 0.22))
    tendon += bump(layer.u + 0.5 * (v - 1.2), v, (-width * 0.55, 1.3), (0.035, 0.22))
    layer.tint(dark, neck * 0.16 * tendon)
    collarbone = bump(u, v - 0.10 * u, (0.30, 1.36), (0.26, 0.022))
    layer.tint(dark, neck * 0.30 * collarbone)


def _paint_clothes(identity: Identity, layer: Layer) -> None:
    u, v = np.abs(layer.u), layer.v
    wide = 1.0 if identity.sex == "man" else 0.86
    slope = 1.22 + 0.30 * (u / wide) ** 1.7 + 1.6 * smoothstep(1.25 * wide, 2.05 * wide, u)
    openings = {
        "round": (u / 0.50) ** 2.2 + (np.abs(v - 1.10) / 0.36) ** 2.2 - 1,
        "vee": u / 0.46 + np.clip(v - 1.07, -0.3, None) / 0.66 - 1,
        "collar": u / 0.40 + np.clip(v - 1.07, -0.3, None) / 0.42 - 1,
    }
    hole = np.asarray(openings[identity.neckline], np.float32)
    cloth = layer.coverage(np.asarray(slope - v, np.float32)) * (1 - layer.coverage(hole))
    color = np.asarray(CLOTHING_COLORS[identity.clothing_color], np.float32)
    layer.paint(color, cloth)
    light = lambert(layer.u / 1.9, (v - 2.3) / 1.35, identity.light_angle)
    folds = strands(layer.u + 0.5 * (v - 1.2) * np.sign(layer.u), 1.4 * v, identity.detail_seed,
                    (4.0, 7.0))  # fmt: skip
    lit = 0.72 + 0.42 * light + 0.05 * folds
    layer.color *= 1 + (lit - 1) * cloth
    # A hem of darker cloth round the opening, and a soft shadow inside it.
    hem = cloth * smoothstep(0.20, 0.02, hole)
    layer.tint(color * 0.72, 0.8 * hem * (hole > 0))
    skin = (1 - cloth) * smoothstep(-0.28, 0.0, hole) * (hole < 0) * smoothstep(1.02, 1.3, v)
    layer.color *= 1 - 0.22 * skin * layer.alpha
    if identity.neckline == "collar":
        wing = np.maximum(np.abs(u - 0.27 - 0.35 * (v - 1.17)) - 0.13, np.abs(v - 1.32) - 0.20)
        wing = np.maximum(wing, 1.12 - v + 0.25 * (u - 0.3))
        flap = layer.coverage(np.asarray(wing, np.float32))
        layer.tint(color * 0.55, layer.coverage(np.asarray(wing - 0.02, np.float32), 0.04) * 0.5)
        layer.paint(np.minimum(color * 1.12 + 8, 255), flap)


def paint_torso(identity: Identity, layer: Layer) -> None:
    """Paint neck, shoulders and clothes; hair behind them is already there.

    Parameters
    ----------
    identity : Identity
        Who is drawn.
    layer : Layer
        Painted in place.
    """
    _paint_neck(identity, layer)
    _paint_clothes(identity, layer)


def _paint_ears(identity: Identity, layer: Layer) -> None:
    skin, size = skin_color(identity), identity.ear_size
    dark = shadow_of(skin)
    center = identity.face_width - 0.005, identity.eye_height + 0.16
    u, v = np.abs(layer.u) - center[0], layer.v - center[1]
    tilted = u - 0.22 * -v
    shape = (tilted / (0.105 * size)) ** 2 + (v / (0.20 * size)) ** 2 - 1
    ear = layer.coverage(np.asarray(shape, np.float32))
    layer.paint(mixed(skin, (214, 92, 78), 0.10), ear)
    inner = ((tilted - 0.01) / (0.065 * size)) ** 2 + ((v + 0.01) / (0.14 * size)) ** 2 - 1
    layer.tint(dark, ear * 0.55 * layer.coverage(np.asarray(inner, np.float32), 0.05))
    fold = bump(tilted, v, (0.055 * size, -0.02), (0.018, 0.11 * size))
    layer.tint(mixed(skin, (255, 235, 220), 0.35), ear * 0.5 * fold)


def _paint_nose(identity: Identity, layer: Layer) -> None:
    u, v = layer.u, layer.v
    skin = skin_color(identity)
    dark, light = shadow_of(skin), mixed(skin, (255, 246, 236), 0.55)
    base, wide = nose_base(identity), identity.nose_width
    toward = float(np.sin(identity.light_angle))
    along = smoothstep(identity.eye_height - 0.10, identity.eye_height + 0.12, v) * smoothstep(
        base + 0.02, base - 0.12, v
    )
    flare = 0.062 + 0.05 * smoothstep(identity.eye_height, base, v) * wide
    for side in (-1.0, 1.0):
        wall = np.exp(-(((u - side * flare) / 0.042) ** 2)) * along
        shade = 0.17 - 0.20 * side * toward * identity.light_strength
        layer.tint(dark, np.clip(shade, 0.04, 0.5) * wall)
    bridge = np.exp(-(((u - 0.018 * toward) / 0.034) ** 2)) * along
    layer.tint(light, 0.30 * bridge)
    layer.tint(light, 0.42 * bump(u, v, (0.025 * toward, base - 0.085), (0.045 * wide, 0.04)))
    layer.tint(dark, 0.50 * bump(u, v, (0, base + 0.025), (0.12 * wide, 0.026)))
    layer.tint(dark, 0.14 * bump(u, v, (-0.03 * toward, base + 0.075), (0.13 * wide, 0.05)))
    a = np.abs(u)
    wing = np.hypot((a - 0.088 * wide) / 1.0, v - base + 0.035)
    crease = np.exp(-(((wing - 0.052) / 0.014) ** 2)) * smoothstep(0.05 * wide, 0.13 * wide, a)
    layer.tint(dark, 0.55 * crease * smoothstep(-0.10, -0.02, v - base))
    hole = np.hypot(
        (a - 0.058 * wide) / (0.034 * wide), (v - base - 0.002 - 0.15 * (a - 0.05)) / 0.016
    )
    layer.tint(
        np.asarray(dark * 0.42, np.float32),
        0.8 * smoothstep(1.25, 0.55, np.asarray(hole, np.float32)),
    )


def _paint_age(identity: Identity, layer: Layer) -> None:
    u, v, age = np.abs(layer.u), layer.v, identity.age
    dark = shadow_of(skin_color(identity))
    t = np.clip((v - nose_base(identity)) / 0.32, 0, 1)
    fold = np.exp(-(((u - 0.155 - 0.20 * t**0.8) / 0.024) ** 2)) * np.sin(np.pi * t)
    layer.tint(dark, np.asarray((0.10 + 0.38 * age) * fold, np.float32))
    eye = identity.eye_height
    bag = np.abs(np.hypot((u - identity.eye_spacing) / 1.7, v - eye + 0.02) - 0.145)
    under = np.exp(-((bag / 0.018) ** 2)) * smoothstep(eye + 0.04, eye + 0.11, v)
    layer.tint(dark, np.asarray((0.10 + 0.34 * age) * under, np.float32))
    for line in (-0.62, -0.52, -0.43):
        crease = np.exp(-(((v - line - 0.05 * u * u) / 0.011) ** 2)) * smoothstep(0.42, 0.2, u)
        layer.tint(dark, np.asarray(0.32 * age * age * crease, np.float32))


def _paint_freckles(identity: Identity, layer: Layer) -> None:
    rng = np.random.default_rng([identity.detail_seed, 0xF2E])
    color = mixed(skin_color(identity), (120, 60, 30), 0.55)
    reach = max(2, int(0.03 * layer.density) + 1)
    for _ in range(int(90 * identity.freckles)):
        at = float(rng.normal(0, 0.30)), float(rng.normal(0.16, 0.10))
        column = int((at[0] - layer.left) * layer.density)
        row = int((at[1] - layer.top) * layer.density)
        rows, cols = slice(row - reach, row + reach + 1), slice(column - reach, column + reach + 1)
        spot = bump(layer.u[rows, cols], layer.v[rows, cols], at, (0.012, 0.012))
        part = layer.color[:, rows, cols]
        part += (color - part) * (rng.uniform(0.3, 0.7) * identity.freckles * spot)


def paint_face(identity: Identity, layer: Layer) -> Array:
    """Paint ears and the skin of the face, without eyes, brows and mouth.

    Parameters
    ----------
    identity : Identity
        Who is drawn.
    layer : Layer
        Painted in place.

    Returns
    -------
    ndarray, shape (H, W), float32 in [0, 1]
        Coverage of the face without the ears.
    """
    if identity.hair_style not in _EARS_HIDDEN:
        _paint_ears(identity, layer)
    u, v = layer.u, layer.v
    skin = skin_color(identity)
    dark, light = shadow_of(skin), mixed(skin, (255, 246, 236), 0.5)
    outline = face_outline(identity, layer)
    face = layer.coverage(outline)
    layer.paint(skin, face)
    strength = identity.light_strength
    lit = lambert(0.93 * u / identity.face_width, 0.88 * v, identity.light_angle)
    layer.tint(dark, face * np.clip((0.25 + 0.85 * strength) * (0.80 - lit), 0, 0.72))
    layer.tint(light, face * np.clip(0.9 * strength * (lit - 0.86), 0, 1))
    layer.tint(dark, face * 0.30 * smoothstep(-0.22, 0.04, outline))
    a = np.abs(u)
    blush = mixed(skin, (222, 84, 84), 0.30 if identity.sex == "woman" else 0.18)
    layer.tint(blush, face * 0.85 * bump(a, v, (0.43, 0.22), (0.19, 0.15)))
    layer.tint(light, face * 0.22 * bump(a, v, (0.40, 0.10), (0.13, 0.07)))
    layer.tint(light, face * 0.18 * bump(u, v, (0, -0.52), (0.34, 0.18)))
    eye = identity.eye_spacing, identity.eye_height
    layer.tint(dark, face * 0.24 * bump(a, v, (eye[0] - 0.06, eye[1] - 0.07), (0.17, 0.09)))
    layer.tint(dark, face * 0.16 * bump(a, v, (0.12, eye[1]), (0.07, 0.10)))
    layer.tint(dark, face * 0.14 * bump(u, v, (0, MOUTH_V - 0.13), (0.024, 0.06)))
    layer.tint(dark, face * 0.30 * bump(u, v, (0, MOUTH_V + 0.185), (0.17, 0.035)))
    layer.tint(light, face * 0.20 * bump(u, v, (0, 0.86), (0.14, 0.07)))
    layer.tint(dark, face * 0.22 * bump(u, v, (0, 1.0), (0.5, 0.07)))
    _paint_nose(identity, layer)
    _paint_age(identity, layer)
    if identity.freckles:
        _paint_freckles(identity, layer)
    return face


def glasses_layer(identity: Identity, layer: Layer) -> None:
    """Paint the glasses: rims, bridge, temples and a faint reflection on the lenses.

    Parameters
    ----------
    identity : Identity
        Nothing is painted if its glasses are ``"none"``.
    layer : Layer
        Painted in place.
    """
    if identity.glasses == "none":
        return
    a, v = np.abs(layer.u), layer.v - identity.eye_height - 0.02
    center = identity.eye_spacing + 0.01
    power, half_u, half_v, rim = {
        "round": (2.0, 0.235, 0.215, 0.013),
        "square": (4.5, 0.245, 0.185, 0.014),
        "horn": (3.2, 0.255, 0.195, 0.026),
    }[identity.glasses]
    lens = np.abs((a - center) / half_u) ** power + np.abs(v / half_v) ** power
    radius = np.maximum(lens, 1e-6) ** (1 / power)
    ring = np.abs(radius - 1) * (half_u + half_v) / 2 - rim
    if identity.glasses == "horn":
        ring -= 0.014 * smoothstep(0.0, -0.15, v)
    frame = layer.coverage(np.asarray(ring, np.float32))
    bridge = np.abs(v + 0.06 - 0.6 * a * a) - rim
    bridge = np.maximum(bridge, a - (center - half_u + rim))
    temple = np.maximum(
        np.abs(v + 0.07) - rim, np.maximum(center + half_u - a, a - identity.face_width)
    )
    frame = np.maximum(frame, layer.coverage(np.asarray(bridge, np.float32)))
    frame = np.maximum(frame, layer.coverage(np.asarray(temple, np.float32)))
    inside = layer.coverage(np.asarray(radius - 1, np.float32))
    glare = smoothstep(0.06, 0.0, np.abs(a - center + 0.09 - 0.5 * v)) * smoothstep(
        0.9, 0.3, radius
    )
    layer.paint((255, 255, 255), inside * (0.05 + 0.10 * glare))
    color = np.asarray(identity.glasses_color, np.float32)
    layer.paint(color, frame)
    shine = frame * bump(a, v, (center, -half_v), (0.14, 0.05))
    layer.tint(np.minimum(color + 90, 255), 0.7 * shine)


def brow_color(identity: Identity) -> Array:
    """Colour of brows and beard: the hair's, darker and nearer to the skin.

    Parameters
    ----------
    identity : Identity
        Whose brows.

    Returns
    -------
    ndarray, shape (3, 1, 1), float32
        RGB.
    """
    # The bald have nothing dyed: a dyed class falls back to brown.
    is_dyed = identity.hair_style == "bald" and identity.hair_color in {"blue", "pink"}
    hair = np.asarray(HAIR_COLORS["brown" if is_dyed else identity.hair_color], np.float32)
    return mixed(0.62 * hair, 0.45 * np.asarray(skin_color(identity), np.float32), 0.3)
