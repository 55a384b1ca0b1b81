"""SyncNet: pictures of a mouth and the sound beside them, as points that lie close when in sync.

Written from Chung & Zisserman, "Out of time: automated lip sync in the wild", 2016, in the shape
whose weights its authors published (``syncnet_v2``); their names of tensors are kept. No weights
come with this package.

Legend: N windows, F frames, T columns of MFCC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Iterator

WINDOW_FRAMES = 5
"""Frames of a window of pictures: 0.2 s at 25 fps."""
WINDOW_COLUMNS = 20
"""Columns of a window of sound: 0.2 s at 100 a second."""
NUM_CEPSTRA = 13
FACE_SIDE = 224
EMBEDDING_DIM = 1024

_FEATURES = 512


class _FrozenNorm(nn.Module):
    """Batch norm with the statistics of its training, over dimension 1."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


def _sound_layers() -> Iterator[nn.Module]:
    """Layers over (N, 1, 13, 20), in the published order: their places are part of the names."""
    for inputs, outputs, kernel, padding, pool in (
        (1, 64, 3, 1, nn.Identity()),
        (64, 192, 3, 1, nn.MaxPool2d(3, stride=(1, 2))),
        (192, 384, 3, 1, None),
        (384, 256, 3, 1, None),
        (256, 256, 3, 1, nn.MaxPool2d(3, stride=2)),
        (256, _FEATURES, (5, 4), 0, None),
    ):
        yield nn.Conv2d(inputs, outputs, kernel, padding=padding)
        yield _FrozenNorm(outputs)
        yield nn.ReLU()
        if pool is not None:
            yield pool


def _picture_layers() -> Iterator[nn.Module]:
    """Layers over (1, 3, F, 224, 224); all but the first see single frames."""
    halve, flat = (1, 2, 2), (0, 1, 1)
    for inputs, outputs, kernel, stride, padding, pool in (
        (3, 96, (WINDOW_FRAMES, 7, 7), halve, 0, nn.MaxPool3d((1, 3, 3), halve)),
        (96, 256, (1, 5, 5), halve, flat, nn.MaxPool3d((1, 3, 3), halve, flat)),
        (256, 256, (1, 3, 3), 1, flat, None),
        (256, 256, (1, 3, 3), 1, flat, None),
        (256, 256, (1, 3, 3), 1, flat, nn.MaxPool3d((1, 3, 3), halve)),
        (256, _FEATURES, (1, 6, 6), 1, 0, None),
    ):
        yield nn.Conv3d(inputs, outputs, kernel, stride, padding)
        yield _FrozenNorm(outputs)
        yield nn.ReLU()
        if pool is not None:
            yield pool


def _head() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(_FEATURES, _FEATURES),
        _FrozenNorm(_FEATURES),
        nn.ReLU(),
        nn.Linear(_FEATURES, EMBEDDING_DIM),
    )


class SyncNet(nn.Module):
    """Two towers, one for pictures and one for sound, that end in the same space."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(*_sound_layers())
        self.netfcaud = _head()
        self.netcnnlip = nn.Sequential(*_picture_layers())
        self.netfclip = _head()

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def embed_pictures(self, frames: Tensor) -> Tensor:
        """Points of all windows of consecutive frames.

        Parameters
        ----------
        frames : Tensor, shape (F, 224, 224, 3), uint8 or float
            Faces, blue before green before red, 0 to 255; F >= 5.

        Returns
        -------
        Tensor, shape (F - 4, 1024), the parameters' dtype
            Point i belongs to frames i to i + 4.
        """
        clip = frames.to(self._dtype).permute(3, 0, 1, 2)[None]
        features: Tensor = self.netcnnlip(clip)
        points: Tensor = self.netfclip(features[0, :, :, 0, 0].T)
        return points

    def embed_sound(self, windows: Tensor) -> Tensor:
        """Points of windows of sound.

        Parameters
        ----------
        windows : Tensor, shape (N, 13, 20), float
            Columns of MFCC, 100 a second.

        Returns
        -------
        Tensor, shape (N, 1024), the parameters' dtype
        """
        features: Tensor = self.netcnnaud(windows.to(self._dtype)[:, None])
        points: Tensor = self.netfcaud(features[:, :, 0, 0])
        return points
