"""Way of the portrait's tokens into the transformer."""

from __future__ import annotations

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
