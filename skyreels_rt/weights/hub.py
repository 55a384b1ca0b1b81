"""Model folders from the Hugging Face Hub, through the optional package ``huggingface_hub``.

Nothing is fetched unless the caller names a hub id, and only JSON and safetensors files are: no
code and no pickle of a repository ever arrives.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from skyreels_rt.errors import MissingDependency, ModelError

logger = logging.getLogger(__name__)

PATTERNS = ("*.json", "*.safetensors")
"""Files of a repository that are fetched."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_hub_id(model: str | Path) -> bool:
    """Whether ``model`` reads ``owner/name`` and no path begins so here.

    Where ``owner`` exists, a missing ``name`` is a mistyped path: no network is asked about it.
    """
    if not isinstance(model, str) or _ID.fullmatch(model) is None:
        return False
    return not Path(model).exists() and not Path(model).parent.exists()


def fetch_snapshot(model_id: str, *, revision: str | None = None, offline: bool = False) -> Path:
    """Folder with a repository's model files, in the hub's cache.

    Parameters
    ----------
    model_id : str
        ``owner/name``.
    revision : str, optional
        Branch, tag or commit; a full commit pins what is loaded. The repository's default by
        default.
    offline : bool
        Take what the cache holds and connect to nothing. (``HF_HUB_OFFLINE=1`` does the same.)

    Returns
    -------
    Path
        ``.../snapshots/<commit>``.

    Raises
    ------
    MissingDependency
        ``huggingface_hub`` is not installed.
    ModelError
        The repository or revision is not there, or not in the cache.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise MissingDependency(
            f"{model_id}: no folder of this name, and hub ids need huggingface_hub.",
            stage="load",
            hint="pip install 'skyreels-rt[hub]', or give the path of a model folder.",
        ) from error
    try:
        # LocalEntryNotFoundError, of a cache that lacks files, is a FileNotFoundError and OSError.
        folder = Path(
            snapshot_download(
                model_id,
                revision=revision,
                local_files_only=offline,
                allow_patterns=list(PATTERNS),
            )
        )
    except (HFValidationError, HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"{model_id}{'' if revision is None else f' at {revision}'}: not available"
            f"{' offline' if offline else ''} ({reason[0] if reason else type(error).__name__}).",
            stage="load",
            hint="Check the name and the revision, or give the path of a model folder.",
        ) from error
    if revision is None or not _COMMIT.fullmatch(revision):
        logger.info("%s is at commit %s; give revision= to pin it", model_id, folder.name)
    return folder
