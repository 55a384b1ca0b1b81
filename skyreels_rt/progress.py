"""Progress bar of the library: tqdm, shown only on a terminal."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from skyreels_rt.types import Progress

if TYPE_CHECKING:
    from tqdm import tqdm


class ProgressBar:
    """A :data:`ProgressCallback` that draws one bar of frames with the current step beside it.

    Nothing is drawn, and tqdm is not imported, before the first report.
    """

    def __init__(self) -> None:
        self._bar: tqdm[object] | None = None

    def __call__(self, progress: Progress) -> None:
        """Draw the state."""
        if self._bar is None:
            from tqdm.auto import tqdm

            # tqdm's own lock fixes the process's start method, and its monitor is a thread.
            quiet = type("Bar", (tqdm,), {"_lock": threading.RLock(), "monitor_interval": 0})
            self._bar = quiet(unit="frame", disable=None, leave=False)
        if progress.stage == "decode":
            self._bar.total = progress.total
            self._bar.update(progress.frames - self._bar.n)
        else:
            self._bar.set_postfix_str(f"step {progress.done}/{progress.total}", refresh=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
