"""Writes an official release as a model folder: whole or not at all.

Everything is made in a folder beside the target and renamed at the end. Safetensors files are
linked or copied as they are; pickled ones are read by a child process
(:mod:`skyreels_rt.conversion.unpickle`). ``SHA256SUMS`` is what ``sha256sum -c`` reads. A policy
lets the transformer be written anew in 8 bits; then a model folder is a source, too.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from skyreels_rt.config import TransformerConfig, config_to_dict, read_json, write_json
from skyreels_rt.conversion.child import run_unpickler
from skyreels_rt.conversion.encoder_configs import clip_config, umt5_config, vae_config
from skyreels_rt.conversion.official_folder import OfficialFolder, find_parts
from skyreels_rt.conversion.quantize import write_quantized
from skyreels_rt.errors import InvalidArgument, ModelError, OutputError
from skyreels_rt.model_folder import PIPELINE_CLASS, check_folder, component_folders
from skyreels_rt.presets import find_preset
from skyreels_rt.pretrained import load_shapes
from skyreels_rt.quantization import QuantPolicy, resolve_policy
from skyreels_rt.types import LoadCallback, LoadProgress
from skyreels_rt.weights.files import StoredTensor, read_checkpoint
from skyreels_rt.weights.official_layout import transformer_config_from_official

SUMS_FILE = "SHA256SUMS"
_COPY_BYTES = 16 << 20
_ROOM = 1.05


@dataclass(frozen=True)
class Conversion:
    """What was made.

    Attributes
    ----------
    folder : Path
        The model folder.
    family : str
        Title of the family; of a model folder, its pipeline's class.
    preset : str
        Settings that the folder names; empty for a model folder with settings of its own.
    num_bytes : int
        Bytes of all files.
    """

    folder: Path
    family: str
    preset: str
    num_bytes: int


@dataclass
class _Work:
    """A conversion under way: the unfinished folder and the bytes that are done."""

    folder: Path
    link: bool
    on_progress: LoadCallback | None
    policy: QuantPolicy | None = None
    total: int = 0
    done: int = 0
    index: dict[str, object] = field(default_factory=dict)

    def report(self, part: str, within: int = 0) -> None:
        if self.on_progress is not None:
            self.on_progress(LoadProgress(part, min(self.done + within, self.total), self.total))


def convert(
    source: Path,
    target: Path,
    *,
    adapter: Path | None = None,
    audio_encoder: Path | None = None,
    preset: str | None = None,
    quantization: str | QuantPolicy | None = None,
    link: bool = True,
    on_progress: LoadCallback | None = None,
) -> Conversion:
    """Write the official release in ``source`` as the model folder ``target``.

    Parameters
    ----------
    source : Path
        Folder of SkyReels-V3-A2V, or of Wan2.1 T2V or I2V; with ``quantization`` a model folder,
        too.
    target : Path
        Must not exist.
    adapter : Path, optional
        Audio part published apart from its base: InfiniteTalk, MultiTalk, FantasyTalking.
    audio_encoder : Path, optional
        transformers folder of the wav2vec2 encoder, where ``source`` has none.
    preset : str, optional
        Settings to run with; the family's by default.
    quantization : str or QuantPolicy, optional
        Write these layers of the transformer in e4m3, and run them so unless told otherwise.
    link : bool
        Let safetensors files that stay as they are share their bytes with the source, where the
        file system can; else they are copied.
    on_progress : callable, optional
        Called with the bytes done.

    Raises
    ------
    ModelError
        ``source`` is not a complete release, or a file of it cannot be used.
    WeightsMismatch
        A component does not hold exactly the tensors that its model needs.
    InvalidArgument
        ``target`` exists, a preset or policy is unknown, or a rule fits no layer.
    OutputError
        It cannot be written; nothing is left of it.
    """
    if target.exists() or target.is_symlink():
        raise InvalidArgument("target", expected="a folder that does not exist", got=target)
    if preset is not None:
        find_preset(preset)
    policy = resolve_policy(quantization)
    unfinished = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    work = _Work(unfinished, link, on_progress, policy)
    try:
        unfinished.mkdir(parents=True)
        if policy is not None and (source / "model_index.json").is_file():
            family, made = _rewrite(work, source, policy)
        else:
            adapter = _readable_adapter(work, adapter)
            parts = find_parts(source, adapter=adapter, audio_encoder=audio_encoder)
            work.total = _bytes_of(parts)
            _require_room(work, parts)
            family, made = parts.family.title, _write_parts(work, parts, preset or parts.preset)
            shutil.rmtree(unfinished / "adapter", ignore_errors=True)
        check_folder(unfinished)
        num_bytes = _write_sums(work)
        unfinished.rename(target)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{target}: not written ({error}).", stage="convert") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Conversion(target, family, made, num_bytes)


def _rewrite(work: _Work, source: Path, policy: QuantPolicy) -> tuple[str, str]:
    """Write a model folder's transformer in 8 bits and take the rest; its class and preset."""
    index = read_json(source / "model_index.json")
    folders = component_folders(source)
    config = load_shapes(source, dtype="float32").transformer.config
    entries = read_checkpoint(folders["transformer"])
    others = [
        (component, file)
        for component, folder in folders.items()
        for file in sorted(folder.iterdir())
        if component != "transformer" and file.is_file()
    ]
    work.total = _tensor_bytes(entries) + sum(file.stat().st_size for _, file in others)
    for component, file in others:
        (work.folder / component).mkdir(exist_ok=True)
        _take(work, file, work.folder / component / file.name, component)
    (work.folder / "transformer").mkdir()
    shutil.copyfile(
        folders["transformer"] / "config.json", work.folder / "transformer" / "config.json"
    )
    _write_small(work, entries, config, policy)
    settings = source / "generation_config.json"
    if settings.is_file():
        shutil.copyfile(settings, work.folder / settings.name)
    index.pop("_base", None)
    write_json(work.folder / "model_index.json", index)
    return str(index.get("_class_name")), str(index.get("_preset", ""))


def _write_small(
    work: _Work, entries: dict[str, StoredTensor], config: TransformerConfig, policy: QuantPolicy
) -> None:
    def report(num_bytes: int) -> None:
        work.done += num_bytes
        work.report("transformer")

    write_quantized(entries, work.folder / "transformer", config, policy, on_bytes=report)


def _readable_adapter(work: _Work, adapter: Path | None) -> Path | None:
    """The adapter as safetensors: itself, or made from a pickled one."""
    if adapter is None or adapter.suffix == ".safetensors" or not adapter.is_file():
        return adapter
    _translate(work, adapter, "adapter", "unchanged")
    return work.folder / "adapter" / "model.safetensors"


def _write_parts(work: _Work, parts: OfficialFolder, preset: str) -> str:
    """Write every component and the index; returns the preset's name."""
    _write_transformer(work, parts)
    encoders: list[tuple[str, Path | None, str, list[str], Callable[..., dict[str, object]]]] = [
        ("vae", parts.vae, "vae", ["diffusers", "AutoencoderKLWan"], vae_config),
        ("text_encoder", parts.text_encoder, "umt5", ["transformers", "UMT5EncoderModel"],
         umt5_config),
        ("image_encoder", parts.image_encoder, "clip", ["transformers", "CLIPVisionModel"],
         clip_config),
    ]  # fmt: skip
    for component, file, map_name, entry, make_config in encoders:
        if file is None:
            continue
        _translate(work, file, component, map_name)
        shapes = {n: e.shape for n, e in read_checkpoint(work.folder / component).items()}
        write_json(work.folder / component / "config.json", make_config(shapes, str(file)))
        work.index[component] = entry
    (work.folder / "tokenizer").mkdir()
    shutil.copyfile(parts.tokenizer, work.folder / "tokenizer" / "tokenizer.json")
    work.index["tokenizer"] = ["transformers", "T5TokenizerFast"]
    if parts.audio_encoder is not None:
        _write_audio_encoder(work, parts.audio_encoder)
    write_json(
        work.folder / "model_index.json",
        {"_class_name": PIPELINE_CLASS, "_preset": preset, **work.index},
    )
    return preset


def _write_transformer(work: _Work, parts: OfficialFolder) -> None:
    folder = work.folder / "transformer"
    shapes = {name: entry.shape for name, entry in parts.transformer.items()}
    config = transformer_config_from_official(
        read_json(parts.config), shapes, parts.family, where=str(parts.config)
    )
    write_json(folder / "config.json", config_to_dict(config))
    work.index["transformer"] = ["skyreels_rt", "SkyReelsTransformer"]
    if work.policy is not None:
        _write_small(work, parts.transformer, config, work.policy)
        return
    files = sorted(_transformer_files(parts))
    names = {
        file: f"model-{number:05}-of-{len(files):05}.safetensors"
        for number, file in enumerate(files, start=1)
    }
    for file, name in names.items():
        _take(work, file, folder / name, "transformer")
    weight_map = {
        one.name: names[one.file] for entry in parts.transformer.values() for one in entry.parts
    }
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": _tensor_bytes(parts.transformer)}, "weight_map": weight_map},
    )


def _write_audio_encoder(work: _Work, source: Path) -> None:
    folder = work.folder / "audio_encoder"
    folder.mkdir()
    shutil.copyfile(source / "config.json", folder / "config.json")
    weights = source / "model.safetensors"
    if weights.is_file():
        _take(work, weights, folder / "model.safetensors", "audio_encoder")
    else:
        pickled = source / "pytorch_model.bin"
        if not pickled.is_file():
            raise ModelError(
                f"{source}: neither model.safetensors nor pytorch_model.bin.", stage="convert"
            )
        _translate(work, pickled, "audio_encoder", "unchanged")
    work.index["audio_encoder"] = ["transformers", "Wav2Vec2Model"]


def _take(work: _Work, file: Path, target: Path, part: str) -> None:
    """Link ``file``, or copy it where that cannot be."""
    file = file.resolve()
    if work.link:
        try:
            os.link(file, target)
            work.done += file.stat().st_size
            work.report(part)
            return
        except OSError:
            pass  # another file system, or one without links
    with file.open("rb") as reader, target.open("xb") as writer:
        while block := reader.read(_COPY_BYTES):
            writer.write(block)
            work.done += len(block)
            work.report(part)
        os.fsync(writer.fileno())


def _translate(work: _Work, file: Path, component: str, map_name: str) -> None:
    """Have a child process write ``file`` as safetensors into the component's folder."""
    folder = work.folder / component
    folder.mkdir(exist_ok=True)
    run_unpickler(file, folder, map_name, lambda: work.report(component, _folder_bytes(folder)))
    work.done += file.stat().st_size
    work.report(component)


def _write_sums(work: _Work) -> int:
    """Write the digests of all files in the form of ``sha256sum``; returns the bytes."""
    files = sorted(path for path in work.folder.rglob("*") if path.is_file())
    work.total, work.done = sum(path.stat().st_size for path in files), 0
    lines = []
    for path in files:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_COPY_BYTES):
                digest.update(block)
                work.done += len(block)
                work.report("checksums")
        lines.append(f"{digest.hexdigest()}  {path.relative_to(work.folder).as_posix()}\n")
    (work.folder / SUMS_FILE).write_text("".join(lines), encoding="utf-8")
    return work.total


def _require_room(work: _Work, parts: OfficialFolder) -> None:
    """Raise unless the disk has room for what is written anew."""
    disk = work.folder.stat().st_dev
    links = work.link and work.policy is None
    shared = {file for file in _transformer_files(parts) if links and file.stat().st_dev == disk}
    needed = int((_bytes_of(parts) - sum(file.stat().st_size for file in shared)) * _ROOM)
    free = shutil.disk_usage(work.folder).free
    if needed > free:
        raise OutputError(
            f"{work.folder.parent}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free.",
            stage="convert",
        )


def _bytes_of(parts: OfficialFolder) -> int:
    files = {file for file in (parts.text_encoder, parts.vae, parts.image_encoder) if file}
    return sum(file.stat().st_size for file in files | _transformer_files(parts))


def _transformer_files(parts: OfficialFolder) -> set[Path]:
    return {one.file for entry in parts.transformer.values() for one in entry.parts}


def _tensor_bytes(entries: dict[str, StoredTensor]) -> int:
    return sum(entry.num_bytes for entry in entries.values())


def _folder_bytes(folder: Path) -> int:
    return sum(_size(path) for path in folder.iterdir())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # renamed meanwhile
