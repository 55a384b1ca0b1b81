"""The drawn portraits in the package, for those who have no picture at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from skyreels_rt.errors import MediaError

FOLDER: Final = Path(__file__).parent.parent / "assets" / "portraits"


def portrait_names() -> tuple[str, ...]:
    """Names of the portraits, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.png")))


def portrait_path(name: str) -> Path:
    """PNG file of the portrait ``name``.

    Raises
    ------
    MediaError
        There is no such portrait.
    """
    # A name is looked up in the list, never joined to a path.
    if name not in portrait_names():
        raise MediaError(
            f"portrait: expected one of {', '.join(portrait_names())}.",
            stage="image",
            hint="Or send a picture.",
        )
    return FOLDER / f"{name}.png"
