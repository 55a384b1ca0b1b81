"""The models in the package talk: unseen portrait, unseen speech, measured from the pixels."""

from pathlib import Path

import numpy as np
import pytest

import skyreels_rt as rt
from skyreels_rt.evaluation.clips import still_mask
from skyreels_rt.evaluation.fidelity import psnr
from skyreels_rt.evaluation.mouth import mouth_opening
from skyreels_rt.evaluation.sync import sync_at
from skyreels_rt.held_out import clip_of
from skyreels_rt.pretrained import embedded_models
from skyreels_rt.training.data.triplets import TripletSource

FRAMES = 64
UNSEEN = (2001, 2002)
"""Numbers of the held-out half that neither training nor `skyreels-rt eval` draws."""


@pytest.fixture(scope="module")
def clips():
    source = TripletSource("held_out", 256, 3.0, 0.0)
    return [clip_of(source.triplet(number), str(number)) for number in UNSEEN]


@pytest.fixture(scope="module", params=["demo", "demo-fast"])
def engine(request):
    return rt.Engine.from_pretrained(request.param)


def talk(engine, clip, audio):
    samples = FRAMES * clip.sample_rate // 25
    video = engine.generate(
        audio[:samples], sample_rate=clip.sample_rate, image=clip.portrait,
        on_progress=lambda _: None,
    )  # fmt: skip
    assert video.frames.shape == (FRAMES, 256, 256, 3)
    return video.frames


def sync(frames, clip):
    return sync_at(mouth_opening(frames, clip.mouth_box), clip.opening_px[:FRAMES])


def test_lips_follow_the_speech_and_the_background_stays(engine, clips):
    for clip in clips:
        frames = talk(engine, clip, clip.audio)
        assert sync(frames, clip) > 0.75
        still = still_mask(clip.frames[:FRAMES], clip.portrait)
        assert psnr(frames, np.broadcast_to(clip.portrait, frames.shape), still) > 36


def test_lips_do_not_follow_what_is_not_heard(engine, clips):
    one, other = clips
    for audio in (np.zeros_like(one.audio), other.audio):
        assert sync(talk(engine, one, audio), one) < 0.5


def test_the_package_stays_small():
    assets = Path(rt.__file__).parent / "assets"
    assert embedded_models() == ("demo", "demo-fast")
    sizes = [path.stat().st_size for path in assets.rglob("*") if path.is_file()]
    assert sum(sizes) <= 24_000_000 and max(sizes) <= 8 * 2**20
    assert all((assets / name / "README.md").is_file() for name in embedded_models())
