# IPA letters look like Latin ones to the linter.
# ruff: noqa: RUF001
import logging
from dataclasses import fields

import numpy as np
import pytest

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.training.data.mouth import MouthShape
from skyreels_rt.training.data.sentences import sample_sentence, sample_syllables
from skyreels_rt.training.data.speech import LANGUAGES, PAUSE, PhonemeEvent, Voice, synthesise
from skyreels_rt.training.data.visemes import (
    TARGETS,
    frame_loudness,
    is_known,
    mouth_track,
    symbols_of,
)

NAMES = ("opening", "width", "rounding", "teeth", "tongue")


def events_of(*parts):
    events, position = [], 0.0
    for name, length in parts:
        events.append(PhonemeEvent(name, position, position + length))
        position += length
    return events


def speak(text, voice):
    pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed")
    return synthesise(text, voice, lead_s=0.2, tail_s=0.4)


def track_of(speech, **options):
    num_frames = int(speech.duration_s * 25)
    loudness = frame_loudness(speech.samples, num_frames)
    return mouth_track(speech.phonemes, num_frames, loudness=loudness, **options)


def closures(speech, track, lead_s=0.04, fps=25):
    """Smallest opening around each bilabial that lies inside the track."""
    times = (np.arange(track.num_frames) + 0.5) / fps + lead_s
    for event in speech.phonemes:
        if set(symbols_of(event.name)) & set("pbm"):
            near = (times > event.start_s - 0.021) & (times < event.stop_s + 0.021)
            if near.any() and times[0] < event.start_s and event.stop_s < times[-1]:
                yield track.opening[near].min()


def test_fields_are_the_five_of_a_mouth():
    assert tuple(f.name for f in fields(MouthShape)) == NAMES
    for target in TARGETS.values():
        assert all(0.0 <= getattr(target, name) <= 1.0 for name in NAMES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_phoneme_of_every_language_is_known(language):
    for seed in range(5):
        text = sample_sentence(seed, language, "train", duration_s=8.0)
        speech = speak(text + " 1234567890. " + sample_syllables(seed, "train"), Voice(language))
        assert [e.name for e in speech.phonemes if not is_known(e.name)] == []


@pytest.mark.parametrize("voice", [Voice("en-us"), Voice("de", rate=230), Voice("fi", rate=120)])
def test_lips_meet_at_every_bilabial_and_in_pauses(voice):
    speech = speak(sample_syllables(3, "train") + " Mama, papa, Bob?", voice)
    track = track_of(speech)
    lows = list(closures(speech, track))
    assert len(lows) > 15
    assert max(lows) <= 0.05
    times = (np.arange(track.num_frames) + 0.5) / 25 + 0.04
    for event in speech.phonemes:
        if event.name == PAUSE and event.stop_s - event.start_s >= 0.2:
            inside = (times > event.start_s + 0.06) & (times < event.stop_s - 0.06)
            assert track.opening[inside].max() <= 0.05


@pytest.mark.parametrize("phase", np.linspace(0.0, 0.04, 9))
def test_the_shortest_closure_falls_into_a_frame(phase):
    events = events_of((PAUSE, 0.2 + phase), ("a", 0.12), ("b", 0.02), ("a", 0.12), (PAUSE, 0.3))
    track = mouth_track(events, 17)
    times = (np.arange(17) + 0.5) / 25 + 0.04 - 0.2 - phase
    before, after = (times > 0) & (times < 0.1), (times > 0.16) & (times < 0.26)
    between = (times > 0.10) & (times < 0.16)
    assert track.opening[between].min() <= 0.05
    assert track.opening[before].max() > 0.2 and track.opening[after].max() > 0.2


def test_movement_is_bounded_and_smooth():
    for seed, language in enumerate(("en-us", "fr", "ru", "tr")):
        speech = speak(sample_sentence(seed, language, "train", duration_s=10.0), Voice(language))
        track = track_of(speech)
        for name in NAMES:
            values = getattr(track, name)
            assert values.dtype == np.float32 and values.shape == (track.num_frames,)
            assert values.min() >= 0.0 and values.max() <= 1.0
            assert np.abs(np.diff(values)).max() < 0.65
        assert np.quantile(np.abs(np.diff(track.opening)), 0.9) < 0.3
        assert track.opening.std() > 0.1


def test_vowels_have_their_shapes():
    def middle(vowel):
        track = mouth_track(events_of((PAUSE, 0.3), (vowel, 0.4), (PAUSE, 0.3)), 25, lead_ms=0.0)
        return {name: getattr(track, name)[12] for name in NAMES}

    a, i, u = middle("a"), middle("iː"), middle("ˈuː")
    assert a["opening"] > 0.8 > 0.4 > i["opening"]
    assert u["rounding"] > 0.9 and i["rounding"] < 0.05
    assert i["width"] > 0.85 and u["width"] < 0.2


def test_diphthong_glides():
    track = mouth_track(events_of((PAUSE, 0.2), ("ˈaʊ", 0.4), (PAUSE, 0.2)), 20, lead_ms=0.0)
    assert track.opening[7] > track.opening[13] + 0.2
    assert track.rounding[13] > track.rounding[7] + 0.3


def test_rounding_spreads_over_consonants_that_do_not_care():
    def rounding_of_t(vowel):
        track = mouth_track(
            events_of((PAUSE, 0.2), (vowel, 0.1), ("t", 0.08), (vowel, 0.1)), 12, lead_ms=0.0
        )
        return track.rounding[8]

    assert rounding_of_t("u") > rounding_of_t("i") + 0.3


def test_lips_lead_the_sound():
    events = events_of((PAUSE, 0.4), ("a", 0.3), (PAUSE, 0.5))
    now = mouth_track(events, 30, lead_ms=0.0)
    ahead = mouth_track(events, 29, lead_ms=40.0)
    np.testing.assert_allclose(ahead.opening, now.opening[1:], atol=1e-6)


def test_opening_grows_with_the_square_of_loudness():
    events = events_of(("e", 1.0))
    target = mouth_track(events, 25).opening[5:20]
    for loudness, factor in ((0.0, 0.3), (0.5, 0.5), (1.0, 1.1)):
        level = np.full(25, loudness, np.float32)
        opening = mouth_track(events, 25, loudness=level).opening[5:20]
        np.testing.assert_allclose(opening, target * factor, rtol=1e-5)
    assert target.max() * 1.1 < 1


def test_frame_loudness():
    samples = np.zeros(16_000, np.float32)
    samples[6_400:9_600] = 0.5
    loudness = frame_loudness(samples, 30)
    assert loudness.shape == (30,) and loudness.dtype == np.float32
    assert (loudness[10:15] == 1.0).all()
    assert not loudness[:10].any() and not loudness[15:].any()
    samples[:640] = 0.05
    assert frame_loudness(samples, 30)[0] == pytest.approx(0.5, abs=1e-4)
    assert not frame_loudness(np.zeros(100, np.float32), 3).any()


def test_silence_and_nothing_rest():
    for events in ([], events_of((PAUSE, 1.0))):
        track = mouth_track(events, 10)
        assert track.opening.max() <= 0.05
        np.testing.assert_allclose(track.width, 0.45, atol=1e-6)


def test_frame_rate_samples_the_same_curve():
    events = events_of((PAUSE, 0.2), ("a", 0.2), ("s", 0.1), ("o", 0.2), (PAUSE, 0.3))
    slow, fast = mouth_track(events, 25), mouth_track(events, 75, fps=75.0)
    np.testing.assert_allclose(slow.width, fast.width[1::3], atol=1e-6)


def test_unknown_name_takes_its_first_symbol_and_is_logged_once(caplog):
    with caplog.at_level(logging.WARNING):
        assert symbols_of("á\u0292")[0] == "a"
        assert symbols_of("Ǩ") == ("k",)
        assert symbols_of("Ǩ") == ("k",)
        assert symbols_of("☃") == ("ə",)
    assert sum("Ǩ" in record.getMessage() for record in caplog.records) == 1
    assert is_known("ˈaɪ") and is_known("tʃʲ") and is_known("ɐ̃ʊ") and is_known("ç")
    assert symbols_of("ç") == ("ç",)
    assert not is_known("☃")


def test_bad_arguments():
    with pytest.raises(InvalidArgument, match="num_frames"):
        mouth_track([], 0)
    with pytest.raises(InvalidArgument, match="fps"):
        mouth_track([], 5, fps=0.0)
    with pytest.raises(InvalidArgument, match="lead_ms"):
        mouth_track([], 5, lead_ms=500.0)
    with pytest.raises(InvalidArgument, match="loudness"):
        mouth_track([], 5, loudness=np.ones(4, np.float32))
    with pytest.raises(InvalidArgument, match="num_frames"):
        frame_loudness(np.ones(4, np.float32), 0)
