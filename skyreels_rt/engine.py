"""The engine: a loaded model, shared by every job and never changed after loading."""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from skyreels_rt.audio.resample import ResampledAudio
from skyreels_rt.components import Components, load_components, stored_transformer_dtype
from skyreels_rt.conditioning.edit_mask import resolve_edit_mask
from skyreels_rt.conditioning.face import FaceFinder, face_available, face_status
from skyreels_rt.conditioning.portrait import prepare_portrait
from skyreels_rt.conditioning.source_video import SourceTrack
from skyreels_rt.continuation import ContinuationSession
from skyreels_rt.diffusion.blf import full_group_stop, plan_group
from skyreels_rt.diffusion.guidance import guidance_passes
from skyreels_rt.errors import AdmissionRefused, InvalidArgument, ModelError
from skyreels_rt.job import JobSettings, settings_of
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.live.observer import SessionObserver
from skyreels_rt.live.session import LiveSession, LiveSettings
from skyreels_rt.live.snapshot import pack_snapshot, unpack_snapshot
from skyreels_rt.media.audio_file import open_audio
from skyreels_rt.media.encoder import AAC_SAMPLE_RATES
from skyreels_rt.media.image import ImageInput, load_image
from skyreels_rt.media.video import Video
from skyreels_rt.media.video_file import open_video
from skyreels_rt.media.video_writer import VideoWriter
from skyreels_rt.offline import GenerationSummary, OfflineJob
from skyreels_rt.options import (
    GenerateOptions,
    LiveOptions,
    SceneOptions,
    bytes_per_latent,
    resolve_live,
    resolve_settings,
)
from skyreels_rt.progress import ProgressBar
from skyreels_rt.runtime.device import resolve_device, resolve_dtype
from skyreels_rt.runtime.memory import MemoryEstimate, activation_bytes, residual_bytes
from skyreels_rt.runtime.metrics import EngineMetrics
from skyreels_rt.runtime.turns import Gate, Turns
from skyreels_rt.session import Session
from skyreels_rt.types import FrameChunk

TINY_NAME = "tiny-random"
_ASSETS = Path(__file__).parent / "assets"

logger = logging.getLogger(__name__)


def embedded_models() -> tuple[str, ...]:
    """Names of the trained models inside the package."""
    return tuple(sorted(index.parent.name for index in _ASSETS.glob("*/model_index.json")))


def model_folder(model: str | Path) -> Path:
    """Folder of an embedded model by its name; any other path as it is."""
    return _ASSETS / model if str(model) in embedded_models() else Path(model)


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


class Engine:
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
        self._gate = Gate(max_sessions)
        self._sessions: weakref.WeakSet[LiveSession] = weakref.WeakSet()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        kernels: Literal["auto", "reference"] | Mapping[str, str] = "auto",
        max_sessions: int = 64,
    ) -> Engine:
        """Load a model.

        Parameters
        ----------
        model : str or Path
            A model folder, the name of an embedded model (:func:`embedded_models`), or
            ``"tiny-random"``: a seeded random model of the real topology.
        device : str or torch.device
            ``"auto"`` is CUDA where there is one, else the CPU.
        dtype : str or torch.dtype
            ``"auto"`` is bfloat16 on CUDA, float32 on the CPU; weights stored in bfloat16 stay so
            on a CPU with AMX.
        kernels : str or dict
            ``"auto"``, ``"reference"``, or an implementation for some operators by name.
        max_sessions : int
            Live sessions that may be open at once.

        Raises
        ------
        ModelError
            Unknown model, or a folder that cannot be used.
        WeightsMismatch
            A checkpoint does not hold exactly the tensors needed.
        InvalidArgument
            An unknown device or dtype.
        UnsupportedKernel
            A kernel implementation was asked for that cannot run here.
        """
        where = resolve_device(device)
        kind = resolve_dtype(dtype, where)
        if str(model) == TINY_NAME:
            plan = KernelPlan.choose(where, kind, kernels)
            from skyreels_rt.testing.tiny import tiny_components

            parts = tiny_components(device=where, dtype=kind, plan=plan)
            return cls(parts, max_sessions=max_sessions)
        embedded = isinstance(model, str) and model in embedded_models()
        folder = _ASSETS / model if embedded else Path(model)
        if folder.is_file():
            raise ModelError(
                f"{folder}: a file, expected a model folder.",
                stage="load",
                hint="Pickled checkpoints (.pth, .pt, .ckpt, .bin) are never read; convert them to "
                "a folder with safetensors first.",
            )
        if not folder.is_dir():
            names = ", ".join((*embedded_models(), TINY_NAME))
            raise ModelError(
                f"{model}: no such model.",
                stage="load",
                hint=f"Give a model folder, or one of: {names}.",
            )
        kind = resolve_dtype(dtype, where, stored=stored_transformer_dtype(folder))
        plan = KernelPlan.choose(where, kind, kernels)
        parts = load_components(folder, device=where, dtype=kind, plan=plan)
        if isinstance(model, str) and embedded:
            parts = replace(parts, name=model)
        return cls(parts, max_sessions=max_sessions)

    # ------------------------------------------------------------------------------------- jobs

    def generate(
        self,
        audio: str | Path | NDArray[Any],
        **options: Unpack[GenerateOptions],
    ) -> Video:
        """Make a talking video and hold it in memory.

        Parameters
        ----------
        audio : path or ndarray, shape (S,) or (S, channels)
            Speech; an array needs ``sample_rate``.
        **options
            See :class:`GenerateOptions`. Give ``image``, ``video``, both, or only a ``prompt``.

        Returns
        -------
        Video
            Frames, sound and ``save``. For long jobs use :meth:`generate_file` or :meth:`stream`.

        Raises
        ------
        SkyReelsError
            A typed error for every unusable input; see :mod:`skyreels_rt.errors`.
        """
        with self._job(audio, options) as job:
            chunks = list(job.chunks())
            return Video(
                frames=np.concatenate([chunk.frames for chunk in chunks]),
                audio=np.concatenate([chunk.audio for chunk in chunks]),
                sample_rate=job.audio.sample_rate,
                fps=job.settings.fps,
                steps=job.session.steps,
            )

    def stream(
        self, audio: str | Path | NDArray[Any], **options: Unpack[GenerateOptions]
    ) -> Iterator[FrameChunk]:
        """Make a talking video and yield it chunk by chunk, in constant memory.

        Takes and raises the same as :meth:`generate`; the inputs are checked before the first
        chunk is asked for.
        """
        job = self._job(audio, options)

        def chunks() -> Iterator[FrameChunk]:
            with job:
                yield from job.chunks()

        return chunks()

    def generate_file(
        self,
        path: str | Path,
        audio: str | Path | NDArray[Any],
        **options: Unpack[GenerateOptions],
    ) -> GenerationSummary:
        """Make a talking video straight into an MP4 file, in constant memory.

        Takes and raises the same as :meth:`generate`, and :class:`OutputError` when ``path`` cannot
        be written. Until the job is done nothing exists under ``path``.

        Returns
        -------
        GenerationSummary
        """
        start = time.perf_counter()
        with self._job(audio, options) as job:
            settings = job.settings
            with VideoWriter(
                path,
                fps=settings.fps,
                height=settings.height,
                width=settings.width,
                sample_rate=job.audio.sample_rate,
                channels=job.audio.channels,
            ) as writer:
                for chunk in job.chunks():
                    with job.session.clock.measure("encode"):
                        writer.write(chunk.frames, chunk.audio)
            return GenerationSummary(
                num_frames=job.session.num_frames_done,
                fps=settings.fps,
                seed=settings.seed,
                seconds=time.perf_counter() - start,
                stage_seconds=dict(job.session.clock.seconds),
                settings=settings,
                steps=job.session.steps,
            )

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
        settings = resolve_settings(self._components, options, LiveOptions)
        portrait, source = self._visual_inputs(settings, options)

        def open_core(is_cancelled: Callable[[], bool]) -> Session:
            return Session(
                self._components,
                settings,
                portrait=portrait,
                source=source,
                is_cancelled=is_cancelled,
                turns=self._turns,
            )

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
            ``max_ahead_s``, ``on_full`` and ``idle``; everything else comes from the snapshot.

        Raises
        ------
        AdmissionRefused
            ``max_sessions`` are open.
        InvalidArgument
            No snapshot of this model, or another option.
        """
        foreign = sorted(set(options) - {"max_ahead_s", "on_full", "idle"})
        if foreign:
            raise InvalidArgument(
                foreign[0], expected="an option of the audio's queue", got="one of the snapshot's"
            )
        state = unpack_snapshot(self._components, snapshot)

        def open_core(is_cancelled: Callable[[], bool]) -> Session:
            return Session.restored(
                self._components, state, is_cancelled=is_cancelled, turns=self._turns
            )

        return self._live(open_core, settings_of(state), resolve_live(options))

    def warmup(self) -> float:
        """Make a few frames of silence, so that the first session finds everything ready.

        Returns
        -------
        float
            Seconds it took.
        """
        start = time.perf_counter()
        generation = self._components.generation
        grey = np.full((generation.height, generation.width, 3), 127, np.uint8)
        settings = resolve_settings(self._components, {}, LiveOptions)
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
                f"weights      {parts.num_bytes / 2**20:.1f} MiB",
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
        parts = self._components
        settings = resolve_settings(parts, options)
        if not math.isfinite(seconds) or seconds <= 0:
            raise InvalidArgument("seconds", expected="a positive number", got=seconds)
        stride, timeline = parts.vae.spatial_stride, parts.timeline
        total = timeline.num_latents(math.ceil(seconds * settings.fps))
        window, overlap, horizon = settings.window, settings.overlap, settings.horizon
        group = min(total, full_group_stop(0, window=window, overlap=overlap, horizon=horizon))
        per_latent = bytes_per_latent(parts, settings, has_source=options.get("video") is not None)
        _, patch_h, patch_w = parts.transformer.config.patch_size
        frames = min(window, total) + timeline.primed
        tokens = frames * (settings.height // stride // patch_h)
        tokens *= settings.width // stride // patch_w
        return MemoryEstimate(
            weights=parts.num_bytes,
            timeline=group * per_latent,
            vae_cache=parts.vae.cache_bytes(settings.height, settings.width, parts.dtype),
            activations=activation_bytes(
                parts.transformer.config, num_tokens=tokens, itemsize=parts.dtype.itemsize
            ),
            residuals=self._residual_bytes(settings, group, tokens),
        )

    def _residual_bytes(self, settings: JobSettings, group: int, num_tokens: int) -> int:
        """What a step cache keeps for a group of ``group`` latents."""
        parts = self._components
        plan = parts.step_plan(settings.teacache, settings.schedule.timesteps)
        if not plan.skips:
            return 0
        windows = plan_group(
            0, group, True,
            window=settings.window, overlap=settings.overlap, horizon=settings.horizon,
        )  # fmt: skip
        passes = guidance_passes(
            settings.guidance_form,
            settings.text_guidance_scale,
            settings.audio_guidance_scale,
            has_text=bool(settings.prompt),
            has_audio=parts.transformer.config.audio is not None,
        )
        return residual_bytes(
            parts.transformer.config,
            num_tokens=num_tokens,
            num_windows=len(windows.windows) if windows is not None else 1,
            num_passes=len(passes),
            itemsize=parts.dtype.itemsize,
            has_gate=plan.gate is not None,
        )

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
    def components(self) -> Components:
        """The frozen parts of the loaded model."""
        return self._components

    # --------------------------------------------------------------------------------- internals

    def _job(self, audio: str | Path | NDArray[Any], options: GenerateOptions) -> OfflineJob:
        """Check every input, in the order a caller would fix them, and open a session."""
        settings = resolve_settings(self._components, options)
        source_audio = open_audio(audio, options.get("sample_rate"))
        num_samples, rate = source_audio.num_samples, source_audio.sample_rate
        if rate not in AAC_SAMPLE_RATES:
            source_audio = ResampledAudio(source_audio, 48_000)
        portrait, source = self._visual_inputs(settings, options)
        bar = None
        on_progress = options.get("on_progress")
        if on_progress is None:
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

    def _live(
        self,
        open_core: Callable[[Callable[[], bool]], Session],
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
                load_portrait=lambda image: self._portrait(settings, image, _finder()),
                observer=observer,
                on_close=release,
            )
        except BaseException:
            observer.closed()
            release()
            raise
        self._sessions.add(session)
        return session

    def _portrait(
        self, settings: JobSettings, image: ImageInput, finder: FaceFinder | None
    ) -> NDArray[np.uint8]:
        """Portrait in the output's shape."""
        config = self._components.transformer.config
        sees_reference = (
            config.condition_channels > 0 and self._components.generation.reference_mode != "none"
        )
        if not sees_reference and config.image_dim is None:
            raise InvalidArgument(
                "image",
                expected="a model that takes a portrait",
                got="a model without reference and image branch",
                hint="Leave the image out, or load another model.",
            )
        if finder is None:
            logger.warning("the portrait is cropped at its centre: %s", face_status())
        return prepare_portrait(load_image(image), settings.height, settings.width, finder=finder)

    def _visual_inputs(
        self, settings: JobSettings, options: SceneOptions
    ) -> tuple[NDArray[np.uint8] | None, SourceTrack | None]:
        """Portrait in the output's shape, and the source track; each None if not given."""
        image, video = options.get("image"), options.get("video")
        mask = options.get("edit_mask")
        if mask is not None and video is None:
            raise InvalidArgument("edit_mask", expected="a video to edit", got="no video")
        if image is None and video is None and not settings.prompt:
            raise InvalidArgument(
                "image", expected="an image, a video or a prompt", got="none of them"
            )
        mask = "mouth" if mask is None else mask
        needs_face = video is not None and isinstance(mask, str) and mask in ("mouth", "face")
        finder = FaceFinder() if needs_face else (_finder() if image is not None else None)
        portrait = source = None
        if image is not None:
            portrait = self._portrait(settings, image, finder)
        if video is not None:
            frame_mask = resolve_edit_mask(mask, settings.height, settings.width, finder)
            rate = settings.fps if isinstance(video, np.ndarray) else None
            source = SourceTrack(
                open_video(video, rate),
                frame_mask,
                settings.fps,
                settings.height,
                settings.width,
            )
        return portrait, source


def _finder() -> FaceFinder | None:
    """What finds faces, where it is installed."""
    return FaceFinder() if face_available() else None
