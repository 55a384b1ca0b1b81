"""What sound and picture are measured to be, against what was made."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from skyreels_rt.data.picture import PictureGauge, sharpness
from skyreels_rt.data.shots import CutDetector
from skyreels_rt.data.speech import WINDOW, VoiceDetector, clipped_share, loudness, speech_scores
from skyreels_rt.media.audio_file import open_audio
from skyreels_rt.training.data.maskers import masker, mix

RATE = 16_000


@pytest.fixture(scope="module")
def voice(shared_data):
    """Eleven seconds of a recorded speech."""
    source = open_audio(shared_data / "speech" / "jfk_16k_11s.wav")
    return np.concatenate(list(source.blocks()))[:, 0]


def test_speech_is_told_from_music_and_silence(voice):
    shares = {}
    sounds = {
        "speech": voice,
        "music": 0.1 * masker("music", len(voice), 3),
        "silence": np.zeros_like(voice),
    }
    for name, sound in sounds.items():
        detector = VoiceDetector()
        shares[name] = speech_scores(sound, detector.push(sound)).share
    assert shares["speech"] > 0.6
    assert max(shares["music"], shares["silence"]) < 0.1


def test_speech_detector_does_not_depend_on_cutting(voice):
    detector = VoiceDetector()
    whole = detector.push(voice)
    detector.reset()
    pieces = np.concatenate([detector.push(part) for part in np.array_split(voice, 37)])
    np.testing.assert_array_equal(whole, pieces)
    assert len(whole) == len(voice) // WINDOW


@pytest.mark.parametrize("wanted", [0.0, 10.0, 20.0])
def test_signal_to_noise(voice, wanted):
    noise = masker("pink", len(voice), 1)
    probabilities = VoiceDetector().push(voice)
    found = speech_scores(mix(voice, noise, wanted), probabilities).snr_db
    # The level of speech alone lies above that of speech with its pauses.
    assert wanted - 1 < found < wanted + 5


def test_clipping(voice):
    assert clipped_share(voice) < 0.005
    assert clipped_share(np.clip(10 * voice, -0.9, 0.9)) > 0.03
    assert clipped_share(np.zeros(100, np.float32)) == clipped_share(np.zeros(0)) == 0.0


@pytest.mark.parametrize(("amplitude", "expected"), [(1.0, -3.01), (0.1, -23.01)])
def test_loudness_of_the_standard_tone(amplitude, expected):
    """BS.1770: a sine of 997 Hz at full scale in one channel reads -3.01 LUFS."""
    tone = amplitude * np.sin(2 * np.pi * 997 / RATE * np.arange(3 * RATE))
    assert loudness(tone.astype(np.float32)) == pytest.approx(expected, abs=0.1)


def test_loudness_ignores_pauses():
    tone = np.sin(2 * np.pi * 997 / RATE * np.arange(2 * RATE)).astype(np.float32)
    paused = np.concatenate([tone, np.zeros(4 * RATE, np.float32)])
    assert loudness(paused) == pytest.approx(loudness(tone), abs=0.7)
    assert loudness(np.zeros(RATE, np.float32)) == loudness(np.zeros(10, np.float32)) == -70.0


def gauged(frames) -> PictureGauge:
    gauge = PictureGauge()
    for index, frame in enumerate(frames):
        gauge.add(frame, look_for_text=index % 5 == 0)
    return gauge


def test_black_and_frozen_frames(good):
    frames = good(2).frames[:50].copy()
    assert gauged(frames).longest_still <= 5
    frames[10:30] = frames[10]
    frames[40:45] = 0
    gauge = gauged(frames)
    assert 18 <= gauge.longest_still <= 20
    assert gauge.black_share == pytest.approx(0.1)


def test_subtitles_are_seen_and_backgrounds_are_not(good, shared_data):
    from skyreels_rt.media.video_file import open_video

    frames = good(2).frames[:25]
    real = open_video(shared_data / "video" / "talking_458_25fps_15s.mp4").frames(25)
    written = []
    for frame in frames:
        picture = Image.fromarray(frame)
        ImageDraw.Draw(picture).text(
            (128, 215), "what they said", "white", ImageFont.load_default(22), anchor="ma",
            stroke_width=2, stroke_fill="black",
        )  # fmt: skip
        written.append(np.asarray(picture))
    assert gauged(frames).text_area < 0.01
    assert gauged([frame for frame, _ in zip(real, range(25), strict=False)]).text_area < 0.01
    assert gauged(written).text_area > 0.03


def test_blur_is_seen(good):
    picture = Image.fromarray(good(2).frames[0]).convert("L").crop((60, 50, 200, 210))
    scores = [
        sharpness(np.asarray(picture.filter(ImageFilter.GaussianBlur(radius))))
        for radius in (0, 1.5, 4)
    ]
    assert scores[0] > 0.55 > 0.45 > scores[2]
    assert scores == sorted(scores, reverse=True)
    assert sharpness(np.full((32, 32), 90, np.uint8)) == 0.0


def test_cuts(good):
    frames = [*good(1).frames[:12], *good(2).frames[:12]]
    detector = CutDetector(16.0)
    assert [i for i, frame in enumerate(frames) if detector.begins_shot(frame)] == [12]
