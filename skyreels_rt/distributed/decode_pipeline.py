"""The VAE's decoder cut into stages, one a rank: a pipeline over time.

Latent n is in the last stage while n + 1 is in the one before. Every piece of the decoder runs with
the shapes that it has on a single rank, so the bytes are the same on every device; rows dealt to
ranks would be less exact, since a convolution's summation order depends on its shape (measured: a
tile's activations differ by 2e-6). A rank keeps the caches of its own stage alone.

The pipeline runs ahead inside the latents that are there. Old caches are kept until the last stage
has passed, and once more, so that it can go back to the last latent.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from skyreels_rt.distributed.axis import Axis
from skyreels_rt.models.vae import StepCaches, VAECache, VideoVAE
from skyreels_rt.models.vae_pieces import balanced, run_pieces


class DecodePipeline:
    """One job's decoder, spread over the ranks of an axis.

    Parameters
    ----------
    vae : VideoVAE
        With at least two ``decoder_pieces``.
    axis : Axis
        Ranks, first stage first; those beyond the number of pieces only receive.
    """

    def __init__(self, vae: VideoVAE, axis: Axis) -> None:
        pieces = vae.decoder_pieces()
        self._vae, self._axis = vae, axis
        self._stages = balanced([piece.work for piece in pieces], min(axis.size, len(pieces)))
        own = self._stages[axis.index] if axis.index < len(self._stages) else range(0)
        self._pieces = pieces[own.start : own.stop]
        counts = [sum(pieces[k].num_caches for k in stage) for stage in self._stages]
        self._cache_counts = counts
        self.reset(0, ())

    @property
    def last(self) -> int:
        """Index of the rank whose stage gives the frames."""
        return len(self._stages) - 1

    @property
    def num_done(self) -> int:
        """Latents that passed all stages."""
        return self._done[-1]

    def reset(self, num_done: int, caches: VAECache) -> None:
        """Go on behind ``num_done`` latents with the caches of all stages (:meth:`caches`)."""
        before = sum(self._cache_counts[: self._axis.index])
        count = self._cache_counts[self._axis.index] if self._pieces else 0
        own = caches[before : before + count] if num_done else None
        self._done = [num_done] * len(self._stages)  # latents that each stage has done
        self._caches: dict[int, VAECache | None] = {num_done: own}  # before each latent
        self._inputs: dict[int, Tensor] = {}

    def go_back(self, num_done: int) -> None:
        """Forget what stages did ahead of ``num_done`` latents, :attr:`num_done` or one less."""
        self._done = [num_done] * len(self._stages)
        self._inputs.clear()

    def next_frames(self, stop: int, read: Callable[[int], Tensor]) -> Tensor | None:
        """Decode the next latent. Every rank calls this.

        Parameters
        ----------
        stop : int
            Latents ``[0, stop)`` can be read; more than :attr:`num_done`.
        read : callable
            From an index to a latent (1, C, 1, h, w).

        Returns
        -------
        Tensor, shape (1, 3, F, H, W), or None
            Frames, not clamped, on the last stage's rank; None on others.

        Raises
        ------
        PeerFailed
            A rank left, or did not answer in time.
        """
        index, out = self.num_done, None
        while self.num_done == index:
            out = self._tick(index, stop, read)
        for old in [key for key in self._caches if key < index]:
            del self._caches[old]
        return out

    def caches(self, height: int, width: int) -> VAECache:
        """Caches of all stages behind :attr:`num_done` latents, on every rank.

        Parameters
        ----------
        height, width : int
            Of the frames.
        """
        if self.num_done == 0:
            return ()
        own = list(self._caches.get(self.num_done) or ())
        whole = []
        shapes = iter(self._vae.decoder_cache_shapes(height, width))
        for rank, count in enumerate(self._cache_counts):
            for _ in range(count):
                shape = (1, *next(shapes))
                mine = own.pop(0).contiguous() if rank == self._axis.index else None
                whole.append(self._axis.broadcast(mine, shape, self._vae.dtype, rank))
        return tuple(whole)

    def _tick(self, index: int, stop: int, read: Callable[[int], Tensor]) -> Tensor | None:
        """Every stage that can does its next latent, and hands it on."""
        last, rank, done = self.last, self._axis.index, tuple(self._done)
        busy = [
            stage
            for stage in range(last + 1)
            if done[stage] < min(stop, index + 1 + last - stage)
            and (stage == 0 or done[stage - 1] > done[stage])
        ]
        out = None
        if rank in busy:
            out = self._run(done[rank], read)
        sends = {rank + 1: out} if out is not None and rank < last else {}
        comes = rank - 1 in busy and 0 < rank <= last
        received = self._hand_on(sends, rank - 1 if comes else None)
        if received is not None:
            self._inputs[done[rank - 1]] = received
        for stage in busy:
            self._done[stage] += 1
        return out if rank == last else None

    def _run(self, index: int, read: Callable[[int], Tensor]) -> Tensor:
        raw = self._vae.raw_latents(read(index))
        x = raw if self._axis.index == 0 else self._inputs.pop(index)
        before = self._caches[index]  # stays: the stage may go back to it
        caches = StepCaches(None if before is None else list(before))
        out = run_pieces(self._pieces, x, raw, caches)
        self._caches[index + 1] = caches.finish()
        return out

    def _hand_on(self, sends: dict[int, Tensor], sender: int | None) -> Tensor | None:
        """Send and receive activations with their strides, which convolutions choose a path by."""
        device = self._axis.device
        headers = {
            peer: torch.tensor([*x.shape, *x.stride()], dtype=torch.int64, device=device)
            for peer, x in sends.items()
        }
        coming = torch.empty(10, dtype=torch.int64, device=device)
        receives = {} if sender is None else {sender: coming}
        self._axis.exchange(headers, receives)
        flat = {peer: x.as_strided((x.numel(),), (1,)) for peer, x in sends.items()}
        if sender is None:
            self._axis.exchange(flat, {})
            return None
        layout = coming.tolist()
        x = torch.empty_strided(layout[:5], layout[5:], dtype=self._vae.dtype, device=device)
        self._axis.exchange(flat, {sender: x.as_strided((x.numel(),), (1,))})
        return x
