"""One rank of an engine in a process of its own; :mod:`skyreels_rt.distributed.workers` starts it.

Every worker gets the same requests in the same order and does the same with them; only rank 0 sends
frames. It leaves as soon as its requests end, whatever it is doing: the engine was closed, or its
process is gone.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import queue
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from skyreels_rt.config import config_to_dict
from skyreels_rt.distributed.messages import (
    Message,
    error_facts,
    read_message,
    write_message,
)
from skyreels_rt.distributed.worker_process import ALIVE_EVERY_S
from skyreels_rt.errors import OutOfMemory, SkyReelsError
from skyreels_rt.job import rule_from, settings_facts
from skyreels_rt.types import Progress
from skyreels_rt.worker_session import HostedSession, chunk_message

if TYPE_CHECKING:
    import torch

    from skyreels_rt.engine import Engine
    from skyreels_rt.offline import OfflineJob
    from skyreels_rt.options import GenerateOptions, LiveOptions

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


class _WorkCount:
    """How far the main thread got: blocks of the transformer, latents, steps."""

    def __init__(self) -> None:
        self.total = 0

    def grow(self, *_: object) -> None:
        """Count one more; also a forward hook and an ``on_progress``."""
        self.total += 1


class _Status:
    """The pipe of short lines: signs of life from a thread, replies from the main one."""

    def __init__(self, descriptor: int, work: _WorkCount) -> None:
        self._descriptor = descriptor
        self._work = work
        self._lock = threading.Lock()
        threading.Thread(target=self._beat, name="alive", daemon=True).start()

    def send(self, kind: str, **facts: object) -> None:
        """Write one line. Without a reader there is nobody to work for."""
        line = json.dumps({"kind": kind, "work": self._work.total, **facts}) + "\n"
        try:
            with self._lock:
                os.write(self._descriptor, line.encode())
        except OSError:
            os._exit(0)

    def _beat(self) -> None:
        while True:
            self.send("alive")
            time.sleep(ALIVE_EVERY_S)


class _Worker:
    """What a worker process holds: its pipes, its rank, and the engine once it is loaded."""

    def __init__(self, rank: int, size: int, status: int, data: BinaryIO) -> None:
        self._rank = rank
        self._size = size
        self._cancel = threading.Event()
        self._work = _WorkCount()
        self._status = _Status(status, self._work)
        self._data = data
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._engine: Engine | None = None
        self._live: HostedSession | None = None
        threading.Thread(target=self._listen, name="requests", daemon=True).start()

    def run(self) -> None:
        """Do what is asked, until the process ends."""
        calls: dict[str, Callable[[Message], dict[str, Any] | None]] = {
            "start": self._start,
            "generate": self._generate,
            "describe": self._describe,
            "estimate": self._estimate,
            "step_shape": self._step_shape,
            "links": self._links,
            "live_open": self._open_live,
            "live_close": self._close_live,
        }
        while True:
            request = self._inbox.get()
            begin, sent, answer, error = time.perf_counter(), self._sent_bytes(), None, None
            try:
                answer = calls.get(request.kind, self._live_request)(request)
            except Exception as caught:
                error = _typed(caught)
                if not isinstance(error, SkyReelsError):
                    traceback.print_exc()
            if self._rank == 0:
                write_message(self._data, Message("end"))
            usage = {
                "seconds": time.perf_counter() - begin,
                "sent_bytes": {
                    axis: total - sent.get(axis, 0) for axis, total in self._sent_bytes().items()
                },
                "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT,
            }
            self._status.send(
                "done",
                request=request.facts["request"],
                error=None if error is None else error_facts(error),
                answer=answer if self._rank == 0 else None,
                usage=usage,
            )

    def _listen(self) -> None:
        """Take requests in; leave when they end."""
        try:
            while (message := read_message(sys.stdin.buffer)) is not None:
                if message.kind == "cancel":
                    self._cancel.set()
                else:
                    self._cancel.clear()
                    self._inbox.put(message)
        finally:
            os._exit(0)

    # ------------------------------------------------------------------------------------ requests

    def _start(self, request: Message) -> dict[str, Any]:
        """Join the other workers and load the model."""
        import torch

        from skyreels_rt.distributed.mesh import open_mesh
        from skyreels_rt.distributed.parallel import Parallel
        from skyreels_rt.engine import Engine
        from skyreels_rt.pretrained import load_options

        facts = request.facts
        torch.set_num_threads(facts["threads"])
        device = torch.device(facts["devices"][self._rank])
        mesh = None
        if self._size > 1:
            self._join(device, facts["meeting"], facts["start_s"])
            axes = Parallel.from_dict(facts["parallel"])
            mesh = open_mesh(axes, device, timeout_s=facts["exchange_s"])
        self._engine = engine = Engine.from_pretrained(
            facts["model"],
            device=device,
            parallel=mesh,
            **load_options(facts["load"]),
        )
        for block in engine.components.transformer.blocks:
            block.register_forward_hook(self._work.grow)
        return {**asdict(engine.facts), "transformer": config_to_dict(engine.transformer_config)}

    def _join(self, device: torch.device, meeting: str, start_s: float) -> None:
        """Make torch's process group, without a port: the workers meet in a file."""
        import torch
        import torch.distributed as dist

        is_cuda = device.type == "cuda"
        if is_cuda:
            torch.cuda.set_device(device)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
            init_method=Path(meeting).as_uri(),
            rank=self._rank,
            world_size=self._size,
            timeout=timedelta(seconds=start_s),
            device_id=device if is_cuda else None,
        )

    def _generate(self, request: Message) -> None:
        """Run a job; rank 0 sends what it is, how it gets on, its frames, and what it did."""
        options = _options(request)
        audio = options.pop("audio")
        options |= {"cancel": self._cancel, "on_progress": self._progress}
        with self._loaded().open_job(audio, cast("GenerateOptions", options)) as job:
            self._send(_opened(job))
            for chunk in job.chunks():
                self._send(chunk_message(chunk))
            self._send(_closed(job))

    def _open_live(self, request: Message) -> dict[str, Any]:
        """Open a live session, a new one or one that goes on; the one before is over."""
        if self._live is not None:
            self._close_live(request)
        from skyreels_rt.opening import core_opener, core_restorer

        given, parts = _options(request), self._loaded().components
        snapshot = given.pop("snapshot", None)
        options = cast("LiveOptions", given)
        if snapshot is None:
            _, open_core = core_opener(parts, options)
        else:
            _, open_core = core_restorer(parts, snapshot.tobytes(), options)
        self._live = HostedSession(parts, open_core(self._must_stop), self._send)
        return self._live.opening()

    def _live_request(self, request: Message) -> dict[str, Any]:
        assert self._live is not None, "the engine opens it first"
        return self._live.answer(request)

    def _close_live(self, _: Message) -> None:
        if self._live is not None:
            self._live.close()
            self._live = None

    def _must_stop(self) -> bool:
        self._work.grow()  # asked between steps and decoded latents
        return self._cancel.is_set()

    def _describe(self, _: Message) -> dict[str, Any]:
        return {"text": self._loaded().describe()}

    def _links(self, _: Message) -> dict[str, Any]:
        return asdict(self._loaded().measure_links())

    def _estimate(self, request: Message) -> dict[str, Any]:
        options = _options(request)
        return asdict(self._loaded().estimate(options.pop("seconds"), **options))

    def _step_shape(self, request: Message) -> dict[str, Any]:
        options = _options(request)
        return asdict(self._loaded().step_shape(options.pop("seconds"), **options))

    # ---------------------------------------------------------------------------------- internals

    def _sent_bytes(self) -> dict[str, int]:
        """Bytes that this rank sent so far, by axis."""
        mesh = self._engine.mesh if self._engine is not None else None
        return {} if mesh is None else mesh.sent_bytes

    def _loaded(self) -> Engine:
        assert self._engine is not None, "the first request starts the engine"
        return self._engine

    def _send(self, message: Message) -> None:
        if self._rank == 0:
            write_message(self._data, message)

    def _progress(self, state: Progress) -> None:
        self._work.grow()
        self._send(Message("progress", asdict(state)))


def _options(request: Message) -> dict[str, Any]:
    """Options of a request as the engine takes them."""
    given = {**request.facts["options"], **request.arrays}
    if "teacache" in given:
        given["teacache"] = rule_from(given["teacache"])
    return given


def _opened(job: OfflineJob) -> Message:
    facts = {"sample_rate": job.sample_rate, "channels": job.channels}
    return Message("job", {"settings": settings_facts(job.settings), **facts})


def _closed(job: OfflineJob) -> Message:
    facts = {"steps": [asdict(run) for run in job.steps], "seconds": job.clock.seconds}
    return Message("summary", facts)


def _typed(error: Exception) -> Exception:
    """An allocation that failed, as the error of that name; any other error as it is."""
    import torch

    is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )
    if not is_memory:
        return error
    return OutOfMemory(
        f"The job needs more memory than there is: {str(error).splitlines()[0][:200]}",
        hint="Make it smaller: height, width, horizon; `estimate` says what a job needs.",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: ``python -m skyreels_rt.worker``, started by an engine."""
    parser = argparse.ArgumentParser(prog="skyreels_rt.worker", description=__doc__)
    for name in ("rank", "size", "status", "data"):
        parser.add_argument(f"--{name}", type=int, required=True)
    given = parser.parse_args(arguments)
    if given.rank > 0:
        logging.getLogger("skyreels_rt").setLevel(logging.ERROR)  # rank 0 says it for all
    for descriptor in (given.status, given.data):
        os.set_inheritable(descriptor, False)
    with os.fdopen(given.data, "wb") as data:
        _Worker(given.rank, given.size, given.status, data).run()


if __name__ == "__main__":
    main()
