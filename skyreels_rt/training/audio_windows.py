"""What a window of latents hears: log-mel segments, rows into their features, the true mouth.

Legend: B samples, W latents of a window, S grid steps, E frames of a latent's audio window.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from skyreels_rt.config import AudioAdapterConfig, AudioFeatureConfig
from skyreels_rt.types import Timeline


@dataclass(frozen=True)
class SpeechBatch:
    """Sound of a batch of windows.

    Attributes
    ----------
    mels : Tensor, shape (B, S, bins, T)
        Log-mel segments that the windows' frames look at.
    frame_features : Tensor, shape (B, W, E, s), int64
        For every entry of a latent's audio window, rows of the segments' features.
    starts_clip : Tensor, shape (B,), bool
        The window's first latent stands for one frame.
    hears : Tensor, shape (B,), bool
        False where the audio is left out.
    mouth : Tensor, shape (B, W, 4, 5)
        True mouth parameters of each latent's frames.
    """

    mels: Tensor
    frame_features: Tensor
    starts_clip: Tensor
    hears: Tensor
    mouth: Tensor

    def to(self, device: torch.device) -> Self:
        """The batch with every tensor on ``device``; batches are drawn on the CPU everywhere."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: v.to(device) for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)


class AudioWindows:
    """Cuts windows out of a clip's log-mel segments.

    Parameters
    ----------
    adapter : AudioAdapterConfig
        Layout of a latent's audio window.
    grid : AudioFeatureConfig
        Grid of the audio features.
    """

    def __init__(self, adapter: AudioAdapterConfig, grid: AudioFeatureConfig) -> None:
        self._reach = adapter.window // 2
        self._grid = grid
        self._timeline = Timeline()

    def cut(self, mels: Tensor, mouth: Tensor, start: int, stop: int) -> dict[str, Any]:
        """Fields of :class:`SpeechBatch`, but ``hears``, of latents ``start .. stop - 1``.

        Parameters
        ----------
        mels : Tensor, shape (grid steps, bins, T)
            Of the clip.
        mouth : Tensor, shape (frames, 5)
            True mouth parameters of the clip.
        start, stop : int
            First latent, and the first one after the window.
        """
        segment, rows = self.feature_rows(start, stop)
        num_segments = self.num_segments(stop - start)
        padding = max(0, segment + num_segments - len(mels))
        cut = mels[segment : segment + num_segments].float()
        if padding:
            cut = torch.cat([cut, cut[-1:].expand(padding, -1, -1)])
        return {
            "mels": cut,
            "frame_features": rows,
            "starts_clip": start == 0,
            "mouth": frames_of_latents(mouth, start, stop),
        }

    def num_segments(self, window: int) -> int:
        """Grid steps that any window of this length may look at."""
        features = 2 * (4 * window + 2 * self._reach)
        return -(-(features - 1) // self._grid.step) + 1

    def feature_rows(self, start: int, stop: int) -> tuple[int, Tensor]:
        """First segment, and rows (W, E, s) of the features counted from its start.

        The first latent of a clip has fewer entries; they come first, the rest repeats the last.
        """
        first_frame = self._timeline.first_frame
        entries = 4 + 2 * self._reach
        frames = np.empty((stop - start, entries), np.int64)
        for row, latent in enumerate(range(start, stop)):
            first, last = first_frame(latent) - self._reach, first_frame(latent + 1) + self._reach
            wanted = np.arange(first, last)
            frames[row] = np.pad(wanted, (0, entries - len(wanted)), mode="edge")
        features = np.maximum(frames, 0)[..., None] * 2 + np.arange(2)
        segment = int(features.min()) // self._grid.step
        return segment, torch.from_numpy(features - segment * self._grid.step)


def frames_of_latents(values: Tensor, start: int, stop: int) -> Tensor:
    """Values (F, ...) of frames as those (W, 4, ...) of latents ``start .. stop - 1``.

    The one frame of a clip's first latent fills its four places.
    """
    first = Timeline().first_frame
    rows = [
        values[first(latent) : first(latent + 1)].expand(4, *values.shape[1:])
        for latent in range(start, stop)
    ]
    return torch.stack(rows)
