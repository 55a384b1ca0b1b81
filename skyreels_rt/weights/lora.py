"""Low-rank additions (LoRA, Hu et al. 2021, arXiv 2106.09685), merged into weights as they load.

A file holds pairs ``up (out, r)``, ``down (r, in)`` for some weights: ``W + scale alpha / r up
down``; some also hold plain differences of weights, biases and modulations (``diff``, ``diff_b``,
``diff_m``). Names follow one of:

=================== ===========================================================
style               example
=================== ===========================================================
Wan, lightx2v       ``diffusion_model.blocks.0.self_attn.q.lora_down.weight``
diffusers, peft     ``transformer.blocks.0.attn1.to_q.lora_A.weight``
kohya               ``lora_unet_blocks_0_self_attn_q.lora_down.weight``
=================== ===========================================================
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from torch import Tensor

from skyreels_rt.errors import InvalidArgument, ModelError, NonFinite, WeightsMismatch
from skyreels_rt.weights.files import StoredTensor, read_headers, reading_safetensors
from skyreels_rt.weights.key_maps import official_key

_PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.", "model.")
_KOHYA = "lora_unet_"
_PART = re.compile(
    r"(?P<stem>.+)\.(?:lora_(?P<part>down|up|A|B)(?:\.default)?(?:\.weight)?|(?P<other>alpha|diff|diff_b|diff_m))"
)
_PART_NAMES = {"down": "down", "A": "down", "up": "up", "B": "up"}
_DIFFERENCES = {"diff": ".weight", "diff_b": ".bias", "diff_m": ".modulation"}


@dataclass(frozen=True)
class Lora:
    """A LoRA to merge into the transformer when a model is loaded.

    Attributes
    ----------
    path : str or Path
        A ``.safetensors`` file.
    scale : float
        Factor of the whole addition; finite.
    """

    path: str | Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise InvalidArgument("lora.scale", expected="a finite number", got=self.scale)


@dataclass
class _Addition:
    """Stored parts of one file for one of the model's tensors."""

    lora: Lora
    parts: dict[str, StoredTensor] = field(default_factory=dict)


class LoraStack:
    """LoRAs checked against a model by their headers, merged tensor by tensor while it loads.

    Parameters
    ----------
    loras : sequence of Lora
        Files and scales; several add up.
    shapes : mapping of str to tuple of int
        The model's tensors by our names.

    Raises
    ------
    ModelError
        A file is missing, pickled or damaged.
    WeightsMismatch
        Tensors of a file that fit nothing in the model, or pairs that are not complete: all of
        them by name.
    """

    def __init__(self, loras: Sequence[Lora], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._additions: dict[str, list[_Addition]] = {}
        by_underscores = {
            name.removesuffix(".weight").replace(".", "_"): name.removesuffix(".weight")
            for name in shapes
        }
        for lora in loras:
            for target, addition in _read(lora, shapes, by_underscores).items():
                self._additions.setdefault(target, []).append(addition)

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the model's tensors that change."""
        return tuple(self._additions)

    def merge(self, name: str, weight: Tensor) -> Tensor:
        """``weight`` with every addition to the model's tensor ``name``, summed in float32.

        Raises
        ------
        NonFinite
            An addition holds NaN or infinity.
        """
        additions = self._additions.get(name)
        if additions is None:
            return weight
        total = weight.float()
        for addition in additions:
            delta = _delta(addition, total)
            if not torch.isfinite(delta).all():
                raise NonFinite(
                    f"{addition.lora.path}: NaN or infinity in the addition to {name}.",
                    stage="load",
                )
            total = total + addition.lora.scale * delta
        return total


def _read(
    lora: Lora, shapes: Mapping[str, tuple[int, ...]], by_underscores: Mapping[str, str]
) -> dict[str, _Addition]:
    """Additions of one file by the name of the tensor they change."""
    path = Path(lora.path)
    if path.suffix != ".safetensors":
        raise ModelError(
            f"{path}: a LoRA is read from a .safetensors file only.",
            stage="load",
            hint="Pickled files can run code and are never read at run time.",
        )
    if not path.is_file():
        raise ModelError(f"{path}: no such file.", stage="load")
    found: dict[str, _Addition] = {}
    unknown: list[str] = []
    misshaped: list[str] = []
    for name, entry in read_headers([path]).items():
        target, part = _target(name, by_underscores)
        if target not in shapes:
            unknown.append(name)
            continue
        parts = found.setdefault(target, _Addition(lora)).parts
        if part in parts:
            misshaped.append(f"{name}: {parts[part].name} says the same of {target}")
        parts[part] = entry
    for name, addition in found.items():
        misshaped += _faults(name, addition, shapes[name])
    if unknown or misshaped or not found:
        raise _mismatch(path, unknown, misshaped)
    return found


def _target(name: str, by_underscores: Mapping[str, str]) -> tuple[str, str]:
    """Our name of the tensor that ``name`` changes, and which part of the change it is."""
    match = _PART.fullmatch(name)
    if match is None:
        return "", ""
    stem = match["stem"]
    if stem.startswith(_KOHYA):
        stem = by_underscores.get(stem.removeprefix(_KOHYA), "")
    for prefix in _PREFIXES:
        stem = stem.removeprefix(prefix)
    if match["other"] in _DIFFERENCES:
        return official_key(f"{stem}{_DIFFERENCES[match['other']]}"), match["other"]
    part = match["other"] or _PART_NAMES[match["part"]]
    return official_key(f"{stem}.weight"), part


def _faults(name: str, addition: _Addition, shape: tuple[int, ...]) -> Iterable[str]:
    """What is wrong with the parts for the tensor ``name``, one line each."""
    parts = addition.parts
    for part in _DIFFERENCES:
        if part in parts and parts[part].shape != shape:
            yield f"{parts[part].name}: expected {shape}, got {parts[part].shape}"
    down, up = parts.get("down"), parts.get("up")
    if (down is None) != (up is None) or ("alpha" in parts and down is None):
        yield f"{name}: expected both halves of the pair, got {', '.join(sorted(parts))}"
    elif down is not None and up is not None:
        rows, columns = shape[0], math.prod(shape[1:])
        fits = (
            len(up.shape) >= 2 <= len(down.shape)
            and down.shape[0] > 0
            and up.shape[0] == rows
            and math.prod(up.shape[1:]) == down.shape[0]
            and math.prod(down.shape[1:]) == columns
        )
        if not fits:
            yield f"{name}: expected a pair for {shape}, got {up.shape} and {down.shape}"
    if "alpha" in parts and math.prod(parts["alpha"].shape) != 1:
        yield f"{parts['alpha'].name}: expected one number, got {parts['alpha'].shape}"


def _mismatch(path: Path, unknown: list[str], misshaped: list[str]) -> WeightsMismatch:
    lines = [f"{path}: the LoRA does not fit the transformer."]
    for kind, names in (("unknown", unknown), ("misshaped", misshaped)):
        lines += [f"  {kind} ({len(names)}):"] * bool(names) + [f"    {name}" for name in names]
    if not unknown and not misshaped:
        lines.append("  it holds no tensors")
    return WeightsMismatch("\n".join(lines), unexpected=tuple(unknown), misshaped=tuple(misshaped))


def _delta(addition: _Addition, weight: Tensor) -> Tensor:
    """What one file adds to ``weight`` at scale 1, in its shape, float32, on its device."""

    def load(part: str) -> Tensor:
        entry = addition.parts[part]
        with reading_safetensors(entry.file), safe_open(entry.file, framework="pt") as handle:
            stored = cast("Tensor", handle.get_tensor(entry.name))
        return stored.to(weight.device, torch.float32)

    delta = torch.zeros_like(weight)
    if "down" in addition.parts:
        down, up = load("down").flatten(1), load("up").flatten(1)
        rank = down.shape[0]
        alpha = load("alpha").item() if "alpha" in addition.parts else float(rank)
        delta += (up @ down).reshape(weight.shape) * (alpha / rank)
    for part in _DIFFERENCES:
        if part in addition.parts:
            delta += load(part)
    return delta
