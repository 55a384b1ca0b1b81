"""wav2vec2 as a feature extractor: one fixed-length segment in, hidden states of a grid step out.

Encoder of ``transformers``, after Baevski et al. 2020 (arXiv 2006.11477). Bringing the CNN's output
to the video's rate *before* the transformer, and keeping the outputs of all its layers, follows
MultiTalk (MeiGen-AI/MultiTalk ``src/audio_analysis/wav2vec2.py``), InfiniteTalk and SkyReels-V3.
They encode a whole file at once; here, as for Whisper, every grid step sees a context of its own
(SoulX-FlashTalk's eight seconds, by default), so that live and offline features are the same.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F

from skyreels_rt.audio.grid_encoder import GridEncoder
from skyreels_rt.audio.loudness import normalise_loudness
from skyreels_rt.config import config_from_dict, require_positive
from skyreels_rt.errors import InvalidArgument, ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from skyreels_rt.config import AudioFeatureConfig

_VARIANCE_FLOOR = 1e-7  # of transformers' Wav2Vec2FeatureExtractor


@dataclass(frozen=True)
class Wav2Vec2Sizes:
    """Sizes of a wav2vec2 encoder, under the names of transformers' ``config.json``.

    Only these keys of the file are read. Defaults are those of ``wav2vec2-base``, which
    ``chinese-wav2vec2-base`` shares. Of the two layouts the base one is known: a group norm in the
    first convolution, norms after the residual additions.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: Literal["gelu"] = "gelu"
    layer_norm_eps: float = 1e-5
    feat_extract_norm: Literal["group"] = "group"
    feat_extract_activation: Literal["gelu"] = "gelu"
    conv_dim: tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512)
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    do_stable_layer_norm: Literal[False] = False

    def __post_init__(self) -> None:
        require_positive(self, "hidden_size", "intermediate_size", "num_hidden_layers")
        require_positive(self, "num_attention_heads", "layer_norm_eps", "num_conv_pos_embeddings")
        require_positive(self, "num_conv_pos_embedding_groups")
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            if self.hidden_size % getattr(self, name):
                raise InvalidArgument(
                    "hidden_size",
                    expected=f"a multiple of {name}={getattr(self, name)}",
                    got=self.hidden_size,
                )
        lengths = {len(self.conv_dim), len(self.conv_kernel), len(self.conv_stride)}
        if len(lengths) != 1 or not self.conv_dim:
            raise InvalidArgument(
                "conv_dim, conv_kernel, conv_stride", expected="equally long lists", got=lengths
            )
        if min((*self.conv_dim, *self.conv_kernel, *self.conv_stride)) < 1:
            raise InvalidArgument("conv_dim, conv_kernel, conv_stride", expected=">= 1", got="less")

    def num_features(self, num_samples: int) -> int:
        """CNN features of ``num_samples`` samples."""
        for kernel, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            num_samples = (num_samples - kernel) // stride + 1
        return max(0, num_samples)


class Wav2Vec2Features(GridEncoder):
    """Features of one grid step from its segment of samples.

    Loudness and the zero-mean, unit-variance normalisation are those of the segment, as the
    group norm of the first convolution is in any case.

    Parameters
    ----------
    model : nn.Module
        Encoder of :func:`build_wav2vec2` in eval mode, on any device; weights may arrive later.
    config : AudioFeatureConfig
        The grid, at 16 kHz; ``feature_rate`` is the video's frame rate in the MultiTalk family.
        ``layers`` names hidden states 0 (what enters the first layer) to ``num_hidden_layers``.

    Raises
    ------
    ModelError
        ``config`` does not fit the encoder.
    """

    def __init__(self, model: nn.Module, config: AudioFeatureConfig) -> None:
        self._model = cast("Any", model)
        super().__init__(config)
        last = self._model.config.num_hidden_layers
        layers = [layer for group in config.layers for layer in group]
        if not all(0 <= layer <= last for layer in layers):
            raise ModelError(
                f"audio features: layers: expected hidden states 0 to {last}, got {config.layers}.",
                stage="load",
            )
        sizes = config_from_dict(
            Wav2Vec2Sizes, _known(self._model.config.to_dict()), where="audio encoder config"
        )
        if sizes.num_features(config.context * config.hop) < 2:
            raise ModelError(
                f"audio features: {config.context} features of {config.hop} samples are too short "
                "a context for this encoder.",
                stage="load",
            )

    @property
    def feature_dim(self) -> int:
        """Width D of the features."""
        return int(self._model.config.hidden_size)

    def normalised(self, segment: NDArray[np.float32]) -> Tensor:
        """What the encoder reads of ``segment``: loudness set, zero mean, unit variance.

        Parameters
        ----------
        segment : ndarray, shape (context * hop,), float32 in [-1, 1]
            Mono samples at 16 kHz.

        Returns
        -------
        Tensor, shape (1, context * hop), float32, on the CPU

        Raises
        ------
        InvalidArgument
            ``segment`` has another length or dtype.
        """
        self._require_segment(segment)
        samples: NDArray[np.float64] = segment.astype(np.float64)
        if self._config.loudness is not None:
            samples = normalise_loudness(segment, self._config.sample_rate, self._config.loudness)
        samples = (samples - samples.mean()) / np.sqrt(samples.var() + _VARIANCE_FLOOR)
        # A torch allocation is 64-byte aligned; GEMM results may depend on the alignment.
        return torch.from_numpy(samples.astype(np.float32)).clone()[None]

    def hidden_states(self, segment: NDArray[np.float32]) -> list[Tensor]:
        """What enters the first layer, and each layer's output, (1, context, D) each."""
        samples = self.normalised(segment)
        weight = self._model.feature_projection.projection.weight
        features = self._model.feature_extractor(samples.to(weight.device, weight.dtype))
        features = F.interpolate(
            features, size=self._config.context, mode="linear", align_corners=True
        )
        hidden, _ = self._model.feature_projection(features.transpose(1, 2))
        encoder = self._model.encoder
        hidden = encoder.layer_norm(hidden + encoder.pos_conv_embed(hidden))
        states = [hidden]
        for layer in encoder.layers:
            hidden = layer(hidden)
            states.append(hidden)
        return states


def build_wav2vec2(config_json: dict[str, Any]) -> nn.Module:
    """Build transformers' ``Wav2Vec2Model`` without weights and without network.

    Under ``torch.device("meta")`` no memory is used and no random number drawn. Checkpoints load
    with :func:`skyreels_rt.weights.key_maps.wav2vec2_key`.

    Parameters
    ----------
    config_json : dict
        Parsed ``config.json`` of the encoder. Keys beyond the sizes are not looked at: some of them
        (attention implementations, automatic classes) can name code to fetch.

    Returns
    -------
    nn.Module
        The encoder in evaluation mode, without gradients.

    Raises
    ------
    ModelError
        Another kind of model, another layout than the base one, or an unusable size.
    """
    kind = config_json.get("model_type", "wav2vec2")
    if kind != "wav2vec2":
        raise ModelError(
            f"audio encoder: expected model_type 'wav2vec2', got {kind!r}.", stage="load"
        )
    sizes = config_from_dict(Wav2Vec2Sizes, _known(config_json), where="audio encoder config")

    from transformers import Wav2Vec2Config, Wav2Vec2Model

    # Without masking there is no mask vector, which only training uses.
    config = Wav2Vec2Config(
        **asdict(sizes), mask_time_prob=0.0, mask_feature_prob=0.0, attn_implementation="sdpa"
    )
    return cast("nn.Module", Wav2Vec2Model(config).eval().requires_grad_(False))


def _known(config_json: dict[str, Any]) -> dict[str, Any]:
    """The keys that :class:`Wav2Vec2Sizes` reads."""
    names = {field.name for field in fields(Wav2Vec2Sizes)}
    return {key: value for key, value in config_json.items() if key in names}
