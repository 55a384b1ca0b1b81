"""Reads the configuration files of official Wan-shaped releases into ours.

Sources: Wan-Video/Wan2.1 ``wan/modules/model.py``, MeiGen-AI/MultiTalk
``wan/modules/multitalk_model.py`` and SkyworkAI/SkyReels-V3 ``modules/transformer_a2v.py``, whose
``WanModel`` classes register their constructor's arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skyreels_rt.config import AudioAdapterConfig, TransformerConfig, config_from_dict
from skyreels_rt.errors import ModelError
from skyreels_rt.weights.families import Family
from skyreels_rt.weights.key_maps import official_key

MODEL_TYPES = ("t2v", "i2v")
"""Values of ``model_type`` that the engine runs."""

WAV2VEC2_LAYERS = 12
"""Hidden states of the chinese-wav2vec2-base encoder, a constant of the official class."""

_RENAMED = {
    "dim": "dim",
    "ffn_dim": "ffn_dim",
    "freq_dim": "freq_dim",
    "in_dim": "in_channels",
    "out_dim": "out_channels",
    "num_heads": "num_heads",
    "num_layers": "num_layers",
    "text_len": "text_length",
    "eps": "eps",
}
_DEFAULTS = {"freq_dim": 256, "out_dim": 16, "text_len": 512, "eps": 1e-6}
_FIXED: dict[str, object] = {
    "patch_size": [1, 2, 2],
    "window_size": [-1, -1],
    "qk_norm": True,
    "cross_attn_norm": True,
    "norm_input_visual": True,
    "vae_scale": 4,
}
_AUDIO = {"audio_window": 5, "norm_output_audio": True}


def transformer_config_from_official(
    data: dict[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    family: Family,
    *,
    where: str,
) -> TransformerConfig:
    """Configuration of a transformer from an official ``config.json`` and its tensors' shapes.

    The file leaves out what the class has as a constant (widths of text, image and audio features);
    those are read from the shapes.

    Parameters
    ----------
    data : dict
        Parsed ``config.json`` of a ``WanModel``.
    shapes : mapping of str to tuple of int
        Shape of every tensor, by its name in the checkpoint.
    family : Family
        What :func:`skyreels_rt.weights.families.detect_family` says of the names.
    where : str
        File named in error messages.

    Raises
    ------
    ModelError
        A key is missing or has a value that the family does not use, or a tensor that tells a width
        is absent.
    """
    if data.get("model_type", "i2v") not in MODEL_TYPES:
        raise ModelError(
            f"{where}: model_type is {data['model_type']!r}.",
            stage="load",
            hint=f"Known: {', '.join(MODEL_TYPES)}.",
        )
    for key, value in _FIXED.items():
        if data.get(key, value) != value:
            raise ModelError(f"{where}: {key} is {data[key]!r}, expected {value!r}.", stage="load")
    values = _DEFAULTS | {key: data[key] for key in _RENAMED if key in data}
    missing = [key for key in _RENAMED if key not in values]
    if missing:
        raise ModelError(f"{where}: {', '.join(missing)} missing.", stage="load")
    named = {official_key(name): shape for name, shape in shapes.items()}
    ours: dict[str, Any] = {_RENAMED[key]: value for key, value in values.items()}
    ours["text_dim"] = _shape(named, "text_embedding.0.weight", where)[-1]
    if "img_emb.proj.0.weight" in named:
        ours["image_dim"] = _shape(named, "img_emb.proj.0.weight", where, ndim=1)[0]
    if family.audio == "own_query":
        ours["audio"] = _own_query_audio(data, named, where)
    elif family.audio == "shared_query":
        ours["audio"] = _shared_query_audio(named, where)
    return config_from_dict(TransformerConfig, ours, where=where)


def _own_query_audio(
    data: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str
) -> dict[str, Any]:
    options = _AUDIO | {key: data[key] for key in _AUDIO if key in data}
    window = options["audio_window"]
    if type(window) is not int or window < 1:
        raise ModelError(
            f"{where}: audio_window: expected a positive integer, got {window!r}.", stage="load"
        )
    outputs, hidden = _shape(shapes, "audio_proj.proj3.weight", where)
    _, inputs = _shape(shapes, "audio_proj.proj1.weight", where)
    token_dim = _shape(shapes, "blocks.0.audio_cross_attn.kv_linear.weight", where)[-1]
    return {
        "kind": "own_query",
        "feature_layers": WAV2VEC2_LAYERS,
        "feature_dim": inputs // (window * WAV2VEC2_LAYERS),
        "features_per_frame": 1,
        "window": window,
        "num_tokens": outputs // token_dim,
        "token_dim": token_dim,
        "hidden_dim": hidden,
        "norm_output": options["norm_output_audio"],
    }


def _shared_query_audio(shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, Any]:
    # FantasyTalking's windows at 25 fps: 9 features of 50 Hz, and 4 more on either side.
    token_dim, feature_dim = _shape(shapes, "audio_proj.proj.weight", where)
    return {
        "kind": "shared_query",
        "feature_layers": 1,
        "feature_dim": feature_dim,
        "features_per_frame": 2,
        "window": AudioAdapterConfig.window,
        "num_tokens": 17,
        "token_dim": token_dim,
    }


def _shape(
    shapes: Mapping[str, tuple[int, ...]], name: str, where: str, *, ndim: int = 2
) -> tuple[int, ...]:
    shape = shapes.get(name, ())
    if len(shape) != ndim or 0 in shape:
        raise ModelError(
            f"{where}: the width of {name} is not known: expected {ndim} dimensions, got {shape}.",
            stage="load",
        )
    return shape
