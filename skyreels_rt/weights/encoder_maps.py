"""Official Wan2.1 encoders and VAE, told tensor by tensor in the layouts that the engine loads.

Sources of the names: Wan-Video/Wan2.1 ``wan/modules/t5.py``, ``clip.py`` and ``vae.py``; on the
other side transformers' ``UMT5EncoderModel`` and ``CLIPVisionModel`` and diffusers'
``AutoencoderKLWan``. A map gives, for a stored tensor, the tensors that it becomes: none, one, or
several where a fused projection is split.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from torch import Tensor

TensorMap = Callable[[str, Tensor], Iterator[tuple[str, Tensor]]]
"""From a stored name and tensor to the names and tensors that take its place."""

_UMT5_BLOCK = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
_UMT5_TOP = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}

_CLIP_BLOCK = {
    "norm1": "layer_norm1",
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
_CLIP_TOP = {
    "patch_embedding": "embeddings.patch_embedding",
    "pre_norm": "pre_layrnorm",
    "post_norm": "post_layernorm",
}
_CLIP_UNUSED = ("textual.", "log_scale", "visual.head")

_VAE_TOP = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
_VAE_HALF = {"conv1": "conv_in", "head.0": "norm_out", "head.2": "conv_out"}
_VAE_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_VAE_RESIDUAL = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
_VAE_UP_LAYERS = 4  # three residual blocks and the way up


def umt5_tensors(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Tensors of transformers' ``UMT5EncoderModel`` for one of the official T5 encoder."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", name)
    if block and block[2] in _UMT5_BLOCK:
        yield f"encoder.block.{block[1]}.{_UMT5_BLOCK[block[2]]}.weight", tensor
    else:
        yield _renamed(name, _UMT5_TOP), tensor


def clip_tensors(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Tensors of transformers' ``CLIPVisionModel`` for one of the official XLM-RoBERTa CLIP.

    The text tower and the projection head are left out.
    """
    if name.startswith(_CLIP_UNUSED):
        return
    name = name.removeprefix("visual.")
    block = re.fullmatch(r"transformer\.(\d+)\.(.+)\.(weight|bias)", name)
    if block and block[2] == "attn.to_qkv":
        for part, value in zip("qkv", tensor.chunk(3), strict=True):
            yield f"encoder.layers.{block[1]}.self_attn.{part}_proj.{block[3]}", value
    elif block and block[2] in _CLIP_BLOCK:
        yield f"encoder.layers.{block[1]}.{_CLIP_BLOCK[block[2]]}.{block[3]}", tensor
    elif name == "cls_embedding":
        yield "embeddings.class_embedding", tensor.flatten()
    elif name == "pos_embedding":
        yield "embeddings.position_embedding.weight", tensor.flatten(0, 1)
    else:
        yield _renamed(name, _CLIP_TOP), tensor


def vae_tensors(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Tensors of diffusers' ``AutoencoderKLWan`` for one of the official Wan2.1 VAE."""
    half, _, rest = name.partition(".")
    if half not in ("encoder", "decoder"):
        yield _renamed(name, _VAE_TOP), tensor
        return
    layer = re.fullmatch(r"(middle|downsamples|upsamples)\.(\d+)\.(.+)", rest)
    if layer is None:
        yield f"{half}.{_renamed(rest, _VAE_HALF)}", tensor
        return
    place, index, inside = layer.groups()
    if place == "middle":
        path = f"mid_block.{_VAE_MIDDLE.get(index, index)}"
    elif place == "downsamples":
        path = f"down_blocks.{index}"
    else:
        block, part = divmod(int(index), _VAE_UP_LAYERS)
        is_way_up = part == _VAE_UP_LAYERS - 1
        path = f"up_blocks.{block}.{'upsamplers.0' if is_way_up else f'resnets.{part}'}"
    yield f"{half}.{path}.{_renamed(inside, _VAE_RESIDUAL)}", tensor


def unchanged_tensors(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensor itself: the loader understands the names of adapters and of wav2vec2."""
    yield name, tensor


def syncnet_tensors(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Tensors of SyncNet under their published names, without counters of the training."""
    if not name.endswith("num_batches_tracked"):
        yield name, tensor


def _renamed(name: str, table: dict[str, str]) -> str:
    """``name`` with its stem (all but the last part) replaced as ``table`` says."""
    stem, _, leaf = name.rpartition(".")
    return f"{table[stem]}.{leaf}" if stem in table else name


TENSOR_MAPS: dict[str, TensorMap] = {
    "umt5": umt5_tensors,
    "clip": clip_tensors,
    "vae": vae_tensors,
    "syncnet": syncnet_tensors,
    "unchanged": unchanged_tensors,
}
"""Maps by the name under which the converter asks for them."""
