"""The packages of the ``data`` extra, imported where they are used and named where they lack."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from skyreels_rt.errors import MissingDependency

INSTALL_HINT = "pip install 'skyreels-rt[data]'"


def require(module: str, package: str, hint: str = INSTALL_HINT) -> Any:  # noqa: ANN401 - a module
    """Import ``module`` of the distribution ``package``.

    Raises
    ------
    MissingDependency
        It is not installed or does not load.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependency(
            f"data: {package} is not installed or does not load ({error}).",
            stage="data",
            hint=hint,
        ) from error


def opencv() -> Any:  # noqa: ANN401 - a module without types
    """OpenCV, which comes with PySceneDetect; one thread, so that processes share the cores."""
    module = require("cv2", "opencv-python-headless")
    if module.getNumThreads() != 1:
        module.setNumThreads(1)
    return module


def package_file(package: str, distribution: str, *parts: str) -> Path:
    """Path of a file inside an installed package, found without importing the package.

    Raises
    ------
    MissingDependency
        The package is not installed or lacks the file.
    """
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(location).joinpath(*parts)
        if path.is_file():
            return path
    raise MissingDependency(
        f"data: {distribution} is not installed or holds no {'/'.join(parts)}.",
        stage="data",
        hint=INSTALL_HINT,
    )
