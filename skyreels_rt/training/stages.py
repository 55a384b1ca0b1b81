"""Runs a recipe stage by stage in a folder; every stage resumes from its own checkpoint.

The folder holds, per stage, ``<stage>.safetensors`` (state), ``<stage>.png`` (curves) and
``<stage>_sample.png`` (what the model makes of unseen portraits); besides ``clips/`` (encoded
clips) and the model folders ``demo/`` and ``demo-fast/``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from skyreels_rt.audio.whisper import WhisperFeatures, build_whisper_encoder
from skyreels_rt.config import read_json, write_json
from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.models.tiny_vae import TinyVAE
from skyreels_rt.training.batches import WindowSampler
from skyreels_rt.training.checkpoint import load_checkpoint
from skyreels_rt.training.clips import RecipeClips, drawn_clips
from skyreels_rt.training.distillation import DistillationObjective
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
from skyreels_rt.training.sample_sheet import write_sample_sheet
from skyreels_rt.training.speech_stage import SpeechObjective, SpeechSampler, draw_utterances
from skyreels_rt.training.text_stage import CaptionObjective
from skyreels_rt.training.trainer import Trainer
from skyreels_rt.training.vae_stage import reconstruction_losses

Stage = Literal["vae", "speech", "text", "clips", "flow", "distil"]
_STATISTICS = "latent_statistics.json"
_STATISTICS_CLIPS = 16
STAGES: tuple[Stage, ...] = ("vae", "speech", "text", "clips", "flow", "distil")


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    stages: Sequence[Stage] = STAGES,
    until: int | None = None,
    checkpoint_every_s: float = 120.0,
    clips: RecipeClips | None = None,
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

    Raises
    ------
    InvalidArgument
        Unknown stage.
    ModelError
        A stage needs one that did not run yet, or the folder belongs to another recipe.
    NonFinite
        Training diverged; the last checkpoint is intact.
    """
    source = drawn_clips(recipe) if clips is None else clips
    runners: dict[str, Callable[[Recipe, Path, int | None, float], None]] = {
        "vae": partial(_run_vae, source),
        "speech": _run_speech,
        "text": _run_text,
        "clips": partial(_run_clips, source),
        "flow": partial(_run_flow, source),
        "distil": partial(_run_distil, source),
    }
    for stage in stages:
        if stage not in runners:
            raise InvalidArgument("stages", expected=f"some of {STAGES}", got=stage)
    folder.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        torch.manual_seed(recipe.seed)
        runners[stage](recipe, folder, until, checkpoint_every_s)


def _run_vae(
    source: RecipeClips, recipe: Recipe, folder: Path, until: int | None, every_s: float
) -> None:
    vae = TinyVAE(recipe.sizes.vae)
    pool = FramePool(source.whole, recipe.crops, capacity=recipe.pool, seed=recipe.seed)

    def objective(step: int) -> dict[str, Tensor]:
        frames, weights = pool.batch(step)
        noise = torch.Generator().manual_seed(step)
        return reconstruction_losses(vae, frames, weights, noise)

    trainer = Trainer(
        vae, objective, recipe.vae, checkpoint=folder / "vae.safetensors",
        fingerprint=recipe.fingerprint + source.mark,
    )  # fmt: skip
    trainer.run(
        until=until, checkpoint_every_s=every_s, label="vae",
        on_checkpoint=lambda t: plot_history(t.history, folder / "vae.png"),
    )  # fmt: skip


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


def _run_speech(recipe: Recipe, folder: Path, until: int | None, every_s: float) -> None:
    sizes, plan = recipe.sizes, recipe.speech
    assert sizes.transformer.audio is not None
    model = PortraitModel(sizes)
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
    trainer = Trainer(
        model, SpeechObjective(model, sampler), plan.optimisation,
        checkpoint=folder / "speech.safetensors", fingerprint=recipe.fingerprint,
    )  # fmt: skip
    trainer.run(
        until=until, checkpoint_every_s=every_s, label="speech",
        on_checkpoint=lambda t: plot_history(t.history, folder / "speech.png"),
    )  # fmt: skip


def _run_text(recipe: Recipe, folder: Path, until: int | None, every_s: float) -> None:
    model = PortraitModel(recipe.sizes)
    _train_only(model, READING)
    trainer = Trainer(
        model,
        CaptionObjective(model, recipe.text.batch_size, seed=recipe.seed),
        recipe.text.optimisation,
        checkpoint=folder / "text.safetensors",
        fingerprint=recipe.fingerprint,
    )
    trainer.run(
        until=until, checkpoint_every_s=every_s, label="text",
        on_checkpoint=lambda t: plot_history(t.history, folder / "text.png"),
    )  # fmt: skip


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


def _run_clips(
    source: RecipeClips, recipe: Recipe, folder: Path, until: int | None, every_s: float
) -> None:
    del every_s
    front_end = _front_end(recipe)
    sizes, count = recipe.sizes, recipe.num_clips if until is None else min(until, recipe.num_clips)
    if not (folder / _STATISTICS).exists():
        write_json(folder / _STATISTICS, _measure_latents(source, recipe, load_vae(recipe, folder)))
    prepare_clips(
        _clip_folder(folder, source), count, load_vae(recipe, folder), front_end,
        sizes.audio_features, source.short,
    )  # fmt: skip


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


def _run_flow(
    source: RecipeClips, recipe: Recipe, folder: Path, until: int | None, every_s: float
) -> None:
    model = PortraitModel(recipe.sizes)
    _continue_from(model, folder, "speech", "text")
    sampler = _sampler(source, recipe, folder, recipe.flow_shift)
    objective = FlowObjective(model, sampler, recipe.curriculum, recipe.flow.num_steps)
    trainer = Trainer(
        model, objective, recipe.flow, checkpoint=folder / "flow.safetensors",
        fingerprint=recipe.fingerprint + source.mark,
    )  # fmt: skip
    vae = load_vae(recipe, folder)

    def show(state: Trainer) -> None:
        plot_history(state.history, folder / "flow.png")
        model.write(folder / "demo", vae, recipe.sizes.generation, state.averages())
        write_sample_sheet(folder / "demo", folder / "flow_sample.png")

    trainer.run(until=until, checkpoint_every_s=every_s, label="flow", on_checkpoint=show)


def _run_distil(
    source: RecipeClips, recipe: Recipe, folder: Path, until: int | None, every_s: float
) -> None:
    plan = recipe.distillation
    if plan is None:
        return
    teacher, student = PortraitModel(recipe.sizes), PortraitModel(recipe.sizes)
    # The two models share their encoders, so only one copy of them is shipped.
    for model in (teacher, student):
        _continue_from(model, folder, "speech", "text", "flow")
    taught = recipe.sizes.generation
    generation = replace(
        taught,
        num_steps=plan.num_steps,
        audio_guidance_scale=1.0,
        window=min(taught.window, plan.window),
    )
    objective = DistillationObjective(
        student, teacher, _sampler(source, recipe, folder, generation.shift), plan.lesson,
        FlowSchedule(plan.num_steps, generation.shift), teacher_steps=plan.teacher_steps,
        audio_guidance_scale=plan.audio_guidance_scale,
    )  # fmt: skip
    trainer = Trainer(
        student, objective, plan.optimisation, checkpoint=folder / "distil.safetensors",
        fingerprint=recipe.fingerprint + source.mark,
    )  # fmt: skip
    vae = load_vae(recipe, folder)

    def show(state: Trainer) -> None:
        plot_history(state.history, folder / "distil.png")
        student.write(folder / "demo-fast", vae, generation, state.averages())
        write_sample_sheet(folder / "demo-fast", folder / "distil_sample.png")

    trainer.run(until=until, checkpoint_every_s=every_s, label="distil", on_checkpoint=show)


def _sampler(source: RecipeClips, recipe: Recipe, folder: Path, shift: float) -> WindowSampler:
    clips: list[LatentClip] = load_clips(_clip_folder(folder, source), recipe.num_clips)
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
