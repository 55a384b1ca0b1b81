"""Starts the process that reads pickled checkpoints, and waits for it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from skyreels_rt.errors import ModelError

_POLL_S = 0.2


def run_unpickler(file: Path, folder: Path, map_name: str, report: Callable[[], None]) -> None:
    """Have :mod:`.unpickle` write ``file`` as safetensors into ``folder``.

    Parameters
    ----------
    file : Path
        Pickled checkpoint.
    folder : Path
        Existing folder; gets ``model.safetensors``.
    map_name : str
        Key of :data:`skyreels_rt.weights.encoder_maps.TENSOR_MAPS`.
    report : callable
        Called while the process runs.

    Raises
    ------
    ModelError
        The file holds other objects than tensors, or cannot be read or written out.
    """
    module = "skyreels_rt.conversion.unpickle"
    # Not resolved: in a hub's cache the link has the suffix, its target has none.
    command = [sys.executable, "-P", "-m", module, str(file.absolute()), str(folder), map_name]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        out, err = _attended(child, report)
    said = _last_json(out)
    if child.returncode != 0 or "tensors" not in said:
        reason = said.get("error") or (err.strip().splitlines() or ["no message"])[-1]
        raise ModelError(
            f"{file}: not converted: {reason} (exit status {child.returncode}).",
            stage="convert",
            hint="Fetch the file again from where it was published.",
        )


def _attended(child: subprocess.Popen[str], report: Callable[[], None]) -> tuple[str, str]:
    """Output and messages of a child process; ``report`` is called while it runs."""
    try:
        while True:
            try:
                return child.communicate(timeout=_POLL_S)
            except subprocess.TimeoutExpired:
                report()
    except BaseException:
        child.kill()
        raise


def _last_json(text: str) -> dict[str, object]:
    try:
        said = json.loads(text.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
