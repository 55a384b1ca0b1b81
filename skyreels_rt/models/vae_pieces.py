"""A VAE's decoder as a row of pieces, which may run in different places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from skyreels_rt.models.vae import StepCaches


@dataclass(frozen=True)
class DecoderPiece:
    """One of the pieces that a decoding step runs through in order.

    Attributes
    ----------
    run : callable
        ``run(x, latents, caches)``: activations (B, C, F, H, W) of the piece before (the raw
        latents, for the first piece), the raw latents (B, C, 1, h, w), and the piece's own caches,
        to activations, in the end frames.
    num_caches : int
        Caches that it keeps, in the order of ``decoder_cache_shapes``.
    modules : tuple of Module
        Whose weights it applies.
    places : int
        Where they are applied: pixels and frames, counted in those of the latents.
    """

    run: Callable[[Tensor, Tensor, StepCaches], Tensor]
    num_caches: int
    modules: tuple[nn.Module, ...]
    places: int

    @property
    def work(self) -> int:
        """Roughly proportional to its time."""
        weights = (weight for module in self.modules for weight in module.parameters())
        return self.places * sum(weight.numel() for weight in weights)


def run_pieces(
    pieces: Sequence[DecoderPiece], x: Tensor, latents: Tensor, caches: StepCaches
) -> Tensor:
    """Activations behind ``pieces``, arguments as in :class:`DecoderPiece`."""
    for piece in pieces:
        x = piece.run(x, latents, caches)
    return x


def balanced(work: Sequence[int], parts: int) -> list[range]:
    """Cut a row of pieces into ``parts`` runs, none empty, whose largest sum is least.

    Parameters
    ----------
    work : sequence of int
        Of every piece, at least ``parts`` of them.
    parts : int
        Number of runs.
    """
    best: dict[tuple[int, int], tuple[int, list[range]]] = {}

    def cut(start: int, count: int) -> tuple[int, list[range]]:
        if count == 1:
            return sum(work[start:]), [range(start, len(work))]
        if (start, count) not in best:
            options = []
            for stop in range(start + 1, len(work) - count + 2):
                rest, runs = cut(stop, count - 1)
                options.append((max(sum(work[start:stop]), rest), [range(start, stop), *runs]))
            best[start, count] = min(options, key=lambda option: option[0])
        return best[start, count]

    return cut(0, parts)[1]
