"""CLIP image encoder of the Wan2.1-I2V family: a portrait becomes tokens for cross-attention.

Wan2.1-I2V attends to the hidden states before the last layer of CLIP ViT-H/14: 257 tokens (class
token and 16 x 16 patches) of width 1280 (Wan-Video/Wan2.1, ``wan/modules/clip.py``).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from skyreels_rt.config import config_from_dict, require_positive
from skyreels_rt.errors import InvalidArgument, ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""RGB statistics of CLIP's training images, in [0, 1] (Radford et al. 2021, openai/CLIP)."""

_MAX_ASPECT = 64

Resize = Literal["stretch", "center_crop"]


@dataclass(frozen=True)
class ClipVisionConfig:
    """Sizes of a CLIP vision tower, under the names of transformers' ``config.json``.

    Only these keys of the file are read. Defaults are those of ViT-H/14, which Wan2.1-I2V uses.
    """

    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 14
    hidden_act: Literal["gelu", "quick_gelu"] = "gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        require_positive(self, "hidden_size", "intermediate_size", "num_hidden_layers")
        require_positive(self, "num_attention_heads", "image_size", "patch_size", "layer_norm_eps")
        if self.num_channels != 3:
            raise InvalidArgument("num_channels", expected="3 (RGB)", got=self.num_channels)
        if self.hidden_size % self.num_attention_heads:
            raise InvalidArgument(
                "hidden_size",
                expected=f"a multiple of num_attention_heads={self.num_attention_heads}",
                got=self.hidden_size,
            )
        if self.image_size < self.patch_size:
            raise InvalidArgument(
                "image_size", expected=f"at least patch_size={self.patch_size}", got=self.image_size
            )


def build_clip_vision(config_json: dict[str, Any]) -> nn.Module:
    """Build transformers' ``CLIPVisionModel`` without weights and without network.

    Under ``with torch.device("meta")`` no weight is allocated and no random number drawn.
    Checkpoints saved before transformers 5 load with
    :func:`skyreels_rt.weights.key_maps.clip_vision_key`.

    Parameters
    ----------
    config_json : dict
        Parsed ``config.json`` of the image encoder. Keys beyond the sizes are not looked at:
        some of them (attention implementations, automatic classes) can name code to fetch.

    Returns
    -------
    nn.Module
        The tower in evaluation mode, without gradients.

    Raises
    ------
    ModelError
        Another kind of model, or a size of the wrong type or out of range.
    """
    kind = config_json.get("model_type", "clip_vision_model")
    if kind != "clip_vision_model":
        raise ModelError(
            f"image encoder: expected model_type 'clip_vision_model', got {kind!r}.", stage="load"
        )
    known = {field.name for field in fields(ClipVisionConfig)}
    sizes = {key: value for key, value in config_json.items() if key in known}
    config = config_from_dict(ClipVisionConfig, sizes, where="image encoder config")

    from transformers import CLIPVisionConfig, CLIPVisionModel

    model = CLIPVisionModel(CLIPVisionConfig(**asdict(config), attention_dropout=0.0))
    # Position numbers are in no checkpoint, so they must exist even when the rest is on meta.
    positions = torch.arange(model.embeddings.num_positions, device="cpu")[None]
    model.embeddings.register_buffer("position_ids", positions, persistent=False)
    return cast("nn.Module", model.eval().requires_grad_(False))


class ClipImageEncoder(nn.Module):
    """CLIP vision tower with its preprocessing.

    Parameters
    ----------
    model : nn.Module
        Tower from :func:`build_clip_vision`, with weights.
    resize : {"stretch", "center_crop"}
        ``"stretch"`` is the Wan2.1 release: the whole image, made square by torch's bicubic
        interpolation without antialiasing. ``"center_crop"`` is diffusers' Wan pipeline: CLIP's own
        processor (antialiased bicubic to the shorter edge, then the central square).

    Raises
    ------
    InvalidArgument
        ``resize`` is neither of the two.
    """

    def __init__(self, model: nn.Module, *, resize: Resize = "stretch") -> None:
        super().__init__()
        if resize not in ("stretch", "center_crop"):
            raise InvalidArgument("resize", expected="'stretch' or 'center_crop'", got=repr(resize))
        config = cast("Any", model).config
        self.model = model
        self.resize = resize
        self.image_size: int = config.image_size
        self.image_dim: int = config.hidden_size
        self.num_tokens: int = (config.image_size // config.patch_size) ** 2 + 1

    def preprocess(self, image: NDArray[np.uint8]) -> Tensor:
        """Resize and normalise an image for the tower.

        Parameters
        ----------
        image : ndarray, shape (H, W, 3), uint8
            RGB image.

        Returns
        -------
        Tensor, shape (1, 3, image_size, image_size), float32, on the CPU
            Pixels minus CLIP's mean, over its standard deviation.

        Raises
        ------
        InvalidArgument
            ``image`` has another shape or dtype, or is too elongated to have a central square.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise InvalidArgument(
                "image", expected="a uint8 array (H, W, 3)", got=f"{image.dtype} {image.shape}"
            )
        square = self._stretch(image) if self.resize == "stretch" else self._center_crop(image)
        mean, std = (torch.tensor(c).view(1, 3, 1, 1) for c in (CLIP_MEAN, CLIP_STD))
        return (square - mean) / std

    @torch.no_grad()
    def encode(self, image: NDArray[np.uint8]) -> Tensor:
        """Embed an image: the tower's hidden states before its last layer.

        Parameters
        ----------
        image : ndarray, shape (H, W, 3), uint8
            RGB image of any size.

        Returns
        -------
        Tensor, shape (num_tokens, image_dim), the model's dtype and device
            Class token, then the patches row by row.

        Raises
        ------
        InvalidArgument
            As :meth:`preprocess` does.
        """
        weight = next(self.model.parameters())
        pixels = self.preprocess(image).to(weight.device, weight.dtype)
        states = self.model(pixel_values=pixels, output_hidden_states=True).hidden_states
        return cast("Tensor", states[-2][0])

    def _stretch(self, image: NDArray[np.uint8]) -> Tensor:
        """Whole image as a square in about [0, 1], shape (1, 3, S, S)."""
        pixels = torch.from_numpy(image.copy(order="C")).permute(2, 0, 1)[None].float() / 255
        size = (self.image_size, self.image_size)
        return F.interpolate(pixels, size=size, mode="bicubic", align_corners=False)

    def _center_crop(self, image: NDArray[np.uint8]) -> Tensor:
        """Central square of the image scaled to the shorter edge, in [0, 1], shape (1, 3, S, S)."""
        height, width = image.shape[:2]
        short, size = min(height, width), self.image_size
        # Scaling the shorter edge up scales the longer one too: a sliver would fill the memory.
        if max(height, width) > _MAX_ASPECT * short:
            raise InvalidArgument(
                "image", expected=f"sides within 1:{_MAX_ASPECT}", got=f"{width} x {height}"
            )
        scaled = (width * size // short, height * size // short)
        resized = Image.fromarray(image).resize(scaled, Image.Resampling.BICUBIC)
        left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
        crop = np.asarray(resized.crop((left, top, left + size, top + size)))
        return torch.from_numpy(crop.copy()).permute(2, 0, 1)[None].float() / 255
