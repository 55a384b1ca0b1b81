"""The protocol of /v1/stream, over a real (random) model."""

import io

import av
import numpy as np
import pytest
from starlette.testclient import WebSocketDisconnect

from skyreels_rt.media.portraits import portrait_names, portrait_path

TOKEN = "0123456789abcdef"


def decoded(segments, kind="video"):
    with av.open(io.BytesIO(b"".join(segments)), format="mov") as container:
        return list(container.decode(getattr(container.streams, kind)[0]))


def test_speech_becomes_a_video(serve, talk, freed):
    with serve() as client:
        with talk(client) as stream:
            started = stream.until("started")
            assert started["mime_type"].startswith('video/mp4; codecs="avc1.')
            assert started["fps"] == 25
            stream.speak(3.0)
            stream.say({"type": "end_audio"})
            ended = stream.until("ended")
            assert stream.until("close")["code"] == 1000
        assert ended["frames"] == 75
        frames = decoded(stream.segments)
        assert len(frames) == 75
        assert (frames[0].width, frames[0].height) == (started["width"], started["height"])
        assert sum(frame.samples for frame in decoded(stream.segments, "audio")) >= 48_000
        assert freed(client)


def test_own_picture_rate_and_prompt(serve, talk):
    picture = portrait_path("ada").read_bytes()
    options = {"portrait": None, "image_bytes": len(picture), "sample_rate": 48_000, "seed": 7}
    with serve() as client, talk(client, prompt="a woman", horizon=2, **options) as stream:
        stream.socket.send_bytes(picture)
        assert stream.until("started")["sample_rate"] == 48_000
        stream.say({"type": "set_prompt", "prompt": "a man"})
        stream.speak(1.0, 48_000)
        stream.say({"type": "end_audio"})
        assert stream.until("ended")["frames"] == 25
        assert decoded(stream.segments, "audio")[0].sample_rate == 48_000


def test_interrupt_and_go_on(serve, talk):
    with serve() as client, talk(client) as stream:
        stream.until("started")
        stream.speak(8.0)
        stream.until("progress")
        stream.say({"type": "interrupt"})
        cut = stream.until("interrupted")
        assert cut["seconds"] == pytest.approx(cut["frame_index"] / 25)
        assert cut["frame_index"] < 200
        stream.speak(1.0)
        stream.say({"type": "end_audio"})
        ended = stream.until("ended")
        # What waited is gone, but for the piece that was being handed over.
        assert cut["frame_index"] + 25 <= ended["frames"] <= cut["frame_index"] + 34
        assert len(decoded(stream.segments)) == ended["frames"]


def test_leaving_frees_the_session(serve, talk, freed):
    with serve(max_sessions=1) as client:
        for sign_of_life in ("segment", "progress"):
            with talk(client) as stream:
                stream.until("started")
                stream.speak(5.0)
                stream.until(sign_of_life)
            assert freed(client)


def test_places(serve, talk):
    with serve(max_sessions=1) as client, talk(client) as first:
        first.until("started")
        with talk(client) as second:
            assert second.refusal() == ("busy", 4429)
        first.speak(1.0)
        first.say({"type": "end_audio"})
        assert first.until("ended")["frames"] == 25


def test_token(serve, talk):
    with serve(token=TOKEN) as client:
        for options in ({}, {"token": "wrong"}, {"token": TOKEN + "x"}, {"token": ""}):
            with talk(client, **options) as stream:
                assert stream.refusal() == ("unauthorized", 4401)
        with talk(client, token=TOKEN) as stream:
            assert stream.until("started", "error")["type"] == "started"
        with talk(client, headers={"Authorization": f"Bearer {TOKEN}"}) as stream:
            assert stream.until("started", "error")["type"] == "started"
        assert client.get("/metrics").status_code == 401
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert client.get("/metrics", headers=headers).status_code == 200
        assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("origin", "host", "accepted"),
    [
        (None, "127.0.0.1:8000", True),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", True),
        ("http://localhost:8000", "localhost:8000", True),
        ("https://friend.example", "127.0.0.1:8000", True),
        ("http://evil.example", "127.0.0.1:8000", False),
        ("http://127.0.0.1:9000", "127.0.0.1:8000", False),
        ("null", "127.0.0.1:8000", False),
        ("http://rebound.example:8000", "rebound.example:8000", False),
        (None, "rebound.example:8000", False),
    ],
)
def test_origin(serve, talk, origin, host, accepted):
    headers = {"host": host} | ({"origin": origin} if origin else {})
    with serve(origins=["https://friend.example"]) as client:
        if accepted:
            with talk(client, headers=headers) as stream:
                stream.until("started")
        else:
            with pytest.raises(WebSocketDisconnect), talk(client, headers=headers):
                pass


@pytest.mark.parametrize(
    ("start", "code"),
    [
        ({"type": "hello"}, "malformed"),
        ({"sample_rate": 16_001}, "malformed"),
        ({"sample_rate": "16000"}, "malformed"),
        ({"sample_rate": True}, "malformed"),
        ({"horizon": 0}, "malformed"),
        ({"horizon": 5}, "malformed"),
        ({"seed": -1}, "malformed"),
        ({"portrait": 3}, "malformed"),
        ({"portrait": "../../etc/passwd"}, "unusable_media"),
        ({"portrait": "nobody"}, "unusable_media"),
        ({"image_bytes": 10}, "malformed"),
        ({"portrait": None, "image_bytes": 2**40}, "too_large"),
        ({"portrait": None, "image_bytes": 0}, "malformed"),
        ({"portrait": None}, "malformed"),
        ({"prompt": "x" * 1001}, "too_large"),
        ({"prompt": "x" * 20_000}, "too_large"),
        ({"prompt": 1}, "malformed"),
        ({"model": "other"}, "malformed"),
        ({"num_steps": 1000}, "malformed"),
    ],
)
def test_bad_starts(serve, talk, freed, start, code):
    with serve() as client:
        with talk(client, **start) as stream:
            assert stream.refusal()[0] == code
        assert freed(client)


@pytest.mark.parametrize("first", ["", "no json", "[]", '"start"', "{", "[" * 5000, b"\0\1"])
def test_bad_first_messages(serve, first):
    with serve() as client, client.websocket_connect("ws://127.0.0.1:8000/v1/stream") as socket:
        (socket.send_bytes if isinstance(first, bytes) else socket.send_text)(first)
        assert socket.receive_json()["code"] == "malformed"


@pytest.mark.parametrize(
    ("picture", "code"),
    [
        (b"GIF89a" + bytes(94), "unusable_media"),
        (b"\x89PNG\r\n\x1a\n" + bytes(92), "unusable_media"),
        (b"short", "malformed"),
        ("text", "malformed"),
    ],
)
def test_bad_pictures(serve, talk, picture, code):
    with serve() as client, talk(client, portrait=None, image_bytes=100) as stream:
        (stream.socket.send_bytes if isinstance(picture, bytes) else stream.socket.send_text)(
            picture
        )
        assert stream.refusal()[0] == code


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"odd", "malformed"),
        ("no json", "malformed"),
        ({"type": "explode"}, "malformed"),
        ({"type": "interrupt", "now": True}, "malformed"),
        ({"type": "set_prompt"}, "malformed"),
        ({"type": "set_prompt", "prompt": ["x"]}, "malformed"),
        ({"type": "end_audio"}, "wrong_state"),
        (bytes(2**16 + 2), "too_large"),
    ],
)
def test_bad_messages(serve, talk, freed, message, code):
    with serve(max_message_bytes=2**16) as client:
        with talk(client) as stream:
            stream.until("started")
            if isinstance(message, bytes):
                stream.socket.send_bytes(message)
            elif isinstance(message, str):
                stream.socket.send_text(message)
            else:
                stream.say(message)
            assert stream.refusal()[0] == code
        assert freed(client)


def test_limits_on_speech_and_bytes(serve, talk):
    with serve(max_seconds=1.0) as client, talk(client) as stream:
        stream.until("started")
        stream.speak(1.2)
        assert stream.refusal() == ("too_large", 4413)
    with serve(max_bytes=20_000) as client, talk(client) as stream:
        stream.until("started")
        stream.speak(1.0)
        assert stream.refusal() == ("too_large", 4413)


def test_speech_after_its_end(serve, talk):
    with serve() as client, talk(client) as stream:
        stream.until("started")
        stream.speak(5.0)
        stream.say({"type": "end_audio"})
        stream.speak(0.1)
        assert stream.refusal() == ("wrong_state", 4409)


def test_silent_clients_are_let_go(serve, talk, freed):
    with serve(start_timeout_s=0.2, idle_timeout_s=0.3) as client:
        with client.websocket_connect("ws://127.0.0.1:8000/v1/stream") as socket:
            assert socket.receive_json()["code"] == "timeout"
        with talk(client) as stream:
            stream.until("started")
            assert stream.refusal() == ("timeout", 4408)
        assert freed(client)


def test_pages_and_monitors(serve, talk):
    with serve() as client:
        page = client.get("/")
        assert page.status_code == 200
        assert "default-src 'self'" in page.headers["content-security-policy"]
        for path in ("page.css", "page.js", "player.js", "stream.js", "voice.js", "capture.js"):
            assert client.get(f"/{path}").status_code == 200
        listed = client.get("/v1/portraits").json()
        assert [one["name"] for one in listed["portraits"]] == list(portrait_names())
        for one in listed["portraits"]:
            assert client.get(one["url"]).content[:4] == b"\x89PNG"
        for path in ("/docs", "/openapi.json", "/app.py", "/../app.py", "/portraits/../index.html"):
            assert client.get(path).status_code == 404
        with talk(client) as stream:
            stream.until("started")
            stream.speak(1.0)
            stream.say({"type": "end_audio"})
            stream.until("ended")
        for _ in range(500):
            if client.get("/readyz").status_code == 200:
                break
        assert client.get("/readyz").json()["ready"] is True
        text = client.get("/metrics").text
        assert "skyreels_rt_sessions_total" in text
        assert "skyreels_rt_serve_connections_total" in text
        assert "skyreels_rt_serve_sent_bytes_total" in text


@pytest.mark.parametrize("count", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_nonsense_breaks_nothing(serve, talk, freed, count):
    random = np.random.default_rng(count)
    words = [
        "type",
        "start",
        "end_audio",
        "interrupt",
        "set_prompt",
        "prompt",
        "sample_rate",
        "{",
        "}",
        "[",
        '"',
        ":",
        ",",
        "null",
        "1e999",
        "-1",
        "\u0000",
        "💥",
        "portrait",
        "mira",
    ]

    def nonsense():
        kind = random.integers(5)
        if kind == 0:
            return random.bytes(int(random.integers(0, 3000)))
        if kind == 1:
            return "".join(random.choice(words, int(random.integers(0, 30))))
        name = str(random.choice(["start", "end_audio", "interrupt", "set_prompt", "x", ""]))
        message = {"type": name}
        if kind == 3:
            message[str(random.choice(words))] = [None, 1, "a", [], {}, 1.5, True][
                random.integers(7)
            ]
        if kind == 4:
            message |= {"portrait": "mira", "prompt": "x" * int(random.integers(0, 1200))}
        return message

    sent, known = 0, {1000, 1011} | set(range(4400, 4430))
    with serve() as client:
        while sent < count:
            with client.websocket_connect("ws://127.0.0.1:8000/v1/stream") as socket:
                from_start = random.random() < 0.7
                if from_start:
                    socket.send_json({"type": "start", "portrait": "mira"})
                for _ in range(int(random.integers(1, 12))):
                    message = nonsense()
                    if isinstance(message, bytes):
                        socket.send_bytes(message)
                    elif isinstance(message, str):
                        socket.send_text(message)
                    else:
                        socket.send_json(message)
                    sent += 1
                if random.random() < 0.5:
                    continue  # leave without a word
                socket.send_text("enough")
                while (heard := socket.receive())["type"] != "websocket.close":
                    pass
                assert heard["code"] in known
                assert heard["code"] != 1011
        assert freed(client, 30)
        metrics = client.app.state.service.metrics.text()
        assert 'outcome="internal"' not in metrics
        with talk(client) as stream:
            stream.until("started")
            stream.speak(1.0)
            stream.say({"type": "end_audio"})
            assert stream.until("ended")["frames"] == 25
