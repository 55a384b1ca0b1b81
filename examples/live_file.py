"""A live session in a plain script: python examples/live_file.py [SPEECH] [OUT] [MODEL].

Pushes a recording block by block, as a microphone would, and writes each fragment of the video the
moment it is made. Without SPEECH two seconds of a hum are used.
"""

import sys
from pathlib import Path

import numpy as np

import skyreels_rt as rt
from skyreels_rt.media.audio_file import open_audio
from skyreels_rt.media.portraits import portrait_path
from skyreels_rt.streaming.pcm import block_samples
from skyreels_rt.streaming.sinks import Mp4Sink


def hum() -> np.ndarray:
    """Two seconds that stand for speech."""
    time = np.arange(32_000) / 16_000
    return (0.3 * np.sin(2 * np.pi * 140 * time) * np.sin(4 * np.pi * time)).astype(np.float32)


def main() -> None:
    """Make the video."""
    given = sys.argv[1:]
    source = open_audio(given[0]) if given else open_audio(hum(), 16_000)
    target = Path(given[1] if len(given) > 1 else "out/live.mp4")
    target.parent.mkdir(parents=True, exist_ok=True)
    engine = rt.Engine.from_pretrained(given[2] if len(given) > 2 else "demo-fast")
    frames = 0
    with target.open("wb") as file, engine.open_session(image=portrait_path("mira")) as session:
        sink = Mp4Sink(file, session.fps)
        for block in source.blocks(block_samples(source.sample_rate)):
            session.push_audio(block, source.sample_rate)
            for chunk in session.frames():
                sink.write(chunk)
                frames += len(chunk.frames)
        session.end_audio()
        for chunk in session.frames():
            sink.write(chunk)
            frames += len(chunk.frames)
        sink.finish()
    sys.stdout.write(f"{target}: {frames} frames\n")


if __name__ == "__main__":
    main()
