"""Teaches the audio encoder to hear mouths before there is a picture to move.

Drawing speech costs a small part of drawing and encoding its picture, so many voices, sentences
and noises pass in minutes, and the transformer meets audio tokens that already tell the mouth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from skyreels_rt.audio.whisper import WhisperFeatures
from skyreels_rt.config import AudioAdapterConfig, AudioFeatureConfig
from skyreels_rt.training.audio_windows import AudioWindows, SpeechBatch
from skyreels_rt.training.clips import difficulty_of, mouth_values
from skyreels_rt.training.data.triplets import TripletSource
from skyreels_rt.training.latent_cache import log_mels
from skyreels_rt.training.portrait_model import PortraitModel
from skyreels_rt.types import Timeline


@dataclass(frozen=True)
class HeardClip:
    """Sound of a clip and the mouth that made it.

    Attributes
    ----------
    mels : Tensor, shape (S, bins, T), float16
        Log-mel spectrogram of every grid step's segment.
    mouth : Tensor, shape (F, 5), float32
        True mouth parameters.
    """

    mels: Tensor
    mouth: Tensor


def draw_utterances(
    count: int, duration_s: float, front_end: WhisperFeatures, grid: AudioFeatureConfig
) -> list[HeardClip]:
    """Utterances ``0 .. count - 1``: the sound of the training clips of these numbers."""
    drawn = []
    for index in tqdm(range(count), desc="utterances", unit="clip"):
        source = TripletSource("train", duration_s=duration_s, difficulty=difficulty_of(index))
        speech = source.utterance(index)
        mouth = torch.from_numpy(mouth_values(speech.mouth))
        drawn.append(HeardClip(log_mels(front_end, grid, speech.audio, len(mouth)), mouth))
    return drawn


class SpeechSampler:
    """Draws batches of windows from utterances.

    Parameters
    ----------
    utterances : sequence of HeardClip
        What is said.
    adapter : AudioAdapterConfig
        Layout of a latent's audio window.
    grid : AudioFeatureConfig
        Grid of the audio features.
    window, batch_size : int
        Latents of a sample, samples of a batch.
    seed : int
        Of everything drawn.
    """

    def __init__(
        self,
        utterances: Sequence[HeardClip],
        adapter: AudioAdapterConfig,
        grid: AudioFeatureConfig,
        *,
        window: int,
        batch_size: int,
        seed: int = 0,
    ) -> None:
        self._utterances = utterances
        self._windows = AudioWindows(adapter, grid)
        self._window = window
        self._batch_size = batch_size
        self._seed = seed

    def batch(self, step: int) -> SpeechBatch:
        """Batch of step ``step``."""
        draw = np.random.default_rng([self._seed, 0x5EEC, step])
        samples = [self._sample(draw) for _ in range(self._batch_size)]
        columns: dict[str, list[Any]] = {name: [s[name] for s in samples] for name in samples[0]}
        return SpeechBatch(
            mels=torch.stack(columns["mels"]),
            frame_features=torch.stack(columns["frame_features"]),
            starts_clip=torch.tensor(columns["starts_clip"]),
            hears=torch.ones(self._batch_size, dtype=torch.bool),
            mouth=torch.stack(columns["mouth"]),
        )

    def _sample(self, draw: np.random.Generator) -> dict[str, Any]:
        utterance = self._utterances[int(draw.integers(len(self._utterances)))]
        num_latents = (len(utterance.mouth) - 1) // Timeline().temporal_stride + 1
        start = int(draw.integers(max(1, num_latents - self._window + 1)))
        return self._windows.cut(utterance.mels, utterance.mouth, start, start + self._window)


class SpeechObjective:
    """Loss of a step: the mean square error of the mouth's parameters, read from the tokens.

    Parameters
    ----------
    model : PortraitModel
        Its audio encoder, audio projection and mouth head are used.
    sampler : SpeechSampler
        Source of batches.
    """

    def __init__(self, model: PortraitModel, sampler: SpeechSampler) -> None:
        self._model = model
        self._sampler = sampler

    def __call__(self, step: int) -> dict[str, Tensor]:
        """``loss`` of step ``step``, and the share of the opening's variance not explained."""
        device = self._model.device
        batch = self._sampler.batch(step).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            mouth = self._model.mouth(self._model.audio_tokens(batch)).float()
        opening = (mouth - batch.mouth)[..., 0].detach().square().mean()
        return {
            "loss": F.mse_loss(mouth, batch.mouth),
            "opening": opening / batch.mouth[..., 0].var().clamp_min(1e-6),
        }
