"""One job: speech goes in, finished frames with their sound come out.

A session owns every piece of mutable state (audio tail, feature grid, condition track, emitted
latents, decoder cache, frame counter). What it reads from the engine is frozen, so sessions cannot
disturb each other. Its state has constant size: only the tail that later groups need is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyreels_rt.audio.speech_tail import SpeechTail
from skyreels_rt.audio.token_track import TokenTrack
from skyreels_rt.components import Components
from skyreels_rt.conditioning.condition_track import (
    ConditionTrack,
    encode_portrait,
    leading_slot_channels,
)
from skyreels_rt.conditioning.source_video import SourceTrack
from skyreels_rt.config import GuidanceForm, Ramp, SolverName
from skyreels_rt.diffusion.blf import (
    Group,
    Window,
    full_group_stop,
    num_kept_latents,
    plan_group,
    window_weights,
)
from skyreels_rt.diffusion.block_reuse import OnBlocks
from skyreels_rt.diffusion.denoise import denoise_group
from skyreels_rt.diffusion.guidance import guidance_passes
from skyreels_rt.diffusion.noise import timeline_noise
from skyreels_rt.diffusion.predictor import LeadingSlot, PromptContext, WindowPredictor
from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.diffusion.solvers import make_solver
from skyreels_rt.errors import Cancelled, InvalidArgument, MediaError, NonFinite
from skyreels_rt.kernels import frames_to_uint8
from skyreels_rt.models.vae import VAECache
from skyreels_rt.runtime.step_cache import FEW_STEPS, StepCache, StepLog, StepMask, StepRun
from skyreels_rt.runtime.timing import StageClock
from skyreels_rt.types import FrameChunk, Progress, ProgressCallback

logger = logging.getLogger(__name__)

SLOT_NOISE_INDEX = 2**63 - 1
"""Noise index of the leading slot, far from any frame of the timeline."""


@dataclass(frozen=True)
class JobSettings:
    """Everything a job can choose, resolved and checked by the engine.

    Attributes
    ----------
    prompt, negative_prompt : str
        Prompt of the passes with and without text; an empty prompt switches text guidance off.
    seed : int
        Seed of the timeline's noise.
    num_steps, shift, solver, text_guidance_scale, audio_guidance_scale, guidance_form
        As in :class:`skyreels_rt.config.GenerationConfig`.
    fps, height, width : int
        Shape of the output.
    window, overlap, horizon : int
        BLF windows in latent frames, and how many of them are denoised together.
    ramp : {"linear", "uniform"}
        Weights with which overlapping windows are fused.
    teacache : StepCache or None
        Which steps reuse the blocks of an earlier one; None computes all.
    """

    prompt: str
    negative_prompt: str
    seed: int
    num_steps: int
    shift: float
    solver: SolverName
    text_guidance_scale: float
    audio_guidance_scale: float
    guidance_form: GuidanceForm
    fps: int
    height: int
    width: int
    window: int
    overlap: int
    horizon: int
    ramp: Ramp
    teacache: StepCache | None = None


class Session:
    """Audio in, frames out.

    Parameters
    ----------
    components : Components
        The engine's frozen parts.
    settings : JobSettings
        Resolved options.
    portrait : ndarray, shape (H, W, 3), uint8, or None
        Portrait, already cropped to the output's shape.
    source : SourceTrack, optional
        Source video and edit mask; closed by :meth:`close`.
    expected_frames : int, optional
        Frames the speech will need, where that is known in advance; for progress only.
    on_progress : callable, optional
        Called with a :class:`Progress` after every step and every delivered chunk; what it raises
        comes out of :meth:`frames`, which can go on afterwards.
    observe : callable, optional
        From a BLF window to what is called after each of its runs of the transformer's blocks; for
        calibration.
    is_cancelled : callable, optional
        Asked between steps and between decoded latents; True raises :class:`Cancelled`.

    Raises
    ------
    InvalidArgument
        The model needs a portrait and got none, cannot take a source video, or the step cache
        does not fit the run: a mask of another length, a model without calibration.
    """

    def __init__(
        self,
        components: Components,
        settings: JobSettings,
        *,
        portrait: NDArray[np.uint8] | None = None,
        source: SourceTrack | None = None,
        expected_frames: int | None = None,
        on_progress: ProgressCallback | None = None,
        is_cancelled: Callable[[], bool] | None = None,
        observe: Callable[[Window], OnBlocks] | None = None,
    ) -> None:
        self.clock = StageClock()
        self._parts = components
        self._settings = settings
        self._expected_frames = expected_frames
        self._on_progress = on_progress
        self._is_cancelled = is_cancelled
        self._observe = observe
        self._schedule = FlowSchedule(settings.num_steps, settings.shift)
        self._solver = make_solver(settings.solver, self._schedule)
        self._steps = components.step_plan(settings.teacache, self._schedule.timesteps)
        self._step_log = StepLog()
        if settings.num_steps <= FEW_STEPS and not isinstance(settings.teacache, StepMask | None):
            logger.warning(
                "a step cache does nothing at %d steps or fewer: every step is computed", FEW_STEPS
            )
        self._passes = guidance_passes(
            settings.guidance_form,
            settings.text_guidance_scale,
            settings.audio_guidance_scale,
            has_text=bool(settings.prompt),
            has_audio=components.transformer.config.audio is not None,
        )
        self._timeline = components.timeline
        with self.clock.measure("condition"):
            self._portrait_latents = self._encode_reference(portrait)
            self._slot_channels = self._encode_slot(portrait) if self._timeline.primed else None
            self._prompt = self._prompt_context(portrait)
        references_every_frame = components.generation.reference_mode == "all_frames"
        self._track = ConditionTrack(
            components.transformer.config,
            components.vae,
            self._timeline,
            height=settings.height,
            width=settings.width,
            reference_latents=self._portrait_latents if references_every_frame else None,
            source=source,
            references_every_frame=references_every_frame,
        )
        self._speech = SpeechTail(settings.fps)
        self._tokens = self._token_track()
        self._latent_shape = (
            components.transformer.config.out_channels,
            settings.height // components.vae.spatial_stride,
            settings.width // components.vae.spatial_stride,
        )
        self._ended = self._closed = False
        self._planned = 0  # latents denoised so far: the next group adds to them
        channels, rows, columns = self._latent_shape
        nothing = torch.zeros(channels, 0, rows, columns, device=components.device)
        self._kept = self._pending = nothing
        self._decoder_cache: VAECache | None = None
        self._frame_index = 0

    # ---------------------------------------------------------------------------------- audio in

    def push_audio(self, pcm: NDArray[np.float32], sample_rate: int) -> None:
        """Add speech of any length; what follows the end of a source video is dropped.

        Parameters
        ----------
        pcm : ndarray, shape (S,) or (S, channels), float32 in [-1, 1]
            Samples that follow the ones pushed before.
        sample_rate : int
            Samples per second; the same in every call.

        Raises
        ------
        InvalidArgument
            The session is closed, its audio was ended, ``pcm`` has another dtype or shape, or rate
            or channels changed. Nothing was taken.
        NonFinite
            The samples hold NaN or infinity. Nothing was taken.
        """
        self._require_open("push_audio")
        if self._ended:
            raise InvalidArgument(
                "push_audio", expected="audio that was not ended", got="ended audio"
            )
        block = _checked_pcm(pcm)
        if self.is_finished:
            return
        self._speech.require_fit(block, sample_rate)
        if self._tokens is not None:
            with self.clock.measure("audio"):
                self._tokens.push(block, sample_rate)
        self._speech.push(block, sample_rate)

    def end_audio(self) -> None:
        """Say that no more speech comes; silence follows for as long as the last frames need it.

        Saying it again does nothing.

        Raises
        ------
        InvalidArgument
            The session is closed.
        MediaError
            No audio was pushed.
        """
        self._require_open("end_audio")
        if self._ended:
            return
        if self._speech.num_samples == 0:
            raise MediaError("audio: no samples came before its end.", stage="audio")
        self._ended = True
        if self._tokens is not None:
            with self.clock.measure("audio"):
                self._tokens.end()

    # -------------------------------------------------------------------------------- frames out

    def frames(self) -> Iterator[FrameChunk]:
        """Frames that the audio pushed so far allows, one chunk per latent.

        The iterator may be dropped at any chunk: the next one goes on where it stopped.

        Raises
        ------
        InvalidArgument
            The session is closed.
        Cancelled
            ``is_cancelled`` said so; between steps or decoded latents.
        NonFinite
            NaN or infinity appeared; no frame that holds it is delivered.
        """
        while True:
            self._require_open("frames")
            if self._pending.shape[1] == 0:
                group = self._next_group()
                if group is None:
                    return
                self._pending = self._denoise(group)
            if self._is_cancelled is not None and self._is_cancelled():
                raise Cancelled("The job was cancelled.", stage="decode")
            chunk = self._decode(self._pending[:, :1])
            self._pending = self._pending[:, 1:]
            if chunk is not None:
                # Reported once delivered: a callback that raises must not swallow the chunk.
                yield chunk
                self._report("decode", self._frame_index, self.num_frames or self._expected_frames)

    def close(self) -> None:
        """Close the source video and free tensors; every later call but this one raises."""
        self._track.close()
        self._closed = True
        self._kept = self._pending = self._kept[:, :0].clone()
        self._decoder_cache = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def num_frames(self) -> int | None:
        """Frames of the whole job; None while neither speech nor source video has ended."""
        ends = [self._speech.num_frames] if self._ended else []
        if self._track.num_source_frames is not None:
            ends.append(self._track.num_source_frames)
        return min(ends, default=None)

    @property
    def num_frames_done(self) -> int:
        """Frames delivered so far."""
        return self._frame_index

    @property
    def steps(self) -> tuple[StepRun, ...]:
        """Which steps the windows denoised so far computed, and which they skipped."""
        return tuple(self._step_log.runs)

    @property
    def is_finished(self) -> bool:
        """Whether every frame of the job was delivered."""
        return self.num_frames == self._frame_index

    # ---------------------------------------------------------------------------------- internals

    def _require_open(self, call: str) -> None:
        if self._closed:
            raise InvalidArgument(call, expected="an open session", got="a closed one")

    def _token_track(self) -> TokenTrack | None:
        parts = self._parts
        if parts.transformer.config.audio is None:
            return None
        assert parts.audio_encoder is not None
        return TokenTrack(
            parts.transformer.audio_proj,
            parts.audio_encoder,
            parts.audio_features,
            self._timeline,
            self._settings.fps,
        )

    @torch.inference_mode()
    def _encode_reference(self, portrait: NDArray[np.uint8] | None) -> Tensor | None:
        if portrait is None or self._parts.generation.reference_mode == "none":
            return None
        return encode_portrait(portrait, self._parts.vae)

    @torch.inference_mode()
    def _encode_slot(self, portrait: NDArray[np.uint8] | None) -> Tensor:
        if portrait is None:
            raise InvalidArgument(
                "image", expected="a portrait, which this model starts every window from", got=None
            )
        parts = self._parts
        return leading_slot_channels(
            parts.transformer.config, parts.vae, portrait, self._settings.window
        )

    @torch.inference_mode()
    def _prompt_context(self, portrait: NDArray[np.uint8] | None) -> PromptContext:
        """Keys and values of the prompts and of the portrait's image tokens."""
        parts, transformer = self._parts, self._parts.transformer
        encode = parts.text_encoder.encode
        positive = transformer.text_context(encode(self._settings.prompt).unsqueeze(0))
        negative = positive
        if self._settings.prompt and not all(one.text for one in self._passes):
            negative = transformer.text_context(encode(self._settings.negative_prompt).unsqueeze(0))
        image = None
        if parts.image_encoder is not None and portrait is not None:
            image = transformer.image_context(parts.image_encoder.encode(portrait).unsqueeze(0))
        return PromptContext(positive, negative, image)

    @torch.inference_mode()
    def _next_group(self) -> Group | None:
        """The next group whose conditions are all there, or None."""
        settings = self._settings
        shape = {
            "window": settings.window,
            "overlap": settings.overlap,
            "horizon": settings.horizon,
        }
        available, is_final = self._available(full_group_stop(self._planned, **shape))
        return plan_group(self._planned, available, is_final, **shape)

    def _available(self, reach: int) -> tuple[int, bool]:
        """Latents, at most ``reach``, whose audio and source are there; whether no more will be."""
        heard = self._timeline.num_latents(self._speech.num_frames)
        if not self._ended:
            heard = self._num_heard()
        with self.clock.measure("condition"):
            covered = self._track.prepare(min(heard, reach))
        source_ended = self._track.num_source_frames is not None and covered < heard
        return covered, source_ended or (self._ended and covered == heard)

    def _num_heard(self) -> int:
        """Latents whose audio has arrived, look-ahead included, while more may come."""
        ready = self._speech.num_whole_frames
        if self._tokens is not None:
            ready = min(ready, self._tokens.num_ready_frames)
        heard = self._timeline.num_latents(ready)
        return heard if self._timeline.first_frame(heard) <= ready else heard - 1

    @torch.inference_mode()
    def _denoise(self, group: Group) -> Tensor:
        """Clean new latents (C, n, h, w) of a group; keeps what the next group needs of them."""
        emitted = self._kept[:, self._kept.shape[1] - group.num_pinned :]
        with self.clock.measure("condition"):
            channels = self._track.channels(group.start, group.stop, emitted)
        with self.clock.measure("audio"):
            predictor = self._predictor(group, channels)
        noise = timeline_noise(self._settings.seed, group.start, group.length, self._latent_shape)
        with self.clock.measure("denoise"):
            latents = denoise_group(
                group,
                predictor,
                self._schedule,
                self._solver,
                guidance=[one.weight for one in self._passes],
                weights=window_weights(group, self._settings.overlap, self._settings.ramp),
                noise=noise.to(self._parts.device),
                pinned=emitted,
                impl=self._parts.plan.blf_step,
                on_step=lambda done, total: self._report("denoise", done, total),
                is_cancelled=self._is_cancelled,
            )
        for window in group.windows:
            self._step_log.add(window.start, window.stop, predictor.computed_steps(window))
        self._keep(group, latents)
        return latents

    def _predictor(self, group: Group, channels: Tensor) -> WindowPredictor:
        tokens = silent = None
        if self._tokens is not None:
            tokens = self._tokens.tokens(group.start, group.stop)
            silent = self._tokens.silent_tokens(group.start, group.stop)
        return WindowPredictor(
            self._parts.transformer,
            group,
            self._passes,
            self._prompt,
            channels=channels,
            tokens=tokens,
            silent_tokens=silent,
            slot=self._leading_slot(group),
            steps=self._steps if self._steps.skips else None,
            observe=self._observe,
        )

    def _leading_slot(self, group: Group) -> LeadingSlot | None:
        """The portrait's slot in front of every window, for ``reference_mode="leading_slot"``."""
        if self._slot_channels is None or self._portrait_latents is None:
            return None
        tokens: tuple[Tensor, ...] = ()
        silent = None
        if self._tokens is not None:
            tokens = tuple(self._tokens.leading_tokens(w.start) for w in group.windows)
            silent = self._tokens.silent_leading_tokens()
        noise = timeline_noise(self._settings.seed, SLOT_NOISE_INDEX, 1, self._latent_shape)
        return LeadingSlot(
            latents=self._portrait_latents.unsqueeze(1),
            noise=noise.to(self._parts.device),
            channels=self._slot_channels,
            tokens=tokens,
            silent_tokens=silent,
        )

    def _keep(self, group: Group, latents: Tensor) -> None:
        """Remember the tail of the new latents and forget what no later group can reach."""
        tail = num_kept_latents(self._settings.window, self._settings.overlap)
        kept = torch.cat([self._kept, latents], dim=1)
        self._kept = kept[:, max(0, kept.shape[1] - tail) :].clone()
        self._planned = group.stop
        oldest = max(0, group.stop - tail)
        self._track.discard(oldest)
        if self._tokens is not None:
            self._tokens.discard(oldest)

    @torch.inference_mode()
    def _decode(self, latent: Tensor) -> FrameChunk | None:
        """Frames of one latent (C, 1, h, w), or None when they lie past the end of the job."""
        vae = self._parts.vae
        with self.clock.measure("decode"):
            cache = self._decoder_cache
            if cache is None and self._timeline.primed:
                assert self._portrait_latents is not None
                _, cache = vae.decode_step(self._portrait_latents[None, :, None], None)
            video, cache = vae.decode_step(latent.unsqueeze(0), cache)
            if not torch.isfinite(video).all():
                raise NonFinite("The VAE decoded NaN or infinity.", stage="decode")
            frames = frames_to_uint8(video[0], impl=self._parts.plan.frames_to_uint8).cpu().numpy()
            self._decoder_cache = cache
        if self.num_frames is not None:
            frames = frames[: max(0, self.num_frames - self._frame_index)]
        if len(frames) == 0:
            return None
        with self.clock.measure("composite"):
            frames = self._track.composite(frames)
        first, self._frame_index = self._frame_index, self._frame_index + len(frames)
        return FrameChunk(
            frames=frames,
            audio=self._speech.take(self._frame_index),
            sample_rate=self._speech.sample_rate or 0,
            pts=Fraction(first, self._settings.fps),
            index=first,
        )

    def _report(self, stage: str, done: int, total: int | None) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(stage, done, total, self._frame_index))


def _checked_pcm(pcm: NDArray[np.float32]) -> NDArray[np.float32]:
    """Samples as (S, channels), after checking them."""
    if not isinstance(pcm, np.ndarray) or pcm.dtype != np.float32 or pcm.ndim not in (1, 2):
        kind = f"{pcm.dtype} {pcm.shape}" if isinstance(pcm, np.ndarray) else type(pcm).__name__
        raise InvalidArgument(
            "pcm",
            expected="a float32 array (S,) or (S, channels)",
            got=kind,
            hint="Divide 16-bit samples by 32768.",
        )
    if not np.isfinite(pcm).all():
        raise NonFinite("pcm: holds NaN or infinity.", stage="audio")
    return pcm[:, None] if pcm.ndim == 1 else pcm
