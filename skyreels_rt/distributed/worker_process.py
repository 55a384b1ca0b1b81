"""One worker process as the process that started it sees it: pipes, and what came through them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

from skyreels_rt.distributed.messages import Message, error_of, parse_line
from skyreels_rt.errors import SkyReelsError

ALIVE_EVERY_S: Final = 0.5
"""Seconds between a worker's signs of life."""


@dataclass
class WorkerProcess:
    """One worker, its pipes, and what it said.

    Attributes
    ----------
    rank : int
        Which one.
    process : Popen
        The process.
    requests : BinaryIO
        Its standard input.
    status : int
        Descriptor of the lines that it writes; never blocks.
    data : BinaryIO or None
        What rank 0 writes beside; None for the others.
    work : int
        Units of work it has done, by its own count.
    silence_s, stall_s : float
        Since it said something, and since ``work`` grew; counted by whoever watches.
    replied : int
        Number of the last request that it replied to, -1 before the first.
    error : SkyReelsError or None
        Of that reply.
    answer, usage : dict
        What the reply of rank 0 says, and what the request took.
    """

    rank: int
    process: subprocess.Popen[bytes]
    requests: BinaryIO
    status: int
    data: BinaryIO | None
    _tail: bytes = b""
    work: int = 0
    silence_s: float = 0.0
    stall_s: float = 0.0
    replied: int = -1
    error: SkyReelsError | None = None
    answer: Mapping[str, Any] | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def started(
        cls, command: Sequence[str], rank: int, size: int, environment: Mapping[str, str]
    ) -> WorkerProcess:
        """Start ``command`` as worker ``rank`` of ``size``.

        Raises
        ------
        OSError
            The program cannot be started.
        """
        status, status_end = os.pipe()
        data, data_end = os.pipe()
        try:
            process = subprocess.Popen(
                [
                    *command, f"--rank={rank}", f"--size={size}",
                    f"--status={status_end}", f"--data={data_end}",
                ],
                stdin=subprocess.PIPE,
                stdout=2,  # our own standard output may be a video
                pass_fds=(status_end, data_end),
                env=environment,
                start_new_session=True,  # Ctrl-C at a terminal is the engine's to handle
            )  # fmt: skip
        except BaseException:
            os.close(status)
            os.close(data)
            raise
        finally:
            os.close(status_end)
            os.close(data_end)
        os.set_blocking(status, False)
        assert process.stdin is not None
        stream = os.fdopen(data, "rb") if rank == 0 else None
        if stream is None:
            os.close(data)
        return cls(rank, process, process.stdin, status, stream)  # type: ignore[arg-type]

    def read_status(self) -> None:
        """Take in what came on the status pipe."""
        with suppress(BlockingIOError):
            *lines, self._tail = (self._tail + os.read(self.status, 1 << 16)).split(b"\n")
            for line in lines:
                self._take(parse_line(line))

    def _take(self, message: Message) -> None:
        self.silence_s = 0.0
        if message.facts["work"] != self.work:
            self.work, self.stall_s = message.facts["work"], 0.0
        if message.kind == "done":
            error = message.facts["error"]
            self.error = None if error is None else error_of(error)
            self.answer, self.usage = message.facts["answer"], message.facts["usage"]
            self.replied = message.facts["request"]

    def end(self, deadline: float) -> None:
        """Let the process leave until ``deadline``, then kill it; close the pipes."""
        with suppress(OSError):
            self.requests.close()
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
