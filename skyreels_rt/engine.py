"""The engine: a loaded model, shared by every job and never changed after loading."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

import numpy as np
import torch
from numpy.typing import NDArray

from skyreels_rt.audio.resample import ResampledAudio
from skyreels_rt.components import Components
from skyreels_rt.config import TransformerConfig
from skyreels_rt.continuation import ContinuationSession
from skyreels_rt.distributed.cost_model import StepShape, predicted_meshes
from skyreels_rt.distributed.links import Links, measure_links
from skyreels_rt.distributed.mesh import Mesh
from skyreels_rt.distributed.parallel import Parallel
from skyreels_rt.distributed.workers import Timeouts
from skyreels_rt.errors import AdmissionRefused, InvalidArgument
from skyreels_rt.estimate import estimate_job, step_shape
from skyreels_rt.job import JobSettings
from skyreels_rt.live.observer import SessionObserver
from skyreels_rt.live.session import LiveSession, LiveSettings
from skyreels_rt.live.snapshot import pack_snapshot
from skyreels_rt.media.audio_file import open_audio
from skyreels_rt.media.encoder import AAC_SAMPLE_RATES
from skyreels_rt.offline import OfflineJob
from skyreels_rt.opening import CoreOpener, core_opener, core_restorer
from skyreels_rt.options import GenerateOptions, LiveOptions, resolve_live, resolve_settings
from skyreels_rt.pretrained import LoadOptions, load_pretrained
from skyreels_rt.progress import ProgressBar
from skyreels_rt.quantization import weights_note
from skyreels_rt.runtime.memory import MemoryEstimate
from skyreels_rt.runtime.metrics import EngineMetrics
from skyreels_rt.runtime.step_cache import StepMask
from skyreels_rt.runtime.turns import Gate, Turns
from skyreels_rt.scene import load_portrait, load_scene
from skyreels_rt.session import Session
from skyreels_rt.types import LoadCallback
from skyreels_rt.video_maker import EngineFacts, VideoMaker

if TYPE_CHECKING:
    from skyreels_rt.worker_engine import WorkerEngine


@dataclass(frozen=True)
class Health:
    """State of an engine.

    Attributes
    ----------
    num_sessions, max_sessions : int
        Live sessions that are open, and how many may be.
    num_waiting : int
        Of them, sessions that wait for their turn to compute.
    seconds_since_chunk : float or None
        Since any live session delivered frames; None before the first.
    """

    num_sessions: int
    max_sessions: int
    num_waiting: int
    seconds_since_chunk: float | None

    @property
    def has_room(self) -> bool:
        """Whether one more session may open."""
        return self.num_sessions < self.max_sessions


class Engine(VideoMaker):
    """A loaded model.

    Immutable and shared: every job has a :class:`Session` of its own for what changes.

    Parameters
    ----------
    components : Components
        The model's frozen parts; see :meth:`from_pretrained`.
    max_sessions : int
        Live sessions that may be open at once.
    """

    def __init__(self, components: Components, *, max_sessions: int = 64) -> None:
        if isinstance(max_sessions, bool) or max_sessions < 1:
            raise InvalidArgument("max_sessions", expected="an integer >= 1", got=max_sessions)
        self._components = components
        self._metrics = EngineMetrics()
        self._turns = Turns(self._metrics.queue_seconds.observe)
        # Over a mesh every rank must compute the same things in the same order.
        self._gate = Gate(1 if components.mesh is not None else max_sessions)
        self._sessions: weakref.WeakSet[LiveSession] = weakref.WeakSet()

    @overload
    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        device: str | torch.device = ...,
        devices: None = ...,
        parallel: Parallel | Mesh | None = ...,
        max_sessions: int = ...,
        on_progress: LoadCallback | None = ...,
        **options: Unpack[LoadOptions],
    ) -> Engine: ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        devices: Sequence[str | torch.device],
        parallel: Parallel | None = ...,
        timeouts: Timeouts | None = ...,
        **options: Unpack[LoadOptions],
    ) -> WorkerEngine: ...

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        device: str | torch.device = "auto",
        devices: Sequence[str | torch.device] | None = None,
        parallel: Parallel | Mesh | None = None,
        timeouts: Timeouts | None = None,
        max_sessions: int = 64,
        on_progress: LoadCallback | None = None,
        **options: Unpack[LoadOptions],
    ) -> Engine | WorkerEngine:
        """Load a model.

        Parameters
        ----------
        model : str or Path
            A model folder, the name of an embedded model (:func:`.pretrained.embedded_models`), or
            ``"tiny-random"``: a seeded random model of the real topology. With the ``[hub]`` extra
            also a hub id (``"owner/name"``), of which JSON and safetensors files are fetched.
        device : str or torch.device
            ``"auto"`` is CUDA where there is one, else the CPU.
        devices : sequence of str, optional
            Beside ``device="auto"``: the engine starts a process on each and watches over them, see
            :class:`.worker_engine.WorkerEngine`.
        parallel : Parallel or Mesh, optional
            Spread every job over the processes of ``devices``, or over those that ``torchrun``
            started. Under ``torchrun`` all of them make the same calls with the same arguments and
            get the same frames; files are written by rank 0. A :class:`.distributed.mesh.Mesh` of
            :func:`.open_mesh` sets the timeout, too.
        timeouts : Timeouts, optional
            How long the processes of ``devices`` may take.
        max_sessions : int
            Live sessions that may be open at once; one with ``parallel``.
        on_progress : callable, optional
            Called with a :class:`LoadProgress` after every tensor; not beside ``devices``.
        **options
            See :class:`.pretrained.LoadOptions`: number type, kernels, CUDA graphs, 8 bits,
            LoRAs, VAE, hub.

        Raises
        ------
        InvalidMesh
            ``parallel`` does not fit the number of processes or the model.
        PeerFailed, WorkerDied, WorkerTimeout
            Another process left, or did not come.
        ModelError
            Unknown model, or a folder that cannot be used.
        WeightsMismatch
            A checkpoint does not hold exactly the tensors needed, or a LoRA does not fit them.
        MissingDependency
            A hub id without the ``[hub]`` extra.
        InvalidArgument
            An unknown device, dtype or VAE runner, or no folder for it.
        MissingDependency
            The package that runs the exported VAE is not installed.
        UnsupportedKernel
            A kernel implementation was asked for that cannot run here.
        """
        if devices is not None:
            from skyreels_rt.worker_engine import WorkerEngine

            if device != "auto":
                raise InvalidArgument("device", expected="none beside devices", got=device)
            if on_progress is not None:
                raise InvalidArgument("on_progress", expected="none beside devices", got="one")
            return WorkerEngine(
                model, devices=devices, parallel=parallel, timeouts=timeouts, **options
            )
        parts = load_pretrained(
            model, device=device, parallel=parallel, on_progress=on_progress, **options
        )
        return cls(parts, max_sessions=max_sessions)

    # ------------------------------------------------------------------------------------- jobs

    def open_job(self, audio: str | Path | NDArray[Any], options: GenerateOptions) -> OfflineJob:
        """Check every input, in the order a caller would fix them, and open a session.

        Takes and raises the same as :meth:`generate`.
        """
        settings = resolve_settings(self._components, options)
        source_audio = open_audio(audio, options.get("sample_rate"))
        num_samples, rate = source_audio.num_samples, source_audio.sample_rate
        if rate not in AAC_SAMPLE_RATES:
            source_audio = ResampledAudio(source_audio, 48_000)
        portrait, source = load_scene(self._components, settings, options)
        bar = None
        on_progress = options.get("on_progress")
        if on_progress is None and self.writes_files:
            bar = on_progress = ProgressBar()
        cancel = options.get("cancel")
        kind = Session if settings.long_form == "blf" else ContinuationSession
        session = kind(
            self._components,
            settings,
            portrait=portrait,
            source=source,
            expected_frames=-(-num_samples * settings.fps // rate) if num_samples else None,
            on_progress=on_progress,
            is_cancelled=cancel.is_set if cancel is not None else None,
            turns=self._turns,
        )
        return OfflineJob(source_audio, session, settings, bar)

    # ------------------------------------------------------------------------------------- live

    def open_session(self, **options: Unpack[LiveOptions]) -> LiveSession:
        """Open a live session: speech is pushed while frames are taken.

        With the same horizon it gives the bytes of :meth:`generate`. Sessions share the engine's
        cores or device in turns, one denoising step or decoded latent at a time.

        Parameters
        ----------
        **options
            See :class:`LiveOptions`. Give ``image``, ``video``, both, or only a ``prompt``.

        Returns
        -------
        LiveSession
            A context manager, for ``with`` and for ``async with``.

        Raises
        ------
        AdmissionRefused
            ``max_sessions`` are open.
        SkyReelsError
            A typed error for every unusable input.
        """
        settings, open_core = core_opener(self._components, options, self._turns)
        return self._live(open_core, settings, resolve_live(options))

    def restore_session(
        self, snapshot: bytes | str | Path, **options: Unpack[LiveOptions]
    ) -> LiveSession:
        """Open a session that goes on where :meth:`LiveSession.snapshot` was taken, bit for bit.

        Parameters
        ----------
        snapshot : bytes or path
            The snapshot, or a file that holds it.
        **options
            ``max_ahead_s``, ``on_full``, ``idle``; ``video`` and ``edit_mask``, as they were, for a
            session that edits (the video is read again up to where it was). Everything else
            comes from the snapshot.

        Raises
        ------
        AdmissionRefused
            ``max_sessions`` are open.
        InvalidArgument
            No snapshot of this model, another option, or another video.
        """
        settings, open_core = core_restorer(self._components, snapshot, options, self._turns)
        return self._live(open_core, settings, resolve_live(options))

    def warmup(self) -> float:
        """Make a few frames of silence, so that the first session finds everything ready.

        Where steps become CUDA graphs, those of a session with default options are recorded here,
        others when they are first needed.

        Returns
        -------
        float
            Seconds it took.
        """
        start = time.perf_counter()
        generation = self._components.generation
        grey = np.full((generation.height, generation.width, 3), 127, np.uint8)
        options: LiveOptions = {}
        if self.mesh is not None:  # windows and passes for all of its ranks
            horizon = self.mesh.parallel.window
            options = {"horizon": horizon, "prompt": "warm-up", "text_guidance_scale": 2.0}
        elif self._components.graphs is not None:  # a step of each kind, to record them
            options = {"num_steps": 3, "teacache": StepMask((True, False, True))}
        settings = resolve_settings(self._components, options, LiveOptions)
        with Session(self._components, settings, portrait=grey, turns=self._turns) as session:
            session.push_audio(np.zeros(math.ceil(session.latency_s * 16_000), np.float32), 16_000)
            session.next_chunk()
        return time.perf_counter() - start

    # ------------------------------------------------------------------------------------- facts

    def describe(self) -> str:
        """The model, its shape and the kernel plan, as text."""
        parts = self._components
        config, generation = parts.transformer.config, parts.generation
        return "\n".join(
            [
                f"model        {parts.name}",
                f"device       {parts.device}, {parts.dtype}",
                f"transformer  {config.num_layers} blocks of width {config.dim}, "
                f"{config.num_heads} heads, {config.condition_channels} condition channels",
                f"video        {generation.width}x{generation.height} at {generation.fps} fps",
                f"windows      {generation.window} latents, overlap {generation.overlap}",
                f"weights      {parts.num_bytes / 2**20:.1f} MiB{weights_note(parts.transformer)}",
                f"graphs       {'none' if parts.graphs is None else parts.graphs.describe()}",
                *([f"mesh         {parts.mesh.describe()}"] if parts.mesh is not None else []),
                *predicted_meshes(config, self.step_shape(10.0)),
                parts.plan.describe(),
            ]
        )

    def estimate(self, seconds: float, **options: Unpack[GenerateOptions]) -> MemoryEstimate:
        """Bytes a job of ``seconds`` of speech needs, by owner, from shapes alone.

        Raises
        ------
        InvalidArgument
            An option is out of its range.
        """
        settings = resolve_settings(self._components, options)
        has_source = options.get("video") is not None
        return estimate_job(self._components, settings, seconds, has_source=has_source)

    def step_shape(self, seconds: float, **options: Unpack[GenerateOptions]) -> StepShape:
        """Sizes of a denoising step of such a job, for :meth:`Parallel.suggest`.

        Raises
        ------
        InvalidArgument
            An option is out of its range.
        """
        return step_shape(self._components, resolve_settings(self._components, options), seconds)

    def measure_links(self) -> Links:
        """What the links between the ranks reach, for :meth:`Parallel.suggest`; every rank asks.

        Raises
        ------
        InvalidArgument
            There is one process.
        PeerFailed
            A rank left.
        """
        if self.mesh is None:
            raise InvalidArgument("parallel", expected="ranks to measure between", got="none")
        return measure_links(self.mesh)

    def health(self) -> Health:
        """How the engine is doing, for a liveness probe."""
        return Health(
            num_sessions=self._gate.count,
            max_sessions=self._gate.limit,
            num_waiting=self._turns.num_waiting,
            seconds_since_chunk=self._metrics.seconds_since_chunk,
        )

    def metrics(self) -> str:
        """Counters, gauges and histograms of all live sessions, in Prometheus' text format."""
        backlog = sum(max(0.0, one.buffered_s) for one in self._sessions if not one.is_closed)
        self._metrics.audio_backlog_seconds.set(backlog)
        self._metrics.sessions_waiting.set(self._turns.num_waiting)
        device = self._components.device
        if device.type == "cuda":
            self._metrics.device_bytes.set(torch.cuda.memory_allocated(device), kind="allocated")
            self._metrics.device_bytes.set(torch.cuda.memory_reserved(device), kind="reserved")
        return self._metrics.text()

    @property
    def facts(self) -> EngineFacts:
        """Model, device and kernels, for reports."""
        parts = self._components
        plan = parts.plan.to_json()
        return EngineFacts(parts.name, str(parts.device), torch.get_num_threads(), plan)

    @property
    def transformer_config(self) -> TransformerConfig:
        """Sizes of the transformer."""
        return self._components.transformer.config

    @property
    def components(self) -> Components:
        """The frozen parts of the loaded model."""
        return self._components

    @property
    def mesh(self) -> Mesh | None:
        """Ranks that jobs are spread over; None for one process."""
        return self._components.mesh

    @property
    def writes_files(self) -> bool:
        """Whether this process writes files and shows progress; under ``torchrun`` rank 0 does."""
        return self.mesh is None or self.mesh.is_writer

    def close(self) -> None:
        """Leave the group of processes; each of them must call it. Alone it does nothing."""
        if self.mesh is not None:
            self.mesh.close()

    # --------------------------------------------------------------------------------- internals

    def _live(
        self,
        open_core: CoreOpener,
        settings: JobSettings,
        live: LiveSettings,
    ) -> LiveSession:
        """Open a live session if one more may be."""
        try:
            release = self._gate.enter()
        except AdmissionRefused:
            self._metrics.sessions.inc(outcome="refused")
            raise
        observer = SessionObserver(self._metrics)
        try:
            session = LiveSession(
                open_core,
                live,
                pack=lambda state: pack_snapshot(self._components, state),
                load_portrait=lambda image: load_portrait(self._components, settings, image),
                observer=observer,
                on_close=release,
            )
        except BaseException:
            observer.closed()
            release()
            raise
        self._sessions.add(session)
        return session
