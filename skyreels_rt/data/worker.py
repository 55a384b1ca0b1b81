"""A worker process: sources in as JSON lines, results out as JSON lines.

Started by :mod:`.processes`; ``python -m skyreels_rt.data.worker``. It ends at once when its input
is closed, so none outlives the process that started it.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from typing import Any, TextIO

from skyreels_rt.data.settings import settings_from
from skyreels_rt.data.source import SourceGraph, answer_for, error_answer
from skyreels_rt.errors import SkyReelsError

_EXIT_ORPHANED = 3


def main() -> None:
    """Serve until the input says ``{"end": true}``."""
    # What a library prints must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lines: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    try:
        graph = SourceGraph(settings_from(lines.get()))
    except SkyReelsError as error:
        _answer(answers, error_answer(error))
        return
    _answer(answers, {"ready": True})
    while "end" not in (task := lines.get()):
        _answer(answers, answer_for(graph, task))


def _listen(lines: queue.Queue[dict[str, Any]]) -> None:
    """Read tasks; whoever closes the input without a goodbye is gone."""
    for line in sys.stdin:
        lines.put(json.loads(line))
        if "end" in json.loads(line):
            return
    os._exit(_EXIT_ORPHANED)


def _answer(file: TextIO, message: dict[str, Any]) -> None:
    file.write(json.dumps(message) + "\n")
    file.flush()


if __name__ == "__main__":
    main()
