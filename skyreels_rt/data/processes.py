"""Runs sources in worker processes: JSON lines over pipes, nothing pickled."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from skyreels_rt.data.settings import DataSettings
from skyreels_rt.data.tasks import SourceTask
from skyreels_rt.errors import WorkerFailed

Answer = Mapping[str, Any]
"""``{"result": ...}``, ``{"crashed": why}`` or ``{"error": ...}``."""

_ATTEMPTS = 2
_GOODBYE_S = 10.0


class _Worker:
    """One process, and the pipe to it."""

    def __init__(self, settings: DataSettings, log: Path) -> None:
        self._settings = settings
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def run(self, task: SourceTask, target: Path, timeout_s: float) -> Answer:
        """Answer for one source; a process that dies twice over it is an answer, too."""
        line = {"path": str(task.path.absolute()), "name": task.name, "target": str(target)}
        why = "the worker died"
        for _ in range(_ATTEMPTS):
            process = self._started()
            killer = threading.Timer(timeout_s, process.kill)
            killer.start()
            try:
                answer = _exchange(process, line)
            finally:
                killer.cancel()
            if answer is not None:
                return answer
            why = f"the worker died with code {process.wait()}"
            self._process = None
        return {"crashed": why}

    def close(self, *, wait: bool) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        if wait and _send(process, {"end": True}):
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GOODBYE_S)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _started(self) -> subprocess.Popen[str]:
        """Process that has loaded its networks.

        Raises
        ------
        WorkerFailed
            It cannot.
        """
        if self._process is not None:
            return self._process
        with self._log.open("ab") as log:
            self._process = process = subprocess.Popen(
                [sys.executable, "-P", "-m", "skyreels_rt.data.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
            )
        answer = _exchange(process, self._settings.to_json())
        if answer is None or "ready" not in answer:
            raise _failed(answer, self._log)
        return process


def run_in_processes(
    tasks: Sequence[SourceTask],
    settings: DataSettings,
    folder: Path,
    *,
    workers: int,
    timeout_s: float,
) -> Iterator[tuple[SourceTask, Answer, Path]]:
    """Process sources, several at a time.

    Parameters
    ----------
    tasks : sequence of SourceTask
        What to do.
    settings : DataSettings
        How.
    folder : Path
        Empty folder for what the workers write.
    workers : int
        Processes, >= 1.
    timeout_s : float
        A source that takes longer counts as crashed.

    Yields
    ------
    task, answer, samples
        As they finish, in any order; ``samples`` is the tar file that may have been written.

    Raises
    ------
    WorkerFailed
        No worker can start, or one cannot write.
    """
    waiting: queue.SimpleQueue[SourceTask] = queue.SimpleQueue()
    finished: queue.SimpleQueue[tuple[SourceTask, Answer, Path] | BaseException] = (
        queue.SimpleQueue()
    )
    for task in tasks:
        waiting.put(task)
    stop = threading.Event()
    crew = [_Worker(settings, folder / f"worker-{n}.log") for n in range(min(workers, len(tasks)))]

    def serve(worker: _Worker) -> None:
        try:
            while not stop.is_set():
                try:
                    task = waiting.get_nowait()
                except queue.Empty:
                    break
                target = folder / f"{task.id}.tar"
                finished.put((task, worker.run(task, target, timeout_s), target))
        except BaseException as error:  # handed to the thread that waits
            finished.put(error)

    threads = [threading.Thread(target=serve, args=(worker,), daemon=True) for worker in crew]
    for thread in threads:
        thread.start()
    is_done = False
    try:
        for _ in tasks:
            item = finished.get()
            if isinstance(item, BaseException):
                raise item
            raise_failed(item[1])
            yield item
        is_done = True
    finally:
        stop.set()
        for worker in crew:
            worker.close(wait=is_done)
        for thread in threads:
            thread.join()


def raise_failed(answer: Answer) -> None:
    """Raise if a worker cannot go on.

    Raises
    ------
    WorkerFailed
        ``answer`` is an error of the library, such as a full disk.
    """
    if "error" in answer:
        raise _failed(answer, None)


def _exchange(process: subprocess.Popen[str], message: Mapping[str, Any]) -> Answer | None:
    """Send a line and wait for one; None if the process is gone."""
    if not _send(process, message):
        return None
    assert process.stdout is not None
    line = process.stdout.readline()
    try:
        answer: Answer = json.loads(line)
    except ValueError:
        return None
    return answer


def _send(process: subprocess.Popen[str], message: Mapping[str, Any]) -> bool:
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()
    except OSError:
        return False
    return True


def _failed(answer: Answer | None, log: Path | None) -> WorkerFailed:
    error = (answer or {}).get("error", {})
    tail = log.read_text("utf-8", errors="replace")[-500:] if log is not None else ""
    message = error.get("message") or f"A worker did not start: {tail}"
    return WorkerFailed(message, stage="data", hint=error.get("hint"))
