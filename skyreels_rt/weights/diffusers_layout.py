"""Reads the configuration files of diffusers' Wan models into ours."""

from __future__ import annotations

from typing import Any

from skyreels_rt.config import TransformerConfig
from skyreels_rt.errors import InvalidArgument, ModelError

REQUIRED_VALUES: dict[str, object] = {
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "pos_embed_seq_len": None,
}
"""Keys of diffusers' config for which the Wan2.1 family has one value only."""


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
    try:
        return TransformerConfig(
            patch_size=tuple(data["patch_size"]),
            in_channels=data["in_channels"],
            out_channels=data["out_channels"],
            dim=data["num_attention_heads"] * data["attention_head_dim"],
            ffn_dim=data["ffn_dim"],
            num_heads=data["num_attention_heads"],
            num_layers=data["num_layers"],
            freq_dim=data["freq_dim"],
            text_dim=data["text_dim"],
            image_dim=data.get("image_dim"),
            eps=data["eps"],
        )
    except KeyError as error:
        raise ModelError(f"{where}: key {error} is missing.", stage="load") from error
    except InvalidArgument as error:
        raise ModelError(f"{where}: {error}", stage="load") from error
