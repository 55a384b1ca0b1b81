"""A session as a file: one safetensors blob, with the facts as JSON in its header."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from skyreels_rt.components import Components
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.types import PartState

FORMAT = 2
"""Version of the layout; a snapshot of another version is refused."""

_KEY = "skyreels_rt_session"
_SAMPLES = 16  # values of each weight that tell a model from another


def model_fingerprint(parts: Components) -> str:
    """Tell models apart: hash of the sizes, the number type and some values of every weight."""
    digest = hashlib.sha256()
    facts = [asdict(parts.transformer.config), asdict(parts.generation), str(parts.dtype)]
    facts.append(parts.vae.runner)
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for model in (parts.transformer, parts.vae):
        for name, weight in model.named_parameters():
            digest.update(name.encode())
            digest.update(weight.detach().flatten()[:_SAMPLES].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def pack_snapshot(parts: Components, state: PartState) -> bytes:
    """Write a session's state as bytes.

    Parameters
    ----------
    parts : Components
        The model that the session runs on.
    state : PartState
        Of the session.
    """
    facts = {"format": FORMAT, "model": model_fingerprint(parts), "facts": state.facts}
    tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
    blob: bytes = save(tensors, metadata={_KEY: json.dumps(facts)})
    return blob


def unpack_snapshot(parts: Components, snapshot: bytes | str | Path) -> PartState:
    """Read what :func:`pack_snapshot` wrote.

    Raises
    ------
    InvalidArgument
        No snapshot, one of another version, or of another model.
    """
    try:
        data = snapshot if isinstance(snapshot, bytes) else Path(snapshot).read_bytes()
        header = _header(data)
        tensors = load(data)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidArgument(
            "snapshot", expected="a snapshot of a session", got=type(error).__name__
        ) from error
    if header["format"] != FORMAT:
        raise InvalidArgument("snapshot", expected=f"format {FORMAT}", got=header["format"])
    if header["model"] != model_fingerprint(parts):
        raise InvalidArgument(
            "snapshot",
            expected="one of this model in this number type",
            got="one of another",
            hint="Restore it with the engine that made it.",
        )
    return PartState(header["facts"], tensors)


def _header(data: bytes) -> dict[str, Any]:
    """The JSON facts in the blob's header."""
    length = int.from_bytes(data[:8], "little")
    if not 0 < length <= len(data) - 8:
        raise ValueError("no safetensors header")
    header: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
    return header
