"""Reads mouths and lids from latents: a predicted face shall do what is heard.

A latent follows every pixel of motion, most of which nobody can hear; the mean square error of a
mouth's cells is mostly that. What a reader sees in them is what the speech decides. After the
supervision by a lip-sync network in LatentSync (arXiv 2412.09262), here in latent space and with
the drawn clips' true mouths and lids. The evaluation reads pixels by other means.

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
_MOUTH_CELLS, _EYE_CELLS = (12, 14), (8, 16)  # rows, columns: the largest fill 8 x 12, 6 x 13
_ROUGHNESS = 0.1  # noise on what a reader learns from: predictions are not as clean as clips


@dataclass(frozen=True)
class FaceReading:
    """How faces are read, and what a misread one costs.

    Attributes
    ----------
    optimisation : Optimisation
        Schedule of the reader's stage.
    lesson : Lesson
        Windows it learns on.
    mouth_weight, lids_weight : float
        Factors of the mean square errors of mouth parameters and lids in the transformer's loss.
    """

    optimisation: Optimisation
    lesson: Lesson
    mouth_weight: float = 8.0
    # At 8 a transformer painted the eyes orange, which the reader takes for lids.
    lids_weight: float = 0.0


class RegionReader(nn.Module):
    """Parameters of a region in each frame, from clean latents and the portrait's.

    It looks at a fixed number of cells in the middle of the region, so that it sees where
    something is, at a latent and at the one before it, on which the causal decoder builds.

    Parameters
    ----------
    channels : int
        Latent channels C.
    cells : tuple of int
        Rows and columns.
    num_parameters : int
        P.
    width : int
        Channels inside.
    """

    def __init__(
        self, channels: int, cells: tuple[int, int], num_parameters: int, width: int = 64
    ) -> None:
        super().__init__()
        self._cells = cells
        self._num_parameters = num_parameters
        rows, columns = (-(-side // 4) for side in cells)
        self.look = nn.Sequential(
            nn.Conv2d(3 * channels + 1, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2), nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, stride=2), nn.SiLU(),
        )  # fmt: skip
        self.read = nn.Sequential(
            nn.Linear(2 * width * rows * columns, 4 * width),
            nn.SiLU(),
            nn.Linear(4 * width, _FRAMES * num_parameters),
        )

    def forward(self, latents: Tensor, portrait: Tensor, region: Tensor) -> Tensor:
        """Read.

        Parameters
        ----------
        latents : Tensor, shape (B, C, W, h, w)
            Clean, or a prediction of clean ones.
        portrait : Tensor, shape (B, C, h, w)
            Of the same cells.
        region : Tensor, shape (B, W, h, w)
            Share of the region in a cell: where to look. Of the window only the most is used, which
            tells nothing of a single latent.

        Returns
        -------
        Tensor, shape (B, W, 4, P)
        """
        count, _, window = latents.shape[:3]
        place = region.amax(1)
        given = portrait.unsqueeze(2)
        change = latents - given
        before = torch.cat([torch.zeros_like(change[:, :, :1]), change[:, :, :-1]], dim=2)
        where = place[:, None, None].expand(-1, -1, window, -1, -1)
        seen = torch.cat([change, before, given.expand_as(change), where], dim=1)
        cut = _around(seen, place, self._cells).transpose(1, 2).flatten(0, 1)
        parameters: Tensor = self.read(self.look(cut).flatten(1))
        return parameters.view(count, window, _FRAMES, self._num_parameters)


class FaceReader(nn.Module):
    """A reader of mouths and one of lids.

    Parameters
    ----------
    channels : int
        Latent channels C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mouth = RegionReader(channels, _MOUTH_CELLS, len(MOUTH_PARAMETERS))
        self.lids = RegionReader(channels, _EYE_CELLS, 1, width=32)


def reading_errors(
    reader: FaceReader, latents: Tensor, batch: WindowBatch, asked: Tensor
) -> dict[str, Tensor]:
    """How differently a reader reads predicted latents and the true ones.

    What the reader gets wrong about a face it gets wrong in both.

    Parameters
    ----------
    reader : FaceReader
        The reader.
    latents : Tensor, shape (B, C, W, h, w)
        Prediction of the clean latents.
    batch : WindowBatch
        Portraits, mouths, eyes, and which of them can be read.
    asked : Tensor, shape (B,), bool
        Samples that count, of those that can be read.

    Returns
    -------
    dict of str to Tensor
        Scalars ``mouth`` and ``lids``: mean square differences; 0 where no sample counts.
    """
    errors = {}
    for name, part, region, shows in (
        ("mouth", reader.mouth, batch.mouth_cells, batch.shows_mouth),
        ("lids", reader.lids, batch.eye_cells, batch.shows_eyes),
    ):
        counts = shows & asked
        if not bool(counts.any()):
            errors[name] = latents.new_zeros(())
            continue
        given, place = batch.portrait[counts], region[counts]
        with torch.no_grad():
            wanted = part(batch.clean[counts], given, place)
        errors[name] = F.mse_loss(part(latents[counts], given, place).float(), wanted.float())
    return errors


@dataclass(frozen=True)
class FaceJudge:
    """Says what a predicted face costs.

    Attributes
    ----------
    reader : FaceReader
        Frozen.
    mouth_weight, lids_weight : float
        Factors of the mean square errors that it finds; what weighs 0 is found all the same.
    """

    reader: FaceReader
    mouth_weight: float
    lids_weight: float

    def __call__(self, latents: Tensor, batch: WindowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Judge a prediction; faces that hear nothing are not judged.

        Parameters
        ----------
        latents : Tensor, shape (B, C, W, h, w)
            Prediction of the clean latents.
        batch : WindowBatch
            What was predicted.

        Returns
        -------
        loss : Tensor, scalar
            Weighted sum of the errors, with a gradient.
        errors : dict of str to Tensor
            Those of :func:`reading_errors`, without one, for the curves.
        """
        errors = reading_errors(self.reader, latents, batch, batch.hears)
        loss = self.mouth_weight * errors["mouth"] + self.lids_weight * errors["lids"]
        return loss, {name: error.detach() for name, error in errors.items()}


class ReaderObjective:
    """Loss of a step of the reader's stage.

    What a model that is in doubt predicts lies between faces. So the reader learns on blends of a
    window with itself at another time (after mixup, Zhang et al. 2018, arXiv 1710.09412), whose
    parameters are blended, too: a lid half closed in the mean is read as half closed.

    Parameters
    ----------
    reader : FaceReader
        Trained.
    sampler : WindowSampler
        Source of batches.
    lesson : Lesson
        Windows.
    """

    def __init__(self, reader: FaceReader, sampler: WindowSampler, lesson: Lesson) -> None:
        self._reader = reader
        self._sampler = sampler
        self._lesson = lesson

    def __call__(self, step: int) -> dict[str, Tensor]:
        """``loss`` of step ``step``; ``opening`` and ``lids`` are mean square errors in it."""
        device = next(self._reader.parameters()).device
        nothing_lost = Dropout(audio=0.0, text=0.0, image=0.0, everything=0.0)
        batch = self._sampler.batch(step, self._lesson, nothing_lost).to(device)
        rough = _blended(batch.clean, batch, dim=2) + _ROUGHNESS * batch.noise
        true_mouth, true_lids = (_blended(v, batch, dim=1) for v in (batch.mouth, batch.lids))
        with torch.autocast(device.type, torch.bfloat16):
            mouth = self._reader.mouth(rough, batch.portrait, batch.mouth_cells).float()
            lids = self._reader.lids(rough, batch.portrait, batch.eye_cells).float().squeeze(-1)
        losses = {"loss": (mouth.sum() + lids.sum()) * 0}
        for name, read, true, first in (
            ("opening", mouth[batch.shows_mouth], true_mouth[batch.shows_mouth], (..., 0)),
            ("lids", lids[batch.shows_eyes], true_lids[batch.shows_eyes], (...,)),
        ):
            if len(read):
                losses["loss"] = losses["loss"] + F.mse_loss(read, true)
                losses[name] = F.mse_loss(read[first], true[first]).detach()
        return losses


def _blended(values: Tensor, batch: WindowBatch, dim: int) -> Tensor:
    """``values`` of windows and of half a window later, in shares ``sigma`` of each sample."""
    share = batch.sigma.view(-1, *[1] * (values.ndim - 1))
    return torch.lerp(values, values.roll(values.shape[dim] // 2, dim), share)


def _around(cells: Tensor, place: Tensor, sides: tuple[int, int]) -> Tensor:
    """Cut rows and columns out of (B, K, W, h, w), in the middle of what ``place`` (B, h, w) marks.

    What lies outside is zero.
    """
    marked = place > 0
    rows, columns = (
        _middle(marked.any(other)) + torch.arange(side, device=cells.device)
        for other, side in zip((2, 1), sides, strict=True)
    )
    reach = [side // 2 for side in sides]
    padded = F.pad(cells, (reach[1], reach[1], reach[0], reach[0]))
    sample = torch.arange(len(cells), device=cells.device).view(-1, 1, 1)
    cut = padded.permute(0, 3, 4, 1, 2)[sample, rows.unsqueeze(2), columns.unsqueeze(1)]
    return cut.permute(0, 3, 4, 1, 2)


def _middle(marked: Tensor) -> Tensor:
    """Middle (B, 1) of the places that are marked in (B, n)."""
    first = marked.int().argmax(1)
    last = marked.shape[1] - 1 - marked.flip(1).int().argmax(1)
    return ((first + last + 1) // 2).unsqueeze(1)
