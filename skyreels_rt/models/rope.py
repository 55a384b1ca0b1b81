"""3-D rotary position tables of the Wan transformer.

Source: Wan-Video/Wan2.1 ``wan/modules/model.py`` (``rope_params``, ``rope_apply``): the head's
pairs are split over time, height and width as ``K - 4(K//6)``, ``2(K//6)``, ``2(K//6)`` channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

THETA = 10_000.0


def rope_tables(
    frames: int, height: int, width: int, head_dim: int, *, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines for a grid of patches; time counts from the window's own start.

    Parameters
    ----------
    frames, height, width : int
        Patches along each axis.
    head_dim : int
        Size K of one attention head, even.
    device : torch.device, optional
        Where the tables live; the CPU by default.

    Returns
    -------
    tuple of Tensor, shape (F*H*W, K/2) each, float32
        Tables for tokens in (frame, row, column) order; computed in float64.
    """
    spatial = 2 * (head_dim // 6)
    sizes = (head_dim - 2 * spatial, spatial, spatial)
    angles = [
        torch.outer(torch.arange(length, dtype=torch.float64), _frequencies(size))
        for length, size in zip((frames, height, width), sizes, strict=True)
    ]
    time, row, column = angles
    grid = torch.cat(
        [
            time[:, None, None].expand(frames, height, width, -1),
            row[None, :, None].expand(frames, height, width, -1),
            column[None, None, :].expand(frames, height, width, -1),
        ],
        dim=-1,
    ).reshape(frames * height * width, head_dim // 2)
    return grid.cos().float().to(device), grid.sin().float().to(device)


def _frequencies(size: int) -> Tensor:
    return THETA ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
