"""Triplets: the same number is the same clip, the splits share nothing, sound and lips agree."""

import hashlib

import numpy as np
import pytest

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.training.data.identity import sample_identity
from skyreels_rt.training.data.triplets import TripletSource

pytest.importorskip("espeakng_loader", reason="the speech synthesiser is not installed ([train])")

SOURCE = TripletSource("train", size=64, duration_s=2.0)


def digest(triplet):
    parts = (triplet.clip.frames, triplet.audio, triplet.mouth.opening, triplet.clip.mouth_mask)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def drawn(index, max_frames):
    return TripletSource("train", size=32, duration_s=2.0, max_frames=max_frames).triplet(index)


def excerpt_start(whole, cut):
    """First frame of ``whole`` that ``cut`` holds; the sound of both must agree from there on."""
    length = len(cut.clip.frames)
    starts = range(len(whole.clip.frames) - length + 1)
    sounds = [whole.audio[640 * start : 640 * (start + length)] for start in starts]
    return next(start for start in starts if np.array_equal(sounds[start], cut.audio))


@pytest.mark.parametrize("index", [5, 8])
def test_a_cut_clip_is_a_part_of_the_whole_one(index):
    whole, cut = drawn(index, None), drawn(index, 13)
    start = excerpt_start(whole, cut)
    assert len(cut.clip.frames) == cut.mouth.num_frames == 13 < len(whole.clip.frames)
    assert np.array_equal(cut.clip.frames, whole.clip.frames[start : start + 13])
    assert np.array_equal(cut.clip.eye_mask, whole.clip.eye_mask[start : start + 13])
    assert np.array_equal(cut.mouth.opening, whole.mouth.opening[start : start + 13])
    assert np.array_equal(cut.blink, whole.blink[start : start + 13])
    assert cut.caption == whole.caption


def test_cuts_lie_anywhere_and_half_of_them_show_a_blink_of_the_whole_clip():
    pairs = [(drawn(index, None), drawn(index, 13)) for index in range(24)]
    pairs = [(whole, cut) for whole, cut in pairs if (whole.blink > 0.9).any()]
    shown = np.mean([(cut.blink > 0.9).any() for _, cut in pairs])
    starts = {excerpt_start(whole, cut) for whole, cut in pairs}
    assert shown >= 0.5
    assert len(starts) >= len(pairs) // 2
    assert len(pairs) >= 8


def test_a_number_is_always_the_same_clip():
    first = SOURCE.triplet(3)
    SOURCE.triplet(8)
    again = SOURCE.triplet(3)
    assert digest(first) == digest(again)
    assert (first.caption, first.text, first.voice) == (again.caption, again.text, again.voice)
    assert digest(SOURCE.triplet(4)) != digest(first)


def test_lengths_agree():
    triplet = SOURCE.triplet(0)
    num_frames = len(triplet.clip.frames)
    assert 12 <= num_frames <= 200
    assert len(triplet.audio) == num_frames * 640
    assert triplet.mouth.num_frames == num_frames
    assert triplet.clip.mouth_mask.shape == (num_frames, 64, 64)
    assert np.abs(triplet.audio).max() <= 1


def test_splits_share_no_identity_voice_or_clause():
    worlds = []
    for split in ("train", "held_out"):
        source = TripletSource(split, size=32, duration_s=1.0, difficulty=0.0)
        triplets = [source.triplet(index) for index in range(6)]
        worlds.append(
            (
                {repr(triplet.identity) for triplet in triplets},
                {triplet.voice.variant for triplet in triplets},
                {triplet.text for triplet in triplets},
            )
        )
    assert all(not left & right for left, right in zip(*worlds, strict=True))
    assert SOURCE.triplet(1).identity == sample_identity(2)


def test_lips_open_with_the_sound():
    """Over clean clips the drawn opening follows the loudness, at the right place only."""
    scores = []
    for index in range(6):
        triplet = TripletSource("train", size=64, duration_s=4.0, difficulty=0.0).triplet(index)
        loudness = np.sqrt(np.square(triplet.audio.reshape(-1, 640)).mean(axis=1))
        opening = triplet.clip.opening_px
        right = np.corrcoef(opening, loudness)[0, 1]
        wrong = np.corrcoef(opening, np.roll(loudness, len(loudness) // 2))[0, 1]
        scores.append((right, wrong))
    right, wrong = np.mean(scores, axis=0)
    assert right > 0.35
    assert right > wrong + 0.25


@pytest.mark.parametrize("arguments", [{"split": "all"}, {"split": "train", "size": 8}])
def test_bad_settings_are_refused(arguments):
    with pytest.raises(InvalidArgument):
        TripletSource(**arguments).triplet(0)
    with pytest.raises(InvalidArgument, match="index"):
        SOURCE.triplet(-1)
