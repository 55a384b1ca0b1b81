"""Settings of the pipeline, versioned, read from TOML over the packaged defaults."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from skyreels_rt.data.filters import FILTERS, Filter
from skyreels_rt.errors import InvalidArgument

VERSION = 1
"""Version of the settings' layout; files of another one are refused."""

_DEFAULTS = Path(__file__).parents[1] / "assets" / "data" / "defaults.toml"

TableT = TypeVar("TableT")


@dataclass(frozen=True)
class ClipSettings:
    """How a source is cut into clips.

    Attributes
    ----------
    min_s, max_s : float
        Shortest piece of a shot that is looked at, and length of the pieces of long shots.
    cut_threshold : float
        Of PySceneDetect's ``ContentDetector``.
    look_every : int
        Frames between two searches for faces.
    """

    min_s: float
    max_s: float
    cut_threshold: float
    look_every: int


@dataclass(frozen=True)
class SyncSettings:
    """How mouth and speech are compared.

    Attributes
    ----------
    max_lag : int
        Frames looked at on both sides.
    correct_from : int
        Least lag in frames that is corrected.
    """

    max_lag: int
    correct_from: int


@dataclass(frozen=True)
class SyncNetSettings:
    """The opt-in network of the sync filters.

    Attributes
    ----------
    file : str
        Path of the user's weights, safetensors; empty: no network.
    sha256 : str
        Digest that the file must have.
    """

    file: str
    sha256: str


@dataclass(frozen=True)
class OutputSettings:
    """What is written.

    Attributes
    ----------
    size : int
        Pixels per side, even.
    head_room : float
        Side of the crop over the height of the face.
    crf : int
        x264's constant quality, 0 to 51.
    samples_per_shard : int
        Samples of a tar file, the last one but.
    """

    size: int
    head_room: float
    crf: int
    samples_per_shard: int


@dataclass(frozen=True)
class CaptionSettings:
    """Who writes captions.

    Attributes
    ----------
    hook : str
        ``"package.module:function"``, see :mod:`.caption`; empty for the rules.
    """

    hook: str


@dataclass(frozen=True)
class DataSettings:
    """Everything that decides what the pipeline makes of a source.

    Attributes
    ----------
    version : int
        Of the layout.
    clips, sync, syncnet, output, caption
        Tables of the file.
    filters : tuple of Filter
        In the order of the funnel.
    """

    version: int
    clips: ClipSettings
    sync: SyncSettings
    syncnet: SyncNetSettings
    output: OutputSettings
    caption: CaptionSettings
    filters: tuple[Filter, ...]

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON data, as :func:`settings_from` takes them."""
        tables = {name: asdict(getattr(self, name)) for name in _TABLES}
        bounds = {f.name: f.bounds() for f in self.filters}
        return {"version": self.version, **tables, "filters": bounds}

    @property
    def digest(self) -> str:
        """Short hash of the settings; results of different ones are never mixed.

        The weights of SyncNet count by their own digest, wherever they lie.
        """
        data = self.to_json()
        data["syncnet"].pop("file")
        text = json.dumps(data, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


_TABLES: Mapping[str, type[Any]] = {
    "clips": ClipSettings,
    "sync": SyncSettings,
    "syncnet": SyncNetSettings,
    "output": OutputSettings,
    "caption": CaptionSettings,
}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LEAST = {
    "min_s": 0.5, "max_s": 1.0, "cut_threshold": 0.1, "look_every": 1, "max_lag": 1,
    "correct_from": 1, "size": 32, "head_room": 1.0, "crf": 0, "samples_per_shard": 1,
}  # fmt: skip
_MOST = {"max_s": 60.0, "look_every": 250, "max_lag": 24, "size": 1024, "crf": 51}


def load_settings(path: Path | None = None) -> DataSettings:
    """Read settings: the packaged ones, and over them what the file ``path`` says.

    Raises
    ------
    InvalidArgument
        The file cannot be read, has another version, an unknown name, or a value out of range.
    """
    data = tomllib.loads(_DEFAULTS.read_text("utf-8"))
    return settings_from(data if path is None else _merged(data, _read(path)))


def settings_from(data: Mapping[str, Any]) -> DataSettings:
    """Build settings from the tables of a file; all of them must be there.

    Raises
    ------
    InvalidArgument
        A version, name or value that is not known here.
    """
    if data.get("version") != VERSION:
        raise InvalidArgument("version", expected=str(VERSION), got=data.get("version"))
    unknown = set(data) - {"version", "filters", *_TABLES}
    if unknown:
        raise InvalidArgument("settings", expected="known tables", got=sorted(unknown))
    settings = DataSettings(
        version=VERSION,
        clips=_table("clips", ClipSettings, data),
        sync=_table("sync", SyncSettings, data),
        syncnet=_table("syncnet", SyncNetSettings, data),
        output=_table("output", OutputSettings, data),
        caption=_table("caption", CaptionSettings, data),
        filters=_filters(data.get("filters", {})),
    )
    if settings.output.size % 2:
        raise InvalidArgument("output.size", expected="an even number", got=settings.output.size)
    _require_digest(settings.syncnet)
    if settings.clips.max_s < settings.clips.min_s:
        raise InvalidArgument("clips.max_s", expected=">= min_s", got=settings.clips.max_s)
    return settings


def _require_digest(syncnet: SyncNetSettings) -> None:
    """Raise unless a file comes with the digest it must have, and no file with none."""
    is_right = _SHA256.fullmatch(syncnet.sha256) if syncnet.file else not syncnet.sha256
    if not is_right:
        raise InvalidArgument(
            "syncnet.sha256",
            expected="64 hexadecimal digits in lower case with a syncnet.file, else nothing",
            got=repr(syncnet.sha256),
            hint="sha256sum prints the digest of a file.",
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgument("config", expected="a TOML file", got=f"{path}: {error}") from error


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one tree of tables over another."""
    result = dict(below)
    for name, value in above.items():
        both = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = _merged(result[name], value) if both else value
    return result


def _table(name: str, cls: type[TableT], data: Mapping[str, Any]) -> TableT:
    """Build one table; every field must be there, nothing else may."""
    table = data.get(name, {})
    wanted = {field.name: field.type for field in fields(cls)}  # type: ignore[arg-type]
    if not isinstance(table, Mapping) or set(table) != set(wanted):
        got = sorted(table) if isinstance(table, Mapping) else table
        raise InvalidArgument(name, expected=f"the fields {sorted(wanted)}", got=got)
    for key, value in table.items():
        kind = wanted[key]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_right = isinstance(value, str) if kind == "str" else is_number
        if kind == "int":
            is_right = is_right and isinstance(value, int)
        if is_right and kind != "str":
            is_right = _LEAST.get(key, 0) <= value <= _MOST.get(key, float("inf"))
        if not is_right:
            low, high = _LEAST.get(key, 0), _MOST.get(key, "any")
            expected = str(kind) if kind == "str" else f"{kind}, {low} to {high}"
            raise InvalidArgument(f"{name}.{key}", expected=expected, got=repr(value))
    return cls(**table)


def _filters(tables: Mapping[str, Any]) -> tuple[Filter, ...]:
    known = {cls.name: cls for cls in FILTERS}
    if set(tables) - set(known):
        raise InvalidArgument("filters", expected=f"some of {sorted(known)}", got=sorted(tables))
    return tuple(cls.from_bounds(tables[name]) for name, cls in known.items() if name in tables)
