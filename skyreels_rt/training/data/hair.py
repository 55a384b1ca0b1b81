"""Hair and beards: outlines per style, strands that fall from the parting, shine and shadow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from skyreels_rt.training.data.identity import HAIR_COLORS, Identity, skin_color
from skyreels_rt.training.data.painting import (
    Layer,
    bump,
    curls,
    lambert,
    mixed,
    rgb,
    smoothstep,
    strands,
)
from skyreels_rt.training.data.portrait import (
    MOUTH_V,
    brow_color,
    face_outline,
    nose_base,
    shadow_of,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    AnyArray = NDArray[np.floating]

_BELOW = 9.0  # a height below every frame


@dataclass(frozen=True)
class _Style:
    """Outline of a hair style, in head units.

    Attributes
    ----------
    top, side : float
        How far the hair stands off the skull above and beside it.
    line, power : float
        Height of the hairline over the forehead and how square the opening for the face is.
    slant : float
        Slope of the hairline away from the parting.
    front : float
        Where the hair beside the face ends (v).
    back, back_wide : float
        Where the hair behind the head ends (v; below the chin is above 1) and its half width.
    curl : float
        0 is straight, 1 is curly.
    opening : float
        Half width of the opening for the face, relative to the face.
    """

    top: float
    side: float
    line: float
    power: float
    slant: float
    front: float
    back: float
    back_wide: float
    curl: float
    opening: float


_STYLES = {
    "buzz": _Style(0.03, 0.02, -0.66, 3.2, 0.0, 0.06, 0.0, 0.70, 0.0, 0.955),
    "short": _Style(0.15, 0.07, -0.60, 2.6, 0.16, 0.10, 0.05, 0.70, 0.0, 0.95),
    "side_part": _Style(0.17, 0.05, -0.64, 2.8, 0.26, 0.06, 0.05, 0.70, 0.0, 0.955),
    "quiff": _Style(0.30, 0.03, -0.68, 3.4, 0.05, 0.04, 0.05, 0.70, 0.0, 0.96),
    "fringe": _Style(0.15, 0.10, -0.36, 5.0, 0.0, 0.75, 0.98, 0.86, 0.0, 0.90),
    "curly": _Style(0.26, 0.20, -0.58, 1.9, 0.10, 0.42, 0.95, 0.95, 1.0, 0.93),
    "afro": _Style(0.44, 0.40, -0.60, 2.2, 0.0, 0.30, 0.55, 1.14, 1.0, 0.93),
    "bob": _Style(0.15, 0.12, -0.58, 2.0, 0.16, 0.78, 1.02, 0.92, 0.0, 0.90),
    "long": _Style(0.14, 0.09, -0.62, 1.9, 0.12, 0.80, 1.75, 0.90, 0.0, 0.91),
    "wavy": _Style(0.19, 0.14, -0.60, 1.9, 0.14, 0.80, 1.70, 0.98, 0.45, 0.91),
    "bun": _Style(0.09, 0.03, -0.66, 2.3, 0.0, 0.04, 0.05, 0.68, 0.0, 0.955),
}


def _texture(identity: Identity, style: _Style, layer: Layer) -> Array:
    """Light and dark of strands or curls, about [-1, 1], alike in front of and behind the head."""
    part = 0.28 * identity.hair_part
    # Rays from a point above the parting: spreading on the skull, nearly parallel lower down.
    across = (layer.u - part) / (0.75 + np.clip(layer.v + 0.9, 0, None))
    along = np.hypot(layer.u - part, layer.v + 1.2)
    if identity.hair_style == "quiff":  # combed up and back from the forehead
        across = 1.3 * layer.u / (0.55 + np.clip(-layer.v, 0, None)) + 0.25 * (layer.v + 0.6) * part
        along = layer.v
    elif identity.hair_style in {"side_part", "short"}:  # combed over, away from the parting
        swept = layer.u - 1.3 * part
        across = 0.9 * (layer.v + 0.42 * swept * swept / (0.3 + np.abs(swept)))
        along = layer.u
    across = across + 0.05 * style.curl * np.sin(9.0 * along + identity.hair_part)
    straight = strands(
        np.asarray(1.6 * across, np.float32), np.asarray(along, np.float32), identity.detail_seed
    )
    if style.curl < 0.9:
        return straight
    scale = 3.1 if identity.hair_style == "curly" else 5.0
    coarse = curls(layer.u, layer.v, identity.detail_seed, scale)
    return np.asarray(0.8 * coarse + 0.3 * straight, np.float32)


def _hair_color(identity: Identity, texture: Array, lit: Array, shine: AnyArray) -> Array:
    """Shade the hair: base colour, modelled by light, darker between strands, a band of shine."""
    base = rgb(HAIR_COLORS[identity.hair_color])
    tone = (0.60 + 0.55 * lit) * (1 + 0.17 * texture)
    bright = mixed(base.ravel(), (255, 250, 240), 0.45)
    amount = np.clip(shine * (0.65 + 0.5 * texture), 0, 1)
    # Dark hair shows its strands by reflection, which adds light whatever the colour.
    sheen = 13.0 * np.clip(texture + 0.2, 0, None) * lit
    shaded = base * tone * (1 - amount) + bright * amount + sheen
    return np.asarray(np.clip(shaded, 0, 255), np.float32)


def _outer(identity: Identity, style: _Style, layer: Layer) -> Array:
    """Implicit silhouette of the hair on and beside the head, its square root about a radius."""
    fuller = 1 + 0.22 * identity.hair_volume
    half_u = identity.face_width + style.side * fuller
    half_v = 0.80 + style.top * fuller
    v = layer.v + 0.20
    # Below the widest place the hair falls straight and comes in slightly.
    below = np.clip(v, 0, None) * (
        0.10 if style.front > 0.7 else 0.30 if style.front > 0.3 else 0.55
    )
    up = np.clip(-v, 0, None)
    lean = 0.10 * np.sign(identity.hair_part) if identity.hair_style == "quiff" else 0.0
    u = layer.u + lean * smoothstep(0.3, 0.9, up)
    shape = np.abs(u / half_u) ** 2.15 + (up / half_v) ** 2.15 + (below / half_v) ** 2
    return np.asarray(shape - 1, np.float32)


def _opening(identity: Identity, style: _Style, layer: Layer, texture: Array) -> Array:
    """Implicit opening for the face: negative where the face is seen."""
    length = 0.05 * identity.hair_length if identity.hair_style == "fringe" else 0.0
    line = style.line + length
    slant = style.slant * (1 if identity.hair_part >= 0 else -1)
    u, v = layer.u, layer.v
    lowered = v - slant * np.clip(u + 0.3 * np.sign(slant), -0.6, 0.6) * smoothstep(0.1, -0.4, v)
    center = 0.35
    half_u = identity.face_width * style.opening
    up = np.clip(center - lowered, 0, None) / (center - line)
    shape = np.abs(u / half_u) ** style.power + up**style.power - 1
    if identity.hair_style in {"long", "wavy", "bob"}:
        # A parting in the middle leaves the forehead as a pointed arch.
        shape = np.abs(u / half_u) ** 1.9 + up**1.55 - 1
    return np.asarray(
        shape + (0.06 + 0.12 * style.curl) * texture * smoothstep(0.3, -0.2, v), np.float32
    )


def paint_back_hair(identity: Identity, layer: Layer) -> None:
    """Paint the hair behind head and neck.

    Parameters
    ----------
    identity : Identity
        Nothing is painted for the bald.
    layer : Layer
        Painted in place.
    """
    if identity.hair_style == "bald":
        return
    style = _STYLES[identity.hair_style]
    color, region = _back_hair(identity, style, layer)
    layer.paint(np.asarray(color * 0.72, np.float32), region)


def paint_front_locks(identity: Identity, layer: Layer) -> None:
    """Paint the locks of long hair that fall in front of the shoulders.

    Parameters
    ----------
    identity : Identity
        Nothing is painted if the hair ends above the shoulders.
    layer : Layer
        Painted in place.
    """
    if identity.hair_style == "bald":
        return
    style = _STYLES[identity.hair_style]
    if style.back < 1.2:
        return
    color, region = _back_hair(identity, style, layer)
    u, v = np.abs(layer.u), layer.v
    inner = 0.47 + 0.10 * smoothstep(0.9, 1.6, v)
    lock = region * smoothstep(-0.015, 0.015, u - inner)
    shadow = region * smoothstep(inner.min() - 0.12, 0.5, u)
    layer.color *= 1 - 0.25 * shadow * (1 - lock)
    edge = smoothstep(0.0, 0.10, u - inner)
    layer.paint(np.asarray(color * (0.74 + 0.26 * edge), np.float32), lock)


def _back_hair(identity: Identity, style: _Style, layer: Layer) -> tuple[Array, Array]:
    texture = _texture(identity, style, layer)
    fuller = 1 + 0.22 * identity.hair_volume
    u, v = np.abs(layer.u), layer.v
    wide = style.back_wide + 0.05 * identity.hair_volume + 0.03 * identity.hair_length
    wide = wide * identity.face_width / 0.76
    end = style.back + (0.22 * identity.hair_length if style.back > 0.9 else 0.0)
    ripple = 0.045 * style.curl * np.sin(8.5 * v + identity.hair_part)
    curve = 0.06 * np.sin(1.6 * v)
    half = wide + curve + ripple
    side = u - half * np.sqrt(np.clip(1 - ((v + 0.2) / (0.8 + end)) ** 6, 0, 1))
    crown = (np.clip(-0.2 - v, 0, None) / (0.74 + style.top * fuller)) ** 2.2
    top = (u / half) ** 2.2 + crown - 1
    ends = v - end - 0.05 * texture + 0.10 * (u / wide) ** 2
    if style.curl > 0.9:
        side = side - 0.05 * texture
    implicit = np.where(v > -0.2, np.maximum(side, ends), top * half / 2.2)
    region = layer.coverage(np.asarray(implicit, np.float32))
    lit = lambert(0.9 * layer.u / wide, 0.35 * v, identity.light_angle)
    shine = 0.16 * bump(u, v, (wide * 0.82, 1.05), (0.2, 0.25))
    return _hair_color(identity, texture, lit, shine), region


def _front_region(
    identity: Identity, style: _Style, layer: Layer, texture: Array
) -> tuple[Array, Array, Array]:
    """Coverage of the hair on the head, its silhouette's implicit function, and the opening's."""
    outer = _outer(identity, style, layer)
    if style.curl > 0.9:
        outer = np.asarray(outer - 0.13 * texture * smoothstep(-0.5, 0.0, outer), np.float32)
    elif style.top > 0.1:
        outer = np.asarray(outer - 0.020 * texture * smoothstep(-0.4, 0.0, outer), np.float32)
    opening = _opening(identity, style, layer, texture)
    region = layer.coverage(outer) * (1 - layer.coverage(opening, 0.012))
    soft = 0.30 if style.front > 0.3 else 0.12
    region = region * smoothstep(style.front + 0.03 * soft, style.front - soft, layer.v)
    return np.asarray(region, np.float32), outer, opening


def paint_front_hair(identity: Identity, layer: Layer) -> None:
    """Paint the hair on the head, in front of ears and forehead.

    Parameters
    ----------
    identity : Identity
        Nothing is painted for the bald.
    layer : Layer
        Painted in place.
    """
    if identity.hair_style == "bald":
        return
    style = _STYLES[identity.hair_style]
    texture = _texture(identity, style, layer)
    region, outer, opening = _front_region(identity, style, layer, texture)
    if identity.hair_style == "bun":
        _paint_bun(identity, layer, texture)
    if identity.hair_style == "buzz":
        region = region * 0.88
    half_u = identity.face_width + style.side
    lit = lambert(0.95 * layer.u / half_u, (layer.v + 0.15) / 1.15, identity.light_angle)
    radius = np.sqrt(np.clip(outer + 1, 0, None))
    toward = float(np.sin(identity.light_angle))
    band = np.exp(-(((radius - 0.80) / 0.085) ** 2)) * smoothstep(-0.1, -0.6, layer.v)
    band = band * np.exp(-(((layer.u - 0.35 * toward) / 0.5) ** 2))
    gloss = 0.75 if style.curl < 0.9 and identity.hair_style != "buzz" else 0.18
    color = _hair_color(identity, texture, lit, np.asarray(gloss * band, np.float32))
    # Darker where it lies against the face, and at the parting.
    shaded = color * (1 - 0.34 * smoothstep(0.30, 0.0, opening) * (identity.hair_style != "buzz"))
    if identity.hair_style in {"long", "wavy", "bob"}:
        part = 0.28 * identity.hair_part
        line = np.exp(-(((layer.u - part - 0.12 * (layer.v + 0.9)) / 0.016) ** 2))
        shaded = shaded * (1 - 0.45 * line * smoothstep(-0.60, -0.80, layer.v))
    layer.paint(shaded, region)


def _paint_bun(identity: Identity, layer: Layer, texture: Array) -> None:
    at = 0.06 * identity.hair_part, -1.16 - 0.04 * identity.hair_volume
    size = 0.27 + 0.04 * identity.hair_volume
    u, v = (layer.u - at[0]) / size, (layer.v - at[1]) / (0.86 * size)
    round_ = layer.coverage(np.asarray(u * u + v * v - 1 - 0.06 * texture, np.float32))
    lit = lambert(u, v, identity.light_angle)
    swirl = np.sin(7 * np.hypot(u, v) + 3 * np.arctan2(v, u) + identity.hair_part)
    shine = 0.35 * bump(u, v, (0.2 * np.sign(identity.light_angle), -0.45), (0.35, 0.2))
    mix = np.asarray(0.5 * texture + 0.6 * swirl, np.float32)
    layer.paint(_hair_color(identity, mix, lit, shine), round_)


def shade_under_hair(identity: Identity, layer: Layer, face: Array) -> None:
    """Darken the face where the hair throws its shadow on it.

    Parameters
    ----------
    identity : Identity
        Who is drawn.
    layer : Layer
        The skin, tinted in place.
    face : ndarray, shape (H, W), float32
        Coverage of the face.
    """
    dark = shadow_of(skin_color(identity))
    if identity.hair_style == "bald":
        shine = bump(layer.u, layer.v, (0.30 * np.sin(identity.light_angle), -0.74), (0.22, 0.10))
        layer.tint(mixed(skin_color(identity), (255, 250, 245), 0.8), 0.5 * face * shine)
        return
    style = _STYLES[identity.hair_style]
    if identity.hair_style == "buzz":
        return
    opening = _opening(identity, style, layer, np.zeros_like(layer.u))
    shadow = smoothstep(-0.42, 0.02, opening) * smoothstep(0.6, 0.0, layer.v)
    layer.tint(dark, face * 0.62 * shadow)


def _whisker_region(identity: Identity, layer: Layer) -> Array:
    """Coverage of the beard by kind, before its texture."""
    u, v = np.abs(layer.u), layer.v
    outline = face_outline(identity, layer)
    base = nose_base(identity)
    lip = 0.5 * (base + MOUTH_V) - 0.01
    droop = lip + 0.30 * np.clip(u - 0.06, 0, None) ** 1.25
    moustache = smoothstep(0.060, 0.030, np.abs(v - droop)) * smoothstep(0.37, 0.27, u)
    moustache = moustache * smoothstep(base + 0.03, base + 0.07, v)
    cheek = 0.50 - 0.50 * np.clip(u / identity.face_width, 0, 1) ** 2.2
    line = np.asarray(v - cheek - 0.02, np.float32)
    around = ((u) / 0.30) ** 2 + ((v - MOUTH_V - 0.005) / 0.085) ** 2
    jaw = smoothstep(-0.05, 0.08, line) * smoothstep(0.85, 1.15, around)
    if identity.beard == "moustache":
        return np.asarray(moustache, np.float32)
    if identity.beard == "goatee":
        tuft = (u / 0.345) ** 2.6 + np.abs((v - 0.70) / (0.36 - 0.06 * (v < 0.7))) ** 2.6 - 1
        chin = layer.coverage(np.asarray(tuft, np.float32), 0.04)
        clear = (u / 0.285) ** 2 + ((v - MOUTH_V - 0.03) / 0.15) ** 2
        chin = chin * smoothstep(0.92, 1.12, np.asarray(clear, np.float32))
        chin = chin * smoothstep(MOUTH_V - 0.06, MOUTH_V + 0.02, v)
        return np.asarray(np.maximum(chin, moustache), np.float32)
    limit = 0.20 if identity.beard == "full" else 0.0
    edge = layer.coverage(np.asarray(outline - limit * smoothstep(0.25, 0.8, v), np.float32), 0.02)
    return np.asarray(np.maximum(jaw, moustache) * edge, np.float32)


def paint_beard(identity: Identity, layer: Layer) -> None:
    """Paint the beard on the skin; a full one stands off the chin a little.

    Parameters
    ----------
    identity : Identity
        Nothing is painted if its beard is ``"none"``.
    layer : Layer
        Painted in place.
    """
    if identity.beard == "none":
        return
    region = _whisker_region(identity, layer)
    across = np.asarray(layer.u / (0.8 + 0.5 * layer.v), np.float32)
    texture = strands(across, 2 * layer.v, identity.detail_seed + 1, (40, 71, 113))
    lit = lambert(0.9 * layer.u / identity.face_width, 0.85 * layer.v, identity.light_angle)
    color = brow_color(identity) * (0.78 + 0.36 * lit) * (1 + 0.20 * texture)
    if identity.beard == "stubble":
        grain = curls(layer.u, layer.v, identity.detail_seed, 26.0)
        layer.tint(np.asarray(color, np.float32), region * (0.36 + 0.14 * grain))
        return
    layer.paint(np.asarray(color, np.float32), region * np.clip(0.92 + 0.08 * texture, 0, 1))
