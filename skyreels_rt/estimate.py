"""What a job needs, from shapes alone: bytes by owner, and the sizes of a step."""

from __future__ import annotations

import math

from skyreels_rt.appearance import job_passes
from skyreels_rt.components import Components
from skyreels_rt.diffusion.blf import Group, full_group_stop, plan_group
from skyreels_rt.distributed.cost_model import StepShape
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.job import JobSettings
from skyreels_rt.options import bytes_per_latent
from skyreels_rt.runtime.device import device_memory
from skyreels_rt.runtime.memory import (
    MemoryEstimate,
    activation_bytes,
    graph_bytes,
    residual_bytes,
)


def estimate_job(
    components: Components, settings: JobSettings, seconds: float, *, has_source: bool
) -> MemoryEstimate:
    """Bytes of a job of ``seconds`` of speech, with or without a source video.

    Raises
    ------
    InvalidArgument
        ``seconds`` is not positive.
    """
    group = _first_group(components, settings, seconds)
    stride, timeline = components.vae.spatial_stride, components.timeline
    _, patch_h, patch_w = components.transformer.config.patch_size
    frames = group.windows[0].length + timeline.primed
    tokens = frames * (settings.height // stride // patch_h)
    tokens *= settings.width // stride // patch_w
    offload = components.transformer.offload
    on_host = 0 if offload is None else offload.host_bytes
    buffers = 0 if offload is None else offload.device_bytes
    return MemoryEstimate(
        weights=components.num_bytes - on_host + buffers,
        timeline=group.length * bytes_per_latent(components, settings, has_source=has_source),
        vae_cache=components.vae.cache_bytes(settings.height, settings.width, components.dtype),
        activations=activation_bytes(
            components.transformer.config, num_tokens=tokens, itemsize=components.dtype.itemsize
        ),
        residuals=_residuals(components, settings, group, tokens),
        graphs=_graphs(components, settings, frames),
        host=on_host,
        available=device_memory(components.device),
    )


def step_shape(components: Components, settings: JobSettings, seconds: float) -> StepShape:
    """Sizes of a denoising step of the first group, for :meth:`.parallel.Parallel.suggest`.

    Raises
    ------
    InvalidArgument
        ``seconds`` is not positive.
    """
    group = _first_group(components, settings, seconds)
    stride = components.vae.spatial_stride
    return StepShape(
        window=group.windows[0].length + components.timeline.primed,
        overlap=min(settings.overlap, group.windows[0].length - 1),
        num_windows=len(group.windows),
        num_passes=len(job_passes(components, settings)),
        height=settings.height // stride,
        width=settings.width // stride,
        itemsize=components.dtype.itemsize,
    )


def _first_group(components: Components, settings: JobSettings, seconds: float) -> Group:
    """The first group of a job of ``seconds`` of speech."""
    if not math.isfinite(seconds) or seconds <= 0:
        raise InvalidArgument("seconds", expected="a positive number", got=seconds)
    shape = {"window": settings.window, "overlap": settings.overlap, "horizon": settings.horizon}
    total = components.timeline.num_latents(math.ceil(seconds * settings.fps))
    group = plan_group(0, min(total, full_group_stop(0, **shape)), True, **shape)
    assert group is not None
    return group


def _residuals(components: Components, settings: JobSettings, group: Group, num_tokens: int) -> int:
    """What a step cache keeps for ``group``."""
    plan = components.step_plan(settings.teacache, settings.schedule.timesteps)
    if not plan.skips:
        return 0
    return residual_bytes(
        components.transformer.config,
        num_tokens=num_tokens,
        num_windows=len(group.windows),
        num_passes=len(job_passes(components, settings)),
        itemsize=components.dtype.itemsize,
        has_gate=plan.gate is not None,
    )


def _graphs(components: Components, settings: JobSettings, frames: int) -> int:
    """Fixed buffers of the steps of a job, where they are recorded."""
    if components.graphs is None:
        return 0
    passes, stride = job_passes(components, settings), components.vae.spatial_stride
    return graph_bytes(
        components.transformer.config,
        frames=frames,
        height=settings.height // stride,
        width=settings.width // stride,
        num_passes=len(passes),
        num_texts=len({one.text for one in passes} if settings.prompt else {False}),
        itemsize=components.dtype.itemsize,
        has_cache=components.step_plan(settings.teacache, settings.schedule.timesteps).skips,
    )
