"""How a model folder becomes the parts of a model, and back.

A folder follows the diffusers layout: ``model_index.json`` names a class for every component, each
component has a sub-folder with ``config.json`` and safetensors. ``_base`` may name a folder beside
this one, which holds the components that this one lacks; ``_preset`` a family whose settings stand
in for the files that say how to run it. Class names are looked up in the fixed tables below;
nothing in a folder can name code.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skyreels_rt.audio.grid_encoder import GridEncoder
from skyreels_rt.audio.wav2vec2 import Wav2Vec2Features, build_wav2vec2
from skyreels_rt.audio.whisper import WhisperFeatures, build_whisper_encoder
from skyreels_rt.components import Components
from skyreels_rt.config import (
    AudioFeatureConfig,
    ByteTextConfig,
    GenerationConfig,
    TinyVAEConfig,
    TransformerConfig,
    WanVAEConfig,
    config_from_dict,
    config_to_dict,
    read_json,
    write_json,
)
from skyreels_rt.errors import ModelError
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models.image_encoder import ClipImageEncoder, build_clip_vision
from skyreels_rt.models.text_encoder import (
    ByteTextEncoder,
    TextEncoder,
    UMT5TextEncoder,
    build_umt5,
)
from skyreels_rt.models.tiny_vae import TinyVAE
from skyreels_rt.models.transformer import SkyReelsTransformer, offload_blocks
from skyreels_rt.models.vae import TorchVAE, VideoVAE
from skyreels_rt.models.wan_vae import WanVAE
from skyreels_rt.presets import find_preset
from skyreels_rt.quantization import QuantPolicy, quantize_transformer, stored_policy
from skyreels_rt.runtime.offload import is_moved
from skyreels_rt.runtime.step_cache import StepCalibration
from skyreels_rt.types import LoadCallback, LoadProgress
from skyreels_rt.weights.diffusers_layout import transformer_config_from_diffusers
from skyreels_rt.weights.eight_bits import CODE
from skyreels_rt.weights.families import detect_family
from skyreels_rt.weights.files import read_checkpoint, stored_dtype
from skyreels_rt.weights.key_maps import (
    clip_vision_key,
    official_key,
    wav2vec2_key,
    whisper_encoder_key,
)
from skyreels_rt.weights.loader import Merge, Place, WeightsPlan, plan_weights, save_weights
from skyreels_rt.weights.lora import Lora, LoraStack
from skyreels_rt.weights.official_layout import transformer_config_from_official

logger = logging.getLogger(__name__)

PIPELINE_CLASS = "SkyReelsAudioPipeline"
DIFFUSERS_PIPELINES = {"WanPipeline": "wan2.1-t2v", "WanImageToVideoPipeline": "wan2.1-i2v"}
"""Pipelines of diffusers whose folders load as they are, and the settings to run them with."""

CALIBRATION_FILE = "step_cache.json"
TRANSFORMER_CLASSES = ("SkyReelsTransformer", "WanTransformer3DModel", "WanModel")
VAE_CLASSES = ("TinyVAE", "AutoencoderKLWan")
WHISPER_CLASSES = ("WhisperModel", "WhisperForConditionalGeneration")
WAV2VEC2_CLASSES = ("Wav2Vec2Model", "Wav2Vec2ForPreTraining", "Wav2Vec2ForCTC")
TEXT_CLASSES = ("ByteTextEncoder", "UMT5EncoderModel")
IMAGE_CLASSES = ("CLIPVisionModel", "CLIPVisionModelWithProjection")


def load_components(
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    plan: KernelPlan,
    quantization: QuantPolicy | None = None,
    offload: bool = False,
    loras: Sequence[Lora] = (),
    on_progress: LoadCallback | None = None,
) -> Components:
    """Load a model folder. Every file is checked by its header before a weight is placed.

    Tensors stream one by one to where they stay; those to be kept in 8 bits become so on the way.

    Parameters
    ----------
    folder : Path
        Folder in the layout of this module's description.
    device : torch.device
        Where the models run.
    dtype : torch.dtype
        Type of transformer, VAE and text encoder; the audio encoder stays float32.
    plan : KernelPlan
        Kernel implementations to use.
    quantization : QuantPolicy, optional
        Layers of the transformer to keep in 8 bits; by default those that are stored so.
    offload : bool
        Leave the blocks' weights in host memory.
    loras : sequence of Lora
        Additions to the transformer's weights.
    on_progress : callable, optional
        Called after every tensor.

    Raises
    ------
    ModelError
        A missing or unusable file, an unknown class or key.
    WeightsMismatch
        A component's checkpoint does not hold exactly its tensors.
    """
    index = _read_index(folder)
    load = _FolderLoader(folder, index, device, dtype, plan, tuple(loras), quantization)
    parts = _read_folder(folder, load)
    load.fill({"transformer": partial(_block_place, device)} if offload else {}, on_progress)
    if offload:
        offload_blocks(parts.transformer, device)
    if isinstance(parts.vae, TorchVAE):
        parts.vae.channels_last_weights()
    return replace(
        parts, calibration=_read_calibration(folder / CALIBRATION_FILE, parts.transformer)
    )


def _block_place(device: torch.device, name: str, weight: Tensor) -> torch.device:
    """Where a tensor of a transformer with offloaded blocks is left."""
    stays = not name.startswith("blocks.") or not is_moved(name, weight)
    return device if stays else torch.device("cpu")


def check_folder(folder: Path) -> None:
    """Compare every file of a model folder with what its models need, by headers alone.

    Raises like :func:`load_components`.
    """
    cpu = torch.device("cpu")
    dtype = stored_transformer_dtype(folder) or torch.float32
    plan = KernelPlan.choose(cpu, dtype, "reference")
    _read_folder(folder, _FolderLoader(folder, _read_index(folder), cpu, dtype, plan))


def component_folders(folder: Path) -> dict[str, Path]:
    """Sub-folder of every component of a model folder: its own, else its base's.

    Raises
    ------
    ModelError
        There is no usable ``model_index.json``.
    """
    base = _base_folder(folder, _read_index(folder))
    roots = [root for root in (base, folder) if root is not None]
    return {path.name: path for root in roots for path in root.iterdir() if path.is_dir()}


def _read_index(folder: Path) -> dict[str, Any]:
    """``model_index.json`` of a folder that the engine can run."""
    index = read_json(folder / "model_index.json")
    name = index.get("_class_name")
    if name == PIPELINE_CLASS:
        return index
    if isinstance(name, str) and name in DIFFUSERS_PIPELINES:
        return {"_preset": DIFFUSERS_PIPELINES[name], **index}
    raise ModelError(
        f"{folder / 'model_index.json'}: _class_name is {name!r}.",
        stage="load",
        hint=f"This engine runs {', '.join((PIPELINE_CLASS, *DIFFUSERS_PIPELINES))} folders.",
    )


def _read_folder(folder: Path, load: _FolderLoader) -> Components:
    """Components that fit each other and their files, with weights still on the meta device."""
    transformer = load.transformer()
    audio, features = load.audio_encoder(needed=transformer.config.audio is not None)
    parts = Components(
        name=str(folder),
        transformer=transformer,
        vae=load.vae(),
        audio_encoder=audio,
        audio_features=features,
        text_encoder=load.text_encoder(transformer.config),
        image_encoder=load.image_encoder(needed=transformer.config.image_dim is not None),
        generation=load.generation(),
        device=load.device,
        dtype=load.dtype,
        plan=load.plan,
    )
    _require_fit(parts)
    return parts


def _read_calibration(path: Path, transformer: SkyReelsTransformer) -> StepCalibration | None:
    """The folder's own calibration; a base's would be of other weights."""
    if not path.exists() or transformer.device.type == "meta":
        return None
    found = config_from_dict(StepCalibration, read_json(path), where=path.name)
    if found.run.weights != transformer.time_digest():
        logger.warning("%s was measured with other weights: calibrate the model again", path)
    return found


def stored_transformer_dtype(folder: Path) -> torch.dtype | None:
    """Type that the transformer of a model folder is stored in; None where it cannot be told.

    What is wrong with the folder is for :func:`load_components` to say.
    """
    try:
        return stored_dtype(folder / "transformer")
    except ModelError:
        return None


def _require_fit(parts: Components) -> None:
    """Raise unless the components' sizes fit each other."""
    config = parts.transformer.config
    grid = parts.vae.spatial_stride * config.patch_size[1]
    fits = [
        ("vae latent channels", parts.vae.latent_channels, config.out_channels),
        ("text encoder width", parts.text_encoder.text_dim, config.text_dim),
        ("text encoder length", parts.text_encoder.text_length, config.text_length),
        ("generation height modulo the patch grid", parts.generation.height % grid, 0),
        ("generation width modulo the patch grid", parts.generation.width % grid, 0),
    ]
    if config.audio is not None:
        layers = len(parts.audio_features.layers)
        fits.append(("audio feature layers", layers, config.audio.feature_layers))
    if config.audio is not None and parts.audio_encoder is not None:
        width = parts.audio_encoder.feature_dim
        fits.append(("audio feature width", width, config.audio.feature_dim))
    if config.image_dim is not None and parts.image_encoder is not None:
        fits.append(("image encoder width", parts.image_encoder.image_dim, config.image_dim))
    for what, got, expected in fits:
        if got != expected:
            raise ModelError(
                f"{parts.name}: {what} is {got}, the transformer needs {expected}.",
                stage="load",
                hint="The components of the folder do not belong together.",
            )


class _FolderLoader:
    """Builds the components of one folder and plans their loading; a method for each sub-folder."""

    def __init__(
        self,
        folder: Path,
        index: dict[str, Any],
        device: torch.device,
        dtype: torch.dtype,
        plan: KernelPlan,
        loras: tuple[Lora, ...] = (),
        quantization: QuantPolicy | None = None,
    ) -> None:
        self.folder = folder
        self.base = _base_folder(folder, index)
        self.index = index
        self.device = device
        self.dtype = dtype
        self.plan = plan
        self.loras = loras
        self.quantization = quantization
        self.preset = find_preset(index["_preset"]) if "_preset" in index else None
        self.planned: dict[str, WeightsPlan] = {}

    def fill(self, places: Mapping[str, Place], on_progress: LoadCallback | None) -> None:
        """Read all that was planned, place it as ``places`` says of a component, else here."""
        total, done = sum(plan.num_bytes for plan in self.planned.values()), 0

        def report(component: str, offset: int) -> Callable[[int, int], None]:
            return lambda read, _: (
                on_progress(LoadProgress(component, offset + read, total)) if on_progress else None
            )

        for component, plan in self.planned.items():
            plan.fill(self.device, report(component, done), place=places.get(component))
            done += plan.num_bytes

    def transformer(self) -> SkyReelsTransformer:
        name = self._class_name("transformer", TRANSFORMER_CLASSES)
        config = self._transformer_config(name)
        with torch.device("meta"):
            model = SkyReelsTransformer(config, self.plan).to_compute_dtype(self.dtype)
        merge = None
        if self.loras:
            shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
            merge = LoraStack(self.loras, shapes).merge
        policy = self.quantization or self._stored_policy(model)
        if policy is not None:
            quantize_transformer(model, policy, self.device, stays=True)
        self._plan(model, "transformer", key_map=official_key, dtype=None, merge=merge)
        return model

    def _stored_policy(self, model: SkyReelsTransformer) -> QuantPolicy | None:
        folder = self._path("transformer")
        try:
            entries = read_checkpoint(folder)
        except ModelError:  # where only shapes are wanted there may be none; else the plan says so
            entries = {}
        small = {official_key(name): entry.code == CODE for name, entry in entries.items()}
        return stored_policy(folder, small, model)

    def _transformer_config(self, class_name: str) -> TransformerConfig:
        where = "transformer/config.json"
        folder = self._path("transformer")
        data = read_json(folder / "config.json")
        if class_name == "WanTransformer3DModel":
            return transformer_config_from_diffusers(data, where=where)
        if class_name == "WanModel":
            shapes = {name: entry.shape for name, entry in read_checkpoint(folder).items()}
            family = detect_family(shapes, where="transformer")
            return transformer_config_from_official(data, shapes, family, where=where)
        return config_from_dict(TransformerConfig, data, where=where)

    def generation(self) -> GenerationConfig:
        path = self.folder / "generation_config.json"
        if self.preset is not None and not path.exists():
            return self.preset.generation
        return config_from_dict(GenerationConfig, read_json(path), where=path.name)

    def vae(self) -> VideoVAE:
        name = self._class_name("vae", VAE_CLASSES)
        data = read_json(self._path("vae") / "config.json")
        with torch.device("meta"):
            model: TorchVAE = (
                TinyVAE(config_from_dict(TinyVAEConfig, data, where="vae/config.json"))
                if name == "TinyVAE"
                else WanVAE(
                    config_from_dict(
                        WanVAEConfig, data, where="vae/config.json", ignore=WAN_VAE_UNUSED
                    ),
                    self.plan,
                )
            )
        self._plan(model, "vae", dtype=self.dtype)
        return model

    def audio_encoder(self, *, needed: bool) -> tuple[GridEncoder | None, AudioFeatureConfig]:
        if not needed:
            return None, AudioFeatureConfig()
        name = self._class_name("audio_encoder", (*WHISPER_CLASSES, *WAV2VEC2_CLASSES))
        folder = self._path("audio_encoder")
        config = read_json(folder / "config.json")
        features = self._audio_grid(folder / "feature_config.json")
        if name in WAV2VEC2_CLASSES:
            with torch.device("meta"):
                model = build_wav2vec2(config)
            self._plan(model, "audio_encoder", key_map=wav2vec2_key, dtype=torch.float32)
            return Wav2Vec2Features(model, features), features
        with torch.device("meta"):
            encoder = build_whisper_encoder(config)
        self._plan(encoder, "audio_encoder", key_map=whisper_encoder_key, dtype=torch.float32)
        return WhisperFeatures(encoder, features, config["num_mel_bins"]), features

    def text_encoder(self, transformer: TransformerConfig) -> TextEncoder:
        name = self._class_name("text_encoder", TEXT_CLASSES)
        data = read_json(self._path("text_encoder") / "config.json")
        if name == "ByteTextEncoder":
            config = config_from_dict(ByteTextConfig, data, where="text_encoder/config.json")
            with torch.device("meta"):
                encoder = ByteTextEncoder(config)
            self._plan(encoder, "text_encoder", dtype=self.dtype)
            return encoder
        with torch.device("meta"):
            model = build_umt5(data)
        # T5's activations overflow in float16.
        dtype = torch.bfloat16 if self.dtype == torch.float16 else self.dtype
        self._plan(model, "text_encoder", dtype=dtype)
        tokenizer = self._path("tokenizer") / "tokenizer.json"
        return UMT5TextEncoder(model, tokenizer, text_length=transformer.text_length)

    def image_encoder(self, *, needed: bool) -> ClipImageEncoder | None:
        if not needed:
            return None
        self._class_name("image_encoder", IMAGE_CLASSES)
        data = read_json(self._path("image_encoder") / "config.json")
        with torch.device("meta"):
            model = build_clip_vision(data)
        self._plan(model, "image_encoder", key_map=clip_vision_key, dtype=self.dtype)
        return ClipImageEncoder(model)

    def _audio_grid(self, path: Path) -> AudioFeatureConfig:
        if self.preset is not None and self.preset.audio_features and not path.exists():
            return self.preset.audio_features
        where = f"audio_encoder/{path.name}"
        return config_from_dict(AudioFeatureConfig, read_json(path), where=where)

    def _path(self, component: str) -> Path:
        """Sub-folder of a component: the folder's own, else its base's."""
        own = self.folder / component
        return own if self.base is None or own.is_dir() else self.base / component

    def _class_name(self, component: str, known: tuple[str, ...]) -> str:
        entry = self.index.get(component)
        name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if name not in known:
            raise ModelError(
                f"model_index.json: {component} is {entry!r}.",
                stage="load",
                hint=f"Known classes: {', '.join(known)}.",
            )
        return str(name)

    def _plan(
        self,
        module: nn.Module,
        component: str,
        *,
        key_map: Callable[[str], str | None] | None = None,
        dtype: torch.dtype | None,
        merge: Merge | None = None,
    ) -> None:
        """Check a component's files and remember to fill ``module`` from them."""
        module.eval().requires_grad_(False)
        if self.device.type == "meta":  # shapes are all that is wanted
            return
        self.planned[component] = plan_weights(
            module, self._path(component), dtype=dtype, key_map=key_map, merge=merge
        )


def _base_folder(folder: Path, index: dict[str, Any]) -> Path | None:
    """Folder beside ``folder`` that ``_base`` names, or None."""
    name = index.get("_base")
    if name is None:
        return None
    if not isinstance(name, str) or Path(name).name != name or name in ("", "..", "."):
        raise ModelError(
            f"{folder / 'model_index.json'}: _base is {name!r}.",
            stage="load",
            hint="It is the plain name of a folder beside this one.",
        )
    return folder.parent / name


WAN_VAE_UNUSED = frozenset(
    {
        "in_channels", "out_channels", "is_residual", "patch_size", "decoder_base_dim",
        "scale_factor_spatial", "scale_factor_temporal", "clip_output", "non_linearity",
    }
)  # fmt: skip
"""Keys of diffusers' AutoencoderKLWan config that the Wan2.1 variant leaves at their defaults."""


def save_components(
    folder: Path,
    *,
    transformer: SkyReelsTransformer,
    vae: TinyVAE | WanVAE,
    text_encoder: ByteTextEncoder,
    audio_encoder: nn.Module | None,
    audio_config: dict[str, Any],
    audio_features: AudioFeatureConfig,
    generation: GenerationConfig,
    dtype: torch.dtype | None = None,
    max_shard_bytes: float = 5e9,
) -> None:
    """Write a model folder that :func:`load_components` reads.

    Parameters
    ----------
    folder : Path
        Target; made if absent.
    transformer, vae, text_encoder, audio_encoder : nn.Module
        Components of the native family; ``audio_encoder`` is a Whisper or wav2vec2 encoder or None.
    audio_config : dict
        ``config.json`` of the encoder; its ``model_type`` tells the kind.
    audio_features : AudioFeatureConfig
        Its grid.
    generation : GenerationConfig
        How the model is meant to be run.
    dtype : torch.dtype, optional
        Type of the stored weights; their own by default.
    max_shard_bytes : float
        A larger component is split into several files.

    Raises
    ------
    OutputError
        A file cannot be written.
    """
    vae_class = "TinyVAE" if isinstance(vae, TinyVAE) else "AutoencoderKLWan"
    index: dict[str, Any] = {
        "_class_name": PIPELINE_CLASS,
        "transformer": ["skyreels_rt", "SkyReelsTransformer"],
        "vae": ["skyreels_rt" if vae_class == "TinyVAE" else "diffusers", vae_class],
        "text_encoder": ["skyreels_rt", "ByteTextEncoder"],
    }
    parts: list[tuple[str, nn.Module, dict[str, Any]]] = [
        ("transformer", transformer, config_to_dict(transformer.config)),
        ("vae", vae, config_to_dict(vae.config)),
        ("text_encoder", text_encoder, config_to_dict(text_encoder.config)),
    ]
    if audio_encoder is not None:
        is_wav2vec2 = audio_config.get("model_type") == "wav2vec2"
        known = WAV2VEC2_CLASSES if is_wav2vec2 else WHISPER_CLASSES
        index["audio_encoder"] = ["transformers", known[0]]
        parts.append(("audio_encoder", audio_encoder, audio_config))
        write_json(folder / "audio_encoder" / "feature_config.json", config_to_dict(audio_features))
    for name, module, config in parts:
        write_json(folder / name / "config.json", config)
        weights = {
            key: value if dtype is None else value.to(dtype)
            for key, value in module.state_dict().items()
        }
        save_weights(
            weights,
            folder / name,
            filename="model.safetensors",
            max_shard_bytes=max_shard_bytes,
        )
    write_json(folder / "generation_config.json", config_to_dict(generation))
    write_json(folder / "model_index.json", index)
