"""The way from one latent to its frames, with the decoder's memory of the latents before."""

from __future__ import annotations

from collections.abc import Callable
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


class LatentDecoder:
    """Streaming VAE decoder of one job.

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
    """

    def __init__(
        self,
        components: Components,
        height: int,
        width: int,
        portrait: Callable[[], Tensor | None],
    ) -> None:
        self._parts = components
        self._size = (height, width)
        self._portrait = portrait
        self._is_primed = components.timeline.primed
        self._cache: VAECache | None = None
        self._stream: DecoderStream | None = None
        self._pipeline: DecodePipeline | None = None
        mesh = components.mesh
        if mesh is not None and mesh.axis("world").size > 1 and components.vae.decoder_pieces():
            self._pipeline = DecodePipeline(components.vae, mesh.axis("world"))
        elif isinstance(components.vae, TorchVAE) and components.vae.options.buffers:
            graphs = components.graphs
            record = None if graphs is None else partial(graphs.record_in_place, "decode")
            self._stream = DecoderStream(components.vae, record)

    def next_frames(self, latents: Tensor) -> NDArray[np.uint8]:
        """Frames (F, H, W, 3) of the next latent.

        Parameters
        ----------
        latents : Tensor, shape (C, n, h, w)
            The next latent, and those behind it that are already there.

        Raises
        ------
        NonFinite
            NaN or infinity came out; the memory is as before.
        PeerFailed
            Another rank left, or did not answer in time.
        """
        if self._pipeline is not None:
            return self._from_pipeline(self._pipeline, latents)
        if self._stream is not None:
            return self._from_stream(self._stream, latents)
        vae, cache = self._parts.vae, self._cache
        if cache is None and self._is_primed:
            _, cache = vae.decode_step(self._leading()[None], None)
        video, cache = vae.decode_step(latents[None, :, :1], cache)
        frames = self._pixels(video)
        if frames is None:
            raise _not_finite()
        self._cache = cache
        whole: NDArray[np.uint8] = frames.cpu().numpy()
        return whole

    def go_back(self) -> None:
        """Forget what was done ahead: other latents follow the last whose frames were taken."""
        if self._pipeline is not None:
            self._pipeline.go_back(self._pipeline.num_done)

    def tensors(self) -> dict[str, Tensor]:
        """Copy of the memory, by name, for :meth:`restore`; on a mesh every rank must ask."""
        caches = self._cache or ()
        if self._pipeline is not None:
            caches = self._pipeline.caches(*self._size)
        if self._stream is not None:
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
        self._cache = None
        if self._stream is not None:
            self._stream.forget()
        if self._pipeline is not None:
            self._pipeline.reset(0, ())

    def _from_stream(self, stream: DecoderStream, latents: Tensor) -> NDArray[np.uint8]:
        if self._is_primed and not stream.is_started:
            stream.step(self._leading()[None])
        frames = self._pixels(stream.step(latents[None, :, :1]))
        if frames is None:
            stream.go_back()
            raise _not_finite()
        out: NDArray[np.uint8] = frames.cpu().numpy()
        return out

    def _from_pipeline(self, pipeline: DecodePipeline, latents: Tensor) -> NDArray[np.uint8]:
        mesh = self._parts.mesh
        assert mesh is not None

        def read(index: int) -> Tensor:
            if index < first:
                return self._leading()[None]
            return latents[None, :, index - first : index - first + 1]

        first = max(pipeline.num_done, int(self._is_primed))
        stop = first + latents.shape[1]
        if pipeline.num_done < first:
            pipeline.next_frames(stop, read)
        video = pipeline.next_frames(stop, read)
        frames = None if video is None else self._pixels(video.clamp(-1.0, 1.0))
        if mesh.any(video is not None and frames is None):
            pipeline.go_back(first)
            raise _not_finite()
        count = 1 if first == 0 else self._parts.vae.temporal_stride
        axis, shape = mesh.axis("world"), (count, *self._size, 3)
        whole = axis.broadcast(frames, shape, torch.uint8, pipeline.last)
        out: NDArray[np.uint8] = whole.cpu().numpy()
        return out

    def _pixels(self, video: Tensor) -> Tensor | None:
        """Frames (F, H, W, 3), uint8; None for a video with NaN or infinity."""
        if not torch.isfinite(video).all():
            return None
        return frames_to_uint8(video[0], impl=self._parts.plan.frames_to_uint8)

    def _leading(self) -> Tensor:
        portrait = self._portrait()
        assert portrait is not None
        return portrait.unsqueeze(1)


def _not_finite() -> NonFinite:
    return NonFinite("The VAE decoded NaN or infinity.", stage="decode")
