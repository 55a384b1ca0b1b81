"""One video's decoder with its memory at fixed places, written in place.

A steady step neither concatenates nor clones: every convolution has a buffer of the frames before
and the new ones, the norm in front of it writes straight behind the former, and before the next
step the last frames move to the front. Costs memory: room for the new frames of every convolution.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.models.vae import StepCaches, TorchVAE, VAECache

Recorded = tuple[Callable[[], None], tuple[Tensor, ...]]
"""A step that can be repeated, and where it leaves its results."""

Record = Callable[[Callable[[], tuple[Tensor, ...]]], Recorded | None]
"""Makes work on fixed tensors repeatable, or says that it cannot be, as
:meth:`.cuda_graphs.StepGraphs.record_in_place` does."""


class StreamBuffers(StepCaches):
    """Caches of one stream that stay where they are.

    Parameters
    ----------
    caches : VAECache
        Of the step before.
    """

    def __init__(self, caches: VAECache) -> None:
        super().__init__([])
        self._buffers: list[Tensor] = []
        self._next = 0
        self.load(caches)

    def load(self, caches: VAECache) -> None:
        """Go on behind the step that returned ``caches``; buffers that fit them stay in use."""
        for buffer, cache in zip(self._buffers, caches, strict=False):
            buffer[:, :, : cache.shape[2]] = cache
        self._first = caches if len(self._buffers) < len(caches) else ()
        self._lengths = [cache.shape[2] for cache in caches]
        self._is_front = True  # the frames before are at the front, not at the end

    def begin(self) -> None:
        """Bring the frames before to the front, where a step looks for them."""
        if not self._is_front:
            for buffer, length in zip(self._buffers, self._lengths, strict=True):
                _move_to_front(buffer, length)
        self._is_front = False

    def restart(self) -> None:
        """Start with the first module's buffer."""
        self._next = 0

    def go_back(self) -> None:
        """Forget the last step: what it read still stands in front of what it wrote."""
        self._is_front = True

    def values(self) -> VAECache:
        """Copy of the frames that the next step remembers."""
        if self._first:
            return self._first
        pairs = zip(self._buffers, self._lengths, strict=True)
        return tuple(
            (buffer[:, :, :n] if self._is_front else buffer[:, :, -n:]).clone(
                memory_format=torch.channels_last_3d
            )
            for buffer, n in pairs
        )

    def room(self, x: Tensor, num_frames: int) -> Tensor:
        """Where new frames of the shape of ``x`` go that the next module remembers."""
        return self._buffer(x)[:, :, num_frames:]

    def exchange(self, x: Tensor, num_frames: int, *, repeat_first: bool = False) -> Tensor:
        """The frames before; those of ``x`` are stored behind them."""
        return self.prepend(x, num_frames, repeat_first=repeat_first)[:, :, :num_frames]

    def prepend(self, x: Tensor, num_frames: int, *, repeat_first: bool = False) -> Tensor:  # noqa: ARG002
        """The whole buffer: the frames before, then ``x``, copied unless it was written there."""
        buffer = self._buffer(x)
        room = buffer[:, :, num_frames:]
        if x.data_ptr() != room.data_ptr():
            room.copy_(x)
        self._next += 1
        return buffer

    def _buffer(self, x: Tensor) -> Tensor:
        """The next module's buffer; made in the first step."""
        if self._next == len(self._buffers):
            cache = self._first[self._next]
            batch, channels, count, height, width = x.shape
            buffer = torch.empty(
                (batch, channels, cache.shape[2] + count, height, width),
                dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d,
            )  # fmt: skip
            buffer[:, :, : cache.shape[2]] = cache
            self._buffers.append(buffer)
            if len(self._buffers) == len(self._lengths):
                self._first = ()
        return self._buffers[self._next]


class DecoderStream:
    """Decodes one video, latent by latent, in place.

    Frames are those of :meth:`.vae.VideoVAE.decode_step` with its caches, to the byte.

    Parameters
    ----------
    vae : TorchVAE
        Whose decoder runs.
    record : callable, optional
        Makes the steady step one that is replayed, such as a CUDA graph; it may run it a few times.
    """

    def __init__(self, vae: TorchVAE, record: Record | None = None) -> None:
        self._vae, self._record = vae, record
        self._buffers: StreamBuffers | None = None
        self._latents: Tensor | None = None
        self._recorded: Recorded | None = None
        self._is_tried = False
        self._num_steps = 0

    @property
    def is_started(self) -> bool:
        """Whether a latent was decoded."""
        return self._num_steps > 0

    def step(self, latents: Tensor) -> Tensor:
        """Frames of the next latent.

        Parameters
        ----------
        latents : Tensor, shape (B, C, 1, h, w)
            Normalised; of the same shape in every step.

        Returns
        -------
        Tensor, shape (B, 3, F, H, W)
            One frame in the first step, 4 afterwards, in [-1, 1]; to be used before the next step.

        Raises
        ------
        InvalidArgument
            The shape does not fit the model or the step before. The memory is as before, as after
            any other error.
        """
        self._num_steps += 1
        try:
            if self._num_steps > 1:
                return self._next_frames(latents)
            frames, caches = self._vae.decode_step(latents)
        except BaseException:
            self.go_back()
            raise
        self._fill(caches)
        return frames

    def go_back(self) -> None:
        """Forget the last step; not twice in a row."""
        self._num_steps -= 1
        if self._buffers is not None:
            self._buffers.go_back()

    def values(self) -> VAECache:
        """Copy of the memory, as ``decode_step`` takes it; empty before the first latent."""
        if self._buffers is None or not self.is_started:
            return ()
        return self._buffers.values()

    def load(self, caches: VAECache) -> None:
        """Go on behind the step that returned ``caches``."""
        self._fill(caches)
        self._num_steps = max(1, self._num_steps)

    def restart(self) -> None:
        """Begin another video of the same size in the same memory."""
        self._num_steps = 0

    def forget(self) -> None:
        """Free the memory; the next latent is the first of a video."""
        self._buffers = self._latents = self._recorded = None
        self._is_tried = False
        self._num_steps = 0

    def _fill(self, caches: VAECache) -> None:
        if self._buffers is None:
            self._buffers = StreamBuffers(caches)
        else:
            self._buffers.load(caches)

    def _next_frames(self, latents: Tensor) -> Tensor:
        """What :meth:`step` returns behind the first."""
        assert self._buffers is not None
        if self._latents is None:
            self._latents = torch.empty_like(latents)
        if latents.shape != self._latents.shape:
            raise InvalidArgument(
                "latents", expected=f"shape {tuple(self._latents.shape)}", got=tuple(latents.shape)
            )
        self._latents.copy_(latents)
        self._buffers.begin()
        if self._record is not None and not self._is_tried:
            # Runs the step, maybe often: it reads the front of the buffers and writes behind it.
            self._recorded = self._record(self._steady)
            self._is_tried = True
        if self._recorded is None:
            return self._steady()[0]
        replay, (frames,) = self._recorded
        replay()
        return frames

    def _steady(self) -> tuple[Tensor]:
        assert self._buffers is not None
        assert self._latents is not None
        self._buffers.restart()
        frames = self._vae.decode_in_place(self._latents, self._buffers)
        return (frames,)


def _move_to_front(buffer: Tensor, length: int) -> None:
    """Copy the last ``length`` frames to the front, in pieces that do not overlap."""
    shift = buffer.shape[2] - length
    for start in range(0, length, shift):
        stop = min(start + shift, length)
        buffer[:, :, start:stop].copy_(buffer[:, :, start + shift : stop + shift])
