"""How a VAE computes what it computes: choices that change time and memory, not the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from skyreels_rt.errors import InvalidArgument

Upsampling = Literal["auto", "nearest", "subpixel"]
"""Doubling before a convolution: by copying pixels, or by a convolution for each of the four."""

TILE_MULTIPLE = 16


@dataclass(frozen=True)
class VAEOptions:
    """Choices about a VAE computed by torch.

    Attributes
    ----------
    encode_tile : int or None
        Frames of more pixels than four squares of this side are encoded square by square, to the
        same latents; a multiple of 16. None: always whole.
    upsampling : {"auto", "nearest", "subpixel"}
        ``"subpixel"`` convolves before it doubles: 16 of 36 multiplications, equal to rounding.
        ``"auto"`` takes it where it was measured to be faster: on the CPU, for larger frames.
    buffers : bool
        A session's decoder keeps its memory in buffers with room for the new frames and writes in
        place, see :mod:`.decoder_stream`: same bytes, fewer copies, up to 3 times the memory.

    Raises
    ------
    InvalidArgument
        A value outside the above.
    """

    encode_tile: int | None = 512
    upsampling: Upsampling = "auto"
    buffers: bool = False

    def __post_init__(self) -> None:
        tile = self.encode_tile
        if tile is not None and (tile < TILE_MULTIPLE or tile % TILE_MULTIPLE):
            raise InvalidArgument(
                "encode_tile", expected=f"a multiple of {TILE_MULTIPLE}, or None", got=tile
            )
        if self.upsampling not in get_args(Upsampling):
            raise InvalidArgument(
                "upsampling",
                expected=f"one of {', '.join(get_args(Upsampling))}",
                got=self.upsampling,
            )

    def takes_tiles(self, height: int, width: int) -> bool:
        """Whether frames of ``height`` x ``width`` pixels are encoded in tiles."""
        return self.encode_tile is not None and height * width > 4 * self.encode_tile**2
