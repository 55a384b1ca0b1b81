"""Drawn clips, settings and hand-made files that the tests of the pipeline share."""

from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest

from skyreels_rt.bench.data_corpus import ClipMaker
from skyreels_rt.data.settings import load_settings


@pytest.fixture(scope="session")
def good():
    """Function that draws good clip number n of held-out people."""
    return ClipMaker("held_out").good


@pytest.fixture(scope="session")
def settings():
    """The packaged settings with small samples, three to a shard."""
    packaged = load_settings()
    return replace(packaged, output=replace(packaged.output, size=64, samples_per_shard=3))


@pytest.fixture(scope="session")
def encode():
    return encode_file


def encode_file(
    path,
    clip,
    *,
    pts=None,
    display=None,
    audio=True,
    video=True,
    audio_start=0,
    size=None,
    codec="aac",
):
    """Write a clip with whatever is unusual about its times, tracks or orientation."""
    with av.open(str(path), "w") as output:
        picture = sound = None
        if video:
            picture = output.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
            picture.height, picture.width = size or clip.frames.shape[1:3]
            picture.pix_fmt = "yuv420p"
            picture.time_base = picture.codec_context.time_base = Fraction(1, 1000)
            if display is not None:
                picture.set_display_matrix(display)
        if audio:
            sound = output.add_stream(codec, rate=16_000, layout="mono")
        if picture is not None:
            for index, pixels in enumerate(clip.frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame.pts = 40 * index if pts is None else pts[index]
                frame.time_base = Fraction(1, 1000)
                output.mux(picture.encode(frame))
            output.mux(picture.encode(None))
        if sound is not None:
            for start in range(0, len(clip.audio) // 1024 * 1024, 1024):
                layout = "flt" if codec == "pcm_f32le" else "fltp"
                samples = np.ascontiguousarray(clip.audio[None, start : start + 1024])
                block = av.AudioFrame.from_ndarray(samples, format=layout, layout="mono")
                block.sample_rate = 16_000
                block.pts, block.time_base = start + audio_start, Fraction(1, 16_000)
                output.mux(sound.encode(block))
            output.mux(sound.encode(None))
    return path
