"""Noise on the global latent timeline: latent ``i`` of seed ``s`` is the same noise in every run.

One ``randn`` over a whole clip is not prefix-stable (the first latents change with the length), so
each latent frame is drawn by a generator of its own. Length, chunking, device and number of ranks
then cannot change it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skyreels_rt.errors import InvalidArgument

_MASK_32 = 0xFFFF_FFFF
_MASK_64 = 0xFFFF_FFFF_FFFF_FFFF


def timeline_noise(seed: int, first: int, count: int, shape: tuple[int, int, int]) -> Tensor:
    """Gaussian noise of the latent frames ``[first, first + count)``.

    Parameters
    ----------
    seed : int
        Seed of the stream, ``0 <= seed < 2**64``.
    first, count : int
        First latent frame (any size, also past ``2**32``) and number of frames, both >= 0.
    shape : tuple of int
        Channels, height and width (C, h, w) of one latent frame.

    Returns
    -------
    Tensor, shape (C, count, h, w), float32, CPU
        Each frame depends on ``(seed, its index, shape)`` only. Any ``2**32`` consecutive indices
        have different generator seeds. The bits are those of this torch build's CPU ``randn``.

    Raises
    ------
    InvalidArgument
        A number is out of its range.
    """
    if not 0 <= seed <= _MASK_64:
        raise InvalidArgument("seed", expected="0 <= seed < 2**64", got=seed)
    if first < 0:
        raise InvalidArgument("first", expected="a latent index >= 0", got=first)
    if count < 0:
        raise InvalidArgument("count", expected="a number of latents >= 0", got=count)
    channels, height, width = shape
    noise = torch.empty((channels, count, height, width), dtype=torch.float32, device="cpu")
    generator = torch.Generator(device="cpu")
    for offset in range(count):
        generator.manual_seed(_frame_seed(seed, first + offset))
        noise[:, offset] = torch.randn(
            shape, generator=generator, dtype=torch.float32, device="cpu"
        )
    return noise


def _frame_seed(seed: int, index: int) -> int:
    """32-bit generator seed of one latent frame, a bijection of the low 32 bits of ``index``.

    Torch's CPU generator (mt19937) uses only 32 bits of its seed. A plain hash of the pair would
    give two of the 22,500 latents of an hour the same noise in one stream of seventeen; a
    permutation keyed by a 64-bit hash of the rest never does.
    """
    key = _splitmix64(_splitmix64(seed) ^ (index >> 32))
    mixed = _murmur_mix32((index ^ key) & _MASK_32)
    return _murmur_mix32((mixed + (key >> 32)) & _MASK_32)


def _splitmix64(value: int) -> int:
    """One step of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014; constants after Vigna)."""
    value = (value + 0x9E37_79B9_7F4A_7C15) & _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK_64
    return value ^ (value >> 31)


def _murmur_mix32(value: int) -> int:
    """32-bit finaliser of MurmurHash3 (Appleby, public domain), a bijection."""
    value = ((value ^ (value >> 16)) * 0x85EB_CA6B) & _MASK_32
    value = ((value ^ (value >> 13)) * 0xC2B2_AE35) & _MASK_32
    return value ^ (value >> 16)
