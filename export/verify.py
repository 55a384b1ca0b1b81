"""Exported graphs against torch over a whole stream: both run, each with its own caches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skyreels_rt.errors import NonFinite
from skyreels_rt.export.facts import plain_copy
from skyreels_rt.models.vae import VAECache, VideoVAE

FLOAT32_LIMIT = 1e-4
"""Largest allowed difference of a float32 graph, relative to the largest output (at least 1)."""

HALF_FACTOR = 2.0
"""A 16-bit graph may be this much further from float32 than torch in the same type is."""


@dataclass(frozen=True)
class StreamParity:
    """How far a stream of an exported VAE is from torch's.

    Attributes
    ----------
    part : {"encode", "decode"}
        Which way.
    num_steps : int
        Steps after the first.
    max_error, mean_error : float
        Over all steps, relative to the largest output of the reference (at least 1).
    limit : float
        Largest allowed ``max_error``.
    worst_step : int
        Step of the largest error; 0 is the first.
    """

    part: str
    num_steps: int
    max_error: float
    mean_error: float
    limit: float
    worst_step: int

    @property
    def ok(self) -> bool:
        """Whether the error is within its limit."""
        return self.max_error <= self.limit


def verify_stream(
    original: VideoVAE,
    exported: VideoVAE,
    *,
    height: int,
    width: int,
    num_steps: int = 10,
    seed: int = 0,
) -> tuple[StreamParity, StreamParity]:
    """Encode noise and decode latents through both, step by step, and compare.

    Parameters
    ----------
    original : VideoVAE
        The model's VAE in float32, the reference.
    exported : VideoVAE
        What :func:`skyreels_rt.export.exported_vae.load_exported_vae` gave.
    height, width : int
        Frame size in pixels.
    num_steps : int
        Steps after the first.
    seed : int
        Of the inputs.

    Returns
    -------
    (StreamParity, StreamParity)
        Of encoding and decoding.

    Raises
    ------
    NonFinite
        NaN or infinity came out of the exported graphs.
    """
    generator = torch.Generator().manual_seed(seed)
    stride = original.spatial_stride
    frames = torch.rand(
        1, 3, 1 + num_steps * original.temporal_stride, height, width, generator=generator
    )
    size = (1, original.latent_channels, 1 + num_steps, height // stride, width // stride)
    latents = torch.randn(size, generator=generator)
    results = []
    with torch.inference_mode():
        for part, clip in (("encode", frames * 2 - 1), ("decode", latents)):
            clip = clip.to(exported.device)  # noqa: PLW2901 - the same clip
            expected = _stream(original, part, clip)
            actual = _stream(exported, part, clip)
            limit = FLOAT32_LIMIT
            if exported.dtype != torch.float32:
                rounded = _stream(plain_copy(original, exported.dtype), part, clip)
                limit = HALF_FACTOR * _errors(rounded, expected)[0]
            results.append(_compare(part, actual, expected, limit))
    return results[0], results[1]


def _stream(vae: VideoVAE, part: str, clip: Tensor) -> list[Tensor]:
    """Output of every step, float32."""
    sizes = [1] * clip.shape[2]
    if part == "encode":
        stride = vae.temporal_stride
        sizes = [1] + [stride] * (clip.shape[2] // stride)
    step = vae.encode_step if part == "encode" else vae.decode_step
    cache: VAECache | None = None
    results = []
    for piece in clip.to(vae.dtype).split(sizes, dim=2):
        result, cache = step(piece, cache)
        results.append(result.float())
    return results


def _errors(actual: list[Tensor], expected: list[Tensor]) -> tuple[float, float, int]:
    """Largest and mean error relative to the largest output, and the step of the largest."""
    scale = max(1.0, *(float(one.abs().max()) for one in expected))
    steps = [(a - b).abs() for a, b in zip(actual, expected, strict=True)]
    worst = [float(step.max()) for step in steps]
    mean = sum(float(step.mean()) for step in steps) / len(steps)
    return max(worst) / scale, mean / scale, worst.index(max(worst))


def _compare(part: str, actual: list[Tensor], expected: list[Tensor], limit: float) -> StreamParity:
    for index, one in enumerate(actual):
        if not bool(torch.isfinite(one).all()):
            raise NonFinite(f"{part}, step {index}: the exported graph gave NaN or infinity.")
    largest, mean, worst = _errors(actual, expected)
    return StreamParity(part, len(actual) - 1, largest, mean, limit, worst)
