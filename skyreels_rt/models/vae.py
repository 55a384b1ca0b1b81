"""Causal video VAEs: what every one of them offers, as one step function each way.

A VAE here is two functions, ``encode_step`` and ``decode_step``, whose whole memory is a tuple of
tensors passed in and handed back. Whole clips are encoded and decoded by calling the same steps
in a loop, so offline and streaming results are the same bytes by construction.

Legend: B batch, F frames, H W pixels, C latent channels, h w latent rows and columns
(``H // 8``, ``W // 8``). Frames are floats in [-1, 1]; latents that cross this interface are
normalised to about zero mean and unit variance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor, nn

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.models.vae_options import VAEOptions
from skyreels_rt.models.video_conv import Doubling
from skyreels_rt.types import Timeline

if TYPE_CHECKING:
    from skyreels_rt.models.vae_pieces import DecoderPiece

VAECache = tuple[Tensor, ...]
"""Memory of an encoder or a decoder between two steps; ``None`` in its place: no step yet."""

CacheShape = tuple[int, int, int, int]
"""Shape (channels, frames, rows, columns) of one cached activation, without the batch."""


class StepCaches:
    """The caches of one step: read in the order in which the step before wrote them.

    Made afresh for every step, so modules keep no state. Activations are in channels-last order
    throughout (bf16 convolutions on a CPU with AMX were measured 1.6-2.8 times as fast in it);
    caches that come back from a file in another order are brought into it, so the result has the
    same bytes.

    Parameters
    ----------
    previous : list of Tensor or None
        What :meth:`finish` returned at the step before, taken apart while it is read: a cache that
        nobody else holds is freed when it was used. None on the first step.
    keep : bool
        Whether a step follows; without, nothing is remembered.
    """

    def __init__(self, previous: list[Tensor] | None, *, keep: bool = True) -> None:
        self.is_first = previous is None
        self.keep = keep
        self._unread = previous or []
        self._unread.reverse()
        self._written: list[Tensor] = []

    def read(self) -> Tensor:
        """Next cache of the step before, shape (B, C, frames, H, W)."""
        return self._unread.pop().contiguous(memory_format=torch.channels_last_3d)

    def write(self, cache: Tensor) -> None:
        """Store ``cache``, shape (B, C, frames, H, W), for the next step."""
        if self.keep:
            self._written.append(cache)

    def room(self, x: Tensor, num_frames: int) -> Tensor | None:  # noqa: ARG002 - buffers need them
        """Where to write new frames of the shape of ``x``; None: anywhere."""
        return None

    def exchange(self, x: Tensor, num_frames: int, *, repeat_first: bool = False) -> Tensor | None:
        """The last ``num_frames`` frames of the step before; those of ``x`` take their place.

        Parameters
        ----------
        x : Tensor, shape (B, C, F, H, W)
            New activations, in channels-last order.
        num_frames : int
            Frames to remember.
        repeat_first : bool
            On the first step the frames before are copies of the first one, not zeros.

        Returns
        -------
        Tensor, shape (B, C, num_frames, H, W), or None
            None on the first step.
        """
        past = None if self.is_first else self.read()
        count = x.shape[2]
        if not self.keep:
            return past
        if count < num_frames:
            before = frames_before(x, num_frames, repeat_first) if past is None else past
            self.write(torch.cat([before[:, :, count:], x], dim=2))
        else:
            self.write(last_frames(x, num_frames))
        return past

    def prepend(self, x: Tensor, num_frames: int, *, repeat_first: bool = False) -> Tensor:
        """``x`` behind the last ``num_frames`` frames of the step before.

        Parameters
        ----------
        x : Tensor, shape (B, C, F, H, W)
            New activations, in channels-last order.
        num_frames : int
            Frames to remember.
        repeat_first : bool
            On the first step the frames before are copies of the first one, not zeros.

        Returns
        -------
        Tensor, shape (B, C, num_frames + F, H, W)
        """
        past = self.exchange(x, num_frames, repeat_first=repeat_first)
        if past is None:
            past = frames_before(x, num_frames, repeat_first)
        return torch.cat([past, x], dim=2)

    def finish(self) -> VAECache:
        """Everything written in this step."""
        return tuple(self._written)


def frames_before(x: Tensor, num_frames: int, repeat_first: bool) -> Tensor:
    """``num_frames`` frames before the first step's ``x``: zeros, or copies of its first frame."""
    if repeat_first:
        return x[:, :, :1].expand(-1, -1, num_frames, -1, -1)
    batch, channels, _, height, width = x.shape
    zeros = x.new_zeros((batch, channels, num_frames, height, width))
    return zeros.contiguous(memory_format=torch.channels_last_3d)


def last_frames(x: Tensor, num_frames: int) -> Tensor:
    """Copy of the last ``num_frames`` frames of ``x``, shape (B, C, F, H, W).

    A copy, because a view would keep all F frames in memory until the next step.
    """
    return x[:, :, -num_frames:].clone(memory_format=torch.channels_last_3d)


class VideoVAE(nn.Module, ABC):
    """A causal video VAE with explicit caches.

    Parameters
    ----------
    latent_channels : int
        Channels C of the latents.
    latents_mean, latents_std : tuple of float
        Statistics of the raw latents, one number or ``latent_channels`` numbers each.

    Attributes
    ----------
    latent_channels : int
        Channels C of the latents.
    spatial_stride, temporal_stride : int
        Pixels per latent row or column, and frames per latent after the first.
    """

    spatial_stride: ClassVar[int] = 8
    temporal_stride: ClassVar[int] = 4
    latents_mean: Tensor
    latents_std: Tensor

    def __init__(
        self,
        latent_channels: int,
        latents_mean: tuple[float, ...],
        latents_std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self._statistics = {"latents_mean": latents_mean, "latents_std": latents_std}
        for name, values in self._statistics.items():
            # On the CPU even when built under the meta device: no checkpoint will fill them in.
            self.register_buffer(name, _column(values, torch.device("cpu")), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the module; the statistics follow to the device and stay float32."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, values in self._statistics.items():
            setattr(self, name, _column(values, getattr(self, name).device))
        return self

    @abstractmethod
    def encoder_cache_shapes(self, height: int, width: int) -> tuple[CacheShape, ...]:
        """Shapes of the encoder's caches for frames of ``height`` x ``width`` pixels."""

    @abstractmethod
    def decoder_cache_shapes(self, height: int, width: int) -> tuple[CacheShape, ...]:
        """Shapes of the decoder's caches for frames of ``height`` x ``width`` pixels."""

    @abstractmethod
    def _encode(self, frames: Tensor, cache: list[Tensor] | None) -> tuple[Tensor, VAECache]:
        """Compute :meth:`encode_step`, its arguments checked; ``cache`` may be emptied."""

    @abstractmethod
    def _decode(
        self, latents: Tensor, cache: list[Tensor] | None, clamp: bool
    ) -> tuple[Tensor, VAECache]:
        """Compute :meth:`decode_step`, its arguments checked; ``cache`` may be emptied."""

    def _encode_alone(self, frames: Tensor) -> Tensor:
        """Compute :meth:`encode_picture`, its argument checked."""
        return self._encode(frames, None)[0]

    def decoder_pieces(self) -> tuple[DecoderPiece, ...]:
        """Parts of the decoder that may run on different ranks; none if it cannot be cut."""
        return ()

    def raw_latents(self, latents: Tensor) -> Tensor:
        """Latents (B, C, 1, h, w) as the decoder takes them: not normalised, its type and order."""
        raw = latents.float() * self.latents_std + self.latents_mean
        return _channels_last(raw, self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights; inputs are converted to it, outputs have it."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where inputs are expected and outputs are."""
        return self.latents_mean.device

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(weight.numel() * weight.element_size() for weight in self.parameters())

    @property
    def runner(self) -> str:
        """Who computes: two VAEs of equal weights and runners give equal bytes."""
        return "torch"

    def encode_step(self, frames: Tensor, cache: VAECache | None = None) -> tuple[Tensor, VAECache]:
        """Encode the frames of one latent.

        Parameters
        ----------
        frames : Tensor, shape (B, 3, F, H, W), float in [-1, 1]
            F is 1 on the first step and 4 afterwards; H and W are multiples of 8.
        cache : VAECache or None
            What the step before returned; None on the first step.

        Returns
        -------
        latents : Tensor, shape (B, C, 1, h, w)
            Normalised mode of the posterior.
        cache : VAECache
            For the next step.

        Raises
        ------
        InvalidArgument
            The shape does not fit, or the cache is of another model or frame size.
        """
        num_frames = 1 if cache is None else self.temporal_stride
        self._check_frames(frames, str(num_frames), frames.shape[2:3] == (num_frames,))
        height, width = frames.shape[-2:]
        _check_cache(cache, self.encoder_cache_shapes(height, width), frames.shape[0])
        return self._encode(frames, _handed_over(cache))

    def decode_step(
        self, latents: Tensor, cache: VAECache | None = None, *, clamp: bool = True
    ) -> tuple[Tensor, VAECache]:
        """Decode one latent.

        Parameters
        ----------
        latents : Tensor, shape (B, C, 1, h, w)
            Normalised latents.
        cache : VAECache or None
            What the step before returned; None on the first step.
        clamp : bool
            Clamp the frames to [-1, 1]; a training loss switches it off, since a clamped pixel
            has no gradient.

        Returns
        -------
        frames : Tensor, shape (B, 3, F, H, W)
            One frame on the first step, 4 afterwards.
        cache : VAECache
            For the next step.

        Raises
        ------
        InvalidArgument
            The shape does not fit, or the cache is of another model or frame size.
        """
        self._check_latents(latents, "1", latents.shape[2:3] == (1,))
        height, width = (self.spatial_stride * size for size in latents.shape[-2:])
        _check_cache(cache, self.decoder_cache_shapes(height, width), latents.shape[0])
        return self._decode(latents, _handed_over(cache), clamp)

    def encode_picture(self, frames: Tensor) -> Tensor:
        """Encode a lone picture: the latents of :meth:`encode_step`, without memory for a next one.

        Parameters
        ----------
        frames : Tensor, shape (B, 3, 1, H, W), float in [-1, 1]
            H and W are multiples of 8.

        Returns
        -------
        Tensor, shape (B, C, 1, h, w)
            Normalised latents.

        Raises
        ------
        InvalidArgument
            The shape does not fit.
        """
        self._check_frames(frames, "1", frames.shape[2:3] == (1,))
        return self._encode_alone(frames)

    def encode(self, frames: Tensor) -> Tensor:
        """Encode a clip: :meth:`encode_step` over its frames.

        Parameters
        ----------
        frames : Tensor, shape (B, 3, F, H, W), float in [-1, 1]
            ``F = 4 * (n - 1) + 1``; H and W are multiples of 8.

        Returns
        -------
        Tensor, shape (B, C, n, h, w)
            Normalised latents.

        Raises
        ------
        InvalidArgument
            The shape does not fit.
        """
        timeline = Timeline(self.temporal_stride)
        num_frames = frames.shape[2] if frames.ndim == 5 else 0
        num_latents = timeline.num_latents(num_frames)
        fits = 0 < num_frames == timeline.num_frames(num_latents)
        self._check_frames(frames, f"{self.temporal_stride} * (n - 1) + 1", fits)
        parts: list[Tensor] = []
        cache: VAECache | None = None
        for index in range(num_latents):
            start, stop = timeline.first_frame(index), timeline.first_frame(index + 1)
            previous, cache = _handed_over(cache), None  # so that the step can free it
            latents, cache = self._encode(frames[:, :, start:stop], previous)
            parts.append(latents)
        return torch.cat(parts, dim=2)

    def decode(self, latents: Tensor, *, clamp: bool = True) -> Tensor:
        """Decode a clip: :meth:`decode_step` over its latents.

        Parameters
        ----------
        latents : Tensor, shape (B, C, n, h, w)
            Normalised latents, ``n >= 1``.
        clamp : bool
            As in :meth:`decode_step`.

        Returns
        -------
        Tensor, shape (B, 3, 4 * (n - 1) + 1, 8 * h, 8 * w)
            Frames.

        Raises
        ------
        InvalidArgument
            The shape does not fit.
        """
        self._check_latents(latents, "at least 1", latents.shape[2:3] > (0,))
        parts: list[Tensor] = []
        cache: VAECache | None = None
        for index in range(latents.shape[2]):
            previous, cache = _handed_over(cache), None  # so that the step can free it
            frames, cache = self._decode(latents[:, :, index : index + 1], previous, clamp)
            parts.append(frames)
        return torch.cat(parts, dim=2)

    def encoder_cache_bytes(self, height: int, width: int, dtype: torch.dtype) -> int:
        """Bytes of one video's encoder caches at ``height`` x ``width`` pixels in ``dtype``."""
        return sum(map(prod, self.encoder_cache_shapes(height, width))) * dtype.itemsize

    def decoder_cache_bytes(self, height: int, width: int, dtype: torch.dtype) -> int:
        """Bytes of one video's decoder caches at ``height`` x ``width`` pixels in ``dtype``."""
        return sum(map(prod, self.decoder_cache_shapes(height, width))) * dtype.itemsize

    def cache_bytes(self, height: int, width: int, dtype: torch.dtype) -> int:
        """Bytes of one video's encoder and decoder caches together; computed, not run.

        Parameters
        ----------
        height, width : int
            Frame size in pixels, multiples of 8.
        dtype : torch.dtype
            Data type that the VAE runs in.

        Returns
        -------
        int
        """
        return self.encoder_cache_bytes(height, width, dtype) + self.decoder_cache_bytes(
            height, width, dtype
        )

    def _check_frames(self, frames: Tensor, count: str, count_fits: bool) -> None:
        """Raise unless ``frames`` is (B, 3, F, H, W) with a fitting F, H and W."""
        stride = self.spatial_stride
        sizes_fit = all(size > 0 and size % stride == 0 for size in frames.shape[-2:])
        if frames.ndim != 5 or frames.shape[1] != 3 or not count_fits or not sizes_fit:
            raise InvalidArgument(
                "frames",
                expected=f"shape (B, 3, F, H, W) with F {count}, H and W multiples of {stride}",
                got=tuple(frames.shape),
                hint="Pad or cut the clip; resize the frames.",
            )

    def _check_latents(self, latents: Tensor, count: str, count_fits: bool) -> None:
        """Raise unless ``latents`` is (B, C, n, h, w) with a fitting n."""
        fits = latents.ndim == 5 and latents.shape[1] == self.latent_channels
        if not fits or not count_fits or 0 in latents.shape[-2:]:
            raise InvalidArgument(
                "latents",
                expected=f"shape (B, {self.latent_channels}, n, h, w) with n {count}",
                got=tuple(latents.shape),
            )


class TorchVAE(VideoVAE):
    """A video VAE computed by torch modules.

    Takes the arguments of :class:`VideoVAE`.

    Attributes
    ----------
    options : VAEOptions
        How it computes; see :meth:`configure`.
    """

    options = VAEOptions()

    def configure(self, options: VAEOptions) -> Self:
        """Compute as ``options`` say from now on; done before the model is shared."""
        self.options = options
        for module in self.modules():
            if isinstance(module, Doubling):
                module.upsampling = options.upsampling
        return self

    @property
    def runner(self) -> str:
        """Who computes, with those options that may round otherwise."""
        return f"torch {self.options.upsampling} {self.options.encode_tile}"

    def cache_bytes(self, height: int, width: int, dtype: torch.dtype) -> int:
        """Bytes of one video's caches, with the buffers' room for new frames at its most."""
        found = super().cache_bytes(height, width, dtype)
        if self.options.buffers:
            shapes = self.decoder_cache_shapes(height, width)
            room = sum(c * self.temporal_stride * h * w for c, _, h, w in shapes)
            found += room * dtype.itemsize
        return found

    def _tile_for(self, frames: Tensor) -> int | None:
        """Side of the tiles that ``frames`` are encoded in; None: whole."""
        large = not torch.compiler.is_compiling() and self.options.takes_tiles(*frames.shape[-2:])
        return self.options.encode_tile if large else None

    @abstractmethod
    def _encode_raw(self, frames: Tensor, caches: StepCaches) -> Tensor:
        """Raw latents (B, C, 1, h, w) of the frames of one step."""

    @abstractmethod
    def _decode_raw(self, latents: Tensor, caches: StepCaches) -> Tensor:
        """Frames (B, 3, F, H, W), not clamped, of the raw latents of one step."""

    def channels_last_weights(self) -> Self:
        """Bring the weights of convolutions into channels-last order, in place.

        Values and results stay the same. oneDNN copies weights of another order in every call,
        which for small frames takes as long as the convolution.
        """
        for weight in self.parameters():
            if weight.ndim == 5:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)
        return self

    def _encode(self, frames: Tensor, cache: list[Tensor] | None) -> tuple[Tensor, VAECache]:
        caches = StepCaches(cache)
        return self._normalised(frames, caches), caches.finish()

    def _encode_alone(self, frames: Tensor) -> Tensor:
        return self._normalised(frames, StepCaches(None, keep=False))

    def _normalised(self, frames: Tensor, caches: StepCaches) -> Tensor:
        """Latents of the frames of one step."""
        raw = self._encode_raw(_channels_last(frames, self.dtype), caches)
        latents = (raw.float() - self.latents_mean) / self.latents_std
        return latents.to(self.dtype)

    def decode_in_place(self, latents: Tensor, caches: StepCaches) -> Tensor:
        """:meth:`decode_step` on caches of the caller's, which it changes."""
        self._check_latents(latents, "1", latents.shape[2:3] == (1,))
        return self._decode_raw(self.raw_latents(latents), caches).clamp(-1.0, 1.0)

    def _decode(
        self, latents: Tensor, cache: list[Tensor] | None, clamp: bool
    ) -> tuple[Tensor, VAECache]:
        caches = StepCaches(cache)
        frames = self._decode_raw(self.raw_latents(latents), caches)
        return (frames.clamp(-1.0, 1.0) if clamp else frames), caches.finish()


def _handed_over(cache: VAECache | None) -> list[Tensor] | None:
    """The tensors of ``cache`` for a step to use up."""
    return None if cache is None else list(cache)


def _column(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Statistics as a tensor (1, C, 1, 1, 1), float32; meta where the module is."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1, 1)


def _channels_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in ``dtype`` with canonical channels-last strides.

    A copy even where sizes of one make several orders equal: the strides choose the convolution,
    and with it the bytes of the result.
    """
    return x.to(dtype).clone(memory_format=torch.channels_last_3d)


def _check_cache(cache: VAECache | None, shapes: tuple[CacheShape, ...], batch: int) -> None:
    """Raise unless ``cache`` is None or holds a tensor (batch, *shape) for each of ``shapes``."""
    if cache is None:
        return
    if len(cache) != len(shapes):
        raise InvalidArgument("cache", expected=f"{len(shapes)} tensors", got=len(cache))
    for index, (tensor, shape) in enumerate(zip(cache, shapes, strict=True)):
        if tuple(tensor.shape) != (batch, *shape):
            raise InvalidArgument(
                f"cache[{index}]",
                expected=f"shape {(batch, *shape)}",
                got=tuple(tensor.shape),
                hint="Pass the cache that the step before returned, of the same video.",
            )
