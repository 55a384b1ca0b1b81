"""Where work runs that others may go on beside: at once, or on a CUDA stream of its own.

The VAE decodes a group on a lane while the transformer denoises the next one. On a CPU, kernels use
every core already, so the lane there computes at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)


class Pending(Protocol[ResultT_co]):
    """Work that a lane has started."""

    def is_done(self) -> bool:
        """Whether :meth:`result` would return at once."""
        ...

    def result(self) -> ResultT_co:
        """What the work returned, or raised, once it has run to its end."""
        ...


class Lane(Protocol):
    """Starts work; one at a time, from one thread."""

    def start(self, work: Callable[[], ResultT]) -> Pending[ResultT]:
        """Start ``work``; what its arguments hold must not be written to until it is done."""
        ...

    def to_host(self, tensor: Tensor) -> Tensor:
        """``tensor`` in host memory, filled when the work that calls this is done."""
        ...


@dataclass(frozen=True)
class Finished(Generic[ResultT]):
    """Work that was done when it was started."""

    value: ResultT

    def is_done(self) -> bool:
        """It is."""
        return True

    def result(self) -> ResultT:
        """What the work returned."""
        return self.value


class InPlace:
    """Runs work at once, in the thread and on the stream of whoever starts it."""

    def start(self, work: Callable[[], ResultT]) -> Finished[ResultT]:
        """Run ``work``; raises what it raises."""
        return Finished(work())

    def to_host(self, tensor: Tensor) -> Tensor:
        """``tensor`` in host memory; itself if it is there."""
        return tensor.cpu()


class SideStream:
    """Queues work on a CUDA stream beside the current one, of higher priority.

    Work begins behind everything that the current stream holds by then. What it reads lives as long
    as it runs: the pending result holds on to ``work``, and with it to what that refers to.

    Parameters
    ----------
    device : torch.device
        A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=-1)

    def start(self, work: Callable[[], ResultT]) -> Pending[ResultT]:
        """Queue the kernels and copies of ``work``."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            try:
                value = work()
            except BaseException:
                self._stream.synchronize()  # what it reads may be freed now
                raise
            done = torch.cuda.Event()
            done.record(self._stream)
        return _Queued(value, done, work)

    def to_host(self, tensor: Tensor) -> Tensor:
        """Copy into pinned memory, so that the copy needs no waiting host."""
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return pinned.copy_(tensor, non_blocking=True)


@dataclass(frozen=True)
class _Queued(Generic[ResultT]):
    """Work on a stream, done when ``done`` has passed."""

    value: ResultT
    done: torch.cuda.Event
    work: Callable[[], ResultT]  # holds what the kernels read

    def is_done(self) -> bool:
        passed: bool = self.done.query()
        return passed

    def result(self) -> ResultT:
        self.done.synchronize()
        return self.value


def lane_for(device: torch.device) -> Lane:
    """A lane of its own for one session on ``device``."""
    return SideStream(device) if device.type == "cuda" else InPlace()
