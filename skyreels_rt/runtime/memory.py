"""What a job needs in memory, from shapes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from skyreels_rt.config import TransformerConfig

MIN_TIMELINE_BUDGET = 48 * 2**20
"""Bytes that a group's state on the timeline may always take."""

WEIGHTS_SHARE = 0.1
"""Share of the weights' bytes that it may take instead, if that is more."""

IMAGE_TOKENS = 257
"""Tokens of CLIP ViT-H/14 at 224 pixels, Wan's image encoder."""

KEPT_FOLD_BYTES = 2**20
"""Most that the audio folds of all blocks may take for a latent, to be kept over the steps."""

MAX_SAMPLE_BYTES_PER_SECOND = 48_000 * 2 * 4
"""Speech held until its frames are delivered: 48 kHz stereo float32."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by owner.

    Attributes
    ----------
    weights : int
        Transformer and VAE, as far as they stay on the device; the encoders run before and may be
        elsewhere.
    timeline : int
        State of one group: latents, velocities, condition channels, audio keys and values or
        their folds.
    vae_cache : int
        Caches of the streaming encoder and decoder.
    activations : int
        Largest tensors alive inside a transformer block, for one window.
    residuals : int
        What a step cache keeps of the blocks, for all windows and guidance passes of a group. It
        has no say in the horizon: switching a cache on must not change the windows.
    graphs : int
        Fixed buffers of the recorded steps of a job, where steps are recorded.
    host : int
        Weights that stay in host memory; no part of the total.
    available : int or None
        Memory of the device; None where it is not known.
    """

    weights: int
    timeline: int
    vae_cache: int
    activations: int
    residuals: int = 0
    graphs: int = 0
    host: int = 0
    available: int | None = None

    @property
    def fits(self) -> bool | None:
        """Whether the total is within the device's memory; None where that is not known."""
        return None if self.available is None else self.total <= self.available

    def describe(self) -> str:
        """A line for each owner, and whether it fits, as text."""
        owners = {
            "weights": self.weights,
            "timeline": self.timeline,
            "vae cache": self.vae_cache,
            "activations": self.activations,
            "residuals": self.residuals,
            "graphs": self.graphs,
            "total": self.total,
        }
        if self.host:
            owners["host weights"] = self.host
        if self.available is not None:
            owners["available"] = self.available
        lines = [f"{name:<13}{value / 2**30:10.3f} GiB" for name, value in owners.items()]
        if self.fits is not None:
            lines.append("fits" if self.fits else "does not fit")
        return "\n".join(lines)

    @property
    def total(self) -> int:
        """Sum of all owners."""
        state = self.timeline + self.vae_cache + self.activations
        return self.weights + state + self.residuals + self.graphs


def latent_bytes(
    config: TransformerConfig,
    *,
    height: int,
    width: int,
    window: int,
    overlap: int,
    num_passes: int,
    itemsize: int,
    num_pixels: int,
    fps: int,
    has_source: bool,
) -> int:
    """Bytes that one latent frame of a group takes while the group is denoised.

    Parameters
    ----------
    config : TransformerConfig
        Sizes.
    height, width : int
        Of the latents.
    window, overlap : int
        BLF windows in latents.
    num_passes : int
        Guidance passes of a step.
    itemsize : int
        Bytes of the transformer's dtype.
    num_pixels : int
        Pixels of a frame.
    fps : int
        Frames per second.
    has_source : bool
        A source video is edited: its frames and masks are held.
    """
    cover = window / (window - overlap)
    # noise, latents, fused velocity, two solver histories, and the predictions of all windows
    states = (5 + cover) * config.out_channels + config.condition_channels
    total = states * height * width * 4
    if config.audio is not None:
        total += cover * num_passes * audio_context_bytes(config, itemsize)
    total += 4 * MAX_SAMPLE_BYTES_PER_SECOND / fps
    if has_source:
        total += 4 * num_pixels * (3 + 4) + 20 * height * width * 4
    return int(total)


def keeps_audio_fold(config: TransformerConfig, itemsize: int) -> bool:
    """Whether folds of audio keys and values (``AudioFold``) pay, and are small enough to be kept.

    A fold takes N times the keys and values of N heads: 0.2 MiB a latent in the embedded models in
    float32, 68 MiB at Wan2.1-1.3B's sizes in bfloat16 with M = 32 tokens.
    """
    if config.audio is None or config.audio.kind != "own_query":
        return False
    if config.audio.num_tokens >= config.head_dim:
        return False
    return _fold_bytes(config, itemsize) <= KEPT_FOLD_BYTES


def audio_context_bytes(config: TransformerConfig, itemsize: int) -> int:
    """Bytes of all blocks' audio context of one latent, in the larger form that a plan may keep."""
    assert config.audio is not None
    if keeps_audio_fold(config, itemsize):
        return _fold_bytes(config, itemsize)
    return 2 * config.audio.num_tokens * config.dim * config.num_layers * itemsize


def _fold_bytes(config: TransformerConfig, itemsize: int) -> int:
    assert config.audio is not None
    columns = config.num_heads * config.audio.num_tokens
    return config.num_layers * columns * (2 * config.dim * itemsize + 4)


def default_horizon(bytes_per_latent: int, weights: int, *, window: int, overlap: int) -> int:
    """Windows a group may have: a tenth of the weights' bytes, at least 48 MiB, holds its state.

    The number depends on the model and the shape only, never on the machine, so that the same job
    gives the same bytes everywhere.
    """
    budget = max(MIN_TIMELINE_BUDGET, int(weights * WEIGHTS_SHARE))
    return max(1, (budget // bytes_per_latent - window) // (window - overlap) + 1)


def residual_bytes(
    config: TransformerConfig,
    *,
    num_tokens: int,
    num_windows: int,
    num_passes: int,
    itemsize: int,
    has_gate: bool,
) -> int:
    """Bytes a step cache keeps for a group: one residual per window and guidance pass.

    Parameters
    ----------
    config : TransformerConfig
        Sizes.
    num_tokens : int
        Video tokens of a window.
    num_windows, num_passes : int
        Windows of a group, guidance passes of a step.
    itemsize : int
        Bytes of the transformer's dtype.
    has_gate : bool
        Steps are decided while they run: every window keeps its last signal, too.
    """
    return num_windows * (num_passes + has_gate) * num_tokens * config.dim * itemsize


def graph_bytes(
    config: TransformerConfig,
    *,
    frames: int,
    height: int,
    width: int,
    num_passes: int,
    num_texts: int,
    itemsize: int,
    has_cache: bool,
) -> int:
    """Bytes of the fixed buffers of recorded steps: what a window holds, inputs and results.

    Parameters
    ----------
    config : TransformerConfig
        Sizes.
    frames, height, width : int
        Latents of a window, a leading slot included.
    num_passes, num_texts : int
        Guidance passes of a step, and different prompts among them.
    itemsize : int
        Bytes of the transformer's dtype.
    has_cache : bool
        Steps are skipped: two more recordings, which keep and take residuals.
    """
    cells = frames * height * width
    num_tokens = cells // math.prod(config.patch_size)
    context = num_texts * config.text_length
    context += 0 if config.image_dim is None else IMAGE_TOKENS
    held = 2 * config.num_layers * context * config.dim * itemsize
    held += num_tokens * config.head_dim * 4  # rotary tables
    if config.audio is not None:
        held += min(2, num_passes) * frames * audio_context_bytes(config, itemsize)
    step = cells * (config.in_channels * 4 + num_passes * config.out_channels * itemsize)
    step += 8  # the timestep
    residuals = 2 * num_passes * num_tokens * config.dim * itemsize
    return held + (3 * step + residuals if has_cache else step)


def activation_bytes(config: TransformerConfig, *, num_tokens: int, itemsize: int) -> int:
    """Peak of one block's activations for ``num_tokens`` video tokens: stream, q, k, v, or FFN."""
    attention = 5 * config.dim
    feed_forward = 2 * config.dim + config.ffn_dim
    return num_tokens * max(attention, feed_forward) * itemsize
