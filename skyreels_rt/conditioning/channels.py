"""Builds the condition channels that a Wan-shaped transformer reads beside the noise.

Layout (Wan2.1 image-to-video, ``wan/image2video.py``): mask channels first, then 16 latent
channels. The mask has one channel per pixel frame that a latent stands for ("slot"), or a single
one, or none. Legend: C channels, n latents, h w latent space, F H W pixel frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from skyreels_rt.errors import InvalidArgument

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from skyreels_rt.config import TransformerConfig


def latent_mask(alpha: NDArray[np.float32], spatial_stride: int, temporal_stride: int) -> Tensor:
    """Which pixel frames are given ("known"), per latent cell and slot.

    A cell is known in a frame where none of its ``spatial_stride`` x ``spatial_stride`` pixels is
    edited. The number of frames says whether the run starts the stream: ``1 + k * stride`` frames
    begin with a latent that stands for a single frame, whose mask fills all of its slots;
    ``k * stride`` frames do not.

    Parameters
    ----------
    alpha : ndarray, shape (F, H, W), float32 in [0, 1]
        Weight of the edit; 0 means the pixel is kept.
    spatial_stride, temporal_stride : int
        Pixels per latent cell side and frames per latent, 8 and 4 for the Wan family.

    Returns
    -------
    Tensor, shape (temporal_stride, n, h, w), float32
        1 where known, 0 where to generate.

    Raises
    ------
    InvalidArgument
        The frames do not make whole latents, or the sides no whole cells.
    """
    num_frames, height, width = alpha.shape
    if num_frames == 0 or num_frames % temporal_stride not in (0, 1 % temporal_stride):
        raise InvalidArgument(
            "alpha",
            expected=f"k * {temporal_stride} or 1 + k * {temporal_stride} frames",
            got=num_frames,
        )
    if height % spatial_stride or width % spatial_stride:
        raise InvalidArgument(
            "alpha", expected=f"sides that are multiples of {spatial_stride}", got=(height, width)
        )
    h, w = height // spatial_stride, width // spatial_stride
    cells = (alpha == 0).reshape(num_frames, h, spatial_stride, w, spatial_stride)
    known = cells.all(axis=(2, 4))
    if num_frames % temporal_stride:
        known = np.concatenate((np.repeat(known[:1], temporal_stride, axis=0), known[1:]))
    slots = known.reshape(-1, temporal_stride, h, w).swapaxes(0, 1)
    return torch.from_numpy(slots.astype(np.float32))


def edited_cells(alpha: NDArray[np.float32], spatial_stride: int) -> NDArray[np.bool_]:
    """Pixels of every latent cell that an edit touches, shape (F, H, W).

    The whole cell is unknown to the model (:func:`latent_mask`), so the whole cell is hidden from
    the VAE, as in training.

    Parameters
    ----------
    alpha : ndarray, shape (F, H, W), float32 in [0, 1]
        Weight of the edit; H and W are multiples of ``spatial_stride``.
    spatial_stride : int
        Pixels per side of a cell.
    """
    num_frames, height, width = alpha.shape
    h, w = height // spatial_stride, width // spatial_stride
    cells = (alpha > 0).reshape(num_frames, h, spatial_stride, w, spatial_stride).any(axis=(2, 4))
    return cells.repeat(spatial_stride, axis=1).repeat(spatial_stride, axis=2)


def condition_channels(
    config: TransformerConfig,
    num_latents: int,
    height: int,
    width: int,
    *,
    reference_latents: Tensor | None,
    given_latents: Tensor | None,
    given_mask: Tensor | None,
) -> Tensor:
    """Build the channels beside the noise: what is known of the video, and where.

    The latent channels hold ``given_latents`` where every slot of the cell is known, elsewhere
    ``reference_latents``, or zeros where there are none.

    Parameters
    ----------
    config : TransformerConfig
        Says how many channels there are (0, 16, 17 or 20) and the polarity of the mask.
    num_latents, height, width : int
        Size in latent frames and cells.
    reference_latents : Tensor, shape (C, h, w) or (C, n, h, w), or None
        The portrait's latent, repeated on every frame, or one latent per frame.
    given_latents : Tensor, shape (C, n, h, w), or None
        Latents of the frames that are given: a source video, or what was already shown.
    given_mask : Tensor, shape (temporal_stride, n, h, w), or None
        1 where a slot is known, 0 where to generate (:func:`latent_mask`).

    Returns
    -------
    Tensor, shape (config.condition_channels, n, h, w)
        dtype and device of ``given_latents``, else of ``reference_latents``, else float32 on the
        CPU.

    Raises
    ------
    InvalidArgument
        A tensor has another shape, or ``given_latents`` came without ``given_mask`` or reversed.
    """
    size = (num_latents, height, width)
    mask_channels = config.mask_channels
    latent_channels = config.condition_channels - mask_channels
    like = given_latents if given_latents is not None else reference_latents
    empty = torch.zeros(0) if like is None else like
    if not config.condition_channels:
        return empty.new_zeros((0, *size))
    latents = _reference(reference_latents, empty, (latent_channels, *size))
    known = torch.zeros((max(mask_channels, 1), *size), dtype=torch.bool, device=empty.device)
    if given_latents is not None or given_mask is not None:
        if given_latents is None or given_mask is None:
            raise InvalidArgument(
                "given_latents, given_mask", expected="both or neither", got="one of them"
            )
        slots = mask_channels if mask_channels > 1 else given_mask.shape[0]
        _require_shape("given_latents", given_latents, (latent_channels, *size))
        _require_shape("given_mask", given_mask, (slots, *size))
        known = given_mask.to(device=empty.device) != 0
        latents = torch.where(known.all(dim=0), given_latents, latents)
    if not mask_channels:
        return latents
    if mask_channels == 1:
        known = known.all(dim=0, keepdim=True)
    mask = known if config.mask_known_value == 1 else ~known
    return torch.cat((mask.to(latents.dtype), latents))


def _reference(reference: Tensor | None, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Spread ``reference`` over all frames as (C, n, h, w); zeros where there is none."""
    if reference is None:
        return like.new_zeros(shape)
    if reference.ndim == 3:
        _require_shape("reference_latents", reference, (shape[0], *shape[2:]))
        return reference.to(like)[:, None].expand(shape)
    _require_shape("reference_latents", reference, shape)
    return reference.to(like)


def _require_shape(argument: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise InvalidArgument(argument, expected=f"shape {shape}", got=tuple(tensor.shape))
