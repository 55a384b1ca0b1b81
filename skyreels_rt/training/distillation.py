"""Few-step distillation: one pass of the student replaces several guided steps of the teacher.

Between two noise levels of the student's schedule the teacher walks in smaller, guided Euler steps;
the student learns the straight line to where it arrives (progressive distillation, Salimans and Ho
2022, arXiv 2202.00512; with guidance, Meng et al. 2022, arXiv 2210.03142). The student starts as a
copy of the teacher and keeps its audio and text encoders. Its faces are read as the teacher's were.

Every step begins where the student's own steps from noise lead, not at noise mixed into the truth:
what it learns to go on from is what it will meet (self forcing, Huang et al. 2025, arXiv
2506.08009).
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from skyreels_rt.diffusion.guidance import combine, guidance_passes
from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.models.transformer import ContextCache
from skyreels_rt.training.batches import WindowBatch, WindowSampler
from skyreels_rt.training.curriculum import Dropout, Lesson
from skyreels_rt.training.face_reader import FaceJudge
from skyreels_rt.training.portrait_model import PortraitModel

NO_DROPOUT = Dropout(audio=0.0, text=0.5, image=0.0, everything=0.0)


class DistillationObjective:
    """Losses of a distillation step.

    Parameters
    ----------
    student, teacher : PortraitModel
        The student is trained; the teacher is frozen.
    sampler : WindowSampler
        Source of batches.
    lesson : Lesson
        Tasks and window length.
    schedule : FlowSchedule
        The student's noise levels.
    teacher_steps : int
        Euler steps of the teacher for one of the student's.
    audio_guidance_scale : float
        Of the teacher; it becomes part of the student.
    judge : FaceJudge, optional
        What the student's faces cost besides.
    """

    def __init__(
        self,
        student: PortraitModel,
        teacher: PortraitModel,
        sampler: WindowSampler,
        lesson: Lesson,
        schedule: FlowSchedule,
        *,
        teacher_steps: int = 3,
        audio_guidance_scale: float = 1.5,
        judge: FaceJudge | None = None,
    ) -> None:
        self._student = student
        self._judge = judge
        self._teacher = teacher.eval().requires_grad_(False)
        self._sampler = sampler
        self._lesson = lesson
        self._sigmas = schedule.sigmas
        self._teacher_steps = teacher_steps
        self._passes = guidance_passes(
            "text_first", 1.0, audio_guidance_scale, has_text=True, has_audio=True
        )

    def __call__(self, step: int) -> dict[str, Tensor]:
        """``loss``: weighted square error of the student's clean latents against the teacher's."""
        device = self._student.device
        batch = self._sampler.batch(step, self._lesson, NO_DROPOUT).to(device)
        level = step % (len(self._sigmas) - 1)
        start, stop = self._sigmas[level], self._sigmas[level + 1]
        with torch.autocast(device.type, torch.bfloat16):
            noisy = self._rollout(batch, level)
            target = self._teacher_arrival(batch, noisy, start, stop)
            tokens = self._student.audio_tokens(batch)
            context = self._student.context(batch.prompts, tokens)
            sigma = torch.full_like(batch.sigma, start)
            velocity = self._student.velocity(noisy, batch.channels, sigma, context)
        # The velocity that leads straight to the teacher's arrival.
        wanted = (noisy - target) / (start - stop)
        square = (velocity - wanted).square() * batch.weights
        loss = square.sum() / (batch.weights.sum() * wanted.shape[1])
        losses = {"loss": loss * start**2, f"level_{level}": loss.detach()}
        if self._judge is not None:
            with torch.autocast(device.type, torch.bfloat16):
                cost, errors = self._judge(noisy - start * velocity, batch)
            losses |= {"loss": losses["loss"] + cost, **errors}
        return losses

    @torch.no_grad()
    def _rollout(self, batch: WindowBatch, level: int) -> Tensor:
        """Latents at noise level ``level`` after the student's own steps from noise."""
        tokens = self._student.audio_tokens(batch)
        context = self._student.context(batch.prompts, tokens)
        latents = batch.noise
        for start, stop in itertools.pairwise(self._sigmas[: level + 1]):
            sigma = torch.full_like(batch.sigma, start)
            velocity = self._student.velocity(latents, batch.channels, sigma, context)
            latents = latents + (stop - start) * velocity
        return latents

    @torch.no_grad()
    def _teacher_arrival(
        self, batch: WindowBatch, noisy: Tensor, start: float, stop: float
    ) -> Tensor:
        """Latents at ``stop`` after the teacher's guided steps from ``start``."""
        teacher = self._teacher
        contexts = [self._context(batch, text=one.text, audio=one.audio) for one in self._passes]
        levels = torch.linspace(start, stop, self._teacher_steps + 1).tolist()
        latents = noisy
        for sigma, following in itertools.pairwise(levels):
            time = torch.full_like(batch.sigma, sigma)
            velocities = [
                teacher.velocity(latents, batch.channels, time, context) for context in contexts
            ]
            latents = latents + (following - sigma) * combine(self._passes, velocities)
        return latents

    def _context(self, batch: WindowBatch, *, text: bool, audio: bool) -> ContextCache:
        heard = batch.hears & audio
        tokens = self._teacher.audio_tokens(replace(batch, hears=heard))
        return self._teacher.context(batch.prompts if text else [""] * len(heard), tokens)
