"""Steps recorded once and replayed on fixed buffers: as CUDA graphs, without launches or Python.

A recording belongs to a step and to the shapes, strides and types of everything it is given, so
each combination of shape, guidance passes and computed or skipped has one. Its inputs are copied
into buffers of its own, the results are copied out: nobody else ever sees them, and sessions that
share an engine cannot mix. What stays the same over many steps (:class:`Held`: keys and values of
prompt and speech) is copied only when it is not the one that is there already, and its buffers are
shared by all recordings of the same layout.

:class:`StepGraphs` is the bookkeeping, :class:`CudaRecorder` the part that needs a GPU. The host
work behind a replay is about one copy a changed tensor.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from skyreels_rt.errors import GraphCaptureFailed, InvalidArgument
from skyreels_rt.runtime.host_reads import HostRead, RefuseHostReads

logger = logging.getLogger(__name__)

Graphs: TypeAlias = Literal["auto"] | bool
"""Whether steps are recorded: where they can be, always (else an error), or never."""

Tensors = tuple[Tensor, ...]

Step = Callable[[Tensors, Any], Tensors]
"""``step(fresh, held) -> results``: reads its arguments and weights, returns new tensors, keeps
nothing. It is part of the key of its recordings: hashable, and equal to one that does the same."""

MAX_RECORDINGS = 64
"""Recordings kept; the one unused for longest makes room."""

_WARM_UPS = 2  # runs before a capture: libraries load, Triton compiles, workspaces are made


class Recorder(Protocol):
    """Makes work on fixed buffers repeatable."""

    def record(self, work: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        """Record ``work``.

        Returns
        -------
        replay : callable
            Does the same again with what is now in the buffers that ``work`` reads.
        results : tuple of Tensor
            Where every replay leaves its results.

        Raises
        ------
        GraphCaptureFailed
            Something in ``work`` cannot be recorded; the message names it.
        """
        ...

    def apart(self) -> Recorder:
        """A recorder whose work may be repeated while this one's is."""
        ...


class Held:
    """Tensors that many steps are given unchanged, in any nest of tuples and dataclasses.

    Parameters
    ----------
    tree : object
        The nest. Its tensors must not be written to as long as anyone holds this; what is neither
        tensor, tuple nor dataclass must be hashable and belongs to the key of a recording.
    """

    def __init__(self, tree: Any) -> None:  # noqa: ANN401 - any nest
        self.tree = tree
        unique = {id(leaf): leaf for leaf in _leaves(tree)}
        self.tensors: Tensors = tuple(unique.values())
        order = {key: place for place, key in enumerate(unique)}
        self.signature: Hashable = _signature(tree, order)

    def on(self, buffers: Tensors) -> Any:  # noqa: ANN401
        """The same nest of other tensors, one for each of ``tensors``."""
        by_id = {id(mine): other for mine, other in zip(self.tensors, buffers, strict=True)}
        return _mapped(self.tree, by_id)


class _Buffers:
    """Fixed places of a :class:`Held`, and whose values are in them."""

    def __init__(self, held: Held) -> None:
        self.tensors = tuple(_buffer_like(tensor) for tensor in held.tensors)
        self.tree = held.on(self.tensors)
        # Weak: a session that has ended must not be kept alive by what was copied from it.
        self._sources: list[weakref.ref[Tensor] | None] = [None] * len(self.tensors)

    def load(self, held: Held) -> None:
        for place, (buffer, tensor) in enumerate(zip(self.tensors, held.tensors, strict=True)):
            source = self._sources[place]
            if source is None or source() is not tensor:
                buffer.copy_(tensor)
                self._sources[place] = weakref.ref(tensor)


@dataclass(frozen=True)
class _Recording:
    fresh: Tensors
    held: _Buffers
    results: Tensors
    replay: Callable[[], None]


class StepGraphs:
    """Recordings of a model's steps, made when first needed.

    One thread at a time uses it; others wait.

    Parameters
    ----------
    recorder : Recorder
        Usually a :class:`CudaRecorder`.
    required : bool
        Whether a step that cannot be recorded is an error; else it runs as it is, said in the log
        once.
    limit : int
        Recordings kept.
    """

    def __init__(
        self, recorder: Recorder, *, required: bool = False, limit: int = MAX_RECORDINGS
    ) -> None:
        if limit < 1:
            raise InvalidArgument("limit", expected="an integer >= 1", got=limit)
        self._recorder = recorder
        self._required = required
        self._limit = limit
        self._lock = threading.Lock()
        self._recordings: OrderedDict[Hashable, _Recording | None] = OrderedDict()
        self._buffers: weakref.WeakValueDictionary[Hashable, _Buffers] = (
            weakref.WeakValueDictionary()
        )

    @torch.inference_mode()
    def run(
        self, kind: str, step: Step, fresh: Tensors, held: Held | None = None
    ) -> tuple[Tensor, ...]:
        """Results of ``step(fresh, held.tree)``, by replaying its recording.

        Parameters
        ----------
        kind : str
            What the step is called in messages.
        step : callable
            See :data:`Step`. Called while a recording is made, not at each run.
        fresh : tuple of Tensor
            What changes from run to run; copied.
        held : Held, optional
            What does not; without it the step gets an empty tuple.

        Returns
        -------
        tuple of Tensor
            The caller's own.

        Raises
        ------
        GraphCaptureFailed
            The step cannot be recorded, and recordings are required.
        """
        held = Held(()) if held is None else held
        key = (kind, step, _signature(fresh, {}), held.signature)
        with self._lock:
            if key not in self._recordings:
                self._keep(key, self._recorded(kind, step, fresh, held))
            recording = self._recordings[key]
            self._recordings.move_to_end(key)
            if recording is None:
                return step(fresh, held.tree)
            for buffer, tensor in zip(recording.fresh, fresh, strict=True):
                buffer.copy_(tensor)
            recording.held.load(held)
            recording.replay()
            return tuple(result.clone() for result in recording.results)

    @torch.inference_mode()
    def record_in_place(
        self, kind: str, work: Callable[[], Tensors]
    ) -> tuple[Callable[[], None], Tensors] | None:
        """Record work on tensors of the caller's, who keeps the recording.

        Parameters
        ----------
        kind : str
            What the work is called in messages.
        work : callable
            May run several times before and while it is recorded, and must not mind.

        Returns
        -------
        (replay, results) or None
            As of :meth:`Recorder.record`; results are to be used before it is replayed again. It
            may be replayed beside every other recording. None where it cannot be recorded, which is
            said in the log.

        Raises
        ------
        GraphCaptureFailed
            It cannot be recorded, and recordings are required.
        """
        with self._lock:
            return self._try(f"Step {kind!r}", work, self._recorder.apart())

    def clear(self) -> None:
        """Forget every recording, as after a change of the weights."""
        with self._lock:
            self._recordings.clear()

    def describe(self) -> str:
        """One line, for a description of the engine."""
        how = "required" if self._required else "where steps can be recorded"
        return f"{how}, {len(self.kinds)} made"

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of the steps that are recorded, the one used last at the end."""
        return tuple(key[0] for key, made in self._recordings.items() if made is not None)  # type: ignore[index]

    @property
    def num_bytes(self) -> int:
        """Bytes of all fixed buffers; what a recording works with inside is not known here."""
        made = [one for one in self._recordings.values() if one is not None]
        held = {id(one.held): one.held for one in made}
        places = [buffer for one in made for buffer in (*one.fresh, *one.results)]
        places += [buffer for buffers in held.values() for buffer in buffers.tensors]
        return sum(place.untyped_storage().nbytes() for place in places)

    def _recorded(self, kind: str, step: Step, fresh: Tensors, held: Held) -> _Recording | None:
        buffers = self._buffers.get(held.signature)
        if buffers is None:
            buffers = _Buffers(held)
        inputs = tuple(_buffer_like(tensor) for tensor in fresh)
        for buffer, tensor in zip(inputs, fresh, strict=True):
            buffer.copy_(tensor)
        buffers.load(held)
        tree = buffers.tree
        what = f"Step {kind!r} with inputs {[tuple(x.shape) for x in fresh]}"
        made = self._try(what, lambda: step(inputs, tree), self._recorder)
        if made is None:
            return None
        replay, results = made
        self._buffers[held.signature] = buffers
        return _Recording(inputs, buffers, results, replay)

    def _try(
        self, what: str, work: Callable[[], Tensors], recorder: Recorder
    ) -> tuple[Callable[[], None], Tensors] | None:
        """Record ``work``, or say why not."""
        try:
            return recorder.record(work)
        except GraphCaptureFailed as error:
            message = f"{what}: {error.message}"
            if self._required:
                raise GraphCaptureFailed(message, operation=error.operation) from error
            logger.warning("%s It runs without a graph.", message)
            return None

    def _keep(self, key: Hashable, recording: _Recording | None) -> None:
        if len(self._recordings) >= self._limit:
            self._recordings.popitem(last=False)
        self._recordings[key] = recording


class CudaRecorder:
    """Captures work as CUDA graphs whose inner memory is shared.

    They may share it because one replays at a time, on one stream, and its results are copied out
    before the next. Work that replays beside them, on another stream, needs another recorder.

    Parameters
    ----------
    device : torch.device
        A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        """See :meth:`Recorder.record`."""
        graph, watch = torch.cuda.CUDAGraph(), RefuseHostReads()
        with torch.cuda.device(self._device):
            self._warm_up(work)
            try:
                # Other threads may go on allocating: their calls are no part of this stream.
                with (
                    torch.cuda.graph(
                        graph,
                        pool=self._pool,
                        stream=self._stream,
                        capture_error_mode="thread_local",
                    ),
                    watch,
                ):
                    results = work()
            except Exception as error:  # whatever driver or library raise
                raise GraphCaptureFailed(
                    f"{watch.last} cannot be captured ({error}).", operation=watch.last
                ) from error
        return graph.replay, results

    def apart(self) -> CudaRecorder:
        """One with a memory pool and a stream of its own."""
        return CudaRecorder(self._device)

    def _warm_up(self, work: Callable[[], Tensors]) -> None:
        """Run the work on the capturing stream, refusing what a capture would only trip over."""
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                refused_as_failure(work)
        here.wait_stream(self._stream)


def refused_as_failure(work: Callable[[], Tensors]) -> Tensors:
    """Run ``work``; what no graph can hold raises before anything is captured.

    Raises
    ------
    GraphCaptureFailed
        With the operation's name.
    """
    try:
        with RefuseHostReads():
            return work()
    except HostRead as error:
        raise GraphCaptureFailed(error.message, operation=error.operation) from error


def _buffer_like(tensor: Tensor) -> Tensor:
    """New memory of the same strides, which kernels may choose their path by."""
    overlaps = any(
        stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    if overlaps:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )


def _leaves(tree: Any) -> Iterator[Tensor]:  # noqa: ANN401
    if isinstance(tree, Tensor):
        yield tree
    else:
        for _, part in _parts(tree):
            yield from _leaves(part)


def _parts(tree: Any) -> list[tuple[str, Any]]:  # noqa: ANN401
    """Named parts of a tuple or dataclass; nothing for what is one value."""
    if isinstance(tree, tuple):
        return [(str(index), part) for index, part in enumerate(tree)]
    if is_dataclass(tree) and not isinstance(tree, type):
        return [(field.name, getattr(tree, field.name)) for field in fields(tree)]
    return []


def _signature(tree: Any, order: dict[int, int]) -> Hashable:  # noqa: ANN401
    """All of a nest but its tensors' values; ``order`` tells tensors that appear twice."""
    if isinstance(tree, Tensor):
        layout = (tuple(tree.shape), tree.stride(), tree.dtype, tree.device)
        return (*layout, order.get(id(tree)))
    parts = _parts(tree)
    if parts or isinstance(tree, tuple):
        return (type(tree), tuple(_signature(part, order) for _, part in parts))
    return (type(tree), tree)


def _mapped(tree: Any, by_id: dict[int, Tensor]) -> Any:  # noqa: ANN401
    if isinstance(tree, Tensor):
        return by_id[id(tree)]
    parts = _parts(tree)
    if not parts:
        return tree
    made = {name: _mapped(part, by_id) for name, part in parts}
    return tuple(made.values()) if isinstance(tree, tuple) else replace(tree, **made)


def step_graphs(
    graphs: Graphs, device: torch.device, *, is_alone: bool = True, offloads: bool = False
) -> StepGraphs | None:
    """Recordings for a model on ``device``, or None for none.

    Parameters
    ----------
    graphs : {"auto", True, False}
        ``"auto"`` where steps can be recorded; True always; False never.
    device : torch.device
        Where the model runs.
    is_alone : bool
        Whether one process computes a step.
    offloads : bool
        Whether the blocks' weights come and go during a step.

    Raises
    ------
    InvalidArgument
        Another value, or True where steps cannot be recorded.
    """
    if graphs != "auto" and not isinstance(graphs, bool):
        raise InvalidArgument("graphs", expected='"auto", True or False', got=repr(graphs))
    obstacle = None
    if device.type != "cuda":
        obstacle = f"the device {device}"
    elif not is_alone:
        obstacle = "several ranks, which talk to each other during a step"
    elif offloads:
        obstacle = "offload, which moves weights during a step"
    if graphs is True and obstacle is not None:
        raise InvalidArgument(
            "graphs",
            expected="a CUDA device, one process and no offload beside graphs=True",
            got=obstacle,
            hint='graphs="auto" goes without where it must.',
        )
    if graphs is False or obstacle is not None:
        return None
    return StepGraphs(CudaRecorder(device), required=graphs is True)
