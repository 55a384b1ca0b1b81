"""The manifest: a row for every clip that was looked at, and for every source that was not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from skyreels_rt.data.dependencies import require
from skyreels_rt.data.filters import FILTERS
from skyreels_rt.errors import OutputError


@dataclass(frozen=True)
class ClipRow:
    """What became of a clip, or of a source as a whole.

    Attributes
    ----------
    key : str
        Of the sample: digest of the source's bytes and first frame; for a source its digest.
    source : str
        Path of the file below what was named on the command line.
    sha256 : str
        Of the source's bytes; empty if they cannot be read.
    kept : bool
        Whether the clip is in a shard.
    reason : str
        Why not: the first filter it failed, or what is wrong with the source; empty if kept.
    failed : tuple of str
        All filters it failed.
    detail : str
        One sentence about a source that could not be used.
    notes : tuple of str
        What was unusual about the source and was taken care of.
    start_frame, num_frames : int
        Where the clip lies, in frames of 25 a second; 0 for a source.
    scores : mapping of str to float or None
        By name of the filter.
    lag_frames : int or None
        Frames by which the mouth is later than the sound.
    corrected_frames : int
        Frames by which the sound was moved in the sample.
    crop_left, crop_top, crop_side : int or None
        Square that was cut out, in pixels of the source.
    caption : str
        Of the sample.
    shard : str
        File that holds the sample.
    """

    key: str
    source: str
    sha256: str = ""
    kept: bool = False
    reason: str = ""
    failed: tuple[str, ...] = ()
    detail: str = ""
    notes: tuple[str, ...] = ()
    start_frame: int = 0
    num_frames: int = 0
    scores: Mapping[str, float | None] = field(default_factory=dict)
    lag_frames: int | None = None
    corrected_frames: int = 0
    crop_left: int | None = None
    crop_top: int | None = None
    crop_side: int | None = None
    caption: str = ""
    shard: str = ""

    def to_json(self) -> dict[str, Any]:
        """The row as JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build a row from what :meth:`to_json` gave.

        Raises
        ------
        TypeError, KeyError
            ``data`` is no row.
        """
        lists = {name: tuple(data[name]) for name in ("failed", "notes")}
        return cls(**{**data, **lists})


def write_manifest(path: Path, rows: Sequence[ClipRow], settings_digest: str) -> None:
    """Write a Parquet file: the fields of the rows, and a column ``score_<filter>`` each.

    The same rows give the same bytes.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    arrow: Any = require("pyarrow", "pyarrow")
    parquet: Any = require("pyarrow.parquet", "pyarrow")
    kinds = {"str": arrow.string(), "bool": arrow.bool_(), "int": arrow.int64()}
    kinds["int | None"] = arrow.int64()
    kinds["tuple[str, ...]"] = arrow.list_(arrow.string())
    columns: dict[str, Any] = {}
    for column in fields(ClipRow):
        if column.name == "scores":
            for name in (cls.name for cls in FILTERS):
                values = [row.scores.get(name) for row in rows]
                columns[f"score_{name}"] = arrow.array(values, arrow.float64())
            continue
        values = [getattr(row, column.name) for row in rows]
        columns[column.name] = arrow.array(values, kinds[str(column.type)])
    table = arrow.table(columns).replace_schema_metadata({"settings": settings_digest})
    partial = path.with_suffix(".partial")
    try:
        parquet.write_table(table, partial, compression="zstd")
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error}).", stage="output") from error


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """Rows of a manifest, one dict each.

    Raises
    ------
    OutputError
        The file is missing or no Parquet file.
    """
    parquet: Any = require("pyarrow.parquet", "pyarrow")
    arrow: Any = require("pyarrow", "pyarrow")
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (OSError, arrow.ArrowInvalid) as error:
        raise OutputError(f"{path}: not a manifest ({error}).", stage="data") from error
    return rows
