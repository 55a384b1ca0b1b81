"""Crops of clips for the VAE: a sliding pool of clips, the same at a step in every run."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyreels_rt.training.clips import ClipSource, TrainingClip
from skyreels_rt.training.latent_cache import cells

_CELL = 8
_FACE_SHARE = 0.65
_WEIGHTS = {"face": 1.0, "mouth": 2.0, "eye": 2.0}


@dataclass(frozen=True)
class CropSizes:
    """Shape of a batch of crops.

    Attributes
    ----------
    batch_size : int
        Crops of a step.
    num_frames : int
        Frames of a crop, ``4 n + 1``.
    side : int
        Pixels per side, a multiple of 8.
    """

    batch_size: int = 16
    num_frames: int = 9
    side: int = 64


class FramePool:
    """Clips ``first .. first + capacity - 1``, where ``first`` grows with the step.

    The next clips are drawn or read in a background thread while the model trains.

    Parameters
    ----------
    source : ClipSource
        Clips, at least as long and large as the crops.
    crops : CropSizes
        What to cut out.
    capacity : int
        Clips held.
    steps_per_clip : int
        Steps after which the oldest clip is replaced.
    seed : int
        Of the choice of crops.
    """

    def __init__(
        self,
        source: ClipSource,
        crops: CropSizes,
        *,
        capacity: int = 64,
        steps_per_clip: int = 1,
        seed: int = 0,
    ) -> None:
        self._source = source
        self._crops = crops
        self._capacity = capacity
        self._steps_per_clip = steps_per_clip
        self._seed = seed
        self._clips: dict[int, tuple[NDArray[np.uint8], NDArray[np.float32]]] = {}
        self._ahead = ThreadPoolExecutor(1)
        self._pending: dict[int, Future[TrainingClip]] = {}

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Crops (B, 3, F, S, S) in [-1, 1] and pixel weights (B, 1, F, S, S) of step ``step``."""
        first = step // self._steps_per_clip
        for index in range(first, first + self._capacity):
            if index not in self._clips:
                self._clips[index] = self._drawn(index)
        for index in [index for index in self._clips if index < first]:
            del self._clips[index]
        self._draw_ahead(first + self._capacity)
        draw = np.random.default_rng([self._seed, step])
        pairs = [self._crop(draw, first) for _ in range(self._crops.batch_size)]
        frames, weights = zip(*pairs, strict=True)
        return torch.from_numpy(np.stack(frames)), torch.from_numpy(np.stack(weights))

    def _draw_ahead(self, index: int) -> None:
        if index not in self._pending:
            self._pending[index] = self._ahead.submit(self._source.clip, index)

    def _drawn(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Frames (F, H, W, 3) and weights (F, h, w) of a clip."""
        self._draw_ahead(index)
        clip = self._pending.pop(index).result()
        count, height, width, _ = clip.frames.shape
        weights = np.ones((count, height // _CELL, width // _CELL), np.float32)
        for name, weight in _WEIGHTS.items():
            weights += weight / 255 * cells(clip.masks[name])
        return clip.frames, weights

    def _crop(
        self, draw: np.random.Generator, first: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        frames, weights = self._clips[first + int(draw.integers(self._capacity))]
        count, side = self._crops.num_frames, self._crops.side
        start = int(draw.integers(len(frames) - count + 1))
        rows = (frames.shape[1] - side) // _CELL
        top, left = (int(x) for x in draw.integers(rows + 1, size=2))
        if draw.random() < _FACE_SHARE:
            inside = np.argwhere(weights[start] > 1.2)
            row, column = inside[int(draw.integers(len(inside)))]
            half = side // _CELL // 2
            top, left = (int(np.clip(x - half, 0, rows)) for x in (row, column))
        extent = side // _CELL
        cut = frames[
            start : start + count,
            top * _CELL : (top + extent) * _CELL,
            left * _CELL : (left + extent) * _CELL,
        ]
        weight = weights[start : start + count, top : top + extent, left : left + extent]
        weight = np.repeat(np.repeat(weight, _CELL, 1), _CELL, 2)
        if draw.random() < 0.5:
            cut, weight = cut[:, :, ::-1], weight[:, :, ::-1]
        pixels = cut.transpose(3, 0, 1, 2).astype(np.float32) / 127.5 - 1
        return pixels, np.ascontiguousarray(weight[None])
