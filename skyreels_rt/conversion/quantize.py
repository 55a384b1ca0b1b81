"""Writes a transformer's checkpoint anew with layers in e4m3, one shard in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from torch import Tensor

from skyreels_rt.config import TransformerConfig, write_json
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models.transformer import SkyReelsTransformer
from skyreels_rt.quantization import POLICY_FILE, QuantPolicy, linear_layers, quantize_transformer
from skyreels_rt.weights import eight_bits
from skyreels_rt.weights.files import StoredTensor, reading_safetensors
from skyreels_rt.weights.key_maps import official_key
from skyreels_rt.weights.loader import save_weights


def quantized_layers(config: TransformerConfig, policy: QuantPolicy) -> frozenset[str]:
    """Our names of the layers that ``policy`` keeps in 8 bits.

    Raises
    ------
    InvalidArgument
        A rule fits no layer of the model.
    """
    cpu = torch.device("cpu")
    with torch.device("meta"):
        model = SkyReelsTransformer(config, KernelPlan.choose(cpu, torch.float32, "reference"))
    names = [name for name, _ in linear_layers(model)]
    quantize_transformer(model, policy, cpu, stays=True)
    return frozenset(name for name in names if policy.mode(name) != "full")


def write_quantized(
    entries: Mapping[str, StoredTensor],
    folder: Path,
    config: TransformerConfig,
    policy: QuantPolicy,
    *,
    max_shard_bytes: float = 5e9,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> None:
    """Write ``entries`` into ``folder``, the layers of ``policy`` in e4m3 with a scale per output.

    Parameters
    ----------
    entries : mapping of str to StoredTensor
        Checked headers of the source, under official or diffusers' names, which stay.
    folder : Path
        Existing folder of the component.
    config : TransformerConfig
        Sizes of the model.
    policy : QuantPolicy
        Which layers; written beside the weights, to be used when they are loaded.
    max_shard_bytes : float
        Above this size of the source a new shard begins.
    on_bytes : callable
        Called with the bytes of the source that each written shard took.

    Raises
    ------
    ModelError
        A file of the source cannot be read.
    InvalidArgument
        A rule of ``policy`` fits no layer.
    OutputError
        A shard cannot be written.
    """
    small = {f"{layer}.weight" for layer in quantized_layers(config, policy)}
    shards = _shards(entries, max_shard_bytes)
    weight_map: dict[str, str] = {}
    total = 0
    for number, keys in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors: dict[str, Tensor] = {}
        for key in keys:
            tensors |= _tensors(key, entries[key], is_small=official_key(key) in small)
        save_weights(tensors, folder, filename=name, max_shard_bytes=float("inf"))
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
        on_bytes(sum(entries[key].num_bytes for key in keys))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), "utf-8")
    write_json(folder / POLICY_FILE, policy.to_json())


def _shards(entries: Mapping[str, StoredTensor], max_bytes: float) -> list[list[str]]:
    """Names in the order of their files, cut where a part would grow too large."""
    parts: list[list[str]] = [[]]
    size = 0
    for key in sorted(entries, key=lambda key: (entries[key].file, key)):
        if parts[-1] and size + entries[key].num_bytes > max_bytes:
            parts.append([])
            size = 0
        parts[-1].append(key)
        size += entries[key].num_bytes
    return parts


def _tensors(key: str, entry: StoredTensor, *, is_small: bool) -> dict[str, Tensor]:
    """What is stored for one entry of the source: itself, or 8-bit rows and their scales."""
    stored = _read(entry)
    scale = None if entry.scale is None else _read(entry.scale)
    is_rows = entry.code == eight_bits.CODE
    if not is_small:
        return {key: eight_bits.full_weight(stored, scale).bfloat16() if is_rows else stored}
    if is_rows:
        values, scales = stored, eight_bits.per_row(scale, stored)
    else:
        values, scales = eight_bits.quantized(stored)
    return {key: values, f"{key.removesuffix('weight')}{eight_bits.SCALE_NAME}": scales}


def _read(entry: StoredTensor) -> Tensor:
    with reading_safetensors(entry.file), safe_open(entry.file, framework="pt") as handle:
        return cast("Tensor", handle.get_tensor(entry.name))
