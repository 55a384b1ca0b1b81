"""What a job was asked to do, once every option is resolved and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from skyreels_rt.config import ColorReference, GuidanceForm, LongForm, Ramp, SolverName, Spacing
from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.runtime.magcache import MagCache
from skyreels_rt.runtime.step_cache import StepMask
from skyreels_rt.runtime.teacache import TeaCache
from skyreels_rt.types import PartState

_RULES: dict[str, type[TeaCache | MagCache | StepMask]] = {
    "TeaCache": TeaCache, "MagCache": MagCache, "StepMask": StepMask,
}  # fmt: skip


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
    teacache : TeaCache, MagCache, StepMask or None
        Which steps reuse the blocks of an earlier one; None computes all.
    spacing, color_correction, color_reference
        As in :class:`skyreels_rt.config.GenerationConfig`.
    long_form : {"blf", "continuation"}
        How a long video is made.
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
    teacache: TeaCache | MagCache | StepMask | None = None
    spacing: Spacing = "even"
    color_correction: float = 0.0
    color_reference: ColorReference = "portrait"
    long_form: LongForm = "blf"

    @property
    def schedule(self) -> FlowSchedule:
        """Noise levels of a run."""
        return FlowSchedule(self.num_steps, self.shift, self.spacing)


def settings_facts(settings: JobSettings) -> dict[str, Any]:
    """Settings as JSON data, from which :func:`settings_from` makes them again."""
    return {**asdict(settings), "teacache": rule_facts(settings.teacache)}


def settings_from(facts: Mapping[str, Any]) -> JobSettings:
    """Settings that gave ``facts``."""
    return JobSettings(**{**facts, "teacache": rule_from(facts.get("teacache"))})


def settings_of(state: PartState) -> JobSettings:
    """Options of the session that gave ``state``."""
    return settings_from(state.facts["settings"])


def rule_facts(rule: TeaCache | MagCache | StepMask | None) -> dict[str, Any] | None:
    """A step cache as JSON data, from which :func:`rule_from` makes it again."""
    return None if rule is None else {"rule": type(rule).__name__, **asdict(rule)}


def rule_from(facts: Mapping[str, Any] | None) -> TeaCache | MagCache | StepMask | None:
    """Step cache that gave ``facts``."""
    if facts is None:
        return None
    fields = dict(facts)
    return _RULES[fields.pop("rule")](**fields)
