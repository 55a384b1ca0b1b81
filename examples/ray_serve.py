"""Replicas behind Ray Serve, an engine each.

    python examples/ray_serve.py demo-fast 2       # model, replicas
    curl --data-binary @speech.wav 'localhost:8000/?portrait=mira' -o out.mp4

The answer is fragmented MP4 while it is made. More requests than replicas wait in Ray's queue. A
replica over several GPUs gives its engine ``devices``; when a worker dies its health check fails,
and Ray starts the replica anew.
"""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import soundfile

import skyreels_rt as rt
from skyreels_rt.media.portraits import portrait_path
from skyreels_rt.streaming.sinks import Mp4Sink

FPS = 25  # of every model in the package


class Portraits:
    """One replica."""

    def __init__(self, model: str, devices: tuple[str, ...] | None = None) -> None:
        self._engine = rt.Engine.from_pretrained(model, devices=devices)

    def check_health(self) -> None:
        """Raise if a worker is gone."""
        if not all(worker.is_alive for worker in self._engine.workers):
            raise RuntimeError("a worker is gone")

    async def __call__(self, request: Any) -> Any:
        """A recording in, a video out; a request names a portrait of the package, never a path."""
        from starlette.responses import JSONResponse, StreamingResponse

        try:
            speech, rate = soundfile.read(io.BytesIO(await request.body()), dtype="float32")
            portrait = portrait_path(request.query_params.get("portrait", "mira"))
            chunks = self._engine.stream(speech, sample_rate=rate, image=portrait)
        except (rt.SkyReelsError, soundfile.SoundFileError) as error:
            return JSONResponse({"error": str(error)}, 400)
        return StreamingResponse(self.fragments(chunks), media_type="video/mp4")

    def fragments(self, chunks: Iterator[rt.FrameChunk]) -> Iterator[bytes]:
        """MP4 of the chunks as they come."""
        stream, sink = io.BytesIO(), None
        for chunk in chunks:
            sink = sink or Mp4Sink(stream, FPS)
            sink.write(chunk)
            yield stream.getvalue()
            stream.seek(0)
            stream.truncate()
        if sink is not None:
            sink.finish()
            yield stream.getvalue()


def main(model: str = "demo-fast", replicas: str = "1") -> None:
    """Serve until Ctrl-C."""
    from ray import serve  # pip install 'ray[serve]'

    # On GPUs also ray_actor_options={"num_gpus": 1}.
    deployment = serve.deployment(num_replicas=int(replicas), max_ongoing_requests=1)(Portraits)
    serve.run(deployment.bind(model))
    with suppress(KeyboardInterrupt):
        signal.pause()
    serve.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
