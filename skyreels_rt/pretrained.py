"""A model by its name or folder: what :meth:`Engine.from_pretrained` loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from skyreels_rt.components import Components, load_components, stored_transformer_dtype
from skyreels_rt.errors import InvalidArgument, ModelError
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models.transformer import offload_blocks
from skyreels_rt.quantization import QuantPolicy, quantize_transformer, resolve_policy
from skyreels_rt.runtime.device import resolve_device, resolve_dtype
from skyreels_rt.types import LoadCallback
from skyreels_rt.weights.files import PICKLE_SUFFIXES
from skyreels_rt.weights.hub import fetch_snapshot, is_hub_id
from skyreels_rt.weights.lora import Lora

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
    quantization: str | QuantPolicy | None = None,
    offload: bool = False,
    loras: Sequence[Lora] = (),
    revision: str | None = None,
    offline: bool = False,
    on_progress: LoadCallback | None = None,
) -> Components:
    """Parts of a model; takes and raises what :meth:`Engine.from_pretrained` does."""
    policy = resolve_policy(quantization)
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    if str(model) == TINY_NAME:
        if loras:
            raise InvalidArgument("loras", expected=f"none with {TINY_NAME}", got=len(loras))
        from skyreels_rt.testing.tiny import tiny_components

        plan = KernelPlan.choose(where, kind, kernels)
        tiny = tiny_components(device=where, dtype=kind, plan=plan)
        return _fitted(tiny, policy, offload=offload)
    folder = (
        fetch_snapshot(str(model), revision=revision, offline=offline)
        if is_hub_id(model)
        else _existing_folder(model)
    )
    _require_model_folder(folder)
    kind = resolve_dtype(dtype, where, stored=stored_transformer_dtype(folder))
    plan = KernelPlan.choose(where, kind, kernels)
    # What is to shrink, or to stay in host memory, need not fit the device first.
    staged = torch.device("cpu") if offload or policy is not None else where
    parts = load_components(
        folder, device=where, dtype=kind, plan=plan, transformer_device=staged,
        loras=loras, on_progress=on_progress,
    )  # fmt: skip
    parts = _fitted(parts, policy, offload=offload)
    return replace(parts, name=str(model)) if str(model) in embedded_models() else parts


def _require_model_folder(folder: Path) -> None:
    """Say what to do with a published folder that is not a model folder yet."""
    if (folder / "model_index.json").is_file():
        return
    if any(path.suffix in PICKLE_SUFFIXES for path in folder.iterdir()):
        raise ModelError(
            f"{folder}: an official release with pickled parts, which are never read at run time.",
            stage="load",
            hint=f"Convert it once: skyreels-rt convert {folder} TARGET",
        )


def load_shapes(
    model: str | Path,
    *,
    dtype: str | torch.dtype,
    quantization: str | QuantPolicy | None = None,
    offload: bool = False,
) -> Components:
    """Parts of a model folder without their weights, for what follows from shapes alone."""
    policy, folder = resolve_policy(quantization), _existing_folder(model)
    cpu, meta = torch.device("cpu"), torch.device("meta")
    kind = resolve_dtype(dtype, cpu, stored=stored_transformer_dtype(folder))
    plan = KernelPlan.choose(cpu, kind, "auto")
    parts = load_components(folder, device=meta, dtype=kind, plan=plan)
    return _fitted(parts, policy, offload=offload)


def _fitted(parts: Components, policy: QuantPolicy | None, *, offload: bool) -> Components:
    """The same parts, the transformer quantised and offloaded as asked."""
    transformer = parts.transformer
    if policy is not None:
        quantize_transformer(transformer, policy, parts.device, stays=offload)
    if offload:
        offload_blocks(transformer, parts.device)
    else:
        transformer.to(parts.device)
    return parts


def _existing_folder(model: str | Path) -> Path:
    folder = model_folder(model)
    if folder.is_file():
        raise ModelError(
            f"{folder}: a file, expected a model folder.",
            stage="load",
            hint="Pickled checkpoints (.pth, .pt, .ckpt, .bin) are never read; convert a release "
            "to a model folder first (skyreels-rt convert).",
        )
    if not folder.is_dir():
        names = ", ".join((*embedded_models(), TINY_NAME))
        raise ModelError(
            f"{model}: no such model.",
            stage="load",
            hint=f"Give a model folder, a hub id (owner/name), or one of: {names}.",
        )
    return folder
