"""Reads mouths from latents, so that training can ask whether a predicted mouth says what is heard.

A latent follows every pixel of motion, most of which nobody can hear; the mean square error of a
mouth's cells is mostly that. What a reader of lips sees in them is what the speech decides. After
the supervision by a lip-sync network in LatentSync (arXiv 2412.09262), here in latent space and
with the drawn clips' true mouths. The evaluation reads pixels by other means.

Legend: B samples, C latent channels, W latents of a window, h w latent rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyreels_rt.training.batches import WindowBatch, WindowSampler
from skyreels_rt.training.clips import MOUTH_PARAMETERS
from skyreels_rt.training.curriculum import Dropout, Lesson
from skyreels_rt.training.trainer import Optimisation

_FRAMES = 4


@dataclass(frozen=True)
class LipReading:
    """How lips are read, and what a misread one costs.

    Attributes
    ----------
    optimisation : Optimisation
        Schedule of the reader's stage.
    lesson : Lesson
        Windows it learns on.
    weight : float
        Factor of the mouth parameters' mean square error in the transformer's loss; 0 leaves the
        reader out.
    """

    optimisation: Optimisation
    lesson: Lesson
    weight: float = 8.0


class LipReader(nn.Module):
    """Mouth parameters of each frame from clean latents and the portrait's.

    Parameters
    ----------
    channels : int
        Latent channels C.
    width : int
        Channels inside.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.look = nn.Sequential(
            nn.Conv2d(2 * channels, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
        )  # fmt: skip
        self.read = nn.Sequential(
            nn.Linear(width, 2 * width),
            nn.SiLU(),
            nn.Linear(2 * width, _FRAMES * len(MOUTH_PARAMETERS)),
        )

    def forward(self, latents: Tensor, portrait: Tensor, mouth: Tensor) -> Tensor:
        """Read.

        Parameters
        ----------
        latents : Tensor, shape (B, C, W, h, w)
            Clean, or a prediction of clean ones.
        portrait : Tensor, shape (B, C, h, w)
            Of the same cells.
        mouth : Tensor, shape (B, W, h, w)
            Share of the mouth in a cell: where to look.

        Returns
        -------
        Tensor, shape (B, W, 4, 5)
        """
        count, _, window = latents.shape[:3]
        given = portrait.unsqueeze(2).expand_as(latents)
        cells = torch.cat([latents - given, given], dim=1).transpose(1, 2).flatten(0, 1)
        seen = self.look(cells).float()
        share = mouth.flatten(0, 1).unsqueeze(1)
        mean = (seen * share).sum((2, 3)) / share.sum((2, 3)).clamp_min(1e-3)
        parameters: Tensor = self.read(mean)
        return parameters.view(count, window, _FRAMES, len(MOUTH_PARAMETERS))


def lip_error(reader: LipReader, latents: Tensor, batch: WindowBatch, asked: Tensor) -> Tensor:
    """How differently a reader reads predicted latents and the true ones.

    What the reader gets wrong about a face it gets wrong in both.

    Parameters
    ----------
    reader : LipReader
        The reader.
    latents : Tensor, shape (B, C, W, h, w)
        Prediction of the clean latents.
    batch : WindowBatch
        Portraits, mouths, and which of them can be read.
    asked : Tensor, shape (B,), bool
        Samples that count, of those that can be read.

    Returns
    -------
    Tensor, scalar
        Mean square difference of the mouth parameters; 0 where no sample counts.
    """
    counts = (batch.shows_lips & asked).float()
    with torch.no_grad():
        wanted = reader(batch.clean, batch.portrait, batch.lips)
    read = reader(latents, batch.portrait, batch.lips)
    error = (read - wanted).square().mean((1, 2, 3))
    mean: Tensor = (error * counts).sum() / counts.sum().clamp_min(1)
    return mean


class LipObjective:
    """Loss of a step of the reader's stage.

    Parameters
    ----------
    reader : LipReader
        Trained.
    sampler : WindowSampler
        Source of batches.
    lesson : Lesson
        Windows.
    """

    def __init__(self, reader: LipReader, sampler: WindowSampler, lesson: Lesson) -> None:
        self._reader = reader
        self._sampler = sampler
        self._lesson = lesson

    def __call__(self, step: int) -> dict[str, Tensor]:
        """``loss`` of step ``step``, and the share of the opening's variance not explained."""
        device = next(self._reader.parameters()).device
        nothing_lost = Dropout(audio=0.0, text=0.0, image=0.0, everything=0.0)
        batch = self._sampler.batch(step, self._lesson, nothing_lost).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            read = self._reader(batch.clean, batch.portrait, batch.lips).float()
        seen = batch.shows_lips
        if not bool(seen.any()):
            return {"loss": read.sum() * 0}
        opening = F.mse_loss(read[seen][..., 0], batch.mouth[seen][..., 0]).detach()
        return {
            "loss": F.mse_loss(read[seen], batch.mouth[seen]),
            "opening": opening / batch.mouth[seen][..., 0].var().clamp_min(1e-6),
        }
