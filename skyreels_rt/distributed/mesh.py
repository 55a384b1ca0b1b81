"""The ranks of a job laid out along the axes of a :class:`Parallel`, as each rank sees them.

Every rank runs the same program: it loads the model, hears the speech and keeps the same state.
What differs is which windows, passes and tokens of a step it computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, astuple
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from skyreels_rt.distributed.axis import Axis, peer_failures
from skyreels_rt.distributed.fit import require_world
from skyreels_rt.distributed.parallel import Parallel
from skyreels_rt.env import launched_rank
from skyreels_rt.kernels import AttentionBackend

DEFAULT_TIMEOUT_S = 60.0
"""Seconds a rank waits for another one. A step of the slowest rank must be shorter."""

START_TIMEOUT_S = 600.0
"""Seconds a rank waits for the others to start, and to load the model."""

AXES: dict[str, tuple[int, ...]] = {
    "window": (0,),
    "guidance": (1,),
    "ulysses": (2,),
    "ring": (3,),
    "sequence": (2, 3),
    "pass": (1, 2, 3),
    "world": (0, 1, 2, 3),
}
"""Every axis, as dimensions of the mesh: those of :class:`Parallel`; the ranks that share a pass's
tokens; those that share the windows; all."""


class TokenExchange(Protocol):
    """A library's self-attention over the tokens of all ranks, dealt in equal shares."""

    is_required: bool
    """Whether shapes that it cannot deal out are refused."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, backend: AttentionBackend) -> Tensor:
        """Attention of the own tokens' queries over the keys of all, (B, l, N, K) each."""
        ...


class Mesh:
    """Ranks and their axes; made by :func:`open_mesh`.

    Parameters
    ----------
    parallel : Parallel
        Sizes of the axes.
    rank : int
        This rank.
    axes : dict of str to Axis
        One for every name in :data:`AXES`.
    control : ProcessGroup or None
        Group of all ranks for numbers on the CPU; None for a single rank.
    device : torch.device
        Where this rank computes.
    device_mesh : DeviceMesh or None
        The axes of more than one rank as torch knows them, for other libraries.
    is_owner : bool
        Whether :meth:`close` ends torch's process group.

    Attributes
    ----------
    exchange : TokenExchange or None
        Library that attends where ranks share tokens; None for :mod:`.usp` itself.
    exchange_note : str
        Why, one clause (:func:`.usp_library.use_library`).
    """

    def __init__(
        self,
        parallel: Parallel,
        rank: int,
        axes: dict[str, Axis],
        *,
        control: dist.ProcessGroup | None,
        device: torch.device,
        device_mesh: DeviceMesh | None = None,
        is_owner: bool = False,
    ) -> None:
        self.parallel = parallel
        self.rank = rank
        self.device = device
        self.device_mesh = device_mesh
        self._axes = axes
        self._control = control
        self._is_owner = is_owner
        self.exchange: TokenExchange | None = None
        self.exchange_note = ""

    @property
    def is_writer(self) -> bool:
        """Whether this rank writes files and speaks to the user; one rank does, rank 0."""
        return self.rank == 0

    def axis(self, name: str) -> Axis:
        """An axis by its name."""
        return self._axes[name]

    @property
    def sent_bytes(self) -> dict[str, int]:
        """Bytes that this rank sent so far, by axis (:mod:`skyreels_rt.distributed.traffic`)."""
        return {name: axis.sent_bytes for name, axis in self._axes.items() if axis.size > 1}

    def any(self, flag: bool) -> bool:
        """Whether any rank says so. Every rank must ask.

        Raises
        ------
        PeerFailed
            A rank left, or did not ask in time.
        """
        return self.largest(int(flag)) > 0

    def largest(self, number: int) -> int:
        """The largest number that any rank gives; raises like :meth:`any`."""
        if self._control is None:
            return number
        box = torch.tensor([number], dtype=torch.int64)
        with peer_failures("world"):
            dist.all_reduce(box, dist.ReduceOp.MAX, group=self._control)
        return int(box)

    def agreed(self, ask: Callable[[], bool] | None) -> Callable[[], bool]:
        """``ask``, answered yes on every rank as soon as one answers yes."""
        return lambda: self.any(ask is not None and ask())

    def wait_for_all(self) -> None:
        """Wait until every rank is here; for :data:`START_TIMEOUT_S`, since loading takes long.

        Raises
        ------
        PeerFailed
            A rank left, or did not come in time.
        """
        if self._control is not None:
            with peer_failures("world"):
                dist.monitored_barrier(self._control, timedelta(seconds=START_TIMEOUT_S))

    def describe(self) -> str:
        """One line: axes, this rank's place in them, backend."""
        places = ", ".join(
            f"{name} {self._axes[name].index + 1} of {size}"
            for name, size in asdict(self.parallel).items()
            if size > 1
        )
        if not places:
            return "one rank"
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        text = f"{self.parallel}; rank {self.rank}: {places}; {backend}"
        if self._axes["sequence"].size > 1 and self.exchange_note:
            text += f"; usp by {'torch' if self.exchange is None else 'yunchang'}"
            text += f" ({self.exchange_note})"
        return text

    def close(self) -> None:
        """End torch's process group, if :func:`open_mesh` made it. Every rank must call it."""
        if self._is_owner and dist.is_initialized():
            dist.destroy_process_group()
        self._is_owner = False


def rank_device(device: str | torch.device) -> str | torch.device:
    """``"auto"`` and ``"cuda"`` under ``torchrun`` with a GPU: the one of this local rank."""
    place = launched_rank()
    wants_gpu = str(device) in ("auto", "cuda") and torch.cuda.is_available()
    return f"cuda:{place.local_rank}" if wants_gpu and place is not None else device


def open_mesh(
    parallel: Parallel, device: torch.device, *, timeout_s: float = DEFAULT_TIMEOUT_S
) -> Mesh:
    """Join the other ranks. Every rank must call it with the same arguments.

    Parameters
    ----------
    parallel : Parallel
        Sizes of the axes.
    device : torch.device
        Where this rank computes: gloo between CPUs, NCCL between GPUs.
    timeout_s : float
        Seconds a rank waits for another one before :class:`PeerFailed`; longer than a step takes.

    Returns
    -------
    Mesh

    Raises
    ------
    InvalidMesh
        The axes' product is not the number of ranks.
    PeerFailed
        The others did not come.
    """
    place = launched_rank()
    if dist.is_initialized():
        rank, world_size = dist.get_rank(), dist.get_world_size()
    else:
        rank, world_size = (place.rank, place.world_size) if place else (0, 1)
    require_world(parallel, world_size)
    if world_size == 1:
        axes = {name: Axis(name, (0,), 0, None) for name in AXES}
        return Mesh(parallel, 0, axes, control=None, device=device)
    timeout = timedelta(seconds=timeout_s)
    is_owner = not dist.is_initialized()
    if is_owner:
        is_cuda = device.type == "cuda"
        if is_cuda:
            torch.cuda.set_device(device)
        with peer_failures("world"):
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
                timeout=timedelta(seconds=START_TIMEOUT_S),
                device_id=device if is_cuda else None,
            )
    layout = torch.arange(world_size).view(astuple(parallel))
    with peer_failures("world"):
        axes = _open_axes(layout, rank, timeout, device)
        control = dist.new_group(timeout=timeout, backend="gloo")
    return Mesh(
        parallel,
        rank,
        axes,
        control=control,
        device=device,
        device_mesh=_device_mesh(parallel, axes, device),
        is_owner=is_owner,
    )


def _open_axes(
    layout: Tensor, rank: int, timeout: timedelta, device: torch.device
) -> dict[str, Axis]:
    """Every axis of this rank, with a group for each set of ranks; all ranks make all groups."""
    axes: dict[str, Axis] = {}
    groups: dict[tuple[int, ...], dist.ProcessGroup] = {}
    for name, dims in AXES.items():
        others = [dim for dim in range(layout.ndim) if dim not in dims]
        sets = layout.permute(*others, *dims).reshape(-1, math.prod(layout.shape[d] for d in dims))
        for ranks in map(tuple, sets.tolist()):
            if len(ranks) > 1 and ranks not in groups:
                groups[ranks] = dist.new_group(list(ranks), timeout=timeout)
            if rank in ranks:
                axes[name] = Axis(name, ranks, rank, groups.get(ranks), device)
    return axes


def _device_mesh(parallel: Parallel, axes: dict[str, Axis], device: torch.device) -> DeviceMesh:
    sizes = {name: size for name, size in asdict(parallel).items() if size > 1}
    groups = [axes[name].group for name in sizes]
    layout = torch.arange(parallel.world_size, dtype=torch.int).view(tuple(sizes.values()))
    return DeviceMesh.from_group(
        [group for group in groups if group is not None],
        device.type,
        layout,
        mesh_dim_names=tuple(sizes),
    )
