"""Weights of a stack of blocks in host memory, brought to the device block by block.

While a block computes, the next one's weights are copied on a stream of their own, into the other
of two device buffers. Host memory is pinned where the device is CUDA's, and a block's weights lie
in one piece of it. On another device the copies are plain ones. The arithmetic, and so every bit of
the result, is that of resident weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skyreels_rt.errors import InvalidArgument

NUM_SLOTS = 2
"""Device buffers: one computes, one is filled."""

ALIGNMENT = 256
"""Bytes that every weight's place in a buffer is a multiple of."""


@dataclass(frozen=True)
class _Place:
    """Where a weight lies in its block's bytes."""

    weight: nn.Parameter
    start: int
    stop: int

    def view(self, flat: Tensor) -> Tensor:
        """The weight's part of the bytes ``flat``."""
        part: Tensor = flat[self.start : self.stop].view(self.weight.dtype)
        return part.view(self.weight.shape)


class BlockOffload:
    """Moves the weight matrices of blocks; vectors (norms, biases, modulation) stay on the device.

    Parameters
    ----------
    blocks : sequence of nn.Module
        At least one, on any device.
    device : torch.device
        Where they compute.

    Raises
    ------
    InvalidArgument
        There are no blocks.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        if not blocks:
            raise InvalidArgument("offload", expected="at least one block", got="none")
        self._device = device
        self._places = [_places(block) for block in blocks]
        self._host: list[Tensor] = []
        for block, places in zip(blocks, self._places, strict=True):
            for name, parameter in block.named_parameters():
                if name not in places:
                    parameter.data = parameter.data.to(device)
            self._host.append(self._packed(places))
            self._evict(len(self._host) - 1)  # at once, so that the old weights go
        size = max(flat.numel() for flat in self._host)
        self._slots = [
            torch.empty(size, dtype=torch.uint8, device=device)
            for _ in range(min(NUM_SLOTS, len(blocks)))
        ]
        is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if is_cuda else None
        if self._stream is not None:
            # The buffers' memory may still be in use by what ran before.
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._filled = [torch.cuda.Event() for _ in self._slots] if is_cuda else []
        self._free = [torch.cuda.Event() for _ in self._slots] if is_cuda else []

    @property
    def host_bytes(self) -> int:
        """Bytes in host memory."""
        return sum(flat.numel() for flat in self._host)

    @property
    def device_bytes(self) -> int:
        """Bytes of the device buffers."""
        return sum(flat.numel() for flat in self._slots)

    def resident(self, *parts: str) -> Iterator[int]:
        """Go through the blocks; the one whose index comes has its weights on the device.

        Parameters
        ----------
        *parts : str
            Beginnings of the names of the weights that are needed; all by default. The others of
            the block stay in host memory.
        """
        for index in range(len(self._host)):
            self._evict(index)  # a pass that broke off left its last block on the device
        self._copy(0, parts)
        for index, places in enumerate(self._places):
            if index + 1 < len(self._places):
                self._copy(index + 1, parts)
            slot = index % len(self._slots)
            if self._stream is not None:
                torch.cuda.current_stream(self._device).wait_event(self._filled[slot])
            for name, place in places.items():
                if not parts or name.startswith(parts):
                    place.weight.data = place.view(self._slots[slot])
            try:
                yield index
            finally:
                self._evict(index)
                if self._stream is not None:
                    self._free[slot].record(torch.cuda.current_stream(self._device))

    def _copy(self, index: int, parts: tuple[str, ...]) -> None:
        """Start filling a block's slot, once the block that had it before has computed."""
        slot = index % len(self._slots)
        buffer, source = self._slots[slot], self._host[index]
        ranges = [
            (place.start, place.stop)
            for name, place in self._places[index].items()
            if name.startswith(parts)
        ]
        ranges = ranges if parts else [(0, source.numel())]
        if self._stream is None:
            for start, stop in ranges:
                buffer[start:stop].copy_(source[start:stop])
            return
        # The first blocks of a pass find their slots free since the pass before.
        self._stream.wait_event(self._free[slot])
        with torch.cuda.stream(self._stream):
            for start, stop in ranges:
                buffer[start:stop].copy_(source[start:stop], non_blocking=True)
            self._filled[slot].record(self._stream)

    def _evict(self, index: int) -> None:
        """Let a block's weights be those in host memory."""
        for place in self._places[index].values():
            place.weight.data = place.view(self._host[index])

    def _packed(self, places: dict[str, _Place]) -> Tensor:
        """A block's weights, one behind the other."""
        size = max((place.stop for place in places.values()), default=0)
        is_meta = any(place.weight.is_meta for place in places.values())
        flat = torch.empty(
            size,
            dtype=torch.uint8,
            device="meta" if is_meta else "cpu",
            pin_memory=self._device.type == "cuda" and not is_meta,
        )
        for place in places.values():
            place.view(flat).copy_(place.weight.data)
        return flat


def is_moved(name: str, weight: Tensor) -> bool:
    """Whether a block's weight of this name is kept in host memory."""
    return weight.ndim >= 2 and "modulation" not in name


def _places(block: nn.Module) -> dict[str, _Place]:
    """Weights of a block that move, by name, and where they lie in its bytes."""
    found: dict[str, _Place] = {}
    start = 0
    for name, weight in block.named_parameters():
        if not is_moved(name, weight):
            continue
        stop = start + weight.numel() * weight.element_size()
        found[name] = _Place(weight, start, stop)
        start = -(-stop // ALIGNMENT) * ALIGNMENT
    return found
