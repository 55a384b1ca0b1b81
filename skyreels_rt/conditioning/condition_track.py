"""Condition channels along the timeline: portrait, source video and already emitted latents.

What a latent is told (DESIGN.md, "Conditions"): where something is *given* (a source pixel outside
the edit mask, a latent that was emitted before), the mask says known and the channels hold its
latents; everywhere else the mask says generate and the channels hold the portrait's latents.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyreels_rt.conditioning.channels import condition_channels, edited_cells, latent_mask
from skyreels_rt.conditioning.source_video import SourceTrack, composite
from skyreels_rt.config import TransformerConfig
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.models.vae import VAECache, VideoVAE
from skyreels_rt.types import PartState, Timeline


def to_video_tensor(frames: NDArray[np.uint8], vae: VideoVAE) -> Tensor:
    """Frames uint8 (F, H, W, 3) as the VAE takes them: (1, 3, F, H, W) in [-1, 1]."""
    video = torch.from_numpy(frames).permute(3, 0, 1, 2).unsqueeze(0)
    return (video.to(vae.device, torch.float32) / 127.5 - 1).to(vae.dtype)


def encode_portrait(portrait: NDArray[np.uint8], vae: VideoVAE) -> Tensor:
    """Latents (C, h, w), float32, of a portrait uint8 (H, W, 3)."""
    return vae.encode_picture(to_video_tensor(portrait[None], vae))[0, :, 0].float()


def leading_slot_channels(
    config: TransformerConfig, vae: VideoVAE, portrait: NDArray[np.uint8], window: int
) -> Tensor:
    """Condition channels of a window whose extra first frame is the portrait (Wan-I2V).

    Parameters
    ----------
    config : TransformerConfig
        Says which channels the model takes.
    vae : VideoVAE
        Encodes portrait and grey.
    portrait : ndarray, shape (H, W, 3), uint8
        Portrait in the output's shape.
    window : int
        Latents of a window, without the slot.

    Returns
    -------
    Tensor, shape (Cc, 1 + window, h, w), float32
    """
    _, channels = clip_conditions(
        config, vae, portrait[None], portrait[None][:0], 1 + window * vae.temporal_stride
    )
    return channels


def clip_conditions(
    config: TransformerConfig,
    vae: VideoVAE,
    head: NDArray[np.uint8],
    tail: NDArray[np.uint8],
    num_frames: int,
) -> tuple[Tensor, Tensor]:
    """Latents and condition channels of a clip whose first and last frames are given.

    Between them Wan encodes grey frames, through the same causal VAE.

    Parameters
    ----------
    config : TransformerConfig
        Says which channels the model takes.
    vae : VideoVAE
        Encodes the clip.
    head, tail : ndarray, shape (F, H, W, 3), uint8
        Given frames at its start, at least one, and at its end.
    num_frames : int
        Frames of the clip, ``1 + k * vae.temporal_stride``.

    Returns
    -------
    latents : Tensor, shape (C, 1 + k, h, w), float32
        The given and grey frames, encoded.
    channels : Tensor, shape (Cc, 1 + k, h, w), float32
        Mask and latents as the transformer takes them.
    """
    stride, first_of_tail = vae.temporal_stride, num_frames - len(tail)
    known = [index < len(head) or index >= first_of_tail for index in range(num_frames)]
    pictures = [*head, *[np.zeros_like(head[0])] * (first_of_tail - len(head)), *tail]
    encoded: list[Tensor] = []
    cache: VAECache | None = None
    for start in (0, *range(1, num_frames, stride)):
        count = stride if start else 1
        video = to_video_tensor(np.stack(pictures[start : start + count]), vae)
        grey = [not one for one in known[start : start + count]]
        video[:, :, torch.tensor(grey)] = 0
        latents, cache = vae.encode_step(video, cache)
        encoded.append(latents)
    sequence = torch.cat(encoded, dim=2)[0].float()
    # The mask has an entry per frame of a latent; the first latent's one frame fills all of them.
    slots = torch.tensor([known[0]] * stride + known[1:], dtype=torch.float32)
    _, num_latents, height, width = sequence.shape
    mask = slots.view(num_latents, stride).T[:, :, None, None].to(sequence.device)
    channels = condition_channels(
        config,
        num_latents,
        height,
        width,
        reference_latents=sequence,
        given_latents=sequence,
        given_mask=mask.expand(-1, -1, height, width),
    )
    return sequence, channels


class ConditionTrack:
    """Condition channels and final compositing of one job.

    Parameters
    ----------
    config : TransformerConfig
        Says which channels the model takes.
    vae : VideoVAE
        Encodes the source video.
    timeline : Timeline
        Conversion between frames and latents.
    height, width : int
        Pixels of a frame.
    reference_latents : Tensor, shape (C, h, w), or None
        The portrait; with a source video and no portrait, the source's first frame is used.
    source : SourceTrack, optional
        Source video with its edit mask.
    references_every_frame : bool
        ``reference_mode="all_frames"``: the portrait's latents stand wherever nothing is given, and
        emitted latents are given as known frames.

    Raises
    ------
    InvalidArgument
        A source video was given to a model that cannot take one.
    """

    def __init__(
        self,
        config: TransformerConfig,
        vae: VideoVAE,
        timeline: Timeline,
        *,
        height: int,
        width: int,
        reference_latents: Tensor | None,
        source: SourceTrack | None,
        references_every_frame: bool,
    ) -> None:
        if source is not None and (config.mask_channels == 0 or timeline.primed):
            raise InvalidArgument(
                "video",
                expected="a model whose condition channels have a mask on every frame",
                got=f"one with {config.mask_channels} mask channels, primed={timeline.primed}",
            )
        self._config = config
        self._vae = vae
        self._timeline = timeline
        self._size = (height // vae.spatial_stride, width // vae.spatial_stride)
        self._reference = reference_latents
        self._source = source
        self._references_every_frame = references_every_frame
        self._continues = references_every_frame and config.mask_channels > 0
        self._cache: VAECache | None = None
        self._first = 0  # latent index of the first entry of the two lists below
        self._latents: list[Tensor] = []
        self._masks: list[Tensor] = []
        self._num_encoded = 0
        self._frames: list[tuple[NDArray[np.uint8], NDArray[np.float32]]] = []
        self.num_source_frames: int | None = None
        """Frames of the source video, once its end was reached."""

    def prepare(self, stop: int) -> int:
        """Encode the source up to latent ``stop``; return how many latents it can cover.

        Without a source video every latent can be covered.
        """
        if self._source is None:
            return stop
        while self._num_encoded < stop and self.num_source_frames is None:
            self._encode_next()
        return min(stop, self._num_encoded)

    def channels(self, start: int, stop: int, emitted: Tensor) -> Tensor:
        """Condition channels of the latents ``[start, stop)``.

        Parameters
        ----------
        start, stop : int
            Range on the timeline, prepared before.
        emitted : Tensor, shape (C, p, h, w)
            Clean latents of the first ``p`` of them, which were emitted before.

        Returns
        -------
        Tensor, shape (Cc, stop - start, h, w), float32
        """
        length, pinned = stop - start, emitted.shape[1] if self._continues else 0
        given = torch.zeros(self._config.out_channels, length, *self._size)
        mask = torch.zeros(self._timeline.temporal_stride, length, *self._size)
        if self._source is not None:
            for index in range(start, stop):
                given[:, index - start] = self._latents[index - self._first]
                mask[:, index - start] = self._masks[index - self._first]
        if pinned:
            given[:, :pinned] = emitted[:, :pinned].cpu()
            mask[:, :pinned] = 1
        return condition_channels(
            self._config,
            length,
            *self._size,
            reference_latents=self._reference,
            given_latents=given,
            given_mask=mask,
        ).to(self._vae.device)

    @property
    def has_source(self) -> bool:
        """Whether a source video is edited."""
        return self._source is not None

    def set_reference(self, reference_latents: Tensor | None) -> None:
        """Use another portrait for the channels made from now on."""
        self._reference = reference_latents

    def composite(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Put the next generated frames (F, H, W, 3) into the source; identity without a source."""
        if self._source is None:
            return frames
        sources, alphas = zip(*self._frames[: len(frames)], strict=True)
        del self._frames[: len(frames)]
        return composite(frames, np.stack(sources), np.stack(alphas))

    def discard(self, before: int) -> None:
        """Forget everything about latents before ``before``."""
        drop = min(before - self._first, len(self._latents))
        if drop > 0:
            del self._latents[:drop], self._masks[:drop]
            self._first += drop

    def state(self) -> PartState | None:
        """What :meth:`restore` needs, of constant size; None without a source video."""
        if self._source is None:
            return None
        facts = {
            "first": self._first,
            "num_encoded": self._num_encoded,
            "num_source_frames": self.num_source_frames,
            "position": self._source.position(),
        }
        tensors = {f"cache.{index}": part.clone() for index, part in enumerate(self._cache or ())}
        if self._reference is not None:
            tensors["reference"] = self._reference.clone()
        if self._latents:
            tensors["latents"] = torch.stack(self._latents)
            tensors["masks"] = torch.stack(self._masks)
        if self._frames:
            frames, alphas = zip(*self._frames, strict=True)
            tensors["frames"] = torch.from_numpy(np.stack(frames))
            tensors["alphas"] = torch.from_numpy(np.stack(alphas))
        return PartState(facts, tensors)

    def restore(self, state: PartState) -> None:
        """Go on where :meth:`state` was taken; reads the source up to there.

        Raises
        ------
        InvalidArgument
            The source is another video.
        """
        assert self._source is not None
        facts, tensors = state.facts, state.tensors
        self._source.seek(facts["position"])
        self._first, self._num_encoded = facts["first"], facts["num_encoded"]
        self.num_source_frames = facts["num_source_frames"]
        device = next(self._vae.parameters()).device
        if "reference" in tensors:
            self._reference = tensors["reference"].to(device)
        count = sum(name.startswith("cache.") for name in tensors)
        if count:
            self._cache = tuple(tensors[f"cache.{index}"].to(device) for index in range(count))
        if "latents" in tensors:
            self._latents, self._masks = list(tensors["latents"]), list(tensors["masks"])
        if "frames" in tensors:
            pairs = zip(tensors["frames"].numpy(), tensors["alphas"].numpy(), strict=True)
            self._frames = list(pairs)

    def close(self) -> None:
        """Close the source video."""
        if self._source is not None:
            self._source.close()

    def _encode_next(self) -> None:
        """Read and encode the frames of one more latent; a short rest repeats its last frame."""
        assert self._source is not None
        index = self._num_encoded
        count = self._timeline.first_frame(index + 1) - self._timeline.first_frame(index)
        frames, alpha = self._source.read(count)
        if len(frames) < count:
            self.num_source_frames = self._timeline.first_frame(index) + len(frames)
            if len(frames) == 0:
                return
        self._frames.extend(zip(frames, alpha, strict=True))
        rest = count - len(frames)
        frames = np.concatenate([frames, np.repeat(frames[-1:], rest, axis=0)])
        alpha = np.concatenate([alpha, np.repeat(alpha[-1:], rest, axis=0)])
        if self._reference is None and self._references_every_frame:
            self._reference = encode_portrait(frames[0], self._vae)
        video = to_video_tensor(frames, self._vae)
        # What is to be generated is blanked, so that no trace of the old mouth is encoded.
        blank = edited_cells(alpha, self._vae.spatial_stride)
        video[:, :, torch.from_numpy(blank)] = 0
        latents, self._cache = self._vae.encode_step(video, self._cache)
        stride = self._timeline.temporal_stride
        self._latents.append(latents[0, :, 0].float().cpu())
        self._masks.append(latent_mask(alpha, self._vae.spatial_stride, stride)[:, 0])
        self._num_encoded += 1
