"""Begins a run with the weights of a trained model instead of with none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from skyreels_rt.config import TinyVAEConfig, config_from_dict, read_json
from skyreels_rt.errors import ModelError
from skyreels_rt.models.tiny_vae import TinyVAE
from skyreels_rt.pretrained import model_folder
from skyreels_rt.training.checkpoint import Checkpoint, save_checkpoint
from skyreels_rt.training.portrait_model import PortraitModel
from skyreels_rt.training.recipe import HEARING, READING, Recipe

_PARTS = ("transformer", "text_encoder", "audio_encoder")


def trained_parts(recipe: Recipe, model: str | Path) -> tuple[PortraitModel, TinyVAE]:
    """Models of a recipe's sizes with the weights of a model folder, in float32 on the CPU.

    The heads that only training uses are not part of a folder; they stay as they begin.

    Parameters
    ----------
    recipe : Recipe
        Says the sizes.
    model : str or Path
        Name of an embedded model, or a folder that the recipe made.

    Raises
    ------
    ModelError
        The folder's model has other sizes, or its files cannot be read.
    """
    folder = model_folder(model)
    portrait = PortraitModel(recipe.sizes)
    stored = {
        f"{part}.{name}": tensor
        for part in _PARTS
        for name, tensor in _tensors(folder, part).items()
    }
    _fill(portrait, stored, model)
    kept = config_from_dict(
        TinyVAEConfig, read_json(_component(folder, "vae") / "config.json"), where="vae/config.json"
    )
    asked = recipe.sizes.vae
    bare = replace(kept, latents_mean=asked.latents_mean, latents_std=asked.latents_std)
    if bare != asked:
        raise _other_sizes(model, "vae/config.json")
    vae = TinyVAE(kept)
    _fill(vae, _tensors(folder, "vae"), model)
    return portrait, vae


def write_start(
    recipe: Recipe, folder: Path, model: str | Path, mark: str
) -> dict[str, list[float]]:
    """Write the checkpoints of a run in ``folder`` that begins with a trained model.

    VAE, ears and reading are finished; the transformer stands at step 0 of ``flow`` with the
    model's weights.

    Returns
    -------
    dict of str to list of float
        ``latents_mean`` and ``latents_std`` of the model's VAE.

    Raises
    ------
    ModelError
        As :func:`trained_parts`, or the folder holds a run already.
    """
    if any(
        (folder / f"{stage}.safetensors").exists() for stage in ("vae", "speech", "text", "flow")
    ):
        raise ModelError(
            f"{folder}: holds a run already.",
            stage="train",
            hint="Begin in an empty folder, or leave out the model to begin with.",
        )
    portrait, vae = trained_parts(recipe, model)
    of_portrait = dict(portrait.named_parameters())
    heard = {n: p for n, p in of_portrait.items() if n.startswith(HEARING)}
    read = {n: p for n, p in of_portrait.items() if n.startswith(READING)}
    painted = {n: p for n, p in of_portrait.items() if n not in heard and n not in read}
    seen, own = recipe.fingerprint + mark, recipe.fingerprint
    for stage, parameters, step, fingerprint in (
        ("vae", dict(vae.named_parameters()), recipe.vae.num_steps, seen),
        ("speech", heard, recipe.speech.optimisation.num_steps, own),
        ("text", read, recipe.text.optimisation.num_steps, own),
        ("flow", painted, 0, seen),
    ):
        tensors = {
            f"{kind}/{name}": parameter.detach().clone()
            for kind in ("weights", "averages")
            for name, parameter in parameters.items()
        }
        facts = {"fingerprint": fingerprint, "step": step, "history": [], "pending": []}
        save_checkpoint(folder / f"{stage}.safetensors", Checkpoint(tensors, facts))
    return {
        "latents_mean": list(vae.config.latents_mean),
        "latents_std": list(vae.config.latents_std),
    }


def _component(folder: Path, part: str) -> Path:
    """Sub-folder of a component, of the model beside it where it is shared."""
    own = folder / part
    base = read_json(folder / "model_index.json").get("_base")
    return folder.parent / str(base) / part if base is not None and not own.is_dir() else own


def _tensors(folder: Path, part: str) -> dict[str, Tensor]:
    files = sorted(_component(folder, part).glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: no weights of {part}.", stage="train")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _fill(module: nn.Module, stored: dict[str, Tensor], model: str | Path) -> None:
    """Copy ``stored`` into ``module``; only heads for training may be missing."""
    own = module.state_dict()
    missing = {name for name in own if not name.startswith(("mouth_head.", "caption_head."))}
    wrong = missing.symmetric_difference(stored) or {
        name for name, tensor in stored.items() if tensor.shape != own[name].shape
    }
    if wrong:
        raise _other_sizes(model, min(wrong))
    with torch.no_grad():
        for name, tensor in stored.items():
            own[name].copy_(tensor)


def _other_sizes(model: str | Path, where: str) -> ModelError:
    return ModelError(
        f"{model}: not a model of this recipe's sizes ({where} differs).",
        stage="train",
        hint="Begin with a model that the same recipe made.",
    )
