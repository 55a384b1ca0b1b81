"""A live session with asyncio and a barge-in: python examples/asyncio_live.py [MODEL].

One task pushes speech, another takes frames; when enough was seen the listener interrupts, and the
portrait says something else.
"""

import asyncio
import sys

import numpy as np

import skyreels_rt as rt
from skyreels_rt.media.portraits import portrait_path

RATE = 16_000
BLOCK = RATE // 50


def hum(seconds: float, pitch: float) -> np.ndarray:
    """Something that stands for speech."""
    time = np.arange(int(seconds * RATE)) / RATE
    wave = np.sin(2 * np.pi * pitch * time) * np.sin(4 * np.pi * time)
    return (0.3 * wave).astype(np.float32)


async def say(session: rt.AsyncSession, speech: np.ndarray) -> None:
    """Push speech in blocks of 20 ms; waits when the session holds enough."""
    for start in range(0, len(speech), BLOCK):
        await session.push_audio(speech[start : start + BLOCK], RATE)


async def main() -> None:
    """Speak, be interrupted, speak again."""
    engine = rt.Engine.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else "demo-fast")
    async with engine.open_session(image=portrait_path("ada")) as session:
        await say(session, hum(8.0, 140))
        frames, interrupted = 0, False
        async for chunk in session:
            frames += len(chunk.frames)
            if not interrupted and frames >= 25:
                cut = await session.interrupt()
                interrupted = True
                sys.stdout.write(f"interrupted after {float(cut.seconds):.2f} s\n")
                await say(session, hum(1.0, 180))
                await session.end_audio()
        sys.stdout.write(f"{frames} frames\n")


if __name__ == "__main__":
    asyncio.run(main())
