"""A LiveKit avatar over a live session; needs `pip install livekit-agents`, imports without it.

``PortraitVideo`` has the shape of LiveKit's ``VideoGenerator`` (livekit-agents, voice/avatar):
``push_audio`` takes its audio frames and segment ends, ``clear_buffer`` is the barge-in, and
iterating gives video frames, audio frames and segment ends for an ``AvatarRunner``::

    runner = AvatarRunner(room, audio_recv=..., video_gen=PortraitVideo(session), options=...)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np

import skyreels_rt as rt

try:
    from livekit import rtc
    from livekit.agents.voice.avatar import AudioSegmentEnd, VideoGenerator
except ImportError:  # the example can be read and tested without LiveKit
    rtc, AudioSegmentEnd, VideoGenerator = None, None, object


class PortraitVideo(VideoGenerator):
    """Speech of an agent in, a talking portrait out.

    The session should be opened with ``idle=True``: the portrait then keeps moving between the
    agent's sentences, and a sentence's last frames do not wait for the next one.
    """

    def __init__(self, session: rt.AsyncSession) -> None:
        self._session = session
        self._pushed = 0.0  # seconds of speech so far
        self._ends: list[float] = []  # where sentences end

    async def push_audio(self, frame: Any) -> None:
        """Take an ``rtc.AudioFrame`` (16-bit) or an ``AudioSegmentEnd``."""
        if not hasattr(frame, "samples_per_channel"):
            self._ends.append(self._pushed)
            return
        samples = np.frombuffer(frame.data, np.int16).reshape(-1, frame.num_channels)
        self._pushed += len(samples) / frame.sample_rate
        await self._session.push_audio(np.float32(samples) / np.float32(32768), frame.sample_rate)

    async def clear_buffer(self) -> None:
        """Barge-in: forget all speech that was not shown."""
        cut = await self._session.interrupt()
        self._pushed, self._ends = float(cut.seconds), []

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Video and audio frames in the order of their times, and the ends of sentences."""
        async for chunk in self._session:
            height, width = chunk.frames.shape[1:3]
            sound = np.int16(np.clip(chunk.audio, -1, 1) * 32767)
            yield rtc.AudioFrame(sound.tobytes(), chunk.sample_rate, sound.shape[1], sound.shape[0])
            for pixels in chunk.frames:
                yield rtc.VideoFrame(width, height, rtc.VideoBufferType.RGB24, pixels.tobytes())
            done = float(chunk.pts) + len(chunk.audio) / chunk.sample_rate
            while self._ends and self._ends[0] <= done + 1e-6:
                self._ends.pop(0)
                yield AudioSegmentEnd()
