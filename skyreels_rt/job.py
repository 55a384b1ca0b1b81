"""What a job was asked to do, once every option is resolved and checked."""

from __future__ import annotations

from dataclasses import dataclass

from skyreels_rt.config import GuidanceForm, Ramp, SolverName
from skyreels_rt.types import PartState


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


def settings_of(state: PartState) -> JobSettings:
    """Options of the session that gave ``state``."""
    return JobSettings(**state.facts["settings"])
