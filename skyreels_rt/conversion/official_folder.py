"""Finds the parts of an official release: transformer, encoders, VAE, speech encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skyreels_rt.config import read_json
from skyreels_rt.errors import ModelError
from skyreels_rt.weights.families import Family, detect_family
from skyreels_rt.weights.files import (
    PICKLE_SUFFIXES,
    STEMS,
    StoredTensor,
    read_checkpoint,
    read_headers,
)
from skyreels_rt.weights.key_maps import official_key

_ENCODERS = {
    "text_encoder": "models_t5*",
    "image_encoder": "models_clip*",
    "vae": "*VAE*",
}
_TAILS = ("", ".index.json")
_IMAGE_EMBEDDING = "img_emb.proj.0.weight"
_WEIGHTS = frozenset({".safetensors", *PICKLE_SUFFIXES})
_PRESETS = {
    "multitalk": "skyreels-v3-a2v",
    "fantasy-talking": "fantasytalking",
    "wan-i2v": "wan2.1-i2v",
    "wan-t2v": "wan2.1-t2v",
}


@dataclass(frozen=True)
class OfficialFolder:
    """Where an official release keeps its parts.

    Attributes
    ----------
    family : Family
        Told by the transformer's tensors.
    config : Path
        The transformer's ``config.json``.
    transformer : dict of str to StoredTensor
        Its tensors; those of an adapter in place of the base's.
    preset : str
        Name of the settings that the family is usually run with.
    text_encoder, vae : Path
        Weights files, pickled or safetensors.
    tokenizer : Path
        ``tokenizer.json`` of umT5.
    image_encoder : Path or None
        Weights file, for families with an image branch.
    audio_encoder : Path or None
        transformers folder of a wav2vec2 encoder, for families with an audio adapter.
    """

    family: Family
    config: Path
    transformer: dict[str, StoredTensor]
    preset: str
    text_encoder: Path
    tokenizer: Path
    vae: Path
    image_encoder: Path | None
    audio_encoder: Path | None


def find_parts(
    source: Path, *, adapter: Path | None = None, audio_encoder: Path | None = None
) -> OfficialFolder:
    """Find the parts of the official release in ``source``.

    Parameters
    ----------
    source : Path
        Folder of SkyReels-V3-A2V, or of Wan2.1 with or without a MultiTalk file in it.
    adapter : Path, optional
        Safetensors file with an audio part that is published apart from its base: InfiniteTalk,
        MultiTalk, FantasyTalking.
    audio_encoder : Path, optional
        transformers folder of the wav2vec2 encoder, where it is not a sub-folder of ``source``.

    Raises
    ------
    ModelError
        Another kind of folder, or a part that is missing: all that are missing are named.
    """
    if not source.is_dir():
        raise ModelError(f"{source}: no such folder.", stage="convert")
    if (source / "model_index.json").is_file():
        raise ModelError(
            f"{source}: already a model folder with safetensors.",
            stage="convert",
            hint="The engine loads it as it is; there is nothing to convert.",
        )
    missing: list[str] = []
    config = source / "config.json"
    if not config.is_file():
        missing.append("config.json of the transformer")
    base = _transformer_entries(source)
    if not base:
        missing.append("the transformer's *.safetensors")
    if adapter is not None and not adapter.is_file():
        missing.append(f"the adapter {adapter}")
    if missing:
        raise _incomplete(source, missing)
    transformer = _with_adapter(base, adapter)
    family = _family(source, transformer, adapter)
    has_image = _IMAGE_EMBEDDING in {official_key(name) for name in transformer}
    found = {part: _one_file(source, pattern) for part, pattern in _ENCODERS.items()}
    needed = [part for part in _ENCODERS if part != "image_encoder" or has_image]
    missing += [f"{part} ({_ENCODERS[part]})" for part in needed if found[part] is None]
    tokenizer = source / "google" / "umt5-xxl" / "tokenizer.json"
    if not tokenizer.is_file():
        missing.append("google/umt5-xxl/tokenizer.json")
    if family.audio is not None:
        audio_encoder = audio_encoder or _wav2vec2_folder(source)
        if audio_encoder is None or not (audio_encoder / "config.json").is_file():
            missing.append("a wav2vec2 folder (--audio-encoder)")
    text_encoder, vae = found["text_encoder"], found["vae"]
    if missing or text_encoder is None or vae is None:
        raise _incomplete(source, missing)
    return OfficialFolder(
        family=family,
        config=config,
        transformer=transformer,
        preset=_preset(family, source, adapter),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        vae=vae,
        image_encoder=found["image_encoder"] if has_image else None,
        audio_encoder=audio_encoder if family.audio is not None else None,
    )


def _transformer_entries(source: Path) -> dict[str, StoredTensor]:
    """Stored tensors of the transformer: as the index says, else all but the encoders beside it."""
    if any((source / f"{stem}.safetensors{tail}").is_file() for stem in STEMS for tail in _TAILS):
        return read_checkpoint(source)
    others = {path for pattern in _ENCODERS.values() for path in source.glob(pattern)}
    return read_headers(sorted(set(source.glob("*.safetensors")) - others))


def _with_adapter(base: dict[str, StoredTensor], adapter: Path | None) -> dict[str, StoredTensor]:
    if adapter is None:
        return base
    added = read_headers([adapter])
    replaced = {official_key(name) for name in added}
    return {n: entry for n, entry in base.items() if official_key(n) not in replaced} | added


def _family(source: Path, transformer: dict[str, StoredTensor], adapter: Path | None) -> Family:
    where = str(source) if adapter is None else f"{source} with {adapter}"
    family = detect_family(transformer, where=where)
    if family.is_adapter:
        raise ModelError(
            f"{where}: {family.title}.",
            stage="convert",
            hint="Give the folder of the base, and this file as --adapter.",
        )
    return family


def _preset(family: Family, source: Path, adapter: Path | None) -> str:
    """Settings of the family; models with the same tensors are told by the names of their files."""
    if family.name == "multitalk":
        files = {path.name.lower() for path in (*source.glob("*.safetensors"), adapter) if path}
        for name in ("infinitetalk", "multitalk"):
            if any(file.startswith(name) for file in files):
                return name
    return _PRESETS[family.name]


def _one_file(source: Path, pattern: str) -> Path | None:
    """Weights file that fits ``pattern``; safetensors before pickles."""
    files = [path for path in sorted(source.glob(pattern)) if path.suffix in _WEIGHTS]
    files.sort(key=lambda path: path.suffix != ".safetensors")
    return files[0] if files else None


def _wav2vec2_folder(source: Path) -> Path | None:
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        config = folder / "config.json"
        if config.is_file() and read_json(config).get("model_type") == "wav2vec2":
            return folder
    return None


def _incomplete(source: Path, missing: list[str]) -> ModelError:
    return ModelError(
        f"{source}: not a complete official release; missing: {', '.join(missing)}.",
        stage="convert",
        hint="Known: SkyReels-V3-A2V, Wan2.1 T2V and I2V, and these with the audio part of "
        "MultiTalk, InfiniteTalk or FantasyTalking as --adapter.",
    )
