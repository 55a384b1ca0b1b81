"""Training of the transformer by flow matching, on encoders that hear and read already.

Flow matching after Lipman et al. 2022 (arXiv 2210.02747); the facial-mask weights after the paper
(SkyReels-Audio, arXiv 2506.00830), which gives no numbers: ours are in :mod:`.batches`. A reader
of faces adds what a mouth's cells must show (:mod:`.face_reader`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from skyreels_rt.training.batches import WindowBatch, WindowSampler
from skyreels_rt.training.curriculum import Curriculum
from skyreels_rt.training.face_reader import FaceJudge
from skyreels_rt.training.portrait_model import PortraitModel


def flow_error(predicted: Tensor, batch: WindowBatch) -> Tensor:
    """Weighted mean square error of the clean latents that a velocity leads to.

    That is the velocity's own error times ``sigma ** 2``: the low noise levels, where most of the
    answer can be read from the input, do not outweigh the high ones, where it must be heard.

    Parameters
    ----------
    predicted : Tensor, shape (B, C, W, h, w)
        Velocity at ``batch.sigma``; the truth is ``noise - clean``.
    batch : WindowBatch
        Latents, noise and weights.

    Returns
    -------
    Tensor, scalar
    """
    error = (predicted - (batch.noise - batch.clean)) * batch.sigma.view(-1, 1, 1, 1, 1)
    weighted = (error.square() * batch.weights).sum()
    return weighted / (batch.weights.sum() * error.shape[1]).clamp_min(1)


def noisy_latents(batch: WindowBatch) -> Tensor:
    """``(1 - sigma) clean + sigma noise``, shape (B, C, W, h, w)."""
    sigma = batch.sigma.view(-1, 1, 1, 1, 1)
    return (1 - sigma) * batch.clean + sigma * batch.noise


class FlowObjective:
    """Losses of a step of the joint stage.

    Parameters
    ----------
    model : PortraitModel
        In float32; computed under bfloat16 autocast.
    sampler : WindowSampler
        Source of batches.
    curriculum : Curriculum
        Which tasks when.
    num_steps : int
        Steps of the stage, to which the curriculum's shares refer.
    judge : FaceJudge, optional
        What the model's faces cost besides.
    """

    def __init__(
        self,
        model: PortraitModel,
        sampler: WindowSampler,
        curriculum: Curriculum,
        num_steps: int,
        *,
        judge: FaceJudge | None = None,
    ) -> None:
        self._judge = judge
        self._model = model
        self._sampler = sampler
        self._curriculum = curriculum
        self._num_steps = num_steps

    def __call__(self, step: int) -> dict[str, Tensor]:
        """``loss`` of step ``step``, and ``mouth`` and ``lids``, what the reader finds wrong."""
        lesson = self._curriculum.lesson(step, self._num_steps)
        device = self._model.device
        batch = self._sampler.batch(step, lesson, self._curriculum.dropout).to(device)
        noisy = noisy_latents(batch)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                tokens = self._model.audio_tokens(batch)
            velocity = self._model.velocity(
                noisy, batch.channels, batch.sigma, self._model.context(batch.prompts, tokens)
            )
            flow = flow_error(velocity, batch)
            if self._judge is None:
                return {"loss": flow}
            clean = noisy - batch.sigma.view(-1, 1, 1, 1, 1) * velocity
            cost, errors = self._judge(clean, batch)
        return {"loss": flow + cost, **errors}
