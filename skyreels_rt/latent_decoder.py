"""The way from one latent to its frames, with the decoder's memory of the latents before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyreels_rt.components import Components
from skyreels_rt.distributed.decode_pipeline import DecodePipeline
from skyreels_rt.errors import NonFinite
from skyreels_rt.kernels import frames_to_uint8
from skyreels_rt.models.decoder_stream import DecoderStream
from skyreels_rt.models.vae import TorchVAE, VAECache
from skyreels_rt.runtime.lanes import InPlace, Lane, Pending, lane_for


@dataclass(frozen=True)
class _Step:
    """What one decoder step leaves behind."""

    frames: Tensor  # (F, H, W, 3), uint8, on the host
    is_finite: Tensor  # one bool, on the host
    cache: VAECache | None


class LatentDecoder:
    """Streaming VAE decoder of one job, one latent at a time.

    On CUDA a latent is decoded on a stream of its own between :meth:`begin` and :meth:`take`. The
    memory of the latents before counts as used only when its frames are taken, so a latent that was
    begun can be forgotten.

    On a mesh the decoder's stages are spread over all ranks, every one of which gets the frames.

    Parameters
    ----------
    components : Components
        The engine's frozen parts.
    height, width : int
        Of the frames.
    portrait : callable
        Gives the latent (C, h, w) that a primed decoder sees before its first one, and whose
        frame is dropped; None where it is not primed.
    lane : Lane, optional
        Where the decoder runs. By default beside the denoising if the device can do both.
    """

    def __init__(
        self,
        components: Components,
        height: int,
        width: int,
        portrait: Callable[[], Tensor | None],
        lane: Lane | None = None,
    ) -> None:
        self._parts = components
        self._size = (height, width)
        self._portrait = portrait
        self._is_primed = components.timeline.primed
        self._cache: VAECache | None = None
        self._stream: DecoderStream | None = None
        self._pending: Pending[_Step] | None = None
        self._pipeline: DecodePipeline | None = None
        mesh = components.mesh
        is_alone = mesh is None or mesh.axis("world").size == 1
        if mesh is not None and not is_alone and components.vae.decoder_pieces():
            self._pipeline = DecodePipeline(components.vae, mesh.axis("world"))
        elif isinstance(components.vae, TorchVAE) and components.vae.options.buffers:
            graphs = components.graphs
            record = None if graphs is None else partial(graphs.record_in_place, "decode")
            self._stream = DecoderStream(components.vae, record)
        # Ranks must do the same in the same order, and an exported graph runs on one stream only.
        overlaps = is_alone and components.vae.runner == "torch"
        beside = lane_for(components.device) if overlaps else InPlace()
        self._lane: Lane = lane if lane is not None else beside

    @property
    def is_done(self) -> bool:
        """Whether :meth:`take` would return at once."""
        return self._pending is not None and self._pending.is_done()

    def begin(self, latents: Tensor) -> None:
        """Start decoding the next latent; nothing if that was done before.

        Parameters
        ----------
        latents : Tensor, shape (C, n, h, w)
            The next latent, and those behind it that are already there. Not to be written to.

        Raises
        ------
        NonFinite, PeerFailed
            As :meth:`take`, where the decoder computes at once.
        """
        if self._pending is None:
            cache, portrait = self._cache, self._portrait()
            self._pending = self._lane.start(lambda: self._step(latents, cache, portrait))

    def take(self) -> NDArray[np.uint8]:
        """Frames (F, H, W, 3) of the latent that was begun; waits for them.

        Raises
        ------
        NonFinite
            NaN or infinity came out; the memory is as before.
        PeerFailed
            Another rank left, or did not answer in time.
        """
        pending, self._pending = self._pending, None
        assert pending is not None, "begin() comes first"
        step = pending.result()
        if not step.is_finite:
            if self._stream is not None:
                self._stream.go_back()
            raise _not_finite()
        self._cache = step.cache
        frames: NDArray[np.uint8] = step.frames.numpy()
        # Pinned memory is scarce: what a caller may keep is a copy.
        return frames.copy() if step.frames.is_pinned() else frames

    def go_back(self) -> None:
        """Forget what was done ahead: other latents follow the last whose frames were taken."""
        was_begun = self._drop()
        if self._pipeline is not None:
            self._pipeline.go_back(self._pipeline.num_done - was_begun)

    def tensors(self) -> dict[str, Tensor]:
        """Copy of the memory, by name, for :meth:`restore`; on a mesh every rank must ask."""
        caches = self._cache or ()
        if self._pipeline is not None:
            caches = self._pipeline.caches(*self._size)
        if self._stream is not None:
            self._drop()  # what was begun is written in place; it is done again
            caches = self._stream.values()
        return {f"decoder.{index}": cache.clone() for index, cache in enumerate(caches)}

    def restore(self, tensors: dict[str, Tensor], num_done: int) -> None:
        """Take up the memory that :meth:`tensors` gave behind ``num_done`` latents."""
        count = sum(name.startswith("decoder.") for name in tensors)
        device = self._parts.device
        caches = tuple(tensors[f"decoder.{index}"].to(device) for index in range(count))
        if self._pipeline is not None:
            self._pipeline.reset(num_done + self._is_primed if caches else 0, caches)
        elif self._stream is not None:
            if caches:
                self._stream.load(caches)
        else:
            self._cache = caches or None

    def forget(self) -> None:
        """Free the memory."""
        self._drop()
        self._cache = None
        if self._stream is not None:
            self._stream.forget()
        if self._pipeline is not None:
            self._pipeline.reset(0, ())

    def _drop(self) -> bool:
        """Forget a latent that was begun, once nothing computes it any more; whether one was."""
        pending, self._pending = self._pending, None
        if pending is None:
            return False
        with suppress(Exception):  # nobody wants it, so nobody wants to know
            pending.result()
        if self._stream is not None:
            self._stream.go_back()
        return True

    @torch.inference_mode()
    def _step(self, latents: Tensor, cache: VAECache | None, portrait: Tensor | None) -> _Step:
        """Decode the first of ``latents`` behind ``cache``; runs on the lane."""
        if self._pipeline is not None:
            frames = self._from_pipeline(self._pipeline, latents)
            return _Step(frames, torch.tensor(True), None)
        vae, stream = self._parts.vae, self._stream
        if stream is not None:
            if self._is_primed and not stream.is_started:
                stream.step(_leading(portrait)[None])
            video = stream.step(latents[None, :, :1])
        else:
            if cache is None and self._is_primed:
                _, cache = vae.decode_step(_leading(portrait)[None], None)
            video, cache = vae.decode_step(latents[None, :, :1], cache)
        frames, is_finite = self._pixels(video), torch.isfinite(video).all()
        return _Step(self._lane.to_host(frames), self._lane.to_host(is_finite), cache)

    def _from_pipeline(self, pipeline: DecodePipeline, latents: Tensor) -> Tensor:
        """Frames (F, H, W, 3), uint8, on the host, from the decoder of all ranks."""
        mesh = self._parts.mesh
        assert mesh is not None

        def read(index: int) -> Tensor:
            if index < first:
                return _leading(self._portrait())[None]
            return latents[None, :, index - first : index - first + 1]

        first = max(pipeline.num_done, int(self._is_primed))
        stop = first + latents.shape[1]
        if pipeline.num_done < first:
            pipeline.next_frames(stop, read)
        video = pipeline.next_frames(stop, read)
        if mesh.any(video is not None and not bool(torch.isfinite(video).all())):
            pipeline.go_back(first)
            raise _not_finite()
        frames = None if video is None else self._pixels(video.clamp(-1.0, 1.0))
        count = 1 if first == 0 else self._parts.vae.temporal_stride
        axis, shape = mesh.axis("world"), (count, *self._size, 3)
        return axis.broadcast(frames, shape, torch.uint8, pipeline.last).cpu()

    def _pixels(self, video: Tensor) -> Tensor:
        """Frames (F, H, W, 3), uint8."""
        return frames_to_uint8(video[0], impl=self._parts.plan.frames_to_uint8)


def _leading(portrait: Tensor | None) -> Tensor:
    """The portrait's latent (C, 1, h, w), which a primed decoder sees first."""
    assert portrait is not None
    return portrait.unsqueeze(1)


def _not_finite() -> NonFinite:
    return NonFinite("The VAE decoded NaN or infinity.", stage="decode")
