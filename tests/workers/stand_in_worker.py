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

LONG_S = 60


class StandIn:
    def __init__(self, rank, size, status, data):
        self.rank, self.size, self.status, self.data = rank, size, status, data
        self.work, self.is_deaf = 0, False
        self.lock = threading.Lock()

    def say(self, kind, **facts):
        with self.lock:
            line = json.dumps({"kind": kind, "work": self.work, **facts}) + "\n"
            os.write(self.status, line.encode())

    def beat(self):
        while True:
            self.say("alive")
            time.sleep(0.05)

    def run(self):
        while (request := read_message(sys.stdin.buffer)) is not None:
            if request.kind == "cancel":
                continue
            answer, error = None, None
            try:
                if self.rank in request.facts.get("ranks", range(self.size)):
                    answer = getattr(self, request.kind)(request)
            except Exception as caught:
                error = error_facts(caught)
            if self.rank == 0:
                write_message(self.data, Message("end"))
            facts = {"answer": answer, "usage": {"seconds": 0.0}}
            self.say("done", request=request.facts["request"], error=error, **facts)
        os._exit(0)

    # What a request asks for.

    def start(self, _):
        pass

    def echo(self, request):
        if self.rank == 0:
            write_message(self.data, Message("echo", request.facts, request.arrays))
        return {"pid": os.getpid()}

    def leave(self, request):
        os._exit(request.facts["code"])

    def hang(self, _):
        time.sleep(LONG_S)

    def work_slowly(self, request):
        for _ in range(request.facts["units"]):
            time.sleep(0.05)
            self.work += 1

    def flood(self, request):
        for index in range(request.facts["chunks"] if self.rank == 0 else 0):
            write_message(self.data, Message("chunk", {"index": index}, {"x": np.zeros(1 << 18)}))
            self.work += 1

    def refuse(self, _):
        raise InvalidArgument("number", expected="one", got=2)

    def refuse_or_hang(self, request):
        if self.rank == request.facts["refuses"]:
            self.refuse(request)
        self.hang(request)

    def run_out(self, _):
        raise OutOfMemory("Too much.")

    def fail(self, _):
        raise ZeroDivisionError("a bug")

    def babble(self, request):
        os.write(self.status, b"no message\n")
        self.hang(request)


def main():
    parser = argparse.ArgumentParser()
    for name in ("rank", "size", "status", "data"):
        parser.add_argument(f"--{name}", type=int)
    given = parser.parse_args()
    if str(given.rank) in os.environ.get("DIES_AT_START", "").split(","):
        os.kill(os.getpid(), signal.SIGKILL)
    with os.fdopen(given.data, "wb") as data:
        worker = StandIn(given.rank, given.size, given.status, data)
        threading.Thread(target=worker.beat, daemon=True).start()
        worker.run()


main()
