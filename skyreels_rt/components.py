"""The frozen parts of a loaded model."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from skyreels_rt.audio.grid_encoder import GridEncoder
from skyreels_rt.audio.token_track import TokenTrack
from skyreels_rt.config import AudioFeatureConfig, GenerationConfig
from skyreels_rt.distributed.mesh import Mesh
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models.image_encoder import ClipImageEncoder
from skyreels_rt.models.text_encoder import TextEncoder
from skyreels_rt.models.transformer import SkyReelsTransformer
from skyreels_rt.models.vae import VideoVAE
from skyreels_rt.runtime.cuda_graphs import StepGraphs
from skyreels_rt.runtime.step_cache import (
    RunFacts,
    StepCache,
    StepCalibration,
    StepPlan,
    TimeSignal,
)
from skyreels_rt.types import Timeline

MAX_STEP_PLANS = 64
"""Plans of skipped steps remembered per model."""


@dataclass(frozen=True)
class Components:
    """Everything a session reads and never changes.

    Attributes
    ----------
    name : str
        Model name or folder, for messages and reports.
    transformer, vae : nn.Module
        The DiT and the video VAE, in eval mode.
    audio_encoder : GridEncoder or None
        None for a transformer without audio adapter.
    audio_features : AudioFeatureConfig
        Grid of the audio encoder.
    text_encoder : TextEncoder
        Prompt encoder.
    image_encoder : ClipImageEncoder or None
        For transformers with an image branch.
    generation : GenerationConfig
        How the model is meant to be run.
    device, dtype
        Where and in what type the transformer and VAE run.
    plan : KernelPlan
        Kernel implementations in use.
    calibration : StepCalibration or None
        What ``skyreels-rt calibrate`` measured, for step caches.
    mesh : Mesh or None
        Ranks that every job is spread over; None for one process.
    graphs : StepGraphs or None
        Recordings of the transformer's steps; None runs them as they are.
    """

    name: str
    transformer: SkyReelsTransformer
    vae: VideoVAE
    audio_encoder: GridEncoder | None
    audio_features: AudioFeatureConfig
    text_encoder: TextEncoder
    image_encoder: ClipImageEncoder | None
    generation: GenerationConfig
    device: torch.device
    dtype: torch.dtype
    plan: KernelPlan
    calibration: StepCalibration | None = None
    mesh: Mesh | None = None
    graphs: StepGraphs | None = None
    _step_plans: dict[tuple[StepCache, tuple[float, ...]], StepPlan] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def step_plan(self, cache: StepCache | None, timesteps: tuple[float, ...]) -> StepPlan:
        """Steps that run the blocks, in a run over ``timesteps``; made once, then remembered.

        Raises
        ------
        InvalidArgument
            The cache does not fit the run, or needs a calibration that the model lacks.
        """
        if cache is None:
            return StepPlan.every_step(len(timesteps))
        key = (cache, timesteps)
        plan = self._step_plans.get(key)
        if plan is None:
            plan = cache.plan(self.run_facts(timesteps))
            if len(self._step_plans) >= MAX_STEP_PLANS:
                self._step_plans.clear()
            self._step_plans[key] = plan
        return plan

    def run_facts(self, timesteps: tuple[float, ...]) -> RunFacts:
        """What a step cache may know of a run over ``timesteps`` before its first step."""

        def signals(kind: TimeSignal) -> list[Tensor]:
            # One at a time, as a step has it: a batch would change the bits.
            with torch.inference_mode():
                return [
                    self.transformer.time_signal(
                        torch.tensor([timestep], dtype=torch.float64),
                        projected=kind == "timestep_projection",
                    )
                    for timestep in timesteps
                ]

        return RunFacts(self.name, timesteps, signals, self.calibration)

    def token_track(self, timeline: Timeline, fps: int) -> TokenTrack | None:
        """Audio tokens of a new stream; None for a transformer without audio adapter."""
        if self.transformer.config.audio is None:
            return None
        assert self.audio_encoder is not None
        return TokenTrack(
            self.transformer.audio_proj, self.audio_encoder, self.audio_features, timeline, fps
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of transformer and VAE weights, the parts that every step and frame needs."""
        weights = self.transformer.parameters()
        return self.vae.num_bytes + sum(one.numel() * one.element_size() for one in weights)

    @property
    def timeline(self) -> Timeline:
        """Conversion between frames and latents under the model's reference mode."""
        primed = self.generation.reference_mode == "leading_slot"
        return Timeline(self.vae.temporal_stride, primed=primed)
