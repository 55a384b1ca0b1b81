"""A long video as clip after clip, each from the last frames of the one before.

This is how MultiTalk and SkyReels-V3-A2V continue (``long_form="continuation"``), kept beside BLF
for comparison and for checkpoints that know nothing else. Source: SkyworkAI/SkyReels-V3
``pipelines/talking_avatar_pipeline.py``: a clip is told its first frames (the portrait, later the
last ones shown, also written into its latents at every step) and its last ones (a frame of a clip
that was made for this purpose first); its own last frames are thrown away.

Ours differ in that the noise of the written latents stays the same over the steps, what the next
clip starts from went through 8 bits, and the audio features have the engine's fixed grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyreels_rt.appearance import color_match, image_context, job_passes, prompt_context
from skyreels_rt.audio.speech_tail import SpeechTail, checked_pcm
from skyreels_rt.components import Components
from skyreels_rt.conditioning.condition_track import clip_conditions
from skyreels_rt.conditioning.source_video import SourceTrack
from skyreels_rt.continuation_config import ContinuationConfig
from skyreels_rt.diffusion.blf import Group, Window, window_weights
from skyreels_rt.diffusion.denoise import denoise_group
from skyreels_rt.diffusion.noise import timeline_noise
from skyreels_rt.diffusion.predictor import PromptContext, WindowPredictor
from skyreels_rt.diffusion.solvers import make_solver
from skyreels_rt.errors import Cancelled, InvalidArgument, MediaError, NonFinite
from skyreels_rt.job import JobSettings
from skyreels_rt.kernels import frames_to_uint8
from skyreels_rt.models.vae import VAECache
from skyreels_rt.runtime.step_cache import StepLog, StepRun
from skyreels_rt.runtime.timing import StageClock
from skyreels_rt.runtime.turns import Turn, Turns
from skyreels_rt.types import FrameChunk, Progress, ProgressCallback, Timeline

GOAL_NOISE_INDEX = 2**62
"""Noise index of the clip that shows the goals, far from any other."""


@dataclass(frozen=True)
class Clip:
    """One clip of a long video.

    Attributes
    ----------
    first_frame : int
        Frame of the video that it starts at.
    first_new, stop_new : int
        Its frames that are delivered, counted from its own start.
    goal : int or None
        Frame of the goal clip that its end leads to.
    """

    first_frame: int
    first_new: int
    stop_new: int
    goal: int | None


def plan_clip(index: int, total: int, config: ContinuationConfig) -> Clip | None:
    """Clip number ``index`` of a video of ``total`` frames; None behind the last.

    Parameters
    ----------
    index, total : int
        Number of the clip, from 0; frames of the whole video.
    config : ContinuationConfig
        Sizes.
    """
    count = 1 + max(0, math.ceil((total - config.frames) / config.hop))
    if index >= count:
        return None
    first = index * config.hop
    is_last = index == count - 1
    stop = min(total - first, config.frames - (0 if is_last else config.drop_frames))
    goal = None
    if config.key_frames and count > 1:
        # The goal clip spans the whole video; this clip ends that far into it.
        end, whole = config.frames - 1 + first, config.frames - 1 + (count - 1) * config.hop
        goal = round(Fraction(end * (config.frames - 1), whole))
    return Clip(first, config.motion_frames if index else 0, stop, goal)


class ContinuationSession:
    """Audio in, frames out, clip after clip; offline jobs only.

    With key frames the clips wait for the end of the speech, whose length they depend on.

    Parameters
    ----------
    components : Components
        The engine's frozen parts; ``generation.continuation`` says how.
    settings : JobSettings
        Resolved options.
    portrait : ndarray, shape (H, W, 3), uint8, or None
        Portrait in the output's shape; needed.
    source : SourceTrack, optional
        Refused: there is nothing to edit.
    expected_frames : int, optional
        Frames the speech will need, for progress.
    on_progress, is_cancelled : callable, optional
        As in :class:`skyreels_rt.session.Session`.
    turns : Turns, optional
        Shared by the sessions of an engine.

    Raises
    ------
    InvalidArgument
        The model has no continuation or no mask channels, or there is no portrait, or a source.
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
        turns: Turns | None = None,
    ) -> None:
        self._config = _require_fit(components, portrait, source)
        assert portrait is not None
        self.clock = StageClock()
        self.settings = settings
        self._parts = components
        self._expected_frames = expected_frames
        self._on_progress = on_progress
        self._is_cancelled = is_cancelled
        self._turns = turns if turns is not None else Turns()
        self._solver = make_solver(settings.solver, settings.schedule)
        self._steps = components.step_plan(settings.teacache, settings.schedule.timesteps)
        self._step_log = StepLog()
        self._timeline = Timeline(components.vae.temporal_stride)
        self._portrait = portrait
        self._color = color_match(components, settings, portrait)
        self.speech = SpeechTail(settings.fps)
        """The speech whose frames were not delivered."""
        self._tokens = components.token_track(self._timeline, settings.fps)
        self._head = portrait[None]
        self._goals: NDArray[np.uint8] | None = None
        self._clip_settings = settings
        if self._config.prompt is not None:
            self._clip_settings = replace(settings, prompt=self._config.prompt)
        self._prompts: dict[str, PromptContext] = {}
        self._ended = False
        self._num_clips = 0
        self._frame_index = 0

    def push_audio(self, pcm: NDArray[np.float32], sample_rate: int) -> None:
        """Add speech of any length; see :meth:`skyreels_rt.session.Session.push_audio`."""
        block = checked_pcm(pcm)
        self.speech.require_fit(block, sample_rate)
        if self._tokens is not None:
            with self.clock.measure("audio"):
                self._tokens.push(block, sample_rate)
        self.speech.push(block, sample_rate)

    def end_audio(self) -> None:
        """Say that no more speech comes.

        Raises
        ------
        MediaError
            No audio was pushed.
        """
        if self.speech.num_samples == 0:
            raise MediaError("audio: no samples came before its end.", stage="audio")
        self._ended = True
        if self._tokens is not None:
            self._tokens.end()

    def frames(self) -> Iterator[FrameChunk]:
        """Frames that the audio pushed so far allows, one chunk per clip.

        Raises
        ------
        Cancelled
            ``is_cancelled`` said so; between steps or decoded latents.
        NonFinite
            NaN or infinity appeared; no frame that holds it is delivered.
        """
        while (clip := self._next_clip()) is not None:
            chunk = self._make(clip)
            yield chunk
            self._report("decode", self._frame_index, self._num_frames or self._expected_frames)

    def close(self) -> None:
        """Forget the frames held."""
        self._goals = None

    @property
    def num_frames_done(self) -> int:
        """Frames delivered so far."""
        return self._frame_index

    @property
    def is_finished(self) -> bool:
        """Whether every frame of the job was delivered."""
        return self._num_frames == self._frame_index

    @property
    def steps(self) -> tuple[StepRun, ...]:
        """Which steps the clips made so far computed; latents counted clip after clip."""
        return tuple(self._step_log.runs)

    # ---------------------------------------------------------------------------------- internals

    @property
    def _num_frames(self) -> int | None:
        return self.speech.num_frames if self._ended else None

    @property
    def _num_latents(self) -> int:
        return self._timeline.num_latents(self._config.frames)

    def _next_clip(self) -> Clip | None:
        """The next clip, once all it depends on is there."""
        total = self._num_frames
        if total is not None:
            return plan_clip(self._num_clips, total, self._config)
        needed = self._num_clips * self._config.hop + self._config.frames
        ready = self.speech.num_whole_frames
        if self._tokens is not None:
            ready = min(ready, self._tokens.num_ready_frames)
        if self._config.key_frames or ready <= needed:
            return None
        return plan_clip(self._num_clips, ready, self._config)

    @torch.inference_mode()
    def _make(self, clip: Clip) -> FrameChunk:
        """Compute a clip and deliver its new frames."""
        is_only = self._num_frames is not None and self._num_frames <= self._config.frames
        with self._turns.hold(self._is_cancelled) as turn:
            tail = self._head[:0]
            if clip.goal is not None:
                goal = self._goal_frames(turn)[clip.goal]
                tail = np.repeat(goal[None], self._config.key_frames, axis=0)
            made = self._generate(
                self._head,
                tail,
                clip.first_frame,
                self._num_clips * self._num_latents,
                self.settings if is_only else self._clip_settings,
                turn,
                num_pinned=self._timeline.num_latents(len(self._head)) if self._num_clips else 0,
            )
            frames = self._color(made[clip.first_new : clip.stop_new])
        self._head = frames[-self._config.motion_frames :]
        self._num_clips += 1
        if self._tokens is not None:
            self._tokens.discard_frames(self._num_clips * self._config.hop)
        first, self._frame_index = self._frame_index, self._frame_index + len(frames)
        return FrameChunk(
            frames=frames,
            audio=self.speech.take(self._frame_index),
            sample_rate=self.speech.sample_rate or 0,
            pts=Fraction(first, self.settings.fps),
            index=first,
        )

    def _goal_frames(self, turn: Turn) -> NDArray[np.uint8]:
        """Frames of the clip that shows where each other one should end."""
        if self._goals is None:
            made = self._generate(
                self._portrait[None], self._portrait[None][:0], 0, GOAL_NOISE_INDEX, self.settings,
                turn,
            )  # fmt: skip
            self._goals = color_match(self._parts, self.settings, self._portrait)(made)
        return self._goals

    def _generate(
        self,
        head: NDArray[np.uint8],
        tail: NDArray[np.uint8],
        first_frame: int,
        noise_index: int,
        settings: JobSettings,
        turn: Turn,
        *,
        num_pinned: int = 0,
    ) -> NDArray[np.uint8]:
        """All frames (F, H, W, 3) of a clip with the given first and last ones.

        The model is told of both; ``num_pinned`` latents of the first ones are also written in.
        """
        parts, count = self._parts, self._num_latents
        with self.clock.measure("condition"):
            encoded, channels = clip_conditions(
                parts.transformer.config, parts.vae, head, tail, self._config.frames
            )
            prompt = self._prompt(settings, head[0])
        group = Group(0, num_pinned, count, (Window(0, count),))
        tokens = silent = None
        if self._tokens is not None:
            with self.clock.measure("audio"):
                tokens = self._tokens.clip_tokens(first_frame, count)
                silent = self._tokens.silent_tokens(0, count)
        passes = job_passes(parts, settings)
        predictor = WindowPredictor(
            parts.transformer, group, passes, prompt,
            channels=channels, tokens=tokens, silent_tokens=silent,
            steps=self._steps if self._steps.skips else None,
            timesteps=settings.schedule.timesteps, graphs=parts.graphs,
        )  # fmt: skip
        shape = (encoded.shape[0], encoded.shape[2], encoded.shape[3])
        noise = timeline_noise(settings.seed, noise_index, count, shape)

        def on_step(done: int, total: int) -> None:
            self._report("denoise", done, total)
            turn.pass_on()

        with self.clock.measure("denoise"):
            latents = denoise_group(
                group,
                predictor,
                settings.schedule,
                self._solver,
                guidance=[one.weight for one in passes],
                weights=window_weights(group, 0),
                noise=noise.to(parts.device),
                pinned=encoded[:, :num_pinned],
                impl=parts.plan.blf_step,
                on_step=on_step,
                is_cancelled=self._is_cancelled,
            )
        if noise_index != GOAL_NOISE_INDEX:
            self._step_log.add(
                noise_index, noise_index + count, predictor.computed_steps(group.windows[0])
            )
        return self._decoded(torch.cat([encoded[:, :num_pinned], latents], dim=1))

    def _prompt(self, settings: JobSettings, picture: NDArray[np.uint8]) -> PromptContext:
        """Keys and values of the prompt, and of the clip's first frame."""
        parts = self._parts
        if settings.prompt not in self._prompts:
            passes = job_passes(parts, settings)
            self._prompts[settings.prompt] = prompt_context(parts, settings, None, passes)
        return replace(self._prompts[settings.prompt], image=image_context(parts, picture))

    def _decoded(self, latents: Tensor) -> NDArray[np.uint8]:
        """Frames of a clip's latents (C, n, h, w)."""
        frames: list[NDArray[np.uint8]] = []
        cache: VAECache | None = None
        with self.clock.measure("decode"):
            for index in range(latents.shape[1]):
                if self._is_cancelled is not None and self._is_cancelled():
                    raise Cancelled("The job was cancelled.", stage="decode")
                video, cache = self._parts.vae.decode_step(
                    latents[None, :, index : index + 1], cache
                )
                if not torch.isfinite(video).all():
                    raise NonFinite("The VAE decoded NaN or infinity.", stage="decode")
                impl = self._parts.plan.frames_to_uint8
                frames.append(frames_to_uint8(video[0], impl=impl).cpu().numpy())
        return np.concatenate(frames)

    def _report(self, stage: str, done: int, total: int | None) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(stage, done, total, self._frame_index))


def _require_fit(
    parts: Components, portrait: NDArray[np.uint8] | None, source: SourceTrack | None
) -> ContinuationConfig:
    """How the model continues, once portrait and source fit it."""
    config = parts.generation.continuation
    if config is None or parts.transformer.config.mask_channels == 0:
        raise InvalidArgument(
            "long_form",
            expected="a model whose family has a continuation scheme and mask channels",
            got=f"{parts.name} without",
            hint='Leave it at "blf".',
        )
    if parts.mesh is not None:
        raise InvalidArgument(
            "long_form",
            expected="blf on several ranks",
            got="continuation",
            hint="Its clips follow one another: nothing of it is spread over ranks.",
        )
    if source is not None:
        raise InvalidArgument("video", expected='none with long_form="continuation"', got="one")
    if portrait is None:
        raise InvalidArgument("image", expected="a portrait, which the first clip starts from",
                              got=None)  # fmt: skip
    return config
