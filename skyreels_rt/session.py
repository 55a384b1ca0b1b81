"""One job: speech goes in, finished frames with their sound come out.

A session owns every piece of mutable state (audio tail, feature grid, condition track, emitted
latents, decoder cache, frame counter). What it reads from the engine is frozen, so sessions cannot
disturb each other. Its state has constant size: only the tail that later groups need is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyreels_rt.audio.features import FeatureStream
from skyreels_rt.audio.resample import SpeechResampler
from skyreels_rt.components import Components
from skyreels_rt.conditioning.condition_track import (
    ConditionTrack,
    encode_portrait,
    leading_slot_channels,
)
from skyreels_rt.conditioning.source_video import SourceTrack
from skyreels_rt.config import GuidanceForm, SolverName
from skyreels_rt.diffusion.blf import Group, plan_group
from skyreels_rt.diffusion.denoise import denoise_group
from skyreels_rt.diffusion.guidance import guidance_passes
from skyreels_rt.diffusion.noise import timeline_noise
from skyreels_rt.diffusion.predictor import LeadingSlot, PromptContext, WindowPredictor
from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.diffusion.solvers import make_solver
from skyreels_rt.errors import Cancelled, InvalidArgument, MediaError, NonFinite
from skyreels_rt.kernels import frames_to_uint8
from skyreels_rt.models.vae import VAECache
from skyreels_rt.runtime.timing import StageClock
from skyreels_rt.types import FrameChunk, Progress, ProgressCallback, Timeline

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
        Source video and edit mask.
    on_progress : callable, optional
        Called with a :class:`Progress` after every step and every decoded latent.
    is_cancelled : callable, optional
        Asked between steps and between decoded latents; True raises :class:`Cancelled`.
    """

    def __init__(
        self,
        components: Components,
        settings: JobSettings,
        *,
        portrait: NDArray[np.uint8] | None = None,
        source: SourceTrack | None = None,
        on_progress: ProgressCallback | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.clock = StageClock()
        self._parts = components
        self._settings = settings
        self._on_progress = on_progress
        self._is_cancelled = is_cancelled
        generation, transformer = components.generation, components.transformer
        self._timeline = Timeline(
            components.vae.temporal_stride, primed=generation.reference_mode == "leading_slot"
        )
        self._schedule = FlowSchedule(settings.num_steps, settings.shift)
        self._solver = make_solver(settings.solver, self._schedule)
        self._passes = guidance_passes(
            settings.guidance_form,
            settings.text_guidance_scale,
            settings.audio_guidance_scale,
            has_text=bool(settings.prompt),
            has_audio=transformer.config.audio is not None,
        )
        with self.clock.measure("condition"):
            self._portrait_latents = self._encode_reference(portrait)
            self._slot_channels = self._encode_slot(portrait) if self._timeline.primed else None
            self._prompt = self._prompt_context(portrait)
        self._track = ConditionTrack(
            transformer.config,
            components.vae,
            self._timeline,
            height=settings.height,
            width=settings.width,
            reference_latents=(
                self._portrait_latents if generation.reference_mode == "all_frames" else None
            ),
            source=source,
            continues=generation.reference_mode == "all_frames",
        )
        self._speech = _SpeechTail(settings.fps)
        self._resampler: SpeechResampler | None = None
        self._features: FeatureStream | None = None
        if transformer.config.audio is not None:
            assert components.audio_encoder is not None
            self._features = FeatureStream(
                components.audio_encoder,
                components.audio_features,
                settings.fps,
                transformer.config.audio.features_per_frame,
            )
        self._tokens: list[Tensor] = []
        self._first_token = 0
        self._ended = False
        spatial = components.vae.spatial_stride
        self._latent_shape = (
            transformer.config.out_channels,
            settings.height // spatial,
            settings.width // spatial,
        )
        self._emitted = 0
        channels, rows, columns = self._latent_shape
        self._kept = torch.zeros(channels, 0, rows, columns, device=components.device)
        self._decoder_cache: VAECache | None = None
        self._frame_index = 0

    # ---------------------------------------------------------------------------------- audio in

    def push_audio(self, pcm: NDArray[np.float32], sample_rate: int) -> None:
        """Add speech of any length.

        Parameters
        ----------
        pcm : ndarray, shape (S,) or (S, channels), float32 in [-1, 1]
            Samples that follow the ones pushed before.
        sample_rate : int
            Samples per second; the same in every call.

        Raises
        ------
        InvalidArgument
            The audio was ended, or rate or channels changed.
        NonFinite
            The samples hold NaN or infinity.
        """
        if self._ended:
            raise InvalidArgument(
                "push_audio", expected="audio that was not ended", got="ended audio"
            )
        block = pcm[:, None] if pcm.ndim == 1 else pcm
        if not np.isfinite(block).all():
            raise NonFinite("audio: holds NaN or infinity.", stage="audio")
        self._speech.push(block, sample_rate)
        if self._features is None:
            return
        with self.clock.measure("audio"):
            if self._resampler is None:
                self._resampler = SpeechResampler(sample_rate, block.shape[1])
            self._push_features(self._resampler.push(block))

    def end_audio(self) -> None:
        """Say that no more speech comes; silence follows for as long as the last frames need it.

        Raises
        ------
        MediaError
            No audio was pushed.
        """
        if self._speech.num_samples == 0:
            raise MediaError("audio: no samples came before its end.", stage="audio")
        self._ended = True
        if self._features is None or self._resampler is None:
            return
        with self.clock.measure("audio"):
            self._push_features(self._resampler.finish())
            self._end_features()

    # -------------------------------------------------------------------------------- frames out

    def frames(self) -> Iterator[FrameChunk]:
        """Frames that the audio pushed so far allows, one chunk per latent.

        Raises
        ------
        Cancelled
            ``is_cancelled`` said so; between steps or decoded latents.
        NonFinite
            NaN or infinity appeared; nothing of the group is delivered.
        """
        while (group := self._next_group()) is not None:
            latents = self._denoise(group)
            for index in range(latents.shape[1]):
                if self._is_cancelled is not None and self._is_cancelled():
                    raise Cancelled("The job was cancelled.", stage="decode")
                chunk = self._decode(latents[:, index : index + 1])
                if chunk is not None:
                    yield chunk

    def close(self) -> None:
        """Release the source video and drop the state."""
        self._track.close()

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

    # ---------------------------------------------------------------------------------- internals

    @torch.inference_mode()
    def _push_features(self, samples: NDArray[np.float32]) -> None:
        assert self._features is not None
        self._features.push(samples)

    @torch.inference_mode()
    def _end_features(self) -> None:
        assert self._features is not None
        self._features.end()

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
        if any(not guidance_pass.text for guidance_pass in self._passes) and self._settings.prompt:
            negative = transformer.text_context(encode(self._settings.negative_prompt).unsqueeze(0))
        if not self._settings.prompt:
            negative = positive
        image = None
        if parts.image_encoder is not None and portrait is not None:
            image = transformer.image_context(parts.image_encoder.encode(portrait).unsqueeze(0))
        return PromptContext(positive, negative, image)

    @torch.inference_mode()
    def _next_group(self) -> Group | None:
        """The next group whose conditions are all there, or None."""
        settings = self._settings
        reach = (settings.horizon + 1) * settings.window + self._emitted
        available, is_final = self._available(reach)
        return plan_group(
            self._emitted,
            available,
            is_final,
            window=settings.window,
            overlap=settings.overlap,
            horizon=settings.horizon,
        )

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
        if self._features is not None:
            adapter = self._parts.transformer.config.audio
            assert adapter is not None
            ready = min(ready, self._features.num_ready_frames - adapter.window // 2)
        ready = max(0, ready)
        heard = self._timeline.num_latents(ready)
        return heard if self._timeline.first_frame(heard) <= ready else heard - 1

    @torch.inference_mode()
    def _denoise(self, group: Group) -> Tensor:
        """Clean new latents (C, n, h, w) of a group; keeps what the next group needs of them."""
        device, pinned = self._parts.device, group.emitted - group.start
        emitted = self._kept[:, self._kept.shape[1] - pinned :]
        with self.clock.measure("condition"):
            channels = self._track.channels(group.start, group.stop, emitted)
        with self.clock.measure("audio"):
            predictor = self._predictor(group, channels)
        noise = timeline_noise(
            self._settings.seed, group.start, group.stop - group.start, self._latent_shape
        )
        with self.clock.measure("denoise"):
            latents = denoise_group(
                group,
                predictor,
                self._schedule,
                self._solver,
                noise=noise.to(device),
                pinned=emitted,
                overlap=self._settings.overlap,
                on_step=self._report_step,
                is_cancelled=self._is_cancelled,
            )
        self._keep(group, latents)
        return latents

    def _predictor(self, group: Group, channels: Tensor) -> WindowPredictor:
        transformer = self._parts.transformer
        tokens = silent = None
        if transformer.config.audio is not None:
            assert self._features is not None
            packer = transformer.audio_proj
            held = self._first_token + len(self._tokens)
            self._tokens.extend(
                packer.pack(self._features.read, held, group.stop, self._timeline).unbind(0)
                if held < group.stop
                else ()
            )
            first = group.start - self._first_token
            tokens = torch.stack(self._tokens[first:])
            silent = packer.pack(self._silence, group.start, group.stop, self._timeline)
        return WindowPredictor(
            transformer,
            group,
            self._passes,
            self._prompt,
            channels=channels,
            tokens=tokens,
            silent_tokens=silent,
            slot=self._leading_slot(group),
        )

    def _leading_slot(self, group: Group) -> LeadingSlot | None:
        """The portrait's slot in front of every window, for ``reference_mode="leading_slot"``."""
        if not self._timeline.primed or self._portrait_latents is None:
            return None
        transformer, latents = self._parts.transformer, self._portrait_latents.unsqueeze(1)
        tokens: tuple[Tensor, ...] = ()
        silent = None
        if self._features is not None:
            pack = transformer.audio_proj.pack_leading
            starts = [self._timeline.first_frame(window.start) for window in group.windows]
            tokens = tuple(pack(self._features.read, frame) for frame in starts)
            silent = pack(self._silence, 0)
        noise = timeline_noise(self._settings.seed, SLOT_NOISE_INDEX, 1, self._latent_shape)
        assert self._slot_channels is not None
        return LeadingSlot(latents, noise.to(latents.device), self._slot_channels, tokens, silent)

    def _silence(self, first: int, stop: int) -> Tensor:
        """Features of the passes without audio: zeros, as in training's condition dropout."""
        adapter = self._parts.transformer.config.audio
        assert adapter is not None
        return torch.zeros(
            stop - first,
            adapter.features_per_frame,
            adapter.feature_layers,
            adapter.feature_dim,
            device=self._parts.device,
        )

    def _keep(self, group: Group, latents: Tensor) -> None:
        """Remember the tail of the emitted latents and forget what no later group can reach."""
        tail = max(self._settings.window - 1, self._settings.overlap)
        self._kept = torch.cat([self._kept, latents], dim=1)[:, -tail:] if tail else latents[:, :0]
        self._emitted = group.stop
        oldest = max(0, group.stop - tail)
        self._track.discard(oldest)
        del self._tokens[: max(0, oldest - self._first_token)]
        self._first_token = max(self._first_token, oldest)
        if self._features is not None:
            adapter = self._parts.transformer.config.audio
            assert adapter is not None
            self._features.discard(self._timeline.first_frame(oldest) - adapter.window // 2)

    @torch.inference_mode()
    def _decode(self, latent: Tensor) -> FrameChunk | None:
        """Frames of one latent (C, 1, h, w), or None when they lie past the end of the job."""
        vae = self._parts.vae
        dtype = next(vae.parameters()).dtype
        with self.clock.measure("decode"):
            if self._decoder_cache is None and self._timeline.primed:
                assert self._portrait_latents is not None
                portrait = self._portrait_latents[None, :, None].to(dtype)
                _, self._decoder_cache = vae.decode_step(portrait, None)
            video, self._decoder_cache = vae.decode_step(
                latent.unsqueeze(0).to(dtype), self._decoder_cache
            )
            if not torch.isfinite(video).all():
                raise NonFinite("The VAE decoded NaN or infinity.", stage="decode")
            frames = frames_to_uint8(video[0], impl=self._parts.plan.frames_to_uint8).cpu().numpy()
        total = self.num_frames
        if total is not None:
            frames = frames[: max(0, total - self._frame_index)]
        if len(frames) == 0:
            return None
        first, self._frame_index = self._frame_index, self._frame_index + len(frames)
        with self.clock.measure("composite"):
            frames = self._track.composite(frames)
        chunk = FrameChunk(
            frames=frames,
            audio=self._speech.take(self._frame_index),
            sample_rate=self._speech.sample_rate or 0,
            pts=Fraction(first, self._settings.fps),
            index=first,
        )
        self._report("decode", self._frame_index, total or self._frame_index)
        return chunk

    def _report_step(self, done: int, total: int) -> None:
        self._report("denoise", done, total)

    def _report(self, stage: str, done: int, total: int) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(stage, done, total, self._frame_index))


class _SpeechTail:
    """The speech as it came, held until the frames it belongs to are delivered.

    Parameters
    ----------
    fps : int
        Frames per second of the video.
    """

    def __init__(self, fps: int) -> None:
        self._fps = fps
        self.sample_rate: int | None = None
        self.num_samples = 0
        self._blocks: list[NDArray[np.float32]] = []
        self._first_sample = 0

    def push(self, block: NDArray[np.float32], sample_rate: int) -> None:
        """Add samples (S, channels)."""
        if self.sample_rate is None:
            if sample_rate <= 0:
                raise InvalidArgument("sample_rate", expected="a positive number", got=sample_rate)
            self.sample_rate = sample_rate
        if sample_rate != self.sample_rate:
            raise InvalidArgument("sample_rate", expected=str(self.sample_rate), got=sample_rate)
        if self._blocks and block.shape[1] != self._blocks[0].shape[1]:
            raise InvalidArgument(
                "pcm", expected=f"{self._blocks[0].shape[1]} channels", got=block.shape[1]
            )
        self._blocks.append(np.array(block, dtype=np.float32))
        self.num_samples += len(block)

    @property
    def num_frames(self) -> int:
        """Frames that cover the speech; the last may be covered in part."""
        return -(-self.num_samples * self._fps // self.sample_rate) if self.sample_rate else 0

    @property
    def num_whole_frames(self) -> int:
        """Frames whose sound has arrived in full."""
        return self.num_samples * self._fps // self.sample_rate if self.sample_rate else 0

    def take(self, stop_frame: int) -> NDArray[np.float32]:
        """Remove and return the samples up to the end of frame ``stop_frame - 1``."""
        assert self.sample_rate is not None
        stop = min(stop_frame * self.sample_rate // self._fps, self.num_samples)
        held = np.concatenate(self._blocks) if len(self._blocks) > 1 else self._blocks[0]
        count = stop - self._first_sample
        self._blocks = [held[count:]]
        self._first_sample = stop
        return held[:count]
