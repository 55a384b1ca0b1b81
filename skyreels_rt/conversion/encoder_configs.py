"""``config.json`` of the official encoders, which publish none: sizes read from their tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

from skyreels_rt.errors import ModelError

Shapes = Mapping[str, tuple[int, ...]]

CLIP_HEADS = 16
"""Heads of ViT-H/14; the shapes do not tell (Wan-Video/Wan2.1 ``wan/modules/clip.py``)."""


def umt5_config(shapes: Shapes, where: str) -> dict[str, object]:
    """Configuration of transformers' ``UMT5EncoderModel`` with tensors of these shapes.

    Raises
    ------
    ModelError
        A tensor that tells a size is missing.
    """
    attention = "encoder.block.0.layer.0.SelfAttention"
    vocab_size, dim = _shape(shapes, "shared.weight", 2, where)
    buckets, heads = _shape(shapes, f"{attention}.relative_attention_bias.weight", 2, where)
    inner, _ = _shape(shapes, f"{attention}.q.weight", 2, where)
    hidden, _ = _shape(shapes, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 2, where)
    return {
        "model_type": "umt5",
        "vocab_size": vocab_size,
        "d_model": dim,
        "d_kv": inner // heads,
        "d_ff": hidden,
        "num_layers": _count(shapes, "encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
    }


def clip_config(shapes: Shapes, where: str) -> dict[str, object]:
    """Configuration of transformers' ``CLIPVisionModel`` with tensors of these shapes.

    Raises
    ------
    ModelError
        A tensor that tells a size is missing.
    """
    dim, _, patch, _ = _shape(shapes, "embeddings.patch_embedding.weight", 4, where)
    positions, _ = _shape(shapes, "embeddings.position_embedding.weight", 2, where)
    hidden, _ = _shape(shapes, "encoder.layers.0.mlp.fc1.weight", 2, where)
    return {
        "model_type": "clip_vision_model",
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": _count(shapes, "encoder.layers."),
        "num_attention_heads": CLIP_HEADS,
        "image_size": math.isqrt(positions - 1) * patch,
        "patch_size": patch,
        "hidden_act": "gelu",
    }


def vae_config(shapes: Shapes, where: str) -> dict[str, object]:
    """Configuration of diffusers' ``AutoencoderKLWan``, Wan2.1's, at the width of these tensors.

    Raises
    ------
    ModelError
        A tensor that tells a size is missing.
    """
    base_dim = _shape(shapes, "encoder.conv_in.weight", 5, where)[0]
    return {
        "base_dim": base_dim,
        "z_dim": _shape(shapes, "post_quant_conv.weight", 5, where)[0],
    }


def _shape(shapes: Shapes, name: str, ndim: int, where: str) -> tuple[int, ...]:
    shape = shapes.get(name, ())
    if len(shape) != ndim or 0 in shape:
        raise ModelError(
            f"{where}: {name} is missing or has another number of dimensions: {shape}.",
            stage="convert",
            hint="Only the encoders of Wan2.1 releases are known.",
        )
    return shape


def _count(shapes: Shapes, prefix: str) -> int:
    """Number of layers whose names start with ``prefix``."""
    return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})
