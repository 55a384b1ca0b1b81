"""The published SyncNet weights as the safetensors file that the data pipeline reads."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from skyreels_rt.conversion.child import run_unpickler
from skyreels_rt.data.syncnet import syncnet_from
from skyreels_rt.errors import InvalidArgument, ModelError, OutputError


def convert_syncnet(source: Path, target: Path) -> str:
    """Write the weights in ``source`` as the file ``target``, whole or not at all.

    Parameters
    ----------
    source : Path
        Pickled weights (``syncnet_v2.model``), or safetensors. Pickles are read by a process of
        their own that makes nothing but tensors.
    target : Path
        File to make; must not exist.

    Returns
    -------
    str
        SHA-256 of what was written, 64 hexadecimal digits.

    Raises
    ------
    InvalidArgument
        ``target`` exists.
    ModelError
        ``source`` is absent or holds other objects than tensors.
    WeightsMismatch, NonFinite
        It is not a SyncNet.
    OutputError
        ``target`` cannot be written.
    """
    if target.exists() or target.is_symlink():
        raise InvalidArgument("output", expected="a file that does not exist", got=target)
    if not source.is_file():
        raise ModelError(f"{source}: no such file.", stage="convert")
    try:
        with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=".syncnet-") as made:
            run_unpickler(source, Path(made), "syncnet", _nothing)
            file = Path(made) / "model.safetensors"
            data = file.read_bytes()
            syncnet_from(data, source)
            file.rename(target)
    except OSError as error:
        raise OutputError(f"{target}: not written ({error}).", stage="convert") from error
    return hashlib.sha256(data).hexdigest()


def _nothing() -> None:
    """No progress: the file is small."""
