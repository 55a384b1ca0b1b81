"""Options of a job, and their resolution against a model's defaults."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast, get_args

import numpy as np
from numpy.typing import NDArray

from skyreels_rt.components import Components
from skyreels_rt.config import ColorReference, GuidanceForm, LongForm, SolverName
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.job import JobSettings
from skyreels_rt.live.session import LiveSettings, OnFull
from skyreels_rt.runtime.magcache import MagCache
from skyreels_rt.runtime.memory import default_horizon, latent_bytes
from skyreels_rt.runtime.step_cache import StepMask
from skyreels_rt.runtime.teacache import TeaCache
from skyreels_rt.types import ProgressCallback

if TYPE_CHECKING:
    from PIL import Image

OptionT = TypeVar("OptionT")

MAX_STEPS = 1000
MAX_SIDE = 4096


class SceneOptions(TypedDict, total=False):
    """What to show and how, for every kind of job; None means the model's own default.

    Attributes
    ----------
    image : path, PIL image or ndarray
        Portrait. Cropped around the face to the output's shape.
    video : path or ndarray, shape (F, H, W, 3), uint8
        Source video, of which only the edit mask's region changes; an array has the model's fps.
    edit_mask : {"mouth", "face"}, path or ndarray
        Region of ``video`` that is generated; ``"mouth"`` by default.
    prompt, negative_prompt : str
        What to show, and what the passes without text get. Without a prompt there is no text
        guidance, and the negative prompt and ``text_guidance_scale`` have no effect.
    num_steps : int
        Denoising steps, 1 to 1000.
    text_guidance_scale, audio_guidance_scale : float
        1.0 switches that guidance off.
    guidance_form : {"audio_first", "text_first"}
        Three-pass form.
    solver : {"euler", "unipc"}
        Solver.
    shift : float
        Timestep shift.
    seed : int
        Seed of the noise.
    height, width : int
        Pixels; multiples of VAE stride times patch size (16).
    horizon : int
        BLF windows denoised together; by default as many as a tenth of the weights' bytes, at
        least 48 MiB, can hold (see :func:`skyreels_rt.runtime.memory.default_horizon`).
    teacache : TeaCache, MagCache or StepMask
        Which steps skip the transformer's blocks; None computes every step.
    color_correction : float
        0 to 1: how far the colours of every frame are moved to the reference's. Not with a source
        video, whose colours stay.
    color_reference : {"portrait", "first_window"}
        Whose colours they are.
    """

    image: str | Path | NDArray[Any] | Image.Image | None
    video: str | Path | NDArray[np.uint8] | None
    edit_mask: str | Path | NDArray[Any] | None
    prompt: str | None
    negative_prompt: str | None
    num_steps: int | None
    text_guidance_scale: float | None
    audio_guidance_scale: float | None
    guidance_form: GuidanceForm | None
    solver: SolverName | None
    shift: float | None
    seed: int | None
    height: int | None
    width: int | None
    horizon: int | None
    teacache: TeaCache | MagCache | StepMask | None
    color_correction: float | None
    color_reference: ColorReference | None


class GenerateOptions(SceneOptions, total=False):
    """Options of :meth:`Engine.generate`, beside those of :class:`SceneOptions`.

    Attributes
    ----------
    sample_rate : int
        Samples per second of ``audio`` where it is an array.
    on_progress : callable
        Called with a :class:`skyreels_rt.Progress`; replaces the progress bar.
    cancel : threading.Event
        Set it to stop between steps with :class:`skyreels_rt.errors.Cancelled`.
    long_form : {"blf", "continuation"}
        BLF (the default), or the way that the model's family published, for models that have one:
        clip after clip, each from the last frames of the one before.
    """

    sample_rate: int | None
    on_progress: ProgressCallback | None
    cancel: threading.Event | None
    long_form: LongForm | None


class LiveOptions(SceneOptions, total=False):
    """Options of :meth:`Engine.open_session`, beside those of :class:`SceneOptions`.

    Attributes
    ----------
    max_ahead_s : float
        Seconds of pushed audio that may wait for their frames; 10 by default.
    on_full : {"wait", "raise"}
        What a push beyond that does; ``"wait"`` by default.
    idle : bool
        Whether silence follows when the speech runs dry, so that the portrait keeps moving.
    """

    max_ahead_s: float | None
    on_full: OnFull | None
    idle: bool | None


def resolve_live(options: LiveOptions) -> LiveSettings:
    """How a live session takes audio.

    Raises
    ------
    InvalidArgument
        A value out of its range.
    """
    default = LiveSettings()
    on_full, idle = options.get("on_full"), options.get("idle")
    if on_full not in (None, *get_args(OnFull)):
        raise InvalidArgument("on_full", expected=f"one of {get_args(OnFull)}", got=repr(on_full))
    if idle is not None and not isinstance(idle, bool):
        raise InvalidArgument("idle", expected="True or False", got=repr(idle))
    return LiveSettings(
        max_ahead_s=_checked_float(
            "max_ahead_s", options.get("max_ahead_s"), default.max_ahead_s, 0.0, 3600.0
        ),
        on_full=_or_default(on_full, default.on_full),
        idle=_or_default(idle, default.idle),
    )


def resolve_settings(
    components: Components,
    options: SceneOptions,
    kind: type[SceneOptions] = GenerateOptions,
) -> JobSettings:
    """Fill in the model's defaults and check every number.

    Parameters
    ----------
    components : Components
        The loaded model.
    options : SceneOptions
        What the caller gave.
    kind : type
        The kind of options it may be; :class:`LiveOptions` have a horizon of 1 by default.

    Returns
    -------
    JobSettings

    Raises
    ------
    InvalidArgument
        An unknown option, or a value out of its range.
    """
    names = set(kind.__annotations__)
    unknown = set(options) - names
    if unknown:
        raise InvalidArgument(
            sorted(unknown)[0],
            expected=f"one of {', '.join(sorted(names))}",
            got="an unknown option",
        )
    require_kinds(options)
    model = components.generation
    grid = components.vae.spatial_stride * components.transformer.config.patch_size[1]
    height = _checked_side("height", options.get("height"), model.height, grid)
    width = _checked_side("width", options.get("width"), model.width, grid)
    solver = _or_default(options.get("solver"), model.solver)
    form = _or_default(options.get("guidance_form"), model.guidance_form)
    color_reference = _or_default(options.get("color_reference"), model.color_reference)
    long_form: LongForm = cast("GenerateOptions", options).get("long_form") or "blf"
    for name, value, known in (
        ("solver", solver, get_args(SolverName)),
        ("guidance_form", form, get_args(GuidanceForm)),
        ("color_reference", color_reference, get_args(ColorReference)),
        ("long_form", long_form, get_args(LongForm)),
    ):
        if value not in known:
            raise InvalidArgument(name, expected=f"one of {known}", got=repr(value))
    settings = JobSettings(
        prompt=_checked_text("prompt", options.get("prompt"), ""),
        negative_prompt=_checked_text(
            "negative_prompt", options.get("negative_prompt"), model.negative_prompt
        ),
        seed=_checked_integer("seed", options.get("seed"), 0, 0, 2**63 - 1),
        num_steps=_checked_integer(
            "num_steps", options.get("num_steps"), model.num_steps, 1, MAX_STEPS
        ),
        shift=_checked_float("shift", options.get("shift"), model.shift, 0.01, 100.0),
        solver=solver,
        text_guidance_scale=_checked_float(
            "text_guidance_scale", options.get("text_guidance_scale"), model.text_guidance_scale
        ),
        audio_guidance_scale=_checked_float(
            "audio_guidance_scale", options.get("audio_guidance_scale"), model.audio_guidance_scale
        ),
        guidance_form=form,
        fps=model.fps,
        height=height,
        width=width,
        window=model.window,
        overlap=model.overlap,
        horizon=1,
        ramp=model.ramp,
        teacache=options.get("teacache"),
        spacing=model.spacing,
        color_correction=_color_strength(options, model.color_correction),
        color_reference=color_reference,
        long_form=long_form,
    )
    default_horizon = 1
    if kind is not LiveOptions:
        has_source = options.get("video") is not None
        default_horizon = largest_horizon(components, settings, has_source=has_source)
    horizon = _checked_integer("horizon", options.get("horizon"), default_horizon, 1, 2**31)
    return replace(settings, horizon=horizon)


def largest_horizon(components: Components, settings: JobSettings, *, has_source: bool) -> int:
    """Windows that are denoised together unless the caller says otherwise."""
    per_latent = bytes_per_latent(components, settings, has_source=has_source)
    return default_horizon(
        per_latent, components.num_bytes, window=settings.window, overlap=settings.overlap
    )


def bytes_per_latent(components: Components, settings: JobSettings, *, has_source: bool) -> int:
    """Bytes of one latent frame of a group under these settings; see ``latent_bytes``."""
    stride = components.vae.spatial_stride
    return latent_bytes(
        components.transformer.config,
        height=settings.height // stride,
        width=settings.width // stride,
        window=settings.window,
        overlap=settings.overlap,
        num_passes=3,
        itemsize=components.dtype.itemsize,
        num_pixels=settings.height * settings.width,
        fps=settings.fps,
        has_source=has_source,
    )


def require_kinds(options: Mapping[str, object]) -> None:
    """Raise for options that later code would only trip over.

    Raises
    ------
    InvalidArgument
        ``sample_rate``, ``on_progress``, ``teacache`` or ``cancel`` are of another type.
    """
    rate, on_progress = options.get("sample_rate"), options.get("on_progress")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | np.integer)):
        raise InvalidArgument("sample_rate", expected="an integer", got=repr(rate))
    if on_progress is not None and not callable(on_progress):
        raise InvalidArgument("on_progress", expected="a callable", got=repr(on_progress))
    cache = options.get("teacache")
    if cache is not None and not isinstance(cache, TeaCache | MagCache | StepMask):
        raise InvalidArgument(
            "teacache", expected="a TeaCache, MagCache or StepMask", got=repr(cache)
        )
    cancel = options.get("cancel")
    if cancel is not None and not isinstance(cancel, threading.Event):
        raise InvalidArgument("cancel", expected="a threading.Event", got=repr(cancel))


def _color_strength(options: SceneOptions, default: float) -> float:
    """Strength of the colour correction; a source video keeps its colours."""
    asked = options.get("color_correction")
    if options.get("video") is None:
        return _checked_float("color_correction", asked, default, 0.0, 1.0)
    if asked:
        raise InvalidArgument("color_correction", expected="0 with a source video", got=asked)
    return 0.0


def _or_default(value: OptionT | None, default: OptionT) -> OptionT:
    return default if value is None else value


def _checked_integer(name: str, value: int | None, default: int, low: int, high: int) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InvalidArgument(name, expected="an integer", got=repr(value))
    if not low <= value <= high:
        raise InvalidArgument(name, expected=f"{low} to {high}", got=value)
    return int(value)


def _checked_float(
    name: str, value: float | None, default: float, low: float = 0.0, high: float = 1000.0
) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise InvalidArgument(name, expected="a number", got=repr(value))
    if not math.isfinite(value) or not low <= value <= high:
        raise InvalidArgument(name, expected=f"a finite number from {low} to {high}", got=value)
    return float(value)


def _checked_side(name: str, value: int | None, default: int, grid: int) -> int:
    side = _checked_integer(name, value, default, grid, MAX_SIDE)
    if side % grid:
        raise InvalidArgument(
            name,
            expected=f"a multiple of {grid}",
            got=side,
            hint=f"The nearest is {max(grid, round(side / grid) * grid)}.",
        )
    return side


def _checked_text(name: str, value: str | None, default: str) -> str:
    if value is None:
        return default
    if not isinstance(value, str):
        raise InvalidArgument(name, expected="a string", got=type(value).__name__)
    return value.strip()
