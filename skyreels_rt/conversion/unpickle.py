"""The one process that reads pickled checkpoints: ``python -m skyreels_rt.conversion.unpickle``.

It is a child of the converter and never part of an engine. torch's weights-only unpickler makes
nothing but tensors and plain containers. A second fence, no sandbox: should a file find a way
around it, an audit hook ends the process when it connects anywhere, starts a program, or changes a
file outside its target folder.
Its last line on standard output is a JSON object: ``{"tensors": N}`` or ``{"error": TEXT}``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from skyreels_rt.errors import SkyReelsError
from skyreels_rt.weights.encoder_maps import TENSOR_MAPS
from skyreels_rt.weights.loader import save_weights

WEIGHTS_FILE = "model.safetensors"
MAX_SHARD_BYTES = 5e9

_WRAPPERS = frozenset({"state_dict", "model", "module"})
_FORBIDDEN_EVENTS = (
    "socket.", "subprocess.", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.system",
)  # fmt: skip
_CHANGES = (
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate",
    "os.chmod", "os.chown",
)  # fmt: skip
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC


class Refused(Exception):
    """The file does not hold a checkpoint that can be converted."""


def confine(folder: Path) -> None:
    """End the process when it does what no conversion needs; cannot be undone.

    Parameters
    ----------
    folder : Path
        Files may be written inside it alone.
    """
    inside = folder.resolve()

    def watch(event: str, args: tuple[object, ...]) -> None:
        paths: tuple[object, ...] = ()
        if event == "open":
            paths = args[:1] if _is_write(args) else ()
        elif event in _CHANGES:
            paths = args[:2]
        for path in paths:
            if isinstance(path, str | bytes | os.PathLike):
                written = Path(os.fsdecode(path)).resolve()
                if not written.is_relative_to(inside):
                    _end(f"the file tried to change {written}")
        if event.startswith(_FORBIDDEN_EVENTS):
            _end(f"the file tried to run something ({event})")

    sys.addaudithook(watch)


def read_tensors(source: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name, from a pickled or a safetensors file.

    Nested dictionaries become dotted names; a wrapper such as ``{"state_dict": ...}`` is taken off.

    Raises
    ------
    Refused
        The file holds other objects than tensors, or cannot be read.
    """
    stored = _read(source)
    while isinstance(stored, Mapping) and len(stored) == 1 and next(iter(stored)) in _WRAPPERS:
        stored = next(iter(stored.values()))
    found: dict[str, Tensor] = {}
    _flatten(stored, "", found)
    if not found:
        raise Refused("no tensors in it")
    return found


def _read(source: Path) -> object:
    """What safetensors, or torch's weights-only unpickler, makes of a file; mapped if it can be."""
    try:
        if source.suffix == ".safetensors":
            return load_file(source)
        try:
            return torch.load(source, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before torch 1.6 cannot be mapped
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # readers raise whatever the bytes lead them to
        reason = str(error).strip().splitlines()
        raise Refused(
            f"not a checkpoint of tensors alone ({reason[0] if reason else type(error).__name__})"
        ) from error


def convert_file(source: Path, folder: Path, map_name: str) -> int:
    """Write the tensors of ``source``, renamed, as safetensors into ``folder``.

    Parameters
    ----------
    source : Path
        Checkpoint.
    folder : Path
        Existing folder.
    map_name : str
        Key of :data:`skyreels_rt.weights.encoder_maps.TENSOR_MAPS`.

    Returns
    -------
    int
        Tensors written.

    Raises
    ------
    Refused
        As :func:`read_tensors`, or two tensors get one name.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in read_tensors(source).items():
        for new, value in TENSOR_MAPS[map_name](name, tensor):
            if new in renamed:
                raise Refused(f"two tensors become {new}")
            renamed[new] = value
    save_weights(renamed, folder, filename=WEIGHTS_FILE, max_shard_bytes=MAX_SHARD_BYTES)
    return len(renamed)


def main(source: str, folder: str, map_name: str) -> int:
    """Convert one file; the exit status says whether it worked."""
    confine(Path(folder))
    try:
        count = convert_file(Path(source), Path(folder), map_name)
    except (Refused, SkyReelsError, OSError) as error:
        _say({"error": str(error)})
        return 1
    _say({"tensors": count})
    return 0


def _flatten(stored: object, prefix: str, found: dict[str, Tensor]) -> None:
    if isinstance(stored, Tensor):
        found[prefix] = stored
    elif isinstance(stored, Mapping):
        for name, value in stored.items():
            _flatten(value, f"{prefix}.{name}" if prefix else str(name), found)
    else:
        raise Refused(f"{prefix or 'the file'} holds {type(stored).__name__}, expected tensors")


def _is_write(args: tuple[object, ...]) -> bool:
    """Whether the arguments of an ``open`` event ask to write."""
    _, mode, flags = args
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & _WRITE_FLAGS)


def _say(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _end(reason: str) -> None:
    _say({"error": reason})
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
