"""Frozen configuration of every component, read from JSON with unknown keys rejected.

The paper (arXiv 2506.00830) publishes no sizes. Every default here is ours, after the model family
named beside it; none is "the paper's".
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from skyreels_rt.continuation_config import ContinuationConfig
from skyreels_rt.errors import InvalidArgument, ModelError, OutputError

ConfigT = TypeVar("ConfigT")

MAX_NUMBER = 1e30
"""Largest magnitude of a number in a configuration file."""

REFERENCE_CHANNELS = 16
"""Latent channels of the reference among the condition channels, in every known family."""

AudioKind = Literal["own_query", "shared_query"]
ReferenceMode = Literal["all_frames", "leading_slot", "none"]
GuidanceForm = Literal["audio_first", "text_first"]
Prediction = Literal["velocity", "reference_residual"]
SolverName = Literal["euler", "unipc"]
Ramp = Literal["linear", "uniform"]
Spacing = Literal["even", "to_timestep_1"]
ColorReference = Literal["portrait", "first_window"]
LongForm = Literal["blf", "continuation"]


@dataclass(frozen=True)
class AudioAdapterConfig:
    """How the blocks hear: packer and audio attention.

    Attributes
    ----------
    kind : {"own_query", "shared_query"}
        ``own_query``: cross-attention of its own behind the text's, a packer of three layers (after
        MultiTalk / SkyReels-V3). ``shared_query``: keys and values for the queries of the text
        attention, every feature projected to a token (after FantasyTalking).
    feature_layers, feature_dim : int
        Layers L and width D of the audio features.
    features_per_frame : int
        Feature vectors S per pixel frame (2 at 25 fps: Whisper runs at 50 Hz).
    window : int
        Pixel frames a frame looks at, odd; ``window // 2`` of them are look-ahead.
    num_tokens, token_dim : int
        Tokens M per latent frame and their width C.
    hidden_dim : int
        Width of the packer's hidden layers; ``own_query`` alone.
    norm_output : bool
        LayerNorm over the tokens; ``shared_query`` always has it.
    """

    kind: AudioKind = "own_query"

    feature_layers: int = 5
    feature_dim: int = 384
    features_per_frame: int = 2
    window: int = 5
    num_tokens: int = 32
    token_dim: int = 768
    hidden_dim: int = 512
    norm_output: bool = True

    def __post_init__(self) -> None:
        require_positive(self, "feature_layers", "feature_dim", "features_per_frame", "window")
        require_positive(self, "num_tokens", "token_dim", "hidden_dim")
        if self.window % 2 == 0:
            raise InvalidArgument("audio.window", expected="an odd number", got=self.window)


@dataclass(frozen=True)
class TransformerConfig:
    """Wan2.1-shaped video DiT (reference: Wan-Video/Wan2.1 ``wan/modules/model.py``).

    Attributes
    ----------
    patch_size : tuple of int
        Patch (frames, height, width) in latents.
    in_channels : int
        Noise channels plus condition channels; the surplus over ``out_channels`` is 0 (none),
        16 (reference), 17 (one mask + reference) or 20 (four masks + reference).
    out_channels : int
        Latent channels.
    dim, ffn_dim, num_heads, num_layers, freq_dim : int
        Width, feed-forward width, heads, blocks, width of the sinusoidal timestep.
    text_dim : int
        Width of the prompt embeddings.
    text_length : int
        Prompt tokens; shorter prompts are padded with zeros (and attended, as Wan does).
    image_dim : int or None
        Width of the image encoder's tokens; None builds no image branch.
    eps : float
        Epsilon of every norm.
    mask_known_value : int
        Value of the condition mask where a frame is given: 1 for Wan and SkyReels.
    prediction : {"velocity", "reference_residual"}
        What the blocks predict: the flow velocity, as Wan does, or what the clean latents differ
        by from the reference latents among the condition channels. The model returns a velocity
        either way. A patch with more values than the model is wide cannot carry its noise through
        the blocks, which a velocity needs (after "Back to Basics", arXiv 2511.13720). In the
        second kind the blocks see a guess of that difference instead of the noisy latents.
    audio : AudioAdapterConfig or None
        Audio adapter; None builds a plain Wan transformer.
    """

    patch_size: tuple[int, int, int] = (1, 2, 2)
    in_channels: int = 36
    out_channels: int = 16
    dim: int = 1536
    ffn_dim: int = 8960
    num_heads: int = 12
    num_layers: int = 30
    freq_dim: int = 256
    text_dim: int = 4096
    text_length: int = 512
    image_dim: int | None = None
    eps: float = 1e-6
    mask_known_value: int = 1
    prediction: Prediction = "velocity"
    audio: AudioAdapterConfig | None = None

    def __post_init__(self) -> None:
        require_positive(self, "dim", "ffn_dim", "num_heads", "num_layers", "freq_dim")
        require_positive(self, "text_dim", "text_length", "in_channels", "out_channels")
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise InvalidArgument(
                "dim",
                expected=f"a multiple of num_heads={self.num_heads} with an even head size",
                got=self.dim,
            )
        if self.patch_size[0] != 1 or self.patch_size[1] != self.patch_size[2]:
            raise InvalidArgument(
                "patch_size", expected="one frame and a square, such as (1, 2, 2)",
                got=self.patch_size,
            )  # fmt: skip
        if self.condition_channels and self.out_channels != REFERENCE_CHANNELS:
            raise InvalidArgument(
                "out_channels",
                expected=f"{REFERENCE_CHANNELS}, with condition channels",
                got=self.out_channels,
            )
        if self.condition_channels not in (0, 16, 17, 20):
            raise InvalidArgument(
                "in_channels",
                expected=f"out_channels={self.out_channels} plus 0, 16, 17 or 20",
                got=self.in_channels,
            )
        if self.prediction == "reference_residual" and not self.condition_channels:
            raise InvalidArgument(
                "prediction", expected="'velocity' without condition channels", got=self.prediction
            )
        if self.mask_known_value not in (0, 1):
            raise InvalidArgument("mask_known_value", expected="0 or 1", got=self.mask_known_value)

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.dim // self.num_heads

    @property
    def condition_channels(self) -> int:
        """Channels beside the noise: mask plus reference latents."""
        return self.in_channels - self.out_channels

    @property
    def mask_channels(self) -> int:
        """Mask channels among the condition channels: 0, 1 or 4."""
        return max(0, self.condition_channels - REFERENCE_CHANNELS)


@dataclass(frozen=True)
class WanVAEConfig:
    """Wan2.1 causal 3-D VAE (reference: diffusers ``AutoencoderKLWan``, same field names).

    Attributes
    ----------
    base_dim, z_dim : int
        First width and latent channels.
    dim_mult : tuple of int
        Width of each level as a multiple of ``base_dim``.
    num_res_blocks : int
        Residual blocks a level.
    attn_scales : tuple of float
        Scales at which a level also attends (empty for Wan2.1).
    temperal_downsample : tuple of bool
        Levels that halve time (the upstream spelling, kept so that its files load).
    dropout : float
        Kept for file compatibility; inference ignores it.
    latents_mean, latents_std : tuple of float
        Statistics that bring raw latents to zero mean and unit variance, ``z_dim`` each.
    """

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_scales: tuple[float, ...] = ()
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    dropout: float = 0.0
    latents_mean: tuple[float, ...] = (
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    )  # fmt: skip
    latents_std: tuple[float, ...] = (
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    )  # fmt: skip

    def __post_init__(self) -> None:
        require_positive(self, "base_dim", "z_dim", "num_res_blocks")
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) != self.z_dim:
                raise InvalidArgument(
                    name, expected=f"z_dim={self.z_dim} numbers", got=len(getattr(self, name))
                )
        require_positive_spread(self.latents_std)


@dataclass(frozen=True)
class TinyVAEConfig:
    """Small causal VAE of the TAEHV kind (idea: madebyollin/taehv), for small models and previews.

    Attributes
    ----------
    z_dim : int
        Latent channels.
    patch_size : int
        Side of the pixel squares folded into channels before the first convolution: 1, or 2, which
        takes the place of the first spatial halving and quarters the work there (as in Wan2.2's
        VAE).
    encoder_dims, decoder_dims : tuple of int
        Widths from the pixel side to the latent side (encoder) and back (decoder), four each:
        three spatial halvings, the last two of which also halve time.
    num_blocks : tuple of int
        Memory blocks of each of the three levels, from the pixel side.
    latents_mean, latents_std : tuple of float
        As in :class:`WanVAEConfig`; one number each stands for all channels.
    """

    z_dim: int = 16
    patch_size: int = 1
    encoder_dims: tuple[int, int, int, int] = (64, 64, 64, 64)
    decoder_dims: tuple[int, int, int, int] = (256, 128, 64, 64)
    num_blocks: tuple[int, int, int] = (3, 3, 3)
    latents_mean: tuple[float, ...] = (0.0,)
    latents_std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.z_dim < 3:
            raise InvalidArgument("z_dim", expected="at least 3, for the colour", got=self.z_dim)
        if len(self.num_blocks) != 3 or min(self.num_blocks) < 1:
            raise InvalidArgument("num_blocks", expected="3 positive numbers", got=self.num_blocks)
        if self.patch_size not in (1, 2):
            raise InvalidArgument("patch_size", expected="1 or 2", got=self.patch_size)
        for name in ("encoder_dims", "decoder_dims"):
            if len(getattr(self, name)) != 4:
                raise InvalidArgument(name, expected="4 widths", got=getattr(self, name))
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) not in (1, self.z_dim):
                raise InvalidArgument(
                    name, expected=f"1 or z_dim={self.z_dim} numbers", got=getattr(self, name)
                )
        require_positive_spread(self.latents_std)


@dataclass(frozen=True)
class ByteTextConfig:
    """Small byte-level text encoder for small models (ours).

    Attributes
    ----------
    dim, num_heads, num_layers, max_bytes : int
        Width, heads, layers, and the longest prompt in UTF-8 bytes.
    """

    dim: int = 64
    num_heads: int = 2
    num_layers: int = 1
    max_bytes: int = 128

    def __post_init__(self) -> None:
        require_positive(self, "dim", "num_heads", "num_layers", "max_bytes")


@dataclass(frozen=True)
class AudioFeatureConfig:
    """The fixed grid on which audio features are computed (DESIGN.md, "Audio").

    Every grid step encodes ``past + step + lookahead`` features' worth of samples on its own, so
    the features do not depend on how the audio arrived.

    Attributes
    ----------
    sample_rate, feature_rate : int
        Samples and encoder features per second.
    past, step, lookahead : int
        Features before, of, and after a grid step that the encoder sees. Their sum is the
        encoder's context (``max_source_positions``).
    layers : tuple of tuple of int
        Output layers; each is the mean of the hidden states it lists (0 = embedding output).
        whisper-tiny stack: ``((0,), (1,), (2,), (3,), (4,))``.
    loudness : float or None
        LUFS that a wav2vec2 encoder's context is brought to first; None leaves it. Whisper's
        log-mel has its own scale and ignores it.
    """

    sample_rate: int = 16_000
    feature_rate: int = 50
    past: int = 1444
    step: int = 32
    lookahead: int = 24
    layers: tuple[tuple[int, ...], ...] = ((0,), (1,), (2,), (3,), (4,))
    loudness: float | None = None

    def __post_init__(self) -> None:
        require_positive(self, "sample_rate", "feature_rate", "step")
        if self.past < 0 or self.lookahead < 0:
            raise InvalidArgument(
                "past, lookahead", expected=">= 0", got=(self.past, self.lookahead)
            )
        if self.sample_rate % self.feature_rate:
            raise InvalidArgument(
                "feature_rate", expected=f"a divisor of {self.sample_rate}", got=self.feature_rate
            )
        if not self.layers or any(not group for group in self.layers):
            raise InvalidArgument("layers", expected="non-empty groups", got=self.layers)

    @property
    def context(self) -> int:
        """Features (encoder positions) of one grid step's context."""
        return self.past + self.step + self.lookahead

    @property
    def hop(self) -> int:
        """Samples per feature."""
        return self.sample_rate // self.feature_rate


@dataclass(frozen=True)
class GenerationConfig:
    """How a model is meant to be run: its shape, windows, schedule and guidance.

    Attributes
    ----------
    fps : int
        Frames per second of the video.
    height, width : int
        Pixels of a frame.
    window, overlap : int
        Latent frames denoised together, and shared by consecutive windows (BLF).
    ramp : {"linear", "uniform"}
        Weights with which overlapping windows are fused.
    num_steps : int
        Denoising steps.
    shift : float
        Timestep shift of the flow-matching schedule.
    solver : {"euler", "unipc"}
        Solver of the flow ODE.
    text_guidance_scale, audio_guidance_scale : float
        1.0 switches that guidance, and its pass, off.
    guidance_form : {"audio_first", "text_first"}
        ``audio_first`` is MultiTalk's three-pass form, ``text_first`` FantasyTalking's, which
        needs only two passes while ``text_guidance_scale`` is 1.
    reference_mode : {"all_frames", "leading_slot", "none"}
        How the portrait enters (DESIGN.md, "Conditions").
    negative_prompt : str
        Prompt of the passes without text.
    spacing : {"even", "to_timestep_1"}
        Noise levels before the shift: even down to 0; or, as MultiTalk has it, even down to
        timestep 1, and 0 after it.
    color_correction : float
        How far, from 0 to 1, the colours of every frame are moved to the reference's.
    color_reference : {"portrait", "first_window"}
        Whose colours they are.
    continuation : ContinuationConfig or None
        The family's own way to long videos; None where it has none. BLF is the default for all.
    """

    fps: int = 25
    height: int = 480
    width: int = 832
    window: int = 21
    overlap: int = 5
    ramp: Ramp = "linear"
    num_steps: int = 8
    shift: float = 5.0
    solver: SolverName = "euler"
    text_guidance_scale: float = 1.0
    audio_guidance_scale: float = 2.0
    guidance_form: GuidanceForm = "text_first"
    reference_mode: ReferenceMode = "all_frames"
    negative_prompt: str = ""
    spacing: Spacing = "even"
    color_correction: float = 0.0
    color_reference: ColorReference = "portrait"
    continuation: ContinuationConfig | None = None

    def __post_init__(self) -> None:
        require_positive(self, "fps", "height", "width", "window", "num_steps")
        if not 0 <= self.color_correction <= 1:
            raise InvalidArgument("color_correction", expected="0 to 1", got=self.color_correction)
        if not 0 <= self.overlap < self.window:
            raise InvalidArgument(
                "overlap", expected=f"0 <= overlap < window={self.window}", got=self.overlap
            )


def require_positive(config: object, *names: str) -> None:
    """Raise unless every named attribute of ``config`` is a positive number.

    Raises
    ------
    InvalidArgument
        Naming the first attribute that is not.
    """
    for name in names:
        value = getattr(config, name)
        if value is None or value <= 0:
            raise InvalidArgument(name, expected="a positive number", got=value)


def require_positive_spread(latents_std: tuple[float, ...]) -> None:
    """Raise unless every standard deviation is positive.

    Raises
    ------
    InvalidArgument
        Naming ``latents_std``.
    """
    if not all(value > 0 for value in latents_std):
        raise InvalidArgument("latents_std", expected="positive numbers", got=latents_std)


def read_json(path: Path) -> dict[str, Any]:
    """Object stored in the JSON file ``path``.

    Raises
    ------
    ModelError
        The file is missing, is not JSON, or holds something other than an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file.", stage="load") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as JSON ({error}).", stage="load") from error
    if not isinstance(data, dict):
        raise ModelError(
            f"{path}: expected a JSON object, got {type(data).__name__}.", stage="load"
        )
    return data


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write ``data`` to ``path``, whose folder is made if absent.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}).") from error


def config_from_dict(
    cls: type[ConfigT], data: dict[str, Any], *, where: str, ignore: frozenset[str] = frozenset()
) -> ConfigT:
    """Build the frozen dataclass ``cls`` from JSON data.

    Keys that start with ``_`` (the layout's own marks) and those in ``ignore`` are skipped.

    Parameters
    ----------
    cls : type
        A frozen dataclass of this module.
    data : dict
        Parsed JSON object.
    where : str
        File or component named in error messages.
    ignore : frozenset of str
        Keys of foreign layouts that are known and not used.

    Raises
    ------
    ModelError
        An unknown key, a value of the wrong type, or a value that ``cls`` refuses.
    """
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key.startswith("_") or key in ignore:
            continue
        if key not in known:
            raise ModelError(
                f"{where}: unknown key {key!r}.",
                stage="load",
                hint=f"Known keys: {', '.join(sorted(known))}.",
            )
        values[key] = _convert(hints[key], value, f"{where}: {key}")
    try:
        return cls(**values)
    except InvalidArgument as error:
        raise ModelError(f"{where}: {error}", stage="load") from error


def config_to_dict(config: object) -> dict[str, Any]:
    """JSON data of a frozen configuration dataclass, tuples as lists."""
    data: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))  # type: ignore[call-overload]
    return data


def _convert(hint: Any, value: Any, where: str) -> Any:  # noqa: ANN401, PLR0911 - one return a kind
    """``value`` as the annotated type ``hint``, or a ModelError naming ``where``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (hint,) = [a for a in arguments if a is not type(None)]
        return _convert(hint, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_convert(arguments[0], item, where) for item in value)
        if len(arguments) == len(value):
            return tuple(_convert(a, item, where) for a, item in zip(arguments, value, strict=True))
    elif origin is Literal:
        if value in arguments:
            return value
    elif dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return config_from_dict(typing.cast("type[Any]", hint), value, where=where)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) <= MAX_NUMBER:  # false for NaN
            return float(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    raise ModelError(f"{where}: expected {hint}, got {value!r}.", stage="load")
