"""Faulty versions of :func:`skyreels_rt.kernels.frames_to_uint8`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _half_up(frames: Tensor) -> Tensor:
    levels = (((frames.float() + 1.0) * 127.5).clamp(0, 255) + 0.5).floor()
    return levels.to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def _truncated(frames: Tensor) -> Tensor:
    levels = ((frames.float() + 1.0) * 127.5).clamp(0, 255)
    return levels.to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def _128(frames: Tensor) -> Tensor:
    levels = ((frames.float() + 1.0) * 128.0).clamp(0, 255).round()
    return levels.to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def _bgr(frames: Tensor) -> Tensor:
    levels = ((frames.float() + 1.0) * 127.5).clamp(0, 255).round()
    return levels.to(torch.uint8).flip(0).permute(1, 2, 3, 0).contiguous()


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "half_up": _half_up,
    "truncated": _truncated,
    "scale_128": _128,
    "bgr": _bgr,
}
"""Faulty versions of ``frames_to_uint8``; bit equality must reject them."""
