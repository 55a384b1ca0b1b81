"""What the audio encoders have in common: a segment of samples in, one grid step's features out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from skyreels_rt.errors import InvalidArgument

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from skyreels_rt.config import AudioFeatureConfig


class GridEncoder(ABC):
    """Features of one grid step from its segment of samples.

    A segment is encoded on its own, in a batch of one, so equal segments give equal bytes, live or
    offline.

    Parameters
    ----------
    config : AudioFeatureConfig
        The grid, at 16 kHz.
    """

    def __init__(self, config: AudioFeatureConfig) -> None:
        self._config = config

    @property
    @abstractmethod
    def feature_dim(self) -> int:
        """Width D of the features."""

    @abstractmethod
    def hidden_states(self, segment: NDArray[np.float32]) -> Sequence[Tensor]:
        """What enters the first layer, and each layer's output, (1, context, D) each."""

    @torch.no_grad()
    def encode(self, segment: NDArray[np.float32]) -> Tensor:
        """Hidden states of the grid step inside ``segment``.

        Parameters
        ----------
        segment : ndarray, shape (context * hop,), float32 in [-1, 1]
            Mono samples at 16 kHz: ``past``, ``step`` and ``lookahead`` features' worth.

        Returns
        -------
        Tensor, shape (step, L, D), float32, on the encoder's device
            Positions ``past`` to ``past + step``; entry ``l`` is the mean of the hidden states in
            ``config.layers[l]``.

        Raises
        ------
        InvalidArgument
            ``segment`` has another length or dtype.
        """
        states = self.hidden_states(segment)
        start, stop = self._config.past, self._config.past + self._config.step
        groups = [
            torch.stack([states[layer][0, start:stop].float() for layer in group]).mean(0)
            for group in self._config.layers
        ]
        return torch.stack(groups, dim=1)

    def _require_segment(self, segment: NDArray[np.float32]) -> None:
        """Raise InvalidArgument unless ``segment`` is one grid step's context."""
        num_samples = self._config.context * self._config.hop
        if segment.dtype != np.float32 or segment.shape != (num_samples,):
            raise InvalidArgument(
                "segment",
                expected=f"float32 of shape ({num_samples},)",
                got=f"{segment.dtype} of shape {segment.shape}",
                stage="audio",
            )
