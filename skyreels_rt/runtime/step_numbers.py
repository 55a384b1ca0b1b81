"""One number a step from the device to the host, without either waiting for the other.

A host that reads a number of every step stalls the device once a step; a host that reads none runs
ahead of the device by a whole run, and then cancels too late and reports steps that are not done.
On CUDA a step's number travels to pinned memory while the next step computes, and the host takes it
once it has launched that one: the device always has work, the host is at most a step ahead.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class StepNumbers(Protocol):
    """Numbers of the steps of one run.

    Attributes
    ----------
    lag : int
        Steps that are to be launched behind a step before its number is taken.
    """

    lag: int

    def send(self, step: int, number: Tensor) -> None:
        """Start bringing ``number``, one int64 on the device, to the host."""
        ...

    def take(self, step: int) -> int:
        """The number of ``step``, once the device has come to it."""
        ...


class HostNumbers:
    """Numbers of a run on the CPU, which are there at once."""

    lag = 0

    def __init__(self) -> None:
        self._numbers: dict[int, Tensor] = {}

    def send(self, step: int, number: Tensor) -> None:
        """See :meth:`StepNumbers.send`."""
        self._numbers[step] = number

    def take(self, step: int) -> int:
        """See :meth:`StepNumbers.take`."""
        return int(self._numbers.pop(step))


class CudaNumbers:
    """Numbers of a run on a CUDA device.

    Parameters
    ----------
    num_steps : int
        Steps of the run.
    """

    lag = 1

    def __init__(self, num_steps: int) -> None:
        self._box = torch.empty(num_steps, dtype=torch.int64, pin_memory=True)
        self._sent = [torch.cuda.Event(blocking=True) for _ in range(num_steps)]

    def send(self, step: int, number: Tensor) -> None:
        """See :meth:`StepNumbers.send`."""
        self._box[step].copy_(number, non_blocking=True)
        self._sent[step].record(torch.cuda.current_stream(number.device))

    def take(self, step: int) -> int:
        """See :meth:`StepNumbers.take`."""
        self._sent[step].synchronize()
        return int(self._box[step])


def step_numbers(device: torch.device, num_steps: int) -> StepNumbers:
    """The kind that a device needs."""
    return CudaNumbers(num_steps) if device.type == "cuda" else HostNumbers()
