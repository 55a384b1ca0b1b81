"""What a job needs in memory, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass

from skyreels_rt.config import TransformerConfig

MIN_TIMELINE_BUDGET = 48 * 2**20
"""Bytes that a group's state on the timeline may always take."""

WEIGHTS_SHARE = 0.1
"""Share of the weights' bytes that it may take instead, if that is more."""

MAX_SAMPLE_BYTES_PER_SECOND = 48_000 * 2 * 4
"""Speech held until its frames are delivered: 48 kHz stereo float32."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by owner.

    Attributes
    ----------
    weights : int
        Transformer and VAE; the encoders run before and may be elsewhere.
    timeline : int
        State of one group: latents, velocities, condition channels, audio keys and values.
    vae_cache : int
        Caches of the streaming encoder and decoder.
    activations : int
        Largest tensors alive inside a transformer block, for one window.
    residuals : int
        What a step cache keeps of the blocks, for all windows and guidance passes of a group. It
        has no say in the horizon: switching a cache on must not change the windows.
    """

    weights: int
    timeline: int
    vae_cache: int
    activations: int
    residuals: int = 0

    @property
    def total(self) -> int:
        """Sum of all owners."""
        parts = (self.weights, self.timeline, self.vae_cache, self.activations, self.residuals)
        return sum(parts)


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
        keys_values = 2 * config.audio.num_tokens * config.dim * config.num_layers * itemsize
        total += cover * num_passes * keys_values
    total += 4 * MAX_SAMPLE_BYTES_PER_SECOND / fps
    if has_source:
        total += 4 * num_pixels * (3 + 4) + 20 * height * width * 4
    return int(total)


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


def activation_bytes(config: TransformerConfig, *, num_tokens: int, itemsize: int) -> int:
    """Peak of one block's activations for ``num_tokens`` video tokens: stream, q, k, v, or FFN."""
    attention = 5 * config.dim
    feed_forward = 2 * config.dim + config.ffn_dim
    return num_tokens * max(attention, feed_forward) * itemsize
