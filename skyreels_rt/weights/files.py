"""Finds the safetensors files of a checkpoint and reads their headers; no tensor is read here.

A file is opened only after its name and place were checked: shards are named by an index that may
come from anywhere.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from skyreels_rt.config import read_json
from skyreels_rt.errors import ModelError
from skyreels_rt.weights.eight_bits import join_scales

STEMS = ("diffusion_pytorch_model", "model")
"""File stems that hold a component's weights, in order of preference."""

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
"""Suffixes of pickled checkpoints, which are named in errors and never opened."""

# One plain ASCII file name: no separator, drive letter, NUL or leading dot can pass.
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\.safetensors")

CODE_BITS = {"F64": 64, "I64": 64, "F32": 32, "I32": 32, "F16": 16, "BF16": 16, "I16": 16}
"""Bits of a number, by safetensors' code; 8 for all others that occur here."""

_COMPUTE_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class StoredTensor:
    """Header entry of one tensor: its name, its file, its shape and safetensors' dtype code.

    A weight in e4m3 may have a ``scale``, which is stored under a name of its own.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    code: str
    scale: StoredTensor | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor, and of its scale, in the files."""
        scale = self.scale.num_bytes if self.scale else 0
        return prod(self.shape) * CODE_BITS.get(self.code, 8) // 8 + scale

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """Tensors in the files: itself, and its scale."""
        return (self,) if self.scale is None else (self, self.scale)


def stored_dtype(folder: Path) -> torch.dtype | None:
    """Type of most of a checkpoint's numbers, from its headers; None if models do not run in it.

    Those in 8 bits do not count: a model runs in the type of the others.

    Parameters
    ----------
    folder : Path
        A component's folder.

    Raises
    ------
    ModelError
        There are no readable weights.
    """
    sizes: dict[str, int] = {}
    for entry in read_checkpoint(folder).values():
        if not entry.code.startswith("F8"):
            sizes[entry.code] = sizes.get(entry.code, 0) + prod(entry.shape)
    most = max(sizes, key=lambda code: sizes[code], default="")
    return _COMPUTE_DTYPES.get(most)


def read_checkpoint(folder: Path) -> dict[str, StoredTensor]:
    """Headers of the checkpoint in ``folder``, by name.

    It is ``diffusion_pytorch_model.safetensors`` or ``model.safetensors``, or the shards that
    ``<name>.index.json`` lists. Where two shards hold a name, the index says which one counts:
    adapters that replace tensors of their base are stored so.

    Parameters
    ----------
    folder : Path
        Component folder. Files must lie inside it (or be links into the ``blobs`` folder of a hub
        cache whose ``snapshots`` hold ``folder``).

    Raises
    ------
    ModelError
        No usable weights, only pickled ones, a damaged file, a path that leaves ``folder``, or a
        name that two files hold and the index does not decide.
    """
    files, assigned = _weight_files(folder)
    return read_headers(files, assigned)


def _weight_files(folder: Path) -> tuple[list[Path], dict[str, Path]]:
    """Files of the checkpoint in ``folder``, and the one that its index gives each tensor."""
    names = {f"{stem}.safetensors{tail}" for stem in STEMS for tail in ("", ".index.json")}
    found = sorted(name for name in names if (folder / name).is_file())
    if len({name.partition(".")[0] for name in found}) > 1:
        raise ModelError(
            f"{folder}: two checkpoints here, {' and '.join(found)}.",
            stage="load",
            hint="Remove the one that is not meant.",
        )
    for stem in STEMS:
        single = folder / f"{stem}.safetensors"
        if single.is_symlink() or single.is_file():
            return [_inside(folder, single.name)], {}
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_symlink() or index.is_file():
            return _indexed_files(folder, index.name)
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such model folder.", stage="load")
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICKLE_SUFFIXES)
    if pickled:
        raise ModelError(
            f"{folder}: only pickled weights here ({', '.join(pickled)}).",
            stage="load",
            hint="Pickled files can run code and are never read at run time; convert them to "
            "safetensors first (skyreels-rt convert).",
        )
    raise ModelError(
        f"{folder}: no weights found.",
        stage="load",
        hint=f"Expected {' or '.join(f'{stem}.safetensors' for stem in STEMS)}, or its "
        ".index.json with shards.",
    )


def _indexed_files(folder: Path, index_name: str) -> tuple[list[Path], dict[str, Path]]:
    """Shards listed in the index file, each checked before any of them is opened."""
    index = folder / index_name
    _inside(folder, index_name)
    try:
        weight_map = read_json(index).get("weight_map")
    except RecursionError as error:
        raise ModelError(f"{index}: nested too deeply.", stage="load") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: expected an object 'weight_map' with file names.", stage="load")
    for entry in weight_map.values():
        if not isinstance(entry, str) or not FILE_NAME.fullmatch(entry):
            raise ModelError(
                f"{index}: {entry!r} is not the plain name of a .safetensors file.",
                stage="load",
                hint="Shards lie beside their index and are named without folders.",
            )
    paths = {name: _inside(folder, name) for name in sorted(set(weight_map.values()))}
    return list(paths.values()), {key: paths[name] for key, name in weight_map.items()}


def _inside(folder: Path, name: str) -> Path:
    """``folder / name`` with links resolved, or a ModelError if it leads out of the folder."""
    base = folder.resolve()
    try:
        path = (base / name).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{folder / name}: no such file.", stage="load") from error
    roots = [base]
    # A hub cache keeps files once, in blobs/, and links to them from snapshots/<revision>/.
    roots += [p.parent / "blobs" for p in (base, *base.parents) if p.name == "snapshots"]
    if not any(path.is_relative_to(root) for root in roots):
        raise ModelError(
            f"{folder / name}: links to a file outside its folder.",
            stage="load",
            hint="Copy the file into the model folder.",
        )
    if not path.is_file():
        raise ModelError(f"{folder / name}: not a regular file.", stage="load")
    return path


@contextlib.contextmanager
def reading_safetensors(file: Path) -> Iterator[None]:
    """Turn whatever safetensors says about a damaged file into a ModelError that names it."""
    try:
        yield
    except (SafetensorError, OSError, RuntimeError, ValueError, OverflowError) as error:
        raise ModelError(
            f"{file}: not a readable safetensors file ({error}).",
            stage="load",
            hint="Fetch or convert the file again.",
        ) from error


def read_headers(
    files: Iterable[Path], assigned: Mapping[str, Path] | None = None
) -> dict[str, StoredTensor]:
    """Headers of ``files``, which the caller has chosen, by name.

    It is the stored one, but for weights in e4m3 as :mod:`skyreels_rt.weights.eight_bits` lists
    them: those have their layer's name, and their scale in the same entry.

    Parameters
    ----------
    files : iterable of Path
        Safetensors files.
    assigned : mapping of str to Path, optional
        Which file counts where several hold a name.

    Raises
    ------
    ModelError
        A damaged file, a name in several files, or two scales of a weight.
    """
    assigned = assigned or {}
    found: dict[str, StoredTensor] = {}
    for file in files:
        with reading_safetensors(file):
            entries = _header(file)
        for entry in entries:
            first = found.get(entry.name)
            if first is not None and assigned.get(entry.name) not in (file, first.file):
                raise ModelError(
                    f"{entry.name}: stored twice, in {first.file} and in {file}.", stage="load"
                )
            if first is None or assigned[entry.name] == file:
                found[entry.name] = entry
    return join_scales(found)


def _header(file: Path) -> list[StoredTensor]:
    """Entries of one file, sorted by name."""
    with safe_open(file, framework="pt") as handle:
        slices = {name: handle.get_slice(name) for name in sorted(handle.keys())}
        return [
            StoredTensor(name, file, tuple(part.get_shape()), part.get_dtype())
            for name, part in slices.items()
        ]
