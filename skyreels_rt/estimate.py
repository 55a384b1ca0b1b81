"""Bytes a job needs, by owner, from shapes alone."""

from __future__ import annotations

import math

from skyreels_rt.appearance import job_passes
from skyreels_rt.components import Components
from skyreels_rt.diffusion.blf import full_group_stop, plan_group
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.job import JobSettings
from skyreels_rt.options import bytes_per_latent
from skyreels_rt.runtime.device import device_memory
from skyreels_rt.runtime.memory import MemoryEstimate, activation_bytes, residual_bytes


def estimate_job(
    components: Components, settings: JobSettings, seconds: float, *, has_source: bool
) -> MemoryEstimate:
    """Bytes of a job of ``seconds`` of speech, with or without a source video.

    Raises
    ------
    InvalidArgument
        ``seconds`` is not positive.
    """
    if not math.isfinite(seconds) or seconds <= 0:
        raise InvalidArgument("seconds", expected="a positive number", got=seconds)
    stride, timeline = components.vae.spatial_stride, components.timeline
    total = timeline.num_latents(math.ceil(seconds * settings.fps))
    window, overlap, horizon = settings.window, settings.overlap, settings.horizon
    group = min(total, full_group_stop(0, window=window, overlap=overlap, horizon=horizon))
    _, patch_h, patch_w = components.transformer.config.patch_size
    frames = min(window, total) + timeline.primed
    tokens = frames * (settings.height // stride // patch_h)
    tokens *= settings.width // stride // patch_w
    offload = components.transformer.offload
    on_host = 0 if offload is None else offload.host_bytes
    buffers = 0 if offload is None else offload.device_bytes
    return MemoryEstimate(
        weights=components.num_bytes - on_host + buffers,
        timeline=group * bytes_per_latent(components, settings, has_source=has_source),
        vae_cache=components.vae.cache_bytes(settings.height, settings.width, components.dtype),
        activations=activation_bytes(
            components.transformer.config, num_tokens=tokens, itemsize=components.dtype.itemsize
        ),
        residuals=_residuals(components, settings, group, tokens),
        host=on_host,
        available=device_memory(components.device),
    )


def _residuals(components: Components, settings: JobSettings, group: int, num_tokens: int) -> int:
    """What a step cache keeps for a group of ``group`` latents."""
    plan = components.step_plan(settings.teacache, settings.schedule.timesteps)
    if not plan.skips:
        return 0
    windows = plan_group(
        0, group, True,
        window=settings.window, overlap=settings.overlap, horizon=settings.horizon,
    )  # fmt: skip
    passes = job_passes(components, settings)
    return residual_bytes(
        components.transformer.config,
        num_tokens=num_tokens,
        num_windows=len(windows.windows) if windows is not None else 1,
        num_passes=len(passes),
        itemsize=components.dtype.itemsize,
        has_gate=plan.gate is not None,
    )
