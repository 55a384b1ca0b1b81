"""Training state on disk: one safetensors file, replaced as a whole, so a kill leaves the last one.

Random numbers are not stored: every batch is drawn from (seed, step), so a resumed run sees what an
uninterrupted one would have seen, bit for bit.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from skyreels_rt.errors import ModelError, OutputError

_META = "state"


@dataclass
class Checkpoint:
    """Tensors and plain facts of a run.

    Attributes
    ----------
    tensors : dict of str to Tensor
        Weights, averages and optimiser moments, by name.
    facts : dict
        Step, loss history and the recipe's fingerprint; plain JSON.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name starts with ``prefix/``, without it."""
        head = f"{prefix}/"
        return {k.removeprefix(head): v for k, v in self.tensors.items() if k.startswith(head)}


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` to ``path``; the old file stays until the new one is complete.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    partial = path.with_suffix(".partial")
    tensors = {name: tensor.cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata={_META: json.dumps(checkpoint.facts)})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise OutputError(f"{path}: cannot be written ({error}).") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read what :func:`save_checkpoint` wrote.

    Raises
    ------
    ModelError
        The file is missing or not a checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[_META])
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(
            f"{path}: not a checkpoint ({error}).",
            stage="train",
            hint="Delete it to start the stage anew.",
        ) from error
    return Checkpoint({name: torch.clone(tensor) for name, tensor in tensors.items()}, facts)
