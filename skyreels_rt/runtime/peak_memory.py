"""Memory that a call needs at its worst moment, as the operating system sees it (Linux)."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

_CLEAR_PEAK = "5"  # proc(5): resets the peak resident set size


def peak_bytes(call: Callable[[], object]) -> int | None:
    """Run ``call`` and return by how much resident memory rose above its start, at most.

    What the process had freed before is handed back to the system first, so that reusing it counts.

    Parameters
    ----------
    call : callable
        What to run; its result is dropped.

    Returns
    -------
    int or None
        Bytes; None where the system does not tell (not Linux, or no access).
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
    except (OSError, AttributeError):
        return None
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """A size in bytes from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/self/status: no {field}")
