"""Triplets of video, audio and caption with ground truth, drawn and spoken on demand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.training.data.identity import EXPRESSIONS, Identity, caption, sample_identity
from skyreels_rt.training.data.maskers import apply_acoustics, sample_acoustics
from skyreels_rt.training.data.motion import sample_motion
from skyreels_rt.training.data.mouth import MouthShape
from skyreels_rt.training.data.renderer import RenderedClip, render
from skyreels_rt.training.data.sentences import sample_sentence
from skyreels_rt.training.data.speech import (
    SAMPLE_RATE,
    Speech,
    Split,
    Voice,
    check_split,
    sample_voice,
    synthesise,
)
from skyreels_rt.training.data.visemes import frame_loudness, mouth_track

FPS = 25
_FRAME_SAMPLES = SAMPLE_RATE // FPS
LEAD_S, TAIL_S = 0.2, 0.3
_EXCERPT = 0xE7  # tells this use of a seed apart


@dataclass(frozen=True, eq=False)
class Triplet:
    """One talking clip and everything that is known about it.

    Attributes
    ----------
    clip : RenderedClip
        Frames uint8 (F, S, S, 3) at 25 fps, masks of face, mouth, jaw and eyes, true opening.
    audio : ndarray, shape (F * 640,), float32
        What a listener hears, at 16 kHz: speech in a room, under maskers.
    caption : str
        What the clip shows.
    mouth : MouthShape
        True mouth parameters, F frames.
    blink : ndarray, shape (F,), float32 in [0, 1]
        How far the eyes are closed.
    identity : Identity
        Who speaks.
    voice : Voice
        With which voice.
    text : str
        What is said.
    """

    clip: RenderedClip
    audio: NDArray[np.float32]
    caption: str
    mouth: MouthShape
    blink: NDArray[np.float32]
    identity: Identity
    voice: Voice
    text: str


@dataclass(frozen=True, eq=False)
class Utterance:
    """Speech without a picture.

    Attributes
    ----------
    audio : ndarray, shape (F * 640,), float32
        What a listener hears, at 16 kHz.
    loudness : ndarray, shape (F,)
        Of the speech alone, per frame.
    mouth : MouthShape
        True mouth parameters, F frames.
    voice : Voice
        Who says it.
    text : str
        What is said.
    """

    audio: NDArray[np.float32]
    loudness: NDArray[np.float32]
    mouth: MouthShape
    voice: Voice
    text: str


@dataclass(frozen=True)
class TripletSource:
    """Endless triplets; number ``index`` is always the same.

    The splits share no identity, no voice and no spoken clause.

    Parameters
    ----------
    split : {"train", "held_out"}
        Which half of the world to draw from.
    size : int
        Pixels per side, 32 to 1024.
    duration_s : float
        Wanted length of the speech, 1 to 15 s; met to about a third.
    difficulty : float
        0 (clean sound) to 1 (mostly noisy).
    motion : float
        0 (a still head) to 2 (a lively one).
    posture : float
        0 to 2: how far the pose that the head moves about is from looking straight ahead.
    max_frames : int, optional
        Longer clips are cut to it, in the middle of a word if need be: the same clip, less of it.
        Half of them are cut around a blink, if there is one: blinks mark pauses, and from the
        beginnings of sentences nobody learns what a face does in a pause.

    Raises
    ------
    InvalidArgument
        The split is unknown.
    """

    split: Split
    size: int = 128
    duration_s: float = 4.0
    difficulty: float = 0.5
    motion: float = 1.0
    posture: float = 0.0
    max_frames: int | None = None

    def __post_init__(self) -> None:
        check_split(self.split)

    def utterance(self, index: int) -> Utterance:
        """Draw the speech of triplet number ``index`` alone, all of it.

        Raises
        ------
        InvalidArgument
            ``index`` is negative, or a setting of the source is out of its range.
        MissingDependency
            The speech synthesiser is not installed.
        """
        seed = self._seed(index)
        voice = sample_voice(seed, self.split)
        text = sample_sentence(seed, voice.language, self.split, duration_s=self.duration_s)
        speech = synthesise(text, voice, lead_s=LEAD_S, tail_s=TAIL_S)
        num_frames, samples = _whole_frames(speech)
        loudness = frame_loudness(samples, num_frames, fps=FPS)
        acoustics = sample_acoustics(seed, difficulty=self.difficulty)
        audio = apply_acoustics(samples, acoustics, seed, split=self.split)
        mouth = mouth_track(speech.phonemes, num_frames, fps=FPS, loudness=loudness)
        return Utterance(audio=audio, loudness=loudness, mouth=mouth, voice=voice, text=text)

    def triplet(self, index: int) -> Triplet:
        """Draw triplet number ``index``.

        Raises
        ------
        InvalidArgument
            ``index`` is negative, or a setting of the source is out of its range.
        MissingDependency
            The speech synthesiser is not installed.
        """
        seed = self._seed(index)
        identity, speech = sample_identity(seed), self.utterance(index)
        expression = EXPRESSIONS[seed // 2 % len(EXPRESSIONS)]
        motion = sample_motion(
            seed,
            len(speech.loudness),
            FPS,
            speech.loudness,
            amount=self.motion,
            posture=self.posture,
            expression=expression,
        )
        first, stop = self._excerpt(seed, motion.blink)
        motion, mouth = motion.cut(first, stop), speech.mouth.cut(first, stop)
        return Triplet(
            clip=render(identity, motion, mouth, self.size),
            audio=speech.audio[first * _FRAME_SAMPLES : stop * _FRAME_SAMPLES],
            caption=caption(identity, expression, seed=seed),
            mouth=mouth,
            blink=motion.blink,
            identity=identity,
            voice=speech.voice,
            text=speech.text,
        )

    def _excerpt(self, seed: int, blink: NDArray[np.float32]) -> tuple[int, int]:
        """First frame that is drawn, and the one after the last."""
        num_frames = len(blink)
        length = min(num_frames, self.max_frames or num_frames)
        draw = np.random.default_rng([_EXCERPT, seed])
        around_blink, first = draw.random() < 0.5, int(draw.integers(num_frames - length + 1))
        closed = np.flatnonzero(blink > 0.9)
        if around_blink and len(closed):
            blinking = int(closed[draw.integers(len(closed))])
            first = int(np.clip(blinking - draw.integers(length), 0, num_frames - length))
        return first, first + length

    def _seed(self, index: int) -> int:
        """Even seeds are the train half, odd ones the held-out half, whatever is drawn."""
        if index < 0:
            raise InvalidArgument("index", expected=">= 0", got=index)
        return 2 * index + (self.split == "held_out")


def _whole_frames(speech: Speech) -> tuple[int, NDArray[np.float32]]:
    """Number of frames that cover the speech, and its samples padded to them with silence."""
    num_frames = -(-len(speech.samples) // _FRAME_SAMPLES)
    samples = np.zeros(num_frames * _FRAME_SAMPLES, np.float32)
    samples[: len(speech.samples)] = speech.samples
    return num_frames, samples
