"""Ranks along one direction of the mesh, and the one way in which tensors travel between them.

Everything that is sent, all-to-alls and gathers included, is a set of point-to-point transfers of
exactly the bytes that are needed: shares of ranks may be uneven and nothing is padded. On NCCL such
a set is one grouped launch, which is what its all-to-all is made of; on gloo it is asynchronous
sends and receives. So there is one code path, one place that counts bytes and one that meets
failures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from skyreels_rt.errors import PeerFailed

_CPU = torch.device("cpu")


class Transfer:
    """Transfers under way.

    Parameters
    ----------
    name : str
        Axis, for messages.
    works : sequence of Work
        Handles of the backend.
    tensors : sequence of Tensor
        What is sent and received, kept alive until :meth:`wait` returns.
    """

    def __init__(self, name: str, works: Sequence[dist.Work], tensors: Sequence[Tensor]) -> None:
        self._name = name
        self._works = works
        self._tensors = tensors

    def wait(self) -> None:
        """Wait until everything was sent and has come.

        Raises
        ------
        PeerFailed
            A rank left, or did not answer within the mesh's timeout.
        """
        with peer_failures(self._name):
            for work in self._works:
                work.wait()
        self._tensors = ()


class Axis:
    """The ranks that this rank exchanges tensors with in one direction.

    Parameters
    ----------
    name : str
        For messages.
    ranks : sequence of int
        Global ranks in axis order.
    rank : int
        This rank, one of them.
    group : ProcessGroup or None
        Their group; None for an axis of one rank.
    device : torch.device
        Where its tensors live.

    Attributes
    ----------
    ranks, group, device
        As given.
    index : int
        Place of this rank on the axis.
    sent_bytes : int
        Bytes that this rank sent on the axis so far.
    """

    def __init__(
        self,
        name: str,
        ranks: Sequence[int],
        rank: int,
        group: dist.ProcessGroup | None,
        device: torch.device = _CPU,
    ) -> None:
        self.name = name
        self.ranks = tuple(ranks)
        self.index = self.ranks.index(rank)
        self.sent_bytes = 0
        self.device = device
        self.group = group

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.ranks)

    def start(self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor]) -> Transfer:
        """Begin to send and to receive.

        Parameters
        ----------
        sends : mapping from int to Tensor
            By the receiver's index: contiguous tensors, not to be written to before the end. Empty
            ones do not travel.
        receives : mapping from int to Tensor
            By the sender's index: contiguous tensors to be filled.

        Returns
        -------
        Transfer

        Raises
        ------
        PeerFailed
            A rank left.
        """
        ops = []
        for index, tensor in receives.items():
            if tensor.numel():
                ops.append(dist.P2POp(dist.irecv, tensor, self.ranks[index], self.group))
        for index, tensor in sends.items():
            if tensor.numel():
                ops.append(dist.P2POp(dist.isend, tensor, self.ranks[index], self.group))
                self.sent_bytes += tensor.numel() * tensor.element_size()
        with peer_failures(self.name):
            works = dist.batch_isend_irecv(ops) if ops else []
        return Transfer(self.name, works, [*sends.values(), *receives.values()])

    def exchange(self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor]) -> None:
        """:meth:`start` and wait; raises the same."""
        self.start(sends, receives).wait()

    def all_gather(self, x: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Every rank's tensor.

        Parameters
        ----------
        x : Tensor, shape ``shapes[index]``
            This rank's.
        shapes : sequence of shapes
            Of every rank's tensor.

        Returns
        -------
        list of Tensor
            In axis order; this rank's is ``x`` made contiguous.

        Raises
        ------
        PeerFailed
            A rank left, or did not answer in time.
        """
        return self.all_to_all([x.contiguous()] * self.size, shapes)

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Send part ``i`` to rank ``i``, and receive what every rank sends here.

        Parameters
        ----------
        parts : sequence of Tensor, contiguous
            One for every rank.
        shapes : sequence of shapes
            Of what comes from every rank.

        Returns
        -------
        list of Tensor
            In axis order; the own part is not copied.

        Raises
        ------
        PeerFailed
            A rank left, or did not answer in time.
        """
        received = [
            part if index == self.index else part.new_empty(tuple(shape))
            for index, (part, shape) in enumerate(zip(parts, shapes, strict=True))
        ]
        peers = [index for index in range(self.size) if index != self.index]
        self.exchange({i: parts[i] for i in peers}, {i: received[i] for i in peers})
        return received

    def broadcast(
        self, x: Tensor | None, shape: Sequence[int], dtype: torch.dtype, source: int
    ) -> Tensor:
        """The tensor of rank ``source``, on every rank; raises like above.

        Parameters
        ----------
        x : Tensor, shape ``shape``, contiguous, or None
            On rank ``source``.
        shape, dtype
            Of the tensor.
        source : int
            Index of the rank that has it.
        """
        if x is not None and self.index == source:
            self.exchange({i: x for i in range(self.size) if i != source}, {})
            return x
        received = torch.empty(tuple(shape), dtype=dtype, device=self.device)
        self.exchange({}, {source: received})
        return received

    def from_first(self, flag: bool) -> bool:
        """What the axis' first rank says, on every rank of the axis; raises like above."""
        if self.size == 1:
            return flag
        box = torch.tensor([flag], dtype=torch.uint8, device=self.device)
        return bool(self.broadcast(box, (1,), torch.uint8, 0))


def split_evenly(count: int, parts: int) -> tuple[int, ...]:
    """Sizes of ``parts`` shares of ``count`` things that differ by at most one, larger first."""
    return tuple(count // parts + (index < count % parts) for index in range(parts))


def share_bounds(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """First and last (exclusive) thing of every share."""
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def cut(flat: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Views of a flat buffer, one after the other, in the given shapes."""
    sizes = [math.prod(shape) for shape in shapes]
    parts = torch.split(flat, sizes)
    return [part.view(tuple(shape)) for part, shape in zip(parts, shapes, strict=True)]


@contextmanager
def peer_failures(name: str) -> Iterator[None]:
    """Errors of the backend become :class:`PeerFailed`; ``name`` is the axis."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__
        raise PeerFailed(
            f"A rank on the {name!r} axis left or did not answer in time: {reason}",
            stage="exchange",
            hint="See what the other ranks reported first; then start all of them again.",
        ) from error
