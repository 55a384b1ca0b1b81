# IPA letters look like Latin ones to the linter.
# ruff: noqa: RUF001
import hashlib
import importlib.util
import itertools
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.training.data.speech import (
    HELD_OUT_VARIANTS,
    LANGUAGES,
    PAUSE,
    SAMPLE_RATE,
    TRAIN_VARIANTS,
    Voice,
    sample_voice,
    synthesise,
)

needs_espeak = pytest.mark.skipif(
    not importlib.util.find_spec("espeakng_loader"),
    reason="espeakng-loader is not installed (extra `train`)",
)
TEXT = "Hello, my name is Bob. What is your number? It is 42."


def cut(speech, event):
    return speech.samples[
        int(np.ceil(event.start_s * SAMPLE_RATE)) : int(event.stop_s * SAMPLE_RATE)
    ]


def decibels(samples):
    return 20 * np.log10(np.sqrt(np.mean(np.square(samples, dtype=np.float64))) + 1e-9)


@needs_espeak
@pytest.mark.parametrize("variant", ["", "f3", "klatt", "whisper", "robosoft4"])
def test_same_bits_whatever_was_spoken_before(variant):
    voice = Voice("en-us", variant)
    first = synthesise(TEXT, voice)
    for other in (Voice("de", "klatt4", pitch=80), Voice("ru", "croak", rate=230)):
        synthesise("eins zwei drei, noch etwas", other)
        again = synthesise(TEXT, voice)
        assert again.samples.tobytes() == first.samples.tobytes()
        assert again.phonemes == first.phonemes


@needs_espeak
def test_same_bits_in_another_process_and_locale():
    here = synthesise(TEXT, Voice("fr", "f5"))
    program = (
        "import hashlib; from skyreels_rt.training.data.speech import Voice, synthesise\n"
        f"s = synthesise({TEXT!r}, Voice('fr', 'f5'))\n"
        "import sys; sys.stdout.write(hashlib.sha256(s.samples.tobytes()).hexdigest())"
    )
    environment = {**os.environ, "LC_ALL": "C"}
    there = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    ).stdout
    assert there == hashlib.sha256(here.samples.tobytes()).hexdigest()


@needs_espeak
def test_threads_do_not_disturb_each_other():
    voices = [Voice("en-us", "m1"), Voice("de", "f2"), Voice("tr", "klatt"), Voice("fi", "whisper")]
    alone = [synthesise("papa 12", voice).samples.tobytes() for voice in voices]
    together = {}

    def speak(index):
        for _ in range(5):
            together[index] = synthesise("papa 12", voices[index]).samples.tobytes()

    threads = [threading.Thread(target=speak, args=(i,)) for i in range(len(voices))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(len(voices))] == alone


@needs_espeak
@pytest.mark.parametrize("language", LANGUAGES)
def test_events_tile_the_samples_and_pauses_are_silent(language):
    speech = synthesise("Papa 12, mama 7. Toto?", Voice(language), lead_s=0.3, tail_s=0.5)
    events = speech.phonemes
    assert events[0].name == PAUSE and events[0].start_s == 0.0
    assert events[-1].name == PAUSE and events[-1].stop_s == pytest.approx(speech.duration_s)
    for before, after in itertools.pairwise(events):
        assert before.start_s < before.stop_s == after.start_s
        assert not before.name.startswith("(")
    inner = [e for e in events if e.name == PAUSE and e.stop_s - e.start_s > 0.06]
    assert len(inner) >= 4  # before, after the comma, after the full stop, after the question
    for event in inner:
        # Resampling rings for a few samples on both sides of an edge.
        assert decibels(cut(speech, event)[40:-40]) < -60


@needs_espeak
def test_energy_follows_the_events():
    speech = synthesise(TEXT, Voice("en-us", "m3"))
    level = {True: [], False: []}
    for event in speech.phonemes:
        if event.name != PAUSE:
            is_vowel = any(c in "aeiouɑɐəɚɛɪɔʊʌ" for c in event.name)
            level[is_vowel].append(decibels(cut(speech, event)))
    assert np.mean(level[True]) > np.mean(level[False]) + 8
    assert min(level[True]) > -40


@needs_espeak
def test_shifted_events_would_be_noticed():
    speech = synthesise(TEXT, Voice("en-us", "m3"))

    def pause_level(shift_s):
        moved = [
            speech.samples[
                int((e.start_s + shift_s) * SAMPLE_RATE) : int((e.stop_s + shift_s) * SAMPLE_RATE)
            ]
            for e in speech.phonemes[1:-1]
            if e.name == PAUSE
        ]
        return decibels(np.concatenate(moved))

    assert pause_level(0.0) < -60
    assert pause_level(0.04) > -45 and pause_level(-0.04) > -45


@needs_espeak
def test_closure_belongs_to_the_stop():
    speech = synthesise("a papa, a tata", Voice("it"))
    stops = [e for e in speech.phonemes if e.name in ("p", "t")]
    assert len(stops) == 4
    for event in stops:
        sound = cut(speech, event)
        third = len(sound) // 3
        assert decibels(sound[:third]) < decibels(sound[-third:]) - 20


@needs_espeak
def test_lead_and_tail_only_add_silence():
    bare = synthesise(TEXT, Voice())
    padded = synthesise(TEXT, Voice(), lead_s=0.25, tail_s=0.5)
    lead, tail = SAMPLE_RATE // 4, SAMPLE_RATE // 2
    assert len(padded.samples) == len(bare.samples) + lead + tail
    np.testing.assert_array_equal(padded.samples[lead:-tail], bare.samples)
    assert not padded.samples[:lead].any() and not padded.samples[-tail:].any()
    moved = [e.start_s + 0.25 for e in bare.phonemes if e.name != PAUSE]
    assert [e.start_s for e in padded.phonemes if e.name != PAUSE] == pytest.approx(moved)


@needs_espeak
def test_voice_settings_are_heard():
    plain = synthesise(TEXT, Voice())
    assert synthesise(TEXT, Voice(rate=230)).duration_s < 0.85 * plain.duration_s
    quiet = synthesise(TEXT, Voice(volume=50)).samples
    np.testing.assert_allclose(quiet, 0.5 * plain.samples, atol=1e-6)
    high = synthesise(TEXT, Voice(pitch=90)).samples
    assert high.shape != plain.samples.shape or not np.array_equal(high, plain.samples)


@needs_espeak
def test_every_variant_speaks_without_clipping_and_sounds_its_own():
    spectra = {}
    for variant in TRAIN_VARIANTS + HELD_OUT_VARIANTS:
        samples = synthesise("Bob saw me", Voice("en-us", variant)).samples
        assert samples.dtype == np.float32
        assert 0.1 < np.abs(samples).max() <= 0.981
        spectra[variant] = samples.tobytes()
    assert len(set(spectra.values())) == len(spectra)


def test_splits_share_no_timbre_and_voices_are_deterministic():
    assert not set(TRAIN_VARIANTS) & set(HELD_OUT_VARIANTS)
    train = [sample_voice(seed, "train") for seed in range(400)]
    held_out = [sample_voice(seed, "held_out") for seed in range(400)]
    assert train == [sample_voice(seed, "train") for seed in range(400)]
    assert not {v.variant for v in train} & {v.variant for v in held_out}
    assert {v.language for v in train} == set(LANGUAGES) == {v.language for v in held_out}
    assert {v.variant for v in train} == set(TRAIN_VARIANTS)
    assert sample_voice(3, "train", languages=("pl",)).language == "pl"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"language": "xx"}, "language"),
        ({"variant": "caleb"}, "variant"),
        ({"pitch": 101}, "pitch"),
        ({"pitch_range": -1}, "pitch_range"),
        ({"rate": 10}, "rate"),
        ({"volume": 0}, "volume"),
    ],
)
def test_bad_voice(arguments, name):
    with pytest.raises(InvalidArgument) as caught:
        Voice(**arguments)
    assert caught.value.argument == name


def test_bad_arguments():
    for text in ("", "  ", "a\0b", "x" * 2001):
        with pytest.raises(InvalidArgument, match="text"):
            synthesise(text, Voice())
    for name in ("lead_s", "tail_s"):
        with pytest.raises(InvalidArgument, match=name):
            synthesise("hello", Voice(), **{name: -0.1})
    with pytest.raises(InvalidArgument, match="split"):
        sample_voice(1, "test")
    with pytest.raises(InvalidArgument, match="languages"):
        sample_voice(1, "train", languages=())


@needs_espeak
def test_text_without_words():
    with pytest.raises(InvalidArgument, match="text"):
        synthesise("...", Voice())


def test_without_the_package_the_module_imports_and_says_what_to_install():
    program = (
        "import sys; sys.modules['espeakng_loader'] = None\n"
        "from skyreels_rt.errors import MissingDependency\n"
        "from skyreels_rt.training.data import maskers, sentences, speech, visemes\n"
        "assert 'soxr' not in sys.modules\n"
        "try:\n    speech.synthesise('hello', speech.Voice())\n"
        "except MissingDependency as error:\n"
        "    assert 'pip install skyreels-rt[train]' in str(error)\n"
        "else:\n    raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
