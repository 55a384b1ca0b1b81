"""A model by its name or folder: what :meth:`Engine.from_pretrained` loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from skyreels_rt.components import Components, load_components, stored_transformer_dtype
from skyreels_rt.errors import ModelError
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.runtime.device import resolve_device, resolve_dtype

TINY_NAME = "tiny-random"
_ASSETS = Path(__file__).parent / "assets"


def embedded_models() -> tuple[str, ...]:
    """Names of the trained models inside the package."""
    return tuple(sorted(index.parent.name for index in _ASSETS.glob("*/model_index.json")))


def model_folder(model: str | Path) -> Path:
    """Folder of an embedded model by its name; any other path as it is."""
    return _ASSETS / model if str(model) in embedded_models() else Path(model)


def load_pretrained(
    model: str | Path,
    *,
    device: str | torch.device,
    dtype: str | torch.dtype,
    kernels: Literal["auto", "reference"] | Mapping[str, str],
) -> Components:
    """Parts of a model; takes and raises what :meth:`Engine.from_pretrained` does."""
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    if str(model) == TINY_NAME:
        from skyreels_rt.testing.tiny import tiny_components

        plan = KernelPlan.choose(where, kind, kernels)
        return tiny_components(device=where, dtype=kind, plan=plan)
    folder = _existing_folder(model)
    kind = resolve_dtype(dtype, where, stored=stored_transformer_dtype(folder))
    plan = KernelPlan.choose(where, kind, kernels)
    parts = load_components(folder, device=where, dtype=kind, plan=plan)
    return replace(parts, name=str(model)) if str(model) in embedded_models() else parts


def _existing_folder(model: str | Path) -> Path:
    folder = model_folder(model)
    if folder.is_file():
        raise ModelError(
            f"{folder}: a file, expected a model folder.",
            stage="load",
            hint="Pickled checkpoints (.pth, .pt, .ckpt, .bin) are never read; convert them to "
            "a folder with safetensors first.",
        )
    if not folder.is_dir():
        names = ", ".join((*embedded_models(), TINY_NAME))
        raise ModelError(
            f"{model}: no such model.",
            stage="load",
            hint=f"Give a model folder, or one of: {names}.",
        )
    return folder
