"""The lag is found; a mouth that follows other speech is told from one that follows its own."""

import numpy as np
import pytest

from skyreels_rt.bench.data_corpus import delayed
from skyreels_rt.data.faces import FaceTrack
from skyreels_rt.data.sync import speech_curve, sync_scores
from skyreels_rt.training.data.mouth import MouthShape
from skyreels_rt.training.data.triplets import TripletSource

MAX_LAG = 15
INDICES = (3, 8, 11, 14)


@pytest.fixture(scope="module")
def utterances():
    """True openings and sound of a few held-out people."""
    source = TripletSource("held_out", duration_s=5.0, difficulty=0.2)
    return [source.utterance(index) for index in INDICES]


def opening(mouth: MouthShape) -> np.ndarray:
    return mouth.opening.astype(np.float64)


@pytest.mark.parametrize("delay", [-12, -7, -3, 0, 3, 8, 12])
def test_delays_are_found(utterances, delay):
    for speech in utterances:
        moved = np.zeros_like(speech.audio)
        shift = 640 * delay
        moved[max(0, shift) : len(moved) + min(0, shift)] = speech.audio[
            max(0, -shift) : len(moved) - max(0, shift)
        ]
        scores = sync_scores(opening(speech.mouth), moved, MAX_LAG)
        assert abs(scores.lag + delay) <= 1


def test_own_speech_beats_that_of_others(utterances):
    own, foreign = [], []
    for speech in utterances:
        for other in utterances:
            count = min(len(speech.loudness), len(other.loudness))
            scores = sync_scores(opening(speech.mouth)[:count], other.audio, MAX_LAG)
            (own if other is speech else foreign).append(scores)
    assert min(s.peak for s in own) > max(s.peak for s in foreign)
    assert min(s.margin for s in own) > max(s.margin for s in foreign)


def test_nothing_to_compare_is_no_sync(utterances):
    silent = sync_scores(opening(utterances[0].mouth), np.zeros(80_000, np.float32), MAX_LAG)
    closed = sync_scores(np.zeros(100), utterances[0].audio, MAX_LAG)
    assert (silent.peak, closed.peak) == (0.0, 0.0)


def test_the_curve_belongs_to_its_frames():
    audio = np.zeros(640 * 20, np.float32)
    audio[640 * 7 : 640 * 8] = np.sin(2 * np.pi * 1_500 / 16_000 * np.arange(640))
    assert speech_curve(audio, 20).argmax() == 7
    assert len(speech_curve(audio[: 640 * 5], 20)) == 20


def test_drawn_faces_are_followed(good):
    """The same mesh that follows people follows drawn faces, to the mouth's opening."""
    from skyreels_rt.conditioning.face import FaceFinder

    clip = good(1)
    track = FaceTrack(FaceFinder(), 5)
    for frame in clip.frames[:80]:
        track.add(frame)
    assert track.share == 1.0
    for delay in (0, 6):
        scores = sync_scores(track.openings(), delayed(clip, delay).audio, MAX_LAG)
        assert abs(scores.lag + delay) <= 1
