"""Which layers of the transformer are kept in 8 bits, and making them so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from skyreels_rt.config import read_json
from skyreels_rt.errors import InvalidArgument, ModelError
from skyreels_rt.models.audio_adapter import AudioCrossAttention
from skyreels_rt.models.fp8_linear import Fp8Linear, require_products
from skyreels_rt.models.transformer import SkyReelsTransformer

LayerMode = Literal["full", "fp8", "fp8_weight"]

POLICY_FILE = "quantization.json"
"""In a transformer's folder: the policy that its weights were stored for."""


@dataclass(frozen=True)
class QuantPolicy:
    """How every linear layer of the blocks is kept; everything else stays as it is.

    Embeddings, time path, norms, head, audio packer and the cached keys and values' arithmetic are
    never touched: they are small, or their error would enter every token.

    Attributes
    ----------
    rules : tuple of (str, mode)
        Patterns of layer names (``fnmatch``), such as ``"blocks.*.ffn.*"``; the first that fits
        decides. ``"fp8"`` multiplies tokens and weights in e4m3, ``"fp8_weight"`` only stores the
        weight so, ``"full"`` leaves the layer. Layers that no pattern fits are left, too.

    Raises
    ------
    InvalidArgument
        A mode is none of these.
    """

    rules: tuple[tuple[str, LayerMode], ...]

    def __post_init__(self) -> None:
        for pattern, mode in self.rules:
            if mode not in get_args(LayerMode):
                raise InvalidArgument(
                    f"quantization: {pattern}",
                    expected=f"one of {get_args(LayerMode)}",
                    got=repr(mode),
                )

    def mode(self, layer: str) -> LayerMode:
        """How the layer of this name is kept."""
        for pattern, mode in self.rules:
            if fnmatchcase(layer, pattern):
                return mode
        return "full"

    def to_json(self) -> dict[str, Any]:
        """As JSON; :meth:`from_json` reads it."""
        return {"rules": [list(rule) for rule in self.rules]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, where: str) -> QuantPolicy:
        """The policy that :meth:`to_json` wrote.

        Raises
        ------
        ModelError
            ``data``, which comes from ``where``, is no policy.
        """
        rules = data.get("rules")
        if not isinstance(rules, list) or not all(_is_rule(rule) for rule in rules):
            raise ModelError(
                f"{where}: expected rules of layer names and one of {get_args(LayerMode)}, got "
                f"{rules!r}.",
                stage="load",
            )
        return cls(tuple((pattern, mode) for pattern, mode in rules))


def _is_rule(rule: object) -> bool:
    return (
        isinstance(rule, list)
        and len(rule) == 2
        and isinstance(rule[0], str)
        and rule[1] in get_args(LayerMode)
    )


# The audio projections are folded into the audio's keys and values, in full precision: exact, and
# less arithmetic than 8-bit products would need. Keys and values of prompt and portrait are made
# once a job, so 8-bit products would save nothing there; "*[!o]" leaves k_audio and v_audio out.
POLICIES: dict[str, QuantPolicy] = {
    "fp8": QuantPolicy(
        (
            ("blocks.*.self_attn.?", "fp8"),
            ("blocks.*.cross_attn.[qo]", "fp8"),
            ("blocks.*.cross_attn.*[!o]", "fp8_weight"),
            ("blocks.*.ffn.*", "fp8"),
        )
    ),
    "fp8_weight": QuantPolicy(
        (
            ("blocks.*.self_attn.?", "fp8_weight"),
            ("blocks.*.cross_attn.[qo]", "fp8_weight"),
            ("blocks.*.cross_attn.*[!o]", "fp8_weight"),
            ("blocks.*.ffn.*", "fp8_weight"),
        )
    ),
}
"""Policies by name."""


def resolve_policy(quantization: str | QuantPolicy | None) -> QuantPolicy | None:
    """The policy meant, None for none.

    Raises
    ------
    InvalidArgument
        An unknown name, or something else.
    """
    if quantization is None or isinstance(quantization, QuantPolicy):
        return quantization
    if isinstance(quantization, str) and quantization in POLICIES:
        return POLICIES[quantization]
    raise InvalidArgument(
        "quantization",
        expected=f"None, a QuantPolicy, or one of {', '.join(POLICIES)}",
        got=repr(quantization),
    )


def stored_policy(
    folder: Path, stored: Mapping[str, bool], transformer: SkyReelsTransformer
) -> QuantPolicy | None:
    """How the layers of a checkpoint are kept where nobody says otherwise: as they are stored.

    Parameters
    ----------
    folder : Path
        The transformer's folder; a ``quantization.json`` there decides.
    stored : mapping of str to bool
        Whether the file holds a tensor, by our name, in e4m3.
    transformer : SkyReelsTransformer
        The model; only its layers' names count.

    Returns
    -------
    QuantPolicy or None
        None where no layer is stored in 8 bits. Without the file, layers in e4m3 keep such weights
        and multiply in full precision, which every device can.

    Raises
    ------
    ModelError
        The file is no policy.
    """
    if (folder / POLICY_FILE).is_file():
        return QuantPolicy.from_json(read_json(folder / POLICY_FILE), where=POLICY_FILE)
    small = [name for name, _ in linear_layers(transformer) if stored.get(f"{name}.weight")]
    return QuantPolicy(tuple((name, "fp8_weight") for name in small)) if small else None


def quantize_transformer(
    transformer: SkyReelsTransformer,
    policy: QuantPolicy,
    device: torch.device,
    *,
    stays: bool = False,
) -> int:
    """Replace layers of ``transformer`` by their 8-bit form, in place, one at a time.

    Parameters
    ----------
    transformer : SkyReelsTransformer
        Loaded model, or one on the meta device, which is filled with 8-bit weights afterwards.
    policy : QuantPolicy
        Which layers.
    device : torch.device
        Where the model will compute. Each layer is quantised there and left there.
    stays : bool
        Quantise each layer where it lies instead, and leave it there.

    Returns
    -------
    int
        Layers replaced.

    Raises
    ------
    InvalidArgument
        A rule fits no layer of this model.
    UnsupportedKernel
        The device cannot multiply a layer in e4m3.
    """
    layers = dict(linear_layers(transformer))
    for pattern, _ in policy.rules:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise InvalidArgument(
                "quantization",
                expected="patterns that fit some layer",
                got=repr(pattern),
                hint=f"Layers are named like {next(iter(layers))}.",
            )
    count = 0
    for name, layer in layers.items():
        mode = policy.mode(name)
        if mode == "full":
            continue
        if mode == "fp8":
            require_products(device, layer.weight.shape)
        place = layer.weight.device if stays else device
        bias = None if layer.bias is None else layer.bias.to(place)
        owner, _, leaf = name.rpartition(".")
        small = Fp8Linear(layer.weight.to(place), bias, mode, transformer.plan.quantize_rows)
        transformer.get_submodule(owner).register_module(leaf, small)
        count += 1
    for module in transformer.modules():
        if isinstance(module, AudioCrossAttention):
            module.stop_folding_quantized()
    return count


def linear_layers(transformer: SkyReelsTransformer) -> Iterator[tuple[str, nn.Linear]]:
    """Layers that a policy may name, in order."""
    for name, module in transformer.named_modules():
        if name.startswith("blocks.") and isinstance(module, nn.Linear):
            yield name, module


def weights_note(transformer: SkyReelsTransformer) -> str:
    """What is unusual about the weights, as the end of a line; empty for nothing."""
    counts: dict[str, int] = {}
    for module in transformer.modules():
        if isinstance(module, Fp8Linear):
            counts[module.mode] = counts.get(module.mode, 0) + 1
    notes = [f", {count} layers {mode}" for mode, count in sorted(counts.items())]
    if transformer.offload is not None:
        notes.append(", blocks in host memory")
    return "".join(notes)
