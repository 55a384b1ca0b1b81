"""Runs a recipe stage by stage in a folder; every stage resumes from its own checkpoint.

The folder holds, per stage, ``<stage>.safetensors`` (state), ``<stage>.png`` (curves) and
``<stage>_sample.png`` (what the model makes of unseen portraits); besides ``clips/`` (encoded
clips) and the model folders ``demo/`` and ``demo-fast/``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from skyreels_rt.audio.whisper import WhisperFeatures, build_whisper_encoder
from skyreels_rt.config import read_json, write_json
from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.models.tiny_vae import TinyVAE
from skyreels_rt.runtime.device import resolve_device
from skyreels_rt.training.batches import WindowSampler
from skyreels_rt.training.checkpoint import load_checkpoint
from skyreels_rt.training.clips import RecipeClips, drawn_clips
from skyreels_rt.training.distillation import DistillationObjective
from skyreels_rt.training.face_reader import FaceJudge, FaceReader, ReaderObjective
from skyreels_rt.training.flow_stage import FlowObjective
from skyreels_rt.training.frame_pool import FramePool
from skyreels_rt.training.latent_cache import (
    LatentClip,
    encode_frames,
    load_clips,
    prepare_clips,
)
from skyreels_rt.training.plots import plot_history
from skyreels_rt.training.portrait_model import PortraitModel
from skyreels_rt.training.recipe import HEARING, READING, Recipe
from skyreels_rt.training.speech_stage import SpeechObjective, SpeechSampler, draw_utterances
from skyreels_rt.training.text_stage import CaptionObjective
from skyreels_rt.training.trainer import Losses, Optimisation, Trainer
from skyreels_rt.training.vae_stage import reconstruction_losses
from skyreels_rt.training.warm_start import write_start

logger = logging.getLogger(__name__)

Stage = Literal["vae", "speech", "text", "clips", "reader", "flow", "distil"]
_STATISTICS = "latent_statistics.json"
_STATISTICS_CLIPS = 16
STAGES: tuple[Stage, ...] = ("vae", "speech", "text", "clips", "reader", "flow", "distil")


@dataclass(frozen=True)
class Share:
    """Part of the clips that one of several processes prepares: every ``of``-th, from ``part`` on.

    Attributes
    ----------
    part, of : int
        ``0 <= part < of``.
    """

    part: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.part < self.of:
            raise InvalidArgument(
                "share", expected="part/of with 0 <= part < of", got=f"{self.part}/{self.of}"
            )

    @classmethod
    def parse(cls, text: str) -> Share:
        """Read ``"part/of"``.

        Raises
        ------
        InvalidArgument
            ``text`` is something else.
        """
        part, _, of = text.partition("/")
        if not (part.isdecimal() and of.isdecimal()):
            raise InvalidArgument("share", expected='"part/of", as "3/16"', got=text)
        return cls(int(part), int(of))


@dataclass(frozen=True)
class _Run:
    """What every stage is told."""

    recipe: Recipe
    folder: Path
    source: RecipeClips
    device: torch.device
    share: Share
    until: int | None
    checkpoint_every_s: float

    def is_done(self, stage: str, optimisation: Optimisation, *, sees_clips: bool) -> bool:
        """Whether a stage of this very run has its last step behind it."""
        path = self.folder / f"{stage}.safetensors"
        if not path.exists():
            return False
        facts = load_checkpoint(path).facts
        last: bool = facts["step"] >= optimisation.num_steps
        return last and facts["fingerprint"] == self._fingerprint(sees_clips)

    def _fingerprint(self, sees_clips: bool) -> str:
        return self.recipe.fingerprint + (self.source.mark if sees_clips else "")

    def train(
        self,
        stage: str,
        module: nn.Module,
        objective: Callable[[int], Losses],
        optimisation: Optimisation,
        *,
        sees_clips: bool,
        show: Callable[[Trainer], None] | None = None,
    ) -> None:
        """Run one stage's training loop, with its checkpoint, curves and what ``show`` writes."""
        trainer = Trainer(
            module, objective, optimisation, checkpoint=self.folder / f"{stage}.safetensors",
            fingerprint=self._fingerprint(sees_clips),
        )  # fmt: skip

        def on_checkpoint(state: Trainer) -> None:
            plot_history(state.history, self.folder / f"{stage}.png")
            if show is not None:
                show(state)

        trainer.run(
            until=self.until, checkpoint_every_s=self.checkpoint_every_s, label=stage,
            on_checkpoint=on_checkpoint,
        )  # fmt: skip


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    stages: Sequence[Stage] = STAGES,
    until: int | None = None,
    checkpoint_every_s: float = 120.0,
    clips: RecipeClips | None = None,
    device: str | torch.device = "auto",
    share: Share | None = None,
    start: str | Path | None = None,
) -> None:
    """Train, going on from what ``folder`` holds.

    Parameters
    ----------
    recipe : Recipe
        What to train.
    folder : Path
        Where everything is kept.
    stages : sequence of str
        Which stages to run, in this order.
    until : int, optional
        Stop each stage at this step, to go on later.
    checkpoint_every_s : float
        Seconds between checkpoints.
    clips : RecipeClips, optional
        What the stages that look at pictures train on; drawn on demand by default. Speech and text
        are always synthesised: only there the true mouths and looks are known.
    device : str or torch.device
        Where the models are; ``"auto"`` is CUDA where there is one. Batches are drawn on the CPU,
        the same for every device, and a run may go on elsewhere than it began. It repeats bit for
        bit on the CPU.
    share : Share, optional
        Part of the clips that the stage ``clips`` prepares; several processes can share a folder.
    start : str or Path, optional
        Model to begin with, by name or folder: its VAE and encoders stay as they are, its
        transformer is trained on. ``folder`` must not hold a run yet.

    Raises
    ------
    InvalidArgument
        Unknown stage or device.
    ModelError
        A stage needs one that did not run yet, or the folder belongs to another recipe.
    NonFinite
        Training diverged; the last checkpoint is intact.
    """
    for stage in stages:
        if stage not in _RUNNERS:
            raise InvalidArgument("stages", expected=f"some of {STAGES}", got=stage)
    run = _Run(
        recipe,
        folder,
        drawn_clips(recipe) if clips is None else clips,
        resolve_device(device),
        share or Share(),
        until,
        checkpoint_every_s,
    )
    folder.mkdir(parents=True, exist_ok=True)
    if start is not None:
        torch.manual_seed(recipe.seed)
        write_json(folder / _STATISTICS, write_start(recipe, folder, start, run.source.mark))
    for stage in stages:
        torch.manual_seed(recipe.seed)
        _RUNNERS[stage](run)


def _run_vae(run: _Run) -> None:
    recipe = run.recipe
    if run.is_done("vae", recipe.vae, sees_clips=True):
        return
    vae = TinyVAE(recipe.sizes.vae).to(run.device)
    pool = FramePool(run.source.whole, recipe.crops, capacity=recipe.pool, seed=recipe.seed)

    def objective(step: int) -> dict[str, Tensor]:
        frames, weights = pool.batch(step)
        noise = torch.Generator().manual_seed(step)
        return reconstruction_losses(vae, frames, weights, noise)

    run.train("vae", vae, objective, recipe.vae, sees_clips=True)


def load_vae(recipe: Recipe, folder: Path) -> TinyVAE:
    """Averaged VAE of the first stage, frozen, in bfloat16.

    Its latents are normalised once the clips stage measured their statistics.

    Raises
    ------
    ModelError
        The stage did not run yet.
    """
    checkpoint = load_checkpoint(folder / "vae.safetensors")
    config = recipe.sizes.vae
    if (folder / _STATISTICS).exists():
        measured = read_json(folder / _STATISTICS)
        config = replace(
            config,
            latents_mean=tuple(measured["latents_mean"]),
            latents_std=tuple(measured["latents_std"]),
        )
    vae = TinyVAE(config)
    vae.load_state_dict(checkpoint.part("averages"))
    return vae.to(torch.bfloat16).eval().requires_grad_(False)


def _run_speech(run: _Run) -> None:
    recipe, sizes, plan = run.recipe, run.recipe.sizes, run.recipe.speech
    assert sizes.transformer.audio is not None
    if run.is_done("speech", plan.optimisation, sees_clips=False):
        return
    model = PortraitModel(sizes).to(run.device)
    _train_only(model, HEARING)
    sampler = SpeechSampler(
        draw_utterances(
            plan.num_utterances, recipe.clip_s, _front_end(recipe), sizes.audio_features
        ),
        sizes.transformer.audio,
        sizes.audio_features,
        window=sizes.generation.window,
        batch_size=plan.batch_size,
        seed=recipe.seed,
    )
    objective = SpeechObjective(model, sampler)
    run.train("speech", model, objective, plan.optimisation, sees_clips=False)


def _run_text(run: _Run) -> None:
    plan = run.recipe.text
    if run.is_done("text", plan.optimisation, sees_clips=False):
        return
    model = PortraitModel(run.recipe.sizes).to(run.device)
    _train_only(model, READING)
    objective = CaptionObjective(model, plan.batch_size, seed=run.recipe.seed)
    run.train("text", model, objective, plan.optimisation, sees_clips=False)


def _continue_from(model: PortraitModel, folder: Path, *stages: str) -> None:
    """Load what ``stages`` trained; what hears and reads stays as it is from now on."""
    for stage in stages:
        trained = load_checkpoint(folder / f"{stage}.safetensors").part("averages")
        model.load_state_dict({**model.state_dict(), **trained})
    for name, parameter in model.named_parameters():
        if name.startswith((*HEARING, *READING)):
            parameter.requires_grad_(False)


def _train_only(model: PortraitModel, prefixes: tuple[str, ...]) -> None:
    """Freeze every parameter whose name starts otherwise."""
    for name, parameter in model.named_parameters():
        if not name.startswith(prefixes):
            parameter.requires_grad_(False)


def _run_clips(run: _Run) -> None:
    recipe, share = run.recipe, run.share
    count = recipe.num_clips if run.until is None else min(run.until, recipe.num_clips)
    if not (run.folder / _STATISTICS).exists():
        vae = load_vae(recipe, run.folder).to(run.device)
        write_json(run.folder / _STATISTICS, _measure_latents(run.source, recipe, vae))
    prepare_clips(
        _clip_folder(run.folder, run.source),
        range(share.part, count, share.of),
        load_vae(recipe, run.folder).to(run.device),
        _front_end(recipe),
        recipe.sizes.audio_features,
        run.source.short,
    )


def _clip_folder(folder: Path, source: RecipeClips) -> Path:
    """Encoded clips of different sources are never mixed."""
    return folder / (f"clips-{source.mark}" if source.mark else "clips")


def _measure_latents(source: RecipeClips, recipe: Recipe, vae: TinyVAE) -> dict[str, list[float]]:
    """Mean of each latent channel and one standard deviation for all, over a few clips.

    One for all keeps the channels' proportions, so that an error weighs what it does in the
    picture: the colour channels spread four times as far as the others.
    """
    clips = []
    for index in range(min(_STATISTICS_CLIPS, recipe.num_clips)):
        clips.append(encode_frames(vae, source.whole.clip(index).frames))
    values = torch.cat([clip.float().flatten(1) for clip in clips], dim=1)
    return {
        "latents_mean": values.mean(1).tolist(),
        "latents_std": [float(values.var(1).mean().sqrt())],
    }


def _run_reader(run: _Run) -> None:
    plan = run.recipe.reader
    if run.is_done("reader", plan.optimisation, sees_clips=True):
        return
    reader = FaceReader(run.recipe.sizes.transformer.out_channels).to(run.device)
    objective = ReaderObjective(reader, _sampler(run, 1.0), plan.lesson)
    run.train("reader", reader, objective, plan.optimisation, sees_clips=True)


def _judge(run: _Run) -> FaceJudge | None:
    """The reader of its stage as a judge; none in a run that weighs all cells alike."""
    if not run.recipe.facial_mask:
        return None
    plan = run.recipe.reader
    reader = FaceReader(run.recipe.sizes.transformer.out_channels)
    reader.load_state_dict(load_checkpoint(run.folder / "reader.safetensors").part("averages"))
    reader.to(run.device).eval().requires_grad_(False)
    return FaceJudge(reader, plan.mouth_weight, plan.lids_weight)


def _run_flow(run: _Run) -> None:
    recipe = run.recipe
    model = PortraitModel(recipe.sizes)
    _continue_from(model, run.folder, "speech", "text")
    model.to(run.device)
    sampler = _sampler(run, recipe.flow_shift)
    objective = FlowObjective(
        model, sampler, recipe.curriculum, recipe.flow.num_steps,
        judge=_judge(run),
    )  # fmt: skip
    vae = load_vae(recipe, run.folder)

    def show(state: Trainer) -> None:
        model.write(run.folder / "demo", vae, recipe.sizes.generation, state.averages())
        _write_sheet(run.folder / "demo", run.folder / "flow_sample.png", run.device)

    run.train("flow", model, objective, recipe.flow, sees_clips=True, show=show)


def _run_distil(run: _Run) -> None:
    recipe, plan = run.recipe, run.recipe.distillation
    if plan is None:
        return
    teacher, student = PortraitModel(recipe.sizes), PortraitModel(recipe.sizes)
    # The two models share their encoders, so only one copy of them is shipped.
    for model in (teacher, student):
        _continue_from(model, run.folder, "speech", "text", "flow")
        model.to(run.device)
    taught = recipe.sizes.generation
    generation = replace(
        taught,
        num_steps=plan.num_steps,
        shift=plan.shift,
        audio_guidance_scale=1.0,
        window=min(taught.window, plan.window),
    )
    objective = DistillationObjective(
        student, teacher, _sampler(run, generation.shift), plan.lesson,
        FlowSchedule(plan.num_steps, generation.shift), teacher_steps=plan.teacher_steps,
        audio_guidance_scale=plan.audio_guidance_scale,
        judge=_judge(run),
    )  # fmt: skip
    vae = load_vae(recipe, run.folder)

    def show(state: Trainer) -> None:
        folder = run.folder / "demo-fast"
        student.write(folder, vae, generation, state.averages())
        _write_sheet(folder, run.folder / "distil_sample.png", run.device)

    run.train("distil", student, objective, plan.optimisation, sees_clips=True, show=show)


def _write_sheet(folder: Path, path: Path, device: torch.device) -> None:
    """The sheet needs the engine, which reads media; training alone does without."""
    try:
        from skyreels_rt.training.sample_sheet import write_sample_sheet
    except ModuleNotFoundError as missing:
        logger.warning("No sample sheet: %s.", missing)
        return
    write_sample_sheet(folder, path, device=device)


def _sampler(run: _Run, shift: float) -> WindowSampler:
    recipe = run.recipe
    clips: list[LatentClip] = load_clips(_clip_folder(run.folder, run.source), recipe.num_clips)
    return WindowSampler(
        clips,
        recipe.sizes.transformer,
        recipe.sizes.audio_features,
        shift=shift,
        facial_mask=recipe.facial_mask,
        seed=recipe.seed,
    )


def _front_end(recipe: Recipe) -> WhisperFeatures:
    """Log-mel front end; the encoder inside it is not used."""
    encoder = build_whisper_encoder(recipe.sizes.whisper)
    bins = recipe.sizes.whisper["num_mel_bins"]
    return WhisperFeatures(encoder, recipe.sizes.audio_features, bins)


_RUNNERS: dict[Stage, Callable[[_Run], None]] = {
    "vae": _run_vae,
    "speech": _run_speech,
    "text": _run_text,
    "clips": _run_clips,
    "reader": _run_reader,
    "flow": _run_flow,
    "distil": _run_distil,
}
