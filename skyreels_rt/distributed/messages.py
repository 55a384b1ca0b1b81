r"""What the engine and its workers say to each other: a line of JSON, then raw arrays.

    {"kind": "chunk", "index": 8, "arrays": [["frames", "uint8", [4, 64, 64, 3]], ...]}\n
    <the bytes of each array, in that order>

Nothing is pickled, and nothing in a message names code: errors travel by the ``code`` of their
class, options as JSON, arrays with one of a few dtypes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from skyreels_rt.errors import InvalidArgument, SkyReelsError, WorkerFailed

DTYPES: Final = (
    "bool", "uint8", "uint16", "int8", "int16", "int32", "int64", "float16", "float32", "float64"
)  # fmt: skip
"""Types an array may have on its way to a worker."""

MAX_LINE_BYTES: Final = 16 * 2**20

FILE_OPTIONS: Final = ("audio", "image", "video", "edit_mask")
"""Options that may name a file; workers may run in another folder by the time they read it."""

MASK_NAMES: Final = ("mouth", "face")


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes
    ----------
    kind : str
        What it is about.
    facts : dict
        JSON data.
    arrays : dict of str to ndarray
        Arrays with one of :data:`DTYPES`.
    """

    kind: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def encoded(message: Message) -> list[bytes | memoryview]:
    """A message as the bytes to write, one after the other.

    Raises
    ------
    InvalidArgument
        An array has another dtype than :data:`DTYPES`.
    """
    arrays = {name: _native(name, array) for name, array in message.arrays.items()}
    shapes = [[name, str(array.dtype), array.shape] for name, array in arrays.items()]
    line = json.dumps({"kind": message.kind, **message.facts, "arrays": shapes})
    parts = [array.data.cast("B") for array in arrays.values() if array.size]
    return [line.encode() + b"\n", *parts]


def write_message(stream: BinaryIO, message: Message) -> None:
    """Write one message and flush it.

    Raises
    ------
    InvalidArgument
        As :func:`encoded`; nothing was written.
    OSError
        The other side is gone.
    """
    write_parts(stream, encoded(message))


def write_parts(stream: BinaryIO, parts: Sequence[bytes | memoryview]) -> None:
    """Write what :func:`encoded` gave and flush it; raises OSError if the other side is gone."""
    for part in parts:
        stream.write(part)
    stream.flush()


def read_message(stream: BinaryIO) -> Message | None:
    """Read one message; None at the end of the stream, also in the midst of a message.

    Raises
    ------
    WorkerFailed
        What came is no message.
    """
    line = stream.readline(MAX_LINE_BYTES)
    if not line.endswith(b"\n"):
        if len(line) == MAX_LINE_BYTES:
            raise _broken("a line without end")
        return None
    message = parse_line(line)
    facts = dict(message.facts)
    arrays = {}
    for name, dtype, shape in _checked_shapes(facts.pop("arrays", [])):
        data = bytearray(math.prod(shape) * np.dtype(dtype).itemsize)
        if not _fill(stream, data):
            return None
        arrays[name] = np.frombuffer(data, dtype).reshape(shape)
    return Message(message.kind, facts, arrays)


def parse_line(line: bytes) -> Message:
    """Message without arrays from its line.

    Raises
    ------
    WorkerFailed
        The line is no message.
    """
    try:
        facts = json.loads(line)
        kind = facts.pop("kind")
    except (ValueError, AttributeError, KeyError, TypeError):
        raise _broken(repr(line[:80])) from None
    return Message(kind, facts)


def _checked_shapes(entries: object) -> list[tuple[str, str, list[int]]]:
    """Names, types and shapes of the arrays that a line announces."""
    found: list[tuple[str, str, list[int]]] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        match entry:
            case [str(name), str(dtype), list(shape)] if dtype in DTYPES:
                sizes = [size for size in shape if isinstance(size, int) and size >= 0]
                if len(sizes) == len(shape):
                    found.append((name, dtype, sizes))
                    continue
        raise _broken(f"an array {entry!r:.80}")
    return found


def _fill(stream: BinaryIO, data: bytearray) -> bool:
    """Read until ``data`` is full; whether it is."""
    view = memoryview(data)
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            return False
        view = view[count:]
    return True


def _native(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """The array in C order and the machine's byte order."""
    dtype = array.dtype.newbyteorder("=")
    if str(dtype) not in DTYPES:
        raise InvalidArgument(name, expected=f"an array of {', '.join(DTYPES)}", got=dtype)
    return np.ascontiguousarray(array, dtype).reshape(array.shape)


def _broken(what: str) -> WorkerFailed:
    return WorkerFailed(f"A worker's message cannot be read: {what}.")


# ------------------------------------------------------------------------------------------ errors


def error_facts(error: BaseException) -> dict[str, Any]:
    """An error as JSON data, from which :func:`error_of` makes it again."""
    if not isinstance(error, SkyReelsError):
        text = f"{type(error).__name__}: {error}"
        return {"code": WorkerFailed.code, "message": text, "stage": None, "hint": None, "more": {}}
    known = {"message", "stage", "hint"}
    return {
        "code": error.code,
        "message": error.message,
        "stage": error.stage,
        "hint": error.hint,
        "more": {name: value for name, value in vars(error).items() if name not in known},
    }


def error_of(facts: Mapping[str, Any]) -> SkyReelsError:
    """The error that :func:`error_facts` was given; an unknown kind becomes the base class."""
    kind = _KINDS.get(facts["code"], SkyReelsError)
    error = kind.__new__(kind)
    SkyReelsError.__init__(error, facts["message"], stage=facts["stage"], hint=facts["hint"])
    for name, value in facts["more"].items():
        setattr(error, name, tuple(value) if isinstance(value, list) else value)
    return error


def _kinds(base: type[SkyReelsError]) -> dict[str, type[SkyReelsError]]:
    found = {base.code: base}
    for kind in base.__subclasses__():
        found.update(_kinds(kind))
    return found


_KINDS = _kinds(SkyReelsError)


# ----------------------------------------------------------------------------------------- options


def pack_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Options as JSON data and arrays; files are named from the root, what is None is left out.

    Raises
    ------
    InvalidArgument
        A value is neither JSON data nor a path or an array.
    """
    facts: dict[str, Any] = {}
    arrays: dict[str, NDArray[Any]] = {}
    for name, value in options.items():
        if isinstance(value, np.ndarray):
            arrays[name] = value
        elif value is not None:
            facts[name] = _plain(name, value)
    return facts, arrays


def _plain(name: str, value: object) -> object:
    """JSON data of one option."""
    if name in FILE_OPTIONS and isinstance(value, str | Path) and value not in MASK_NAMES:
        return str(Path(value).absolute())
    plain = value.item() if isinstance(value, np.generic) else value
    try:
        json.dumps(plain)
    except (TypeError, ValueError):
        raise InvalidArgument(
            name, expected="a number, a text, a path or an array", got=type(value).__name__
        ) from None
    return plain
