"""Whisper as a feature extractor: one fixed-length segment in, hidden states of one grid step out.

Log-mel front end and encoder are those of ``transformers``, after Radford et al. 2022
(arXiv 2212.04356; openai/whisper ``whisper/audio.py``, ``whisper/model.py``). Choosing hidden
states as talking-head features follows MuseTalk, LatentSync and Sonic (every layer of whisper-tiny)
and LongCat-Video-Avatar-1.5 (means over groups of layers of whisper-large-v3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from skyreels_rt.audio.grid_encoder import GridEncoder
from skyreels_rt.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from skyreels_rt.config import AudioFeatureConfig

_SIZES = (
    "d_model",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "num_mel_bins",
    "max_source_positions",
)
_MEL_RATE = 16_000
_MEL_FRAMES_PER_POSITION = 2


class WhisperFeatures(GridEncoder):
    """Features of one grid step from its segment of samples.

    Each on its own, because Whisper's log-mel clamps at 8 (in log10 units) below the loudest bin
    *of what it is given*, and in a batch of one, because the bits of a matrix product change with
    the batch.

    Parameters
    ----------
    encoder : transformers.WhisperEncoder
        Encoder in eval mode, on any device; weights may arrive after construction. See
        :func:`build_whisper_encoder`.
    config : AudioFeatureConfig
        The grid, at 16 kHz; ``context`` must be the encoder's ``max_source_positions``. ``layers``
        names hidden states 0 (embedding output) to ``encoder_layers`` (last, after the final
        LayerNorm).
    num_mel_bins : int
        Mel bands, 80 or, for large-v3, 128; the encoder's own number.

    Raises
    ------
    ModelError
        ``config`` or ``num_mel_bins`` does not fit the encoder.
    """

    def __init__(
        self, encoder: WhisperEncoder, config: AudioFeatureConfig, num_mel_bins: int
    ) -> None:
        _check_fit(encoder, config, num_mel_bins)
        from transformers import WhisperFeatureExtractor

        self._encoder = encoder
        super().__init__(config)
        self._extractor = WhisperFeatureExtractor(
            feature_size=num_mel_bins,
            sampling_rate=_MEL_RATE,
            hop_length=config.hop // _MEL_FRAMES_PER_POSITION,
        )

    @property
    def feature_dim(self) -> int:
        """Width D of the features."""
        return int(self._encoder.config.d_model)

    def log_mel(self, segment: NDArray[np.float32]) -> torch.Tensor:
        """Whisper's log-mel spectrogram of exactly ``segment``, unpadded.

        Parameters
        ----------
        segment : ndarray, shape (context * hop,), float32 in [-1, 1]
            Mono samples at 16 kHz.

        Returns
        -------
        Tensor, shape (1, num_mel_bins, 2 * context), float32, on the CPU
            ``(max(log10 mel, max - 8) + 4) / 4``.

        Raises
        ------
        InvalidArgument
            ``segment`` has another length or dtype.
        """
        self._require_segment(segment)
        mel = self._extractor(
            segment,
            sampling_rate=_MEL_RATE,
            padding="do_not_pad",
            truncation=False,
            return_tensors="np",
        )["input_features"]
        # A torch allocation is 64-byte aligned; GEMM results may depend on the alignment.
        return torch.from_numpy(mel).clone()

    def hidden_states(self, segment: NDArray[np.float32]) -> Sequence[torch.Tensor]:
        """What enters the first layer, and each layer's output, (1, context, D) each."""
        mel = self.log_mel(segment)
        weight = self._encoder.conv1.weight
        states: Sequence[torch.Tensor] = self._encoder(
            mel.to(weight.device, weight.dtype), output_hidden_states=True
        ).hidden_states
        return states


def build_whisper_encoder(config_json: dict[str, Any]) -> torch.nn.Module:
    """Whisper encoder of the given sizes, with random weights, in eval mode and frozen.

    Only the keys that shape the encoder are read, so nothing else in the file can change what runs.
    Attention is torch's SDPA. Under ``torch.device("meta")`` no memory is used and no random
    number drawn; the parameters then wait for ``load_state_dict(..., assign=True)``. There are no
    buffers.

    Parameters
    ----------
    config_json : dict
        A Whisper ``config.json`` as ``transformers`` writes it: ``d_model``, ``encoder_layers``,
        ``encoder_attention_heads``, ``encoder_ffn_dim``, ``num_mel_bins``,
        ``max_source_positions``; optional ``activation_function`` and ``scale_embedding``.

    Returns
    -------
    torch.nn.Module
        A ``transformers`` ``WhisperEncoder``.

    Raises
    ------
    ModelError
        Not a Whisper config, or a key is missing or has an unusable value.
    """
    kind = config_json.get("model_type", "whisper")
    if kind != "whisper":
        raise _unusable("model_type", "'whisper'", kind)
    for name in _SIZES:
        value = config_json.get(name)
        if type(value) is not int or value <= 0:
            raise _unusable(name, "a positive integer", value)
    activation = config_json.get("activation_function", "gelu")
    scale_embedding = config_json.get("scale_embedding", False)
    if not isinstance(scale_embedding, bool):
        raise _unusable("scale_embedding", "a bool", scale_embedding)

    from transformers import WhisperConfig
    from transformers.activations import ACT2FN
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    if not isinstance(activation, str) or activation not in ACT2FN:
        raise _unusable("activation_function", "a name that transformers knows", activation)
    config = WhisperConfig(
        **{name: config_json[name] for name in _SIZES},
        activation_function=activation,
        scale_embedding=scale_embedding,
        attn_implementation="sdpa",
    )
    try:
        encoder = WhisperEncoder(config)
    except ValueError as error:
        raise ModelError(f"audio encoder: {error}", stage="load") from error
    module: torch.nn.Module = encoder.eval().requires_grad_(False)
    return module


def _unusable(key: str, expected: str, got: object) -> ModelError:
    """Error for one key of the encoder's config."""
    return ModelError(f"audio encoder: {key}: expected {expected}, got {got!r}.", stage="load")


def _check_fit(encoder: WhisperEncoder, config: AudioFeatureConfig, num_mel_bins: int) -> None:
    """Raise ModelError unless the grid and the front end fit the encoder."""
    sizes = encoder.config
    if sizes.max_source_positions != config.context:
        raise ModelError(
            f"audio encoder: max_source_positions is {sizes.max_source_positions}, but past + step "
            f"+ lookahead is {config.context}.",
            stage="load",
            hint="Make the three add up to the encoder's max_source_positions.",
        )
    if sizes.num_mel_bins != num_mel_bins:
        raise ModelError(
            f"audio encoder: takes {sizes.num_mel_bins} mel bins, got {num_mel_bins}.", stage="load"
        )
    if config.sample_rate != _MEL_RATE or config.hop % _MEL_FRAMES_PER_POSITION:
        raise ModelError(
            f"audio features: Whisper takes {_MEL_RATE} Hz and an even number of samples a "
            f"feature, got {config.sample_rate} Hz and {config.hop}.",
            stage="load",
        )
    layers = [layer for group in config.layers for layer in group]
    if not all(0 <= layer <= sizes.encoder_layers for layer in layers):
        raise ModelError(
            f"audio features: layers: expected hidden states 0 to {sizes.encoder_layers}, "
            f"got {config.layers}.",
            stage="load",
        )
