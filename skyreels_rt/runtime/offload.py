"""Weights of a stack of equal blocks in host memory, brought to the device block by block.

While a block computes, the next one's weights are copied on a stream of their own, into the other
of two sets of device buffers. Host memory is pinned where the device is CUDA's. On another device
the copies are plain ones. The arithmetic, and so every bit of the result, is that of resident
weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from skyreels_rt.errors import InvalidArgument

NUM_SLOTS = 2
"""Sets of device buffers: one computes, one is filled."""


class BlockOffload:
    """Moves the weight matrices of blocks; vectors (norms, biases, modulation) stay on the device.

    Parameters
    ----------
    blocks : sequence of nn.Module
        Blocks with parameters of equal names, shapes and types, on any device.
    device : torch.device
        Where they compute.

    Raises
    ------
    InvalidArgument
        The blocks differ, or there are none.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self._device = device
        self._weights = [_matrices(block) for block in blocks]
        if len({_layout(weights) for weights in self._weights}) != 1:
            raise InvalidArgument("offload", expected="blocks of equal shapes", got="others")
        for block, moving in zip(blocks, self._weights, strict=True):
            for name, parameter in block.named_parameters():
                if name not in moving:
                    parameter.data = parameter.data.to(device)
        self._host = [
            {name: self._to_host(weight.data) for name, weight in weights.items()}
            for weights in self._weights
        ]
        self._slots = [
            {name: torch.empty_like(value, device=device) for name, value in self._host[0].items()}
            for _ in range(min(NUM_SLOTS, len(blocks)))
        ]
        is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if is_cuda else None
        if self._stream is not None:
            # The buffers' memory may still be in use by what ran before.
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._filled = [torch.cuda.Event() for _ in self._slots] if is_cuda else []
        self._free = [torch.cuda.Event() for _ in self._slots] if is_cuda else []
        self._evict_all()

    @property
    def host_bytes(self) -> int:
        """Bytes in host memory."""
        return sum(_num_bytes(weights) for weights in self._host)

    @property
    def device_bytes(self) -> int:
        """Bytes of the device buffers."""
        return sum(_num_bytes(slot) for slot in self._slots)

    def resident(self, *parts: str) -> Iterator[int]:
        """Go through the blocks; the one whose index comes has its weights on the device.

        Parameters
        ----------
        *parts : str
            Beginnings of the names of the weights that are needed; all by default. The others of
            the block stay in host memory.
        """
        self._evict_all()  # a pass that broke off left its last block on the device
        names = [n for n in self._host[0] if not parts or n.startswith(parts)]
        count = len(self._host)
        self._copy(0, names)
        for index in range(count):
            if index + 1 < count:
                self._copy(index + 1, names)
            slot = index % len(self._slots)
            if self._stream is not None:
                torch.cuda.current_stream(self._device).wait_event(self._filled[slot])
            for name in names:
                self._weights[index][name].data = self._slots[slot][name]
            try:
                yield index
            finally:
                self._evict(index)
                if self._stream is not None:
                    self._free[slot].record(torch.cuda.current_stream(self._device))

    def _copy(self, index: int, names: Sequence[str]) -> None:
        """Start filling a block's slot, once the block that had it before has computed."""
        slot = index % len(self._slots)
        buffers, source = self._slots[slot], self._host[index]
        if self._stream is None:
            for name in names:
                buffers[name].copy_(source[name])
            return
        # The first blocks of a pass find their slots free since the pass before.
        self._stream.wait_event(self._free[slot])
        with torch.cuda.stream(self._stream):
            for name in names:
                buffers[name].copy_(source[name], non_blocking=True)
            self._filled[slot].record(self._stream)

    def _evict(self, index: int) -> None:
        for name, weight in self._weights[index].items():
            weight.data = self._host[index][name]

    def _evict_all(self) -> None:
        for index in range(len(self._host)):
            self._evict(index)

    def _to_host(self, value: Tensor) -> Tensor:
        on_host = value if value.is_meta else value.to("cpu")
        return on_host.pin_memory() if self._device.type == "cuda" else on_host


def _matrices(block: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that move, by name."""
    return {
        name: parameter
        for name, parameter in block.named_parameters()
        if parameter.ndim >= 2 and "modulation" not in name
    }


def _layout(weights: dict[str, nn.Parameter]) -> tuple[tuple[str, torch.Size, torch.dtype], ...]:
    return tuple((name, weight.shape, weight.dtype) for name, weight in weights.items())


def _num_bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
