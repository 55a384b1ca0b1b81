"""A rank's share of a window's tokens, as the transformer sees it.

How the shares meet in self-attention is the business of :mod:`skyreels_rt.distributed.usp`; all
else in a block looks at each token by itself, or at the audio of its own frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from skyreels_rt.kernels import AttentionBackend


class TokenShard(Protocol):
    """Tokens ``[start, stop)`` of a window's ``num_tokens``, in (frame, row, column) order."""

    num_tokens: int
    start: int
    stop: int

    def attend(
        self, q_BLD: Tensor, k_BLD: Tensor, v_BLD: Tensor, num_heads: int, backend: AttentionBackend
    ) -> Tensor:
        """Attention of the own tokens' queries over the keys of all tokens, (B, l, D)."""
        ...

    def gather(self, x_BLD: Tensor) -> Tensor:
        """All tokens (B, num_tokens, D), from every rank's own (B, l, D)."""
        ...


@dataclass(frozen=True)
class FrameSegment:
    """A run of a shard's tokens that takes equally many of each frame it touches.

    Attributes
    ----------
    num_tokens : int
        Tokens of the run.
    first_frame, stop_frame : int
        Frames of the window ``[first_frame, stop_frame)``.
    """

    num_tokens: int
    first_frame: int
    stop_frame: int


def frame_segments(start: int, stop: int, tokens_per_frame: int) -> tuple[FrameSegment, ...]:
    """Cut the tokens ``[start, stop)`` into at most a part of a frame, whole frames, and a part."""
    segments = []
    while start < stop:
        frame, offset = divmod(start, tokens_per_frame)
        whole = (stop - start) // tokens_per_frame
        if offset == 0 and whole:
            segment = FrameSegment(whole * tokens_per_frame, frame, frame + whole)
        else:
            segment = FrameSegment(min(stop - start, tokens_per_frame - offset), frame, frame + 1)
        segments.append(segment)
        start += segment.num_tokens
    return tuple(segments)
