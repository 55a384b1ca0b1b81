"""Embeddings of what is no latent: the timestep, and the portrait's tokens.

Source: Wan-Video/Wan2.1 ``wan/modules/model.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ImageEmbedding(nn.Module):
    """Projects the image encoder's tokens to the model's width (Wan's ``MLPProj``).

    Parameters
    ----------
    image_dim, dim : int
        Widths in and out.
    """

    def __init__(self, image_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(image_dim),
            nn.Linear(image_dim, image_dim),
            nn.GELU(),
            nn.Linear(image_dim, dim),
            nn.LayerNorm(dim),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S, image_dim) -> (B, S, D)."""
        out: Tensor = self.proj(tokens)
        return out


def sinusoid(timestep: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of timesteps, cosines first (Wan's ``sinusoidal_embedding_1d``).

    Parameters
    ----------
    timestep : Tensor, shape (B,)
        In [0, 1000].
    dim : int
        Even width.

    Returns
    -------
    Tensor, shape (B, dim), float32; computed in float64.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float64, device=timestep.device) / half
    angles = torch.outer(timestep.double(), 10_000.0**-exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()
