"""A worker without a model, which misbehaves as its requests ask; for the tests of supervision."""

import argparse
import json
import os
import signal
import sys
import threading
import time

import numpy as np

from skyreels_rt.distributed.messages import Message, error_facts, read_message, write_message
from skyreels_rt.errors import InvalidArgument, OutOfMemory

parser = argparse.ArgumentParser()
for name in ("rank", "size", "status", "data"):
    parser.add_argument(f"--{name}", type=int)
given = parser.parse_args()
work, is_deaf = 0, False
lock = threading.Lock()


def say(kind, **facts):
    with lock:
        line = json.dumps({"kind": kind, "work": work, **facts}) + "\n"
        os.write(given.status, line.encode())


def beat():
    while not is_deaf:
        say("alive")
        time.sleep(0.05)


def do(request, data):
    """What a request asks for, on the ranks it names."""
    global work, is_deaf
    facts = request.facts
    if given.rank not in facts.get("ranks", range(given.size)):
        return None
    match request.kind:
        case "echo":
            if given.rank == 0:
                write_message(data, Message("echo", facts, request.arrays))
            return {"pid": os.getpid()}
        case "die":
            os.kill(os.getpid(), facts["signal"])
        case "leave":
            os._exit(facts["code"])
        case "fall_silent":
            is_deaf = True
            time.sleep(60)
        case "hang":
            time.sleep(60)
        case "work_slowly":
            for _ in range(facts["units"]):
                time.sleep(0.05)
                work += 1
        case "flood":
            for index in range(facts["chunks"] if given.rank == 0 else 0):
                write_message(data, Message("chunk", {"index": index}, {"x": np.zeros(1 << 18)}))
                work += 1
        case "refuse":
            raise InvalidArgument("number", expected="one", got=2)
        case "refuse_or_hang":
            if given.rank == facts["refuses"]:
                raise InvalidArgument("number", expected="one", got=2)
            time.sleep(60)
        case "run_out":
            raise OutOfMemory("Too much.")
        case "fail":
            raise ZeroDivisionError("a bug")
        case "babble":
            os.write(given.status, b"no message\n")
            time.sleep(60)
    return None


def main():
    if given.rank in (int(rank) for rank in os.environ.get("DIES_AT_START", "").split(",") if rank):
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=beat, daemon=True).start()
    inbox = sys.stdin.buffer
    with os.fdopen(given.data, "wb") as data:
        while (request := read_message(inbox)) is not None:
            if request.kind == "cancel":
                continue
            answer, error = None, None
            try:
                answer = do(request, data)
            except Exception as caught:
                error = error_facts(caught)
            if given.rank == 0:
                write_message(data, Message("end"))
            say(
                "done", request=request.facts["request"], error=error, answer=answer,
                usage={"seconds": 0.0},
            )  # fmt: skip
    os._exit(0)


main()
