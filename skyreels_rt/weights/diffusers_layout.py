"""Reads the configuration files of diffusers' Wan models into ours."""

from __future__ import annotations

from typing import Any

from skyreels_rt.config import TransformerConfig, config_from_dict
from skyreels_rt.errors import ModelError

REQUIRED_VALUES: dict[str, object] = {
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "pos_embed_seq_len": None,
}
"""Keys of diffusers' config for which the Wan2.1 family has one value only."""

_SAME = (
    "patch_size", "in_channels", "out_channels", "ffn_dim", "num_layers", "freq_dim", "text_dim",
    "image_dim", "eps",
)  # fmt: skip
_USED = ("num_attention_heads", "attention_head_dim", *(k for k in _SAME if k != "image_dim"))


def transformer_config_from_diffusers(data: dict[str, Any], *, where: str) -> TransformerConfig:
    """Configuration of a plain Wan transformer from diffusers' ``WanTransformer3DModel`` config.

    Parameters
    ----------
    data : dict
        Parsed ``config.json``.
    where : str
        File named in error messages.

    Returns
    -------
    TransformerConfig
        Without audio adapter.

    Raises
    ------
    ModelError
        A key is missing or has a value that the Wan2.1 family does not use.
    """
    for key, value in REQUIRED_VALUES.items():
        if data.get(key, value) != value:
            raise ModelError(
                f"{where}: {key} is {data[key]!r}, expected {value!r}.",
                stage="load",
                hint="Only the Wan2.1 family is supported.",
            )
    missing = [key for key in _USED if key not in data]
    if missing:
        raise ModelError(f"{where}: {', '.join(missing)} missing.", stage="load")
    for key in ("num_attention_heads", "attention_head_dim"):
        if type(data[key]) is not int:
            raise ModelError(
                f"{where}: {key}: expected an integer, got {data[key]!r}.", stage="load"
            )
    ours = {name: data[name] for name in _SAME if name in data}
    ours["num_heads"] = data["num_attention_heads"]
    ours["dim"] = data["num_attention_heads"] * data["attention_head_dim"]
    return config_from_dict(TransformerConfig, ours, where=where)
