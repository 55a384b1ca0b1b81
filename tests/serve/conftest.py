"""A server over the tiny random model, and a client that speaks the protocol."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the [serve] extra is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")

from starlette.testclient import TestClient

import skyreels_rt as rt
from skyreels_rt.serve.admission import Access
from skyreels_rt.serve.app import create_app
from skyreels_rt.serve.protocol import ServeLimits

HOST = "http://127.0.0.1:8000"


@pytest.fixture(scope="session")
def engine():
    return rt.Engine.from_pretrained("tiny-random", max_sessions=64)


@pytest.fixture
def serve(engine):
    """``serve(token=..., max_seconds=...)`` is a client of a server with these limits."""

    @contextmanager
    def start(*, token=None, origins=(), local_only=True, **limits):
        access = Access(token, tuple(origins), local_only=local_only)
        app = create_app(engine, access=access, limits=ServeLimits(**limits))
        with TestClient(app, base_url=HOST) as client:
            yield client

    return start


@pytest.fixture
def talk():
    """``talk(client, **options)`` opens a conversation."""

    @contextmanager
    def start(client, headers=None, **options):
        with client.websocket_connect(
            "ws://127.0.0.1:8000/v1/stream", headers=headers or {}
        ) as socket:
            conversation = Talk(socket)
            conversation.say({"type": "start", "portrait": "mira"} | options)
            yield conversation

    return start


class Talk:
    """One open WebSocket: what was heard is kept by kind."""

    def __init__(self, socket):
        self.socket = socket
        self.events, self.segments = [], []

    def say(self, message):
        self.socket.send_text(json.dumps(message))

    def speak(self, seconds, rate=16_000):
        """Send noise in blocks of 0.1 s."""
        samples = np.random.default_rng(0).integers(-9000, 9000, int(seconds * rate))
        data = samples.astype("<i2").tobytes()
        for start in range(0, len(data), rate // 5):
            self.socket.send_bytes(data[start : start + rate // 5])

    def hear(self):
        """The next message; closing gives ``{"type": "close", ...}``."""
        message = self.socket.receive()
        if message["type"] == "websocket.close":
            return {"type": "close", "code": message["code"], "reason": message.get("reason")}
        if message.get("bytes") is not None:
            self.segments.append(message["bytes"])
            return {"type": "segment"}
        self.events.append(json.loads(message["text"]))
        return self.events[-1]

    def until(self, *kinds):
        """The next message of these kinds."""
        while True:
            event = self.hear()
            if event["type"] in kinds:
                return event
            assert event["type"] != "close", (event, self.events[-1:])

    def refusal(self):
        """Name of the error and the close code that follows it."""
        error = self.until("error", "close")
        assert error["type"] == "error", error
        assert error["message"]
        return error["code"], self.until("close")["code"]


@pytest.fixture
def freed():
    """``freed(client, seconds)`` says whether every place of its server becomes free in time."""

    def wait(client, seconds=10.0):
        service = client.app.state.service
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            held = service.places.sessions + service.places.connections
            if held + service.engine.health().num_sessions == 0:
                return True
            time.sleep(0.01)
        return False

    return wait
