"""What a session shows: the portrait and the prompts, in the form the transformer takes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyreels_rt.audio.token_track import TokenTrack
from skyreels_rt.components import Components
from skyreels_rt.conditioning.color import ColorMatch
from skyreels_rt.conditioning.condition_track import encode_portrait, leading_slot_channels
from skyreels_rt.diffusion.blf import Group
from skyreels_rt.diffusion.guidance import GuidancePass, guidance_passes
from skyreels_rt.diffusion.noise import timeline_noise
from skyreels_rt.diffusion.predictor import LeadingSlot, PromptContext
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.job import JobSettings
from skyreels_rt.models.attention import KeysValues

SLOT_NOISE_INDEX = 2**63 - 1
"""Noise index of the leading slot, far from any frame of the timeline."""


@dataclass(frozen=True, eq=False)
class Appearance:
    """Everything that depends on portrait and prompts alone; see :meth:`encoded`.

    Attributes
    ----------
    portrait : ndarray, shape (H, W, 3), uint8, or None
        Portrait in the output's shape.
    portrait_latents : Tensor, shape (C, h, w), float32, or None
        The same encoded, for models that take it.
    slot_channels : Tensor, shape (Cc, 1 + window, h, w), or None
        Condition channels behind a leading slot, for models that have one.
    passes : tuple of GuidancePass
        Passes of a step.
    prompt : PromptContext
        Keys and values of the prompts and of the portrait's tokens.
    """

    portrait: NDArray[np.uint8] | None
    portrait_latents: Tensor | None
    slot_channels: Tensor | None
    passes: tuple[GuidancePass, ...]
    prompt: PromptContext

    @classmethod
    @torch.inference_mode()
    def encoded(
        cls, parts: Components, settings: JobSettings, portrait: NDArray[np.uint8] | None
    ) -> Appearance:
        """Encode a portrait and the prompts of ``settings``.

        Raises
        ------
        InvalidArgument
            The model starts every window from a portrait, and there is none.
        """
        latents = slot_channels = None
        if portrait is not None and parts.generation.reference_mode != "none":
            latents = encode_portrait(portrait, parts.vae)
        if parts.timeline.primed:
            if portrait is None:
                raise InvalidArgument(
                    "image",
                    expected="a portrait, which this model starts every window from",
                    got=None,
                )
            slot_channels = leading_slot_channels(
                parts.transformer.config, parts.vae, portrait, settings.window
            )
        passes = job_passes(parts, settings)
        prompt = prompt_context(parts, settings, portrait, passes)
        return cls(portrait, latents, slot_channels, passes, prompt)

    def leading_slot(self, seed: int, group: Group, track: TokenTrack | None) -> LeadingSlot | None:
        """The portrait's slot in front of every window, for ``reference_mode="leading_slot"``."""
        if self.slot_channels is None or self.portrait_latents is None:
            return None
        tokens: tuple[Tensor, ...] = ()
        silent = None
        if track is not None:
            tokens = tuple(track.leading_tokens(window.start) for window in group.windows)
            silent = track.silent_leading_tokens()
        latents = self.portrait_latents.unsqueeze(1)
        channels, _, height, width = latents.shape
        noise = timeline_noise(seed, SLOT_NOISE_INDEX, 1, (channels, height, width))
        return LeadingSlot(
            latents=latents,
            noise=noise.to(latents.device),
            channels=self.slot_channels,
            tokens=tokens,
            silent_tokens=silent,
        )


def color_match(
    parts: Components, settings: JobSettings, portrait: NDArray[np.uint8] | None
) -> ColorMatch:
    """What corrects the colours of a job's frames, from its first frame on."""
    return ColorMatch(
        settings.color_correction,
        settings.color_reference,
        first_frames=parts.timeline.num_frames(settings.window),
        portrait=portrait,
    )


def job_passes(parts: Components, settings: JobSettings) -> tuple[GuidancePass, ...]:
    """Passes of a step under these settings."""
    return guidance_passes(
        settings.guidance_form,
        settings.text_guidance_scale,
        settings.audio_guidance_scale,
        has_text=bool(settings.prompt),
        has_audio=parts.transformer.config.audio is not None,
    )


def prompt_context(
    parts: Components,
    settings: JobSettings,
    portrait: NDArray[np.uint8] | None,
    passes: tuple[GuidancePass, ...],
) -> PromptContext:
    """Keys and values of the prompts and of the portrait's image tokens."""
    transformer, encode = parts.transformer, parts.text_encoder.encode
    positive = transformer.text_context(encode(settings.prompt).unsqueeze(0))
    negative = positive
    if settings.prompt and not all(one.text for one in passes):
        negative = transformer.text_context(encode(settings.negative_prompt).unsqueeze(0))
    return PromptContext(positive, negative, image_context(parts, portrait))


def image_context(
    parts: Components, picture: NDArray[np.uint8] | None
) -> tuple[KeysValues, ...] | None:
    """Keys and values of a picture's image tokens; None for models without an image branch."""
    if parts.image_encoder is None or picture is None:
        return None
    return parts.transformer.image_context(parts.image_encoder.encode(picture).unsqueeze(0))
