"""Parameter names of foreign checkpoint layouts, written as tables that lead to ours.

Our transformer uses the names of the official Wan2.1 release (Wan-Video/Wan2.1,
``wan/modules/model.py``). diffusers renamed them for ``WanTransformer3DModel``; note that its
``norm2`` is the affine norm before cross-attention, which the release calls ``norm3``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")

# Both tables pair the longest part of a name that changes; ".weight" and ".bias" stay as they are.
_DIFFUSERS_WAN_TOP: dict[str, str] = {
    "scale_shift_table": "head.modulation",
    "proj_out": "head.head",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
}

_DIFFUSERS_WAN_BLOCK: dict[str, str] = {
    "scale_shift_table": "modulation",
    "norm2": "norm3",
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn1.norm_q": "self_attn.norm_q",
    "attn1.norm_k": "self_attn.norm_k",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "attn2.norm_q": "cross_attn.norm_q",
    "attn2.norm_k": "cross_attn.norm_k",
    "attn2.add_k_proj": "cross_attn.k_img",
    "attn2.add_v_proj": "cross_attn.v_img",
    "attn2.norm_added_k": "cross_attn.norm_k_img",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}

# FantasyTalking's adapter file, of which the processor hangs on the base's cross-attention.
_FANTASY_TALKING = re.compile(
    r"audio_processor\.(blocks\.\d+\.cross_attn)\.processor\.([kv])_proj\.weight"
)

_DIFFUSERS_MARKS = ("condition_embedder.", "proj_out.")
_CLIP_PREFIX = "vision_model."

_POSITIONAL = "encoder.pos_conv_embed.conv"
_WAV2VEC2: dict[str, str] = {
    f"{_POSITIONAL}.weight_g": f"{_POSITIONAL}.parametrizations.weight.original0",
    f"{_POSITIONAL}.weight_v": f"{_POSITIONAL}.parametrizations.weight.original1",
}
_WAV2VEC2_UNUSED = ("masked_spec_embed", "quantizer.", "project_q.", "project_hid.", "lm_head.")


def diffusers_wan_key(name: str) -> str:
    """Our name of a parameter that diffusers' ``WanTransformer3DModel`` calls ``name``.

    Parameters
    ----------
    name : str
        Name in a diffusers checkpoint, such as ``"blocks.3.attn2.add_k_proj.weight"``.

    Returns
    -------
    str
        Name in the official Wan2.1 layout (``"blocks.3.cross_attn.k_img.weight"``). Names that both
        share, and names that are not diffusers', come back unchanged: strict loading then names
        the unknown ones.
    """
    block = _BLOCK.fullmatch(name)
    if block:
        return f"blocks.{block[1]}.{_rename(block[2], _DIFFUSERS_WAN_BLOCK)}"
    return _rename(name, _DIFFUSERS_WAN_TOP)


def fantasy_talking_key(name: str) -> str:
    """Our name of a tensor of FantasyTalking's adapter; other names come back unchanged.

    Parameters
    ----------
    name : str
        ``proj_model.*``, or ``audio_processor.blocks.N.cross_attn.processor.k_proj.weight``.

    Returns
    -------
    str
        ``audio_proj.*`` or ``blocks.N.cross_attn.k_audio.weight``.
    """
    processor = _FANTASY_TALKING.fullmatch(name)
    if processor:
        return f"{processor[1]}.{processor[2]}_audio.weight"
    if name.startswith("proj_model."):
        return f"audio_proj.{name.removeprefix('proj_model.')}"
    return name


def official_key(name: str) -> str:
    """Our name of a transformer's tensor in any layout that the engine reads.

    Parameters
    ----------
    name : str
        Name in the layout of Wan2.1 and MultiTalk (ours), of diffusers, or of FantasyTalking's
        adapter.

    Returns
    -------
    str
        Our name; unknown names come back unchanged.
    """
    return diffusers_wan_key(fantasy_talking_key(name))


def uses_diffusers_names(keys: Iterable[str]) -> bool:
    """Whether ``keys`` are diffusers' names of a Wan transformer rather than the official ones.

    Parameters
    ----------
    keys : iterable of str
        Tensor names of a checkpoint.

    Returns
    -------
    bool
        True when any name belongs to diffusers' embedders, output projection or attention.
    """
    return any(
        key.startswith(_DIFFUSERS_MARKS)
        or (key.startswith("blocks.") and (".attn1." in key or ".attn2." in key))
        for key in keys
    )


def clip_vision_key(name: str) -> str:
    """Name in transformers 5's ``CLIPVisionModel`` of a tensor saved by any of its versions.

    Earlier releases wrapped the tower once more and saved ``vision_model.embeddings...``; the
    Wan2.1-I2V image encoders were saved so.

    Parameters
    ----------
    name : str
        Name in the checkpoint.

    Returns
    -------
    str
        ``name`` without the wrapper's prefix.
    """
    return name.removeprefix(_CLIP_PREFIX)


def whisper_encoder_key(name: str) -> str | None:
    """Name in transformers' ``WhisperEncoder`` of a tensor of any Whisper checkpoint.

    Parameters
    ----------
    name : str
        Name in the checkpoint: ``model.encoder.*``, ``encoder.*`` or the encoder's own names.

    Returns
    -------
    str or None
        None for the decoder and the output projection, which the engine does not use.
    """
    name = name.removeprefix("model.")
    if name.startswith(("decoder.", "proj_out.")):
        return None
    return name.removeprefix("encoder.")


def wav2vec2_key(name: str) -> str | None:
    """Name in transformers' ``Wav2Vec2Model`` of a tensor of any wav2vec2 checkpoint.

    Parameters
    ----------
    name : str
        Name in the checkpoint, with or without the prefix of a model with a head; the weight norm
        of the positional convolution under torch's old or new names.

    Returns
    -------
    str or None
        None for heads, quantiser and mask vector, which the engine does not use.
    """
    name = name.removeprefix("wav2vec2.")
    if name.startswith(_WAV2VEC2_UNUSED):
        return None
    return _rename(name, _WAV2VEC2)


def _rename(name: str, table: dict[str, str]) -> str:
    """``name`` after ``table``, which lists whole names and names without their last part."""
    stem, _, leaf = name.rpartition(".")
    if name in table:
        return table[name]
    if stem in table:
        return f"{table[stem]}.{leaf}"
    return name
