"""Encoding large frames tile by tile, to the latents of the whole frame.

The start of an encoder sees only what is near: a cell of its output depends on the pixels within
its *reach*. So a tile is cut out with that much around it, run by itself, and what the cut has
spoilt is dropped. What follows (attention over the whole frame, at an eighth of its size) runs on
the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from skyreels_rt.models.vae import StepCaches
from skyreels_rt.models.vae_options import TILE_MULTIPLE


@dataclass(frozen=True)
class NearPart:
    """Start of an encoder whose output depends on nearby pixels alone.

    Attributes
    ----------
    run : callable
        ``run(frames, caches)``: frames (B, 3, F, H, W) to activations (B, C, F', H / stride,
        W / stride).
    stride : int
        Pixels per row or column of its output; divides 16.
    reach : int
        Pixels that a cell of its output looks past its own, on every side.
    cache_strides : tuple of int
        Pixels per row or column of each of its caches, in the order of a step.
    """

    run: Callable[[Tensor, StepCaches], Tensor]
    stride: int
    reach: int
    cache_strides: tuple[int, ...]


@dataclass(frozen=True)
class _Span:
    """Pixels [start, stop) of a tile along one axis, cut out as [low, high)."""

    start: int
    stop: int
    low: int
    high: int

    def cut(self, stride: int) -> slice:
        return slice(self.low // stride, self.high // stride)

    def own(self, stride: int) -> slice:
        """Where the tile stands in the whole."""
        return slice(self.start // stride, self.stop // stride)

    def inner(self, stride: int) -> slice:
        """Where the tile stands in what was cut out."""
        return slice((self.start - self.low) // stride, (self.stop - self.low) // stride)


def run_in_tiles(part: NearPart, frames: Tensor, caches: StepCaches, tile: int) -> Tensor:
    """What ``part.run(frames, caches)`` gives, with the memory of one tile at a time.

    Equal to rounding: a convolution's order of summation depends on its shape. Tiles start at
    multiples of 16 pixels, so that Winograd's grid is the whole frame's.

    Parameters
    ----------
    part : NearPart
        What to run.
    frames : Tensor, shape (B, 3, F, H, W)
        Frames of one step.
    caches : StepCaches
        Caches of the whole frames.
    tile : int
        Largest side of a tile in pixels, a multiple of 16.
    """
    height, width = frames.shape[-2:]
    before = None if caches.is_first else [caches.read() for _ in part.cache_strides]
    strides = (part.stride, *part.cache_strides)
    whole: list[Tensor] = []
    for rows in _spans(height, tile, part.reach):
        for columns in _spans(width, tile, part.reach):
            past = None
            if before is not None:
                given = zip(before, part.cache_strides, strict=True)
                past = [one[..., rows.cut(s), columns.cut(s)] for one, s in given]
            own = StepCaches(past, keep=caches.keep)
            window = frames[..., rows.cut(1), columns.cut(1)]
            window = window.clone(memory_format=torch.channels_last_3d)
            pieces = [part.run(window, own), *own.finish()]
            if not whole:
                sizes = zip(pieces, strides, strict=False)
                whole = [_empty(piece, height // s, width // s) for piece, s in sizes]
            for target, piece, s in zip(whole, pieces, strides, strict=False):
                inner = piece[..., rows.inner(s), columns.inner(s)]
                target[..., rows.own(s), columns.own(s)] = inner
    x, *written = whole
    for one in written:
        caches.write(one)
    return x


def _empty(like: Tensor, height: int, width: int) -> Tensor:
    """Room for the frames of ``like`` at another size, in channels-last order."""
    empty = like.new_empty((*like.shape[:3], height, width))
    return empty.contiguous(memory_format=torch.channels_last_3d)


def _spans(size: int, tile: int, reach: int) -> list[_Span]:
    """Spans of at most ``tile`` pixels that cover ``size``, as even as their multiples allow."""
    count = -(-size // tile)
    side = _up(-(-size // count))
    reach = _up(reach)
    spans = []
    for start in range(0, size, side):
        stop = min(start + side, size)
        spans.append(_Span(start, stop, max(start - reach, 0), min(stop + reach, size)))
    return spans


def _up(size: int) -> int:
    return -(-size // TILE_MULTIPLE) * TILE_MULTIPLE
