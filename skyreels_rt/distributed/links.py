"""How fast the ranks' links are, measured between them: for the cost model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from skyreels_rt.distributed.axis import Axis
from skyreels_rt.distributed.mesh import Mesh
from skyreels_rt.errors import InvalidArgument

DEFAULT_BYTES: Final = 16 * 2**20
"""Bytes that a rank sends in a measurement: about what Ulysses sends in a block of a large
model."""

REPEATS: Final = 7
_SMALL_BYTES: Final = 8
_NANO: Final = 1e9


@dataclass(frozen=True)
class Links:
    """What the links between the ranks reach, all of them sending at once; of the slowest rank.

    Attributes
    ----------
    num_ranks : int
        How many.
    point_to_point : float
        Bytes a second that a rank sends to the next one, as a ring does.
    all_to_all : float
        Bytes a second that a rank sends to all others together, as Ulysses does.
    latency_s : float
        Seconds that eight bytes to the next rank take.
    """

    num_ranks: int
    point_to_point: float
    all_to_all: float
    latency_s: float


def measure_links(mesh: Mesh, *, num_bytes: int = DEFAULT_BYTES) -> Links:
    """Time exchanges between all ranks; every rank must call it.

    Parameters
    ----------
    mesh : Mesh
        Of two ranks at least.
    num_bytes : int
        Bytes that a rank sends each time.

    Returns
    -------
    Links
        The same on every rank: medians of seven exchanges, of the slowest rank.

    Raises
    ------
    InvalidArgument
        There is one rank.
    PeerFailed
        A rank left, or did not answer in time.
    """
    axis = mesh.axis("world")
    if axis.size == 1:
        raise InvalidArgument(
            "parallel", expected="two ranks at least, to measure what is between", got="one"
        )
    share = num_bytes // (axis.size - 1)
    others = [index for index in range(axis.size) if index != axis.index]
    after, before = (axis.index + 1) % axis.size, (axis.index - 1) % axis.size
    latency = _seconds(mesh, axis, [after], [before], _SMALL_BYTES)
    ring = _seconds(mesh, axis, [after], [before], num_bytes)
    swap = _seconds(mesh, axis, others, others, share)
    return Links(axis.size, num_bytes / ring, share * len(others) / swap, latency)


def _seconds(
    mesh: Mesh, axis: Axis, receivers: list[int], senders: list[int], num_bytes: int
) -> float:
    """Median seconds of sending ``num_bytes`` to each of some ranks, of the slowest rank."""

    def buffer() -> torch.Tensor:
        return torch.zeros(num_bytes, dtype=torch.uint8, device=axis.device)

    sends, receives = {i: buffer() for i in receivers}, {i: buffer() for i in senders}
    times = [_timed(mesh, lambda: axis.exchange(sends, receives)) for _ in range(REPEATS + 1)]
    median = statistics.median(times[1:])  # the first opens connections
    return mesh.largest(round(median * _NANO)) / _NANO


def _timed(mesh: Mesh, call: Callable[[], None]) -> float:
    """Seconds of a call that all ranks begin together."""
    mesh.any(False)
    begin = time.perf_counter()
    call()
    if mesh.device.type == "cuda":
        torch.cuda.synchronize(mesh.device)
    return time.perf_counter() - begin
