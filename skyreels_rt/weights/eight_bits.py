"""Weights that a checkpoint keeps in e4m3, and a layer's weight as rows in 8 bits.

============================= ================== ==================================================
written by                    weight             scale
============================= ================== ==================================================
this engine, LightX2V         ``x.weight``       ``x.weight_scale``, one number or one per row
ComfyUI                       ``x.weight``       ``x.scale_weight``, one number; ``scaled_fp8``
optimum-quanto                ``x.weight._data`` ``x.weight._scale``, one number or one per row
a plain cast                  ``x.weight``       none: it is 1
============================= ================== ==================================================

Scales of activations beside them (``x.input_scale``, ``x.scale_input``, ``x.output_scale``) are not
used: tokens get scales of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from skyreels_rt.errors import ModelError
from skyreels_rt.kernels import Impl, quantize_rows

if TYPE_CHECKING:
    from skyreels_rt.weights.files import StoredTensor

CODE = "F8_E4M3"
"""safetensors' code of e4m3."""

DTYPE = torch.float8_e4m3fn
SCALE_NAME = "weight_scale"
"""Name of the scales beside a layer's ``weight``, in our modules and files."""

_SCALES = (SCALE_NAME, "scale_weight", "weight._scale")
_UNUSED = ("input_scale", "scale_input", "output_scale")
_MARKER = "scaled_fp8"
_CHUNK = 1 << 24
"""Numbers that are quantised at a time, which bounds the float32 copies."""


def join_scales(found: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Headers with each weight in e4m3 under its plain name, its scale beside it in one entry.

    Parameters
    ----------
    found : mapping of str to StoredTensor
        Headers by stored name.

    Raises
    ------
    ModelError
        A weight has two scales.
    """
    joined = dict(found)
    for name, entry in found.items():
        key = name.removesuffix("._data")
        if entry.code != CODE or not key.endswith(".weight"):
            continue
        layer = key.removesuffix("weight")
        scales = [joined.pop(layer + form) for form in _SCALES if layer + form in joined]
        if len(scales) > 1:
            names = " and ".join(scale.name for scale in scales)
            raise ModelError(f"{key}: two scales in {entry.file}, {names}.", stage="load")
        for form in _UNUSED:
            joined.pop(layer + form, None)
        joined.pop(_MARKER, None)
        del joined[name]
        joined[key] = replace(entry, scale=scales[0] if scales else None)
    return joined


def scale_misfit(label: str, entry: StoredTensor) -> list[str]:
    """Say what is wrong with the scale of ``entry``, in zero or one line."""
    scale = entry.scale
    if scale is None:
        return []
    if scale.code in ("F32", "F16", "BF16") and prod(scale.shape) in (1, entry.shape[0]):
        return []
    return [
        f"{scale.name}: expected one floating-point number, or {entry.shape[0]}, for {label}, got "
        f"{scale.shape} {scale.code}"
    ]


def per_row(scale: Tensor | None, weight: Tensor) -> Tensor:
    """Scale of every row of ``weight`` (N, ...), as stored for it: (N, 1), float32."""
    rows = weight.shape[0]
    if scale is None:
        return torch.ones(rows, 1, device=weight.device)
    flat = scale.to(weight.device, torch.float32).reshape(-1, 1)
    return flat.expand(rows, 1).contiguous()


def full_weight(weight: Tensor, scale: Tensor | None) -> Tensor:
    """What the 8-bit ``weight`` (N, ...) and its stored scale mean, float32."""
    scales = per_row(scale, weight).reshape(-1, *[1] * (weight.ndim - 1))
    return weight.float().mul_(scales)


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of ``weight`` (N, K) in e4m3 and their scales (N, 1), a few rows at a time.

    The numbers are those of :func:`skyreels_rt.kernels.quantize_rows`.
    """
    rows, columns = weight.shape
    values = torch.empty(rows, columns, dtype=DTYPE, device=weight.device)
    scales = torch.empty(rows, 1, device=weight.device)
    step = max(1, _CHUNK // max(1, columns))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        values[part], scales[part] = quantize_rows(weight[part], impl=Impl.REFERENCE)
    return values, scales
