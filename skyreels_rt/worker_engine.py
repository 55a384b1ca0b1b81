"""An engine whose ranks are processes of their own, started and watched by this one.

The process that holds a :class:`WorkerEngine` loads no weights and opens no device: requests go to
the workers, frames come back from rank 0.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from skyreels_rt.config import TransformerConfig, config_from_dict
from skyreels_rt.distributed.cost_model import StepShape
from skyreels_rt.distributed.fit import require_world
from skyreels_rt.distributed.links import Links
from skyreels_rt.distributed.mesh import Mesh
from skyreels_rt.distributed.messages import pack_options
from skyreels_rt.distributed.parallel import Parallel
from skyreels_rt.distributed.workers import Call, RankStatus, Timeouts, WorkerGroup
from skyreels_rt.env import launched_rank, worker_environment
from skyreels_rt.errors import AdmissionRefused, InvalidArgument, WorkerFailed
from skyreels_rt.job import JobSettings, rule_facts, settings_from
from skyreels_rt.live.observer import SessionObserver
from skyreels_rt.live.session import LiveSession
from skyreels_rt.media.image import load_image
from skyreels_rt.options import (
    GenerateOptions,
    LiveOptions,
    SceneOptions,
    require_kinds,
    resolve_live,
)
from skyreels_rt.pretrained import LoadOptions, load_facts
from skyreels_rt.progress import ProgressBar
from skyreels_rt.runtime.device import resolve_device
from skyreels_rt.runtime.memory import MemoryEstimate
from skyreels_rt.runtime.metrics import EngineMetrics
from skyreels_rt.runtime.step_cache import StepRun
from skyreels_rt.runtime.timing import StageClock
from skyreels_rt.types import FrameChunk, Progress, ProgressCallback
from skyreels_rt.video_maker import EngineFacts, VideoMaker
from skyreels_rt.worker_session import WorkerCore, chunk_of, snapshot_of

_EXCHANGE_STEPS = 4
"""Steps that a worker waits for another one: more than we wait, so that we say who is stuck."""

WORKER = (sys.executable, "-P", "-m", "skyreels_rt.worker")


class WorkerEngine(VideoMaker):
    """An engine of several worker processes; made by :meth:`Engine.from_pretrained`.

    One job or live session at a time. After an error that leaves the workers out of step (out of
    memory in one of them, a failure without a type) the next call starts new ones; after
    :class:`WorkerDied` and :class:`WorkerTimeout` every call raises the same.

    Parameters
    ----------
    model : str or Path
        As for :meth:`Engine.from_pretrained`.
    devices : sequence of str
        One per worker: all CPU, or different GPUs.
    parallel : Parallel, optional
        How a job is spread over the workers; by default its windows are.
    timeouts : Timeouts, optional
        How long the workers may take.
    threads : int, optional
        CPU threads of each worker; by default those of this process, shared out.
    **options
        See :class:`.pretrained.LoadOptions`.

    Raises
    ------
    InvalidArgument
        Devices of two kinds, or a GPU twice.
    InvalidMesh
        ``parallel`` is for another number of workers.
    WorkerDied, WorkerTimeout
        A worker did not start.
    SkyReelsError
        What loading the model raises.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        devices: Sequence[str | torch.device],
        parallel: Parallel | Mesh | None = None,
        timeouts: Timeouts | None = None,
        threads: int | None = None,
        **options: Unpack[LoadOptions],
    ) -> None:
        if launched_rank() is not None:
            raise InvalidArgument(
                "devices", expected="a process that torchrun did not start", got="one that it did"
            )
        if isinstance(parallel, Mesh):
            raise InvalidArgument("parallel", expected="a Parallel, beside devices", got="a Mesh")
        self._timeouts = timeouts or Timeouts()
        self._devices = where = checked_devices(devices)
        is_folder = Path(model).is_dir()
        axes = parallel or Parallel(window=len(where))
        require_world(axes, len(where))
        num_sharing = len(where) if where[0] == "cpu" else 1
        self._start: dict[str, Any] = {
            "model": str(Path(model).absolute() if is_folder else model),
            "devices": where,
            "parallel": axes.to_dict(),
            "load": load_facts(options),
            "threads": threads or max(1, torch.get_num_threads() // num_sharing),
            "start_s": self._timeouts.start_s,
            "exchange_s": _EXCHANGE_STEPS * self._timeouts.step_s,
        }
        self._calling = threading.RLock()
        self._asking = threading.Lock()  # held during a request that is answered at once
        self._metrics = EngineMetrics()
        self._core: weakref.ref[WorkerCore] | None = None
        self._group, self._facts = self._started()

    # ------------------------------------------------------------------------------------- jobs

    def open_job(self, audio: str | Path | NDArray[Any], options: GenerateOptions) -> WorkerJob:
        """Send a job to the workers.

        Takes and raises the same as :meth:`generate`.
        """
        require_kinds(options)
        given: dict[str, Any] = {**options, "audio": audio}
        cancel, on_progress = given.pop("cancel", None), given.pop("on_progress", None)
        bar = None
        if on_progress is None:
            bar = on_progress = ProgressBar()
        return WorkerJob(self, self._call("generate", given), on_progress, cancel, bar)

    # ------------------------------------------------------------------------------------- live

    def open_session(self, **options: Unpack[LiveOptions]) -> LiveSession:
        """Open a live session that the workers compute; takes and raises what an engine's does.

        One at a time, and no job beside it. What ends the workers ends the session: every pending
        and later call of it raises the same.

        Raises
        ------
        AdmissionRefused
            A job or another session is at hand.
        WorkerDied, WorkerTimeout
            A worker did.
        SkyReelsError
            A typed error for every unusable input.
        """
        return self._live(options)

    def restore_session(
        self, snapshot: bytes | str | Path, **options: Unpack[LiveOptions]
    ) -> LiveSession:
        """Open a session that goes on where :meth:`LiveSession.snapshot` was taken, bit for bit.

        Takes and raises what an engine's does. A snapshot may come from any number of processes.
        """
        try:
            data = snapshot if isinstance(snapshot, bytes) else Path(snapshot).read_bytes()
        except OSError as error:
            raise InvalidArgument(
                "snapshot", expected="a snapshot of a session", got=type(error).__name__
            ) from error
        return self._live({**options, "snapshot": np.frombuffer(data, np.uint8)})

    def metrics(self) -> str:
        """Counters, gauges and histograms of all live sessions, in Prometheus' text format."""
        return self._metrics.text()

    # ------------------------------------------------------------------------------------- facts

    @property
    def facts(self) -> EngineFacts:
        """Model, devices and kernels, for reports."""
        return self._facts

    @property
    def workers(self) -> tuple[RankStatus, ...]:
        """What is known of each worker."""
        return self._group.status()

    def describe(self) -> str:
        """The model, its shape, the kernel plan and the mesh, as text."""
        lines = [str(self._asked("describe", {})["text"])]
        lines += [
            f"worker {one.rank}     pid {one.pid}, {device}"
            for one, device in zip(self.workers, self._devices, strict=True)
        ]
        return "\n".join(lines)

    def estimate(self, seconds: float, **options: Unpack[GenerateOptions]) -> MemoryEstimate:
        """Bytes a job of ``seconds`` of speech needs in one worker, by owner.

        Raises
        ------
        InvalidArgument
            An option is out of its range.
        """
        return MemoryEstimate(**self._asked("estimate", {**options, "seconds": seconds}))

    def step_shape(self, seconds: float, **options: Unpack[GenerateOptions]) -> StepShape:
        """Sizes of a denoising step of such a job, for :meth:`Parallel.suggest`.

        Raises
        ------
        InvalidArgument
            An option is out of its range.
        """
        return StepShape(**self._asked("step_shape", {**options, "seconds": seconds}))

    def measure_links(self) -> Links:
        """What the links between the workers reach, for :meth:`Parallel.suggest`.

        Raises
        ------
        InvalidArgument
            There is one worker.
        """
        return Links(**self._asked("links", {}))

    @property
    def transformer_config(self) -> TransformerConfig:
        """Sizes of the transformer."""
        return self._config

    # ---------------------------------------------------------------------------------------- end

    def close(self) -> None:
        """End the workers; every later call raises. Also happens when the engine is dropped."""
        self._group.close()

    def __enter__(self) -> WorkerEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---------------------------------------------------------------------------------- internals

    def _started(self) -> tuple[WorkerGroup, EngineFacts]:
        """New workers, with the model loaded."""
        group = WorkerGroup(
            WORKER,
            len(self._devices),
            timeouts=self._timeouts,
            environment=worker_environment(),
        )
        weakref.finalize(self, group.close)
        try:
            with tempfile.TemporaryDirectory(prefix="skyreels-rt-") as folder:
                facts = {**self._start, "meeting": str(Path(folder) / "meeting")}
                found = group.call("start", facts).result()
        except BaseException:
            group.close()
            raise
        self._config = config_from_dict(TransformerConfig, found["transformer"], where="a worker")
        device = ",".join(self._devices)
        return group, EngineFacts(found["name"], device, found["threads"], found["kernel_plan"])

    def _live(self, options: Mapping[str, Any]) -> LiveSession:
        """Open a live session over the workers."""
        queueing = set(LiveOptions.__annotations__) - set(SceneOptions.__annotations__)
        live = resolve_live({name: options[name] for name in queueing & set(options)})  # type: ignore[arg-type]
        scene = {name: value for name, value in options.items() if name not in queueing}
        require_kinds(scene)
        with self._calling:
            core = WorkerCore(self, self._group, self._call("live_open", scene), self._asking)
            self._core = weakref.ref(core)
        observer = SessionObserver(self._metrics)
        try:
            session = LiveSession(
                core.until,
                live,
                pack=snapshot_of,
                load_portrait=load_image,
                observer=observer,
                on_stop=core.stop,
                require_core=core.require,
            )
        except BaseException:
            observer.closed()
            raise
        core.tell(session)
        return session

    def _asked(self, kind: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer to a request that a live session may stand beside."""
        with self._asking:
            return self._call(kind, options).result()

    def _call(self, kind: str, options: Mapping[str, Any]) -> Call:
        """Send a request with options, to new workers if the old ones are out of step."""
        given = dict(options)
        if given.get("teacache") is not None:
            given["teacache"] = rule_facts(given["teacache"])
        image = given.get("image")
        if image is not None and not isinstance(image, str | Path):
            given["image"] = load_image(image)
        facts, arrays = pack_options(given)
        with self._calling:
            if not self._group.is_usable:
                self._group.close()
                self._group, self._facts = self._started()
            core = None if self._core is None else self._core()
            if core is not None and core.is_open and kind in ("generate", "live_open"):
                raise AdmissionRefused(
                    "The workers hold a live session.",
                    stage="worker",
                    hint="Close it first, or load one more engine.",
                )
            return self._group.call(kind, {"options": facts}, arrays)


class WorkerJob:
    """A job that the workers do. A :class:`.offline.Job`.

    Parameters
    ----------
    engine : WorkerEngine
        Kept alive until the job is.
    call : Call
        The request, sent.
    on_progress : callable
        Called with a :class:`Progress` after every step and every delivered chunk.
    cancel : threading.Event, optional
        Looked at whenever something comes from the workers.
    bar : ProgressBar, optional
        Closed with the job.
    """

    def __init__(
        self,
        engine: WorkerEngine,
        call: Call,
        on_progress: ProgressCallback,
        cancel: threading.Event | None,
        bar: ProgressBar | None,
    ) -> None:
        self._engine = engine
        self._call = call
        self._on_progress = on_progress
        self._cancel = cancel
        self._bar = bar
        self._messages = call.messages()
        self._abandon = weakref.finalize(self, call.abandon)  # dropped, left early: once
        self._abandon.atexit = False
        self.clock = StageClock()
        """Seconds by stage; of the workers once the job is done."""
        self.steps: tuple[StepRun, ...] = ()
        """Which steps the windows computed, once the job is done."""
        self.num_frames_done = 0
        """Frames that came so far."""
        first = next(self._messages, None)
        if first is None:
            self._finish()
            raise WorkerFailed("The workers said nothing about the job.", stage="worker")
        self.settings: JobSettings = settings_from(first.facts["settings"])
        """Resolved options."""
        self.sample_rate: int = first.facts["sample_rate"]
        """Of the speech."""
        self.channels: int = first.facts["channels"]
        """Of the speech."""

    def chunks(self) -> Iterator[FrameChunk]:
        """Finished frames as they come.

        Raises
        ------
        Cancelled
            ``cancel`` was set.
        WorkerDied, WorkerTimeout
            A worker did.
        SkyReelsError
            What the job raises in a worker.
        """
        for message in self._messages:
            if self._cancel is not None and self._cancel.is_set():
                self._call.cancel()
            if message.kind == "progress":
                self._on_progress(Progress(**message.facts))
            elif message.kind == "chunk":
                chunk = chunk_of(message)
                self.num_frames_done += len(chunk.frames)
                yield chunk
            else:
                self.steps = tuple(_step_run(run) for run in message.facts["steps"])
                for stage, seconds in message.facts["seconds"].items():
                    self.clock.add(stage, seconds)
        self._finish()

    def _finish(self) -> None:
        """Raise what any rank met."""
        self._abandon.detach()
        self._call.result()

    def __enter__(self) -> WorkerJob:
        return self

    def __exit__(self, *_: object) -> None:
        self._abandon()
        if self._bar is not None:
            self._bar.close()


def checked_devices(devices: Sequence[str | torch.device]) -> list[str]:
    """Names of the workers' devices.

    Raises
    ------
    InvalidArgument
        None, unknown ones, two kinds, or a GPU twice.
    """
    names = [str(resolve_device(device)) for device in devices]
    kinds = {torch.device(name).type for name in names}
    if len(kinds) != 1 or ("cuda" in kinds and len(set(names)) < len(names)):
        raise InvalidArgument(
            "devices", expected='CPUs ("cpu", "cpu") or different GPUs', got=names or "none"
        )
    return names


def _step_run(facts: Mapping[str, Any]) -> StepRun:
    return StepRun(**{**facts, "computed": tuple(facts["computed"])})
