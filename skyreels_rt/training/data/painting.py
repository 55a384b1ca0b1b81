"""Soft-edged painting on a grid in head units: coverage from signed distances, layers, texture.

Legend: H W texels; u, v are head units (see `identity`). Colours are RGB in 0 to 255, float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    AnyArray = NDArray[np.floating]


def smoothstep(low: float, high: float, values: AnyArray) -> Array:
    """Rise smoothly from 0 at ``low`` to 1 at ``high`` (3t^2 - 2t^3); falls if ``low > high``.

    Parameters
    ----------
    low, high : float
        The ends; different from each other.
    values : ndarray, any shape, floating
        Where to evaluate.

    Returns
    -------
    ndarray, shape of ``values``, float32 in [0, 1]
        The step.
    """
    t = np.clip((values - low) / (high - low), 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t), np.float32)


def bump(u: AnyArray, v: AnyArray, at: tuple[float, float], size: tuple[float, float]) -> Array:
    """Gaussian spot ``exp(-(du/su)^2 - (dv/sv)^2)``.

    Parameters
    ----------
    u, v : ndarray, shape (H, W), float32
        Coordinates.
    at, size : tuple of float
        Centre (u, v) and the distances at which it has fallen to 1/e.

    Returns
    -------
    ndarray, shape (H, W), float32 in [0, 1]
        The spot.
    """
    return np.asarray(
        np.exp(-(((u - at[0]) / size[0]) ** 2) - ((v - at[1]) / size[1]) ** 2), np.float32
    )


def rgb(color: Sequence[float] | AnyArray) -> Array:
    """Bring a colour into the shape that broadcasts over a layer.

    Parameters
    ----------
    color : sequence of 3 floats, or ndarray, shape (3, H, W)
        RGB, 0 to 255.

    Returns
    -------
    ndarray, shape (3, 1, 1) or (3, H, W), float32
        The colour.
    """
    values = np.asarray(color, np.float32)
    return values.reshape(3, 1, 1) if values.ndim == 1 else values


def mixed(
    first: Sequence[float] | AnyArray, second: Sequence[float] | AnyArray, share: float
) -> Array:
    """Mix two colours.

    Parameters
    ----------
    first, second : sequence of 3 floats
        RGB, 0 to 255.
    share : float in [0, 1]
        Weight of the second.

    Returns
    -------
    ndarray, shape (3, 1, 1), float32
        The mixture.
    """
    return np.asarray(rgb(first) * (1 - share) + rgb(second) * share, np.float32)


class Layer:
    """A grid of texels in head units and what has been painted on it, premultiplied by alpha.

    Parameters
    ----------
    left, top, right, bottom : float
        Borders in head units; the right and bottom ones are rounded up to whole texels.
    density : float
        Texels per head unit.

    Attributes
    ----------
    u, v : ndarray, shape (H, W), float32
        Centre of each texel.
    color : ndarray, shape (3, H, W), float32 in [0, 255]
        Premultiplied RGB.
    alpha : ndarray, shape (H, W), float32 in [0, 1]
        Opacity.
    """

    def __init__(
        self, left: float, top: float, right: float, bottom: float, density: float
    ) -> None:
        width, height = (
            int(np.ceil((right - left) * density)),
            int(np.ceil((bottom - top) * density)),
        )
        self.left, self.top, self.density = left, top, density
        us = left + (np.arange(width, dtype=np.float32) + 0.5) / density
        vs = top + (np.arange(height, dtype=np.float32) + 0.5) / density
        grid = np.meshgrid(us.astype(np.float32), vs.astype(np.float32))
        self.u, self.v = grid[0], grid[1]
        self.color = np.zeros((3, height, width), np.float32)
        self.alpha = np.zeros((height, width), np.float32)

    def coverage(self, implicit: AnyArray, blur: float = 0.0) -> Array:
        """Antialiased inside of an implicit shape.

        Parameters
        ----------
        implicit : ndarray, shape (H, W), float32
            Negative inside; any smooth scale, because it is divided by its own gradient.
        blur : float
            Extra softness in head units.

        Returns
        -------
        ndarray, shape (H, W), float32 in [0, 1]
            1 inside, 0 outside, a smooth ramp of about 1.6 texels (plus ``blur``) between.
        """
        down, right = np.gradient(implicit, 1.0 / self.density)
        distance = implicit / np.maximum(np.hypot(down, right), 1e-3)
        half = 0.8 / self.density + blur / 2
        return smoothstep(half, -half, np.asarray(distance, np.float32))

    def paint(self, color: Sequence[float] | AnyArray, alpha: AnyArray) -> None:
        """Lay a colour over what is there.

        Parameters
        ----------
        color : sequence of 3 floats, or ndarray, shape (3, H, W)
            RGB, 0 to 255, not premultiplied.
        alpha : ndarray, shape (H, W), float32 in [0, 1]
            Its opacity.
        """
        self.color += (rgb(color) - self.color) * alpha
        self.alpha += (1.0 - self.alpha) * alpha

    def tint(self, color: Sequence[float] | AnyArray, amount: AnyArray) -> None:
        """Mix a colour into what is opaque, leaving the opacity.

        Parameters
        ----------
        color : sequence of 3 floats, or ndarray, shape (3, H, W)
            RGB, 0 to 255.
        amount : ndarray, shape (H, W), float32 in [0, 1]
            Share of the colour.
        """
        self.color += (rgb(color) * self.alpha - self.color) * amount


def strands(
    across: AnyArray, along: AnyArray, seed: int, frequencies: Sequence[float] = (19, 43, 97)
) -> Array:
    """Hair-like texture: sinusoids across the strands that waver slowly along them.

    Parameters
    ----------
    across, along : ndarray, shape (H, W), float32
        Coordinates across (one period is 2 pi / frequency) and along the strands.
    seed : int, >= 0
        Phases.
    frequencies : sequence of float
        From coarse locks to single strands.

    Returns
    -------
    ndarray, shape (H, W), float32, about [-1, 1]
        The texture, zero on average.
    """
    rng = np.random.default_rng([seed, 0x57A])
    total = np.zeros(across.shape)
    for level, frequency in enumerate(frequencies):
        phase = rng.uniform(0, 2 * np.pi, 3)
        waver = np.sin((2.3 + level) * along + phase[0]) + 0.6 * np.sin(5.1 * along + phase[1])
        total += np.sin(frequency * across + (1.1 + 0.5 * level) * waver + phase[2]) / (1.3 + level)
    return np.asarray(total / 1.6, np.float32)


def curls(u: Array, v: Array, seed: int, scale: float) -> Array:
    """Curl-like texture: a warped lattice of soft round cells.

    Parameters
    ----------
    u, v : ndarray, shape (H, W), float32
        Coordinates.
    seed : int, >= 0
        Phases.
    scale : float
        Cells per head unit.

    Returns
    -------
    ndarray, shape (H, W), float32 in [-1, 1]
        The texture.
    """
    rng = np.random.default_rng([seed, 0xC0B])
    phase = rng.uniform(0, 2 * np.pi, 6)
    k = np.float32(2 * np.pi * scale)
    a = u + (0.22 / scale) * np.sin(0.63 * k * v + phase[0]) + 0.05 * np.sin(7 * v + phase[1])
    b = v + (0.22 / scale) * np.sin(0.57 * k * u + phase[2]) + 0.05 * np.sin(6 * u + phase[3])
    cells = np.sin(k * a + phase[4]) * np.sin(k * b + phase[5])
    fine = np.sin(2.3 * k * (a + b)) * np.sin(2.1 * k * (a - b))
    return np.asarray(0.75 * cells + 0.25 * fine, np.float32)


def light_direction(angle: float) -> tuple[float, float, float]:
    """Unit vector towards the light.

    Parameters
    ----------
    angle : float
        Radians from straight above, positive to the right of the frame.

    Returns
    -------
    tuple of float
        (u, v, towards the viewer).
    """
    return 0.66 * float(np.sin(angle)), -0.66 * float(np.cos(angle)), 0.7513


def lambert(nu: AnyArray, nv: AnyArray, angle: float) -> Array:
    """Diffuse light on a half ellipsoid seen from the front.

    Parameters
    ----------
    nu, nv : ndarray, shape (H, W), float32
        Position relative to the semi-axes: the silhouette is at ``nu^2 + nv^2 = 1``.
    angle : float
        Of the light, see `light_direction`.

    Returns
    -------
    ndarray, shape (H, W), float32 in [0, 1]
        Cosine between the normal and the light, 0 where it faces away.
    """
    length = np.maximum(np.sqrt(nu * nu + nv * nv), 1.0)
    x, y = nu / length, nv / length
    z = np.sqrt(np.maximum(1.0 - x * x - y * y, 0.0))
    lu, lv, lz = light_direction(angle)
    return np.asarray(np.clip(x * lu + y * lv + z * lz, 0.0, 1.0), np.float32)
