"""A corpus of drawn talking clips with planted faults: what the data pipeline must throw out.

Every fault is a function from good clips to a bad one. Files are H.264 and AAC, as found outside.
Legend: F frames, S samples at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from skyreels_rt.media.video_writer import VideoWriter
from skyreels_rt.training.data.maskers import masker, mix
from skyreels_rt.training.data.triplets import FPS, TripletSource

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from skyreels_rt.training.data.speech import Split

SIZE = 256
SECONDS = 5.0
_FRAME_SAMPLES = 640
_DIFFICULTIES = (0.0, 0.0, 0.2)


@dataclass(frozen=True, eq=False)
class TalkingClip:
    """Frames and their sound.

    Attributes
    ----------
    frames : ndarray, shape (F, H, W, 3), uint8
        RGB at 25 fps.
    audio : ndarray, shape (S,), float32
        Mono at 16 kHz, as long as the frames.
    bad : tuple of int
        First frame that a fault spoils, and the first one after them; empty: all of them.
    """

    frames: NDArray[np.uint8]
    audio: NDArray[np.float32]
    bad: tuple[int, ...] = ()


@dataclass(frozen=True)
class PlantedClip:
    """A file of the corpus.

    Attributes
    ----------
    name : str
        Of the file.
    fault : str
        Name of the planted fault, ``"good"`` for none.
    delay : int
        Frames by which the sound is late.
    cuts : tuple of int
        Frames at which a planted shot begins.
    bad : tuple of int
        First frame that must not be kept, and the first one after them; empty for none.
    """

    name: str
    fault: str
    delay: int = 0
    cuts: tuple[int, ...] = ()
    bad: tuple[int, ...] = ()


Plant = Callable[["ClipMaker", int, np.random.Generator], TalkingClip]


class ClipMaker:
    """Draws the good clips that faults are planted in; number n is always the same.

    Parameters
    ----------
    split : {"train", "held_out"}
        Bounds were chosen on the first and are tested on the second.
    """

    def __init__(self, split: Split) -> None:
        self._split: Split = split
        self.good = lru_cache(maxsize=8)(self._good)
        """Clip number n, remembered for a while."""

    def _good(self, index: int) -> TalkingClip:
        triplet = self._source(index).triplet(index)
        return TalkingClip(triplet.clip.frames, triplet.audio)

    def _source(self, index: int) -> TripletSource:
        difficulty = _DIFFICULTIES[index % len(_DIFFICULTIES)]
        return TripletSource(self._split, SIZE, SECONDS, difficulty, 0.5, posture=0.5)


def delayed(clip: TalkingClip, frames: int) -> TalkingClip:
    """Sound ``frames`` late (early if negative), silence where none is left."""
    moved = np.zeros_like(clip.audio)
    shift = frames * _FRAME_SAMPLES
    if shift >= 0:
        moved[shift:] = clip.audio[: len(clip.audio) - shift]
    else:
        moved[:shift] = clip.audio[-shift:]
    return replace(clip, audio=moved)


def _with_audio(clip: TalkingClip, audio: NDArray[np.float32]) -> TalkingClip:
    """The clip with other sound of its length, repeated where it is too short."""
    return replace(clip, audio=np.resize(audio, len(clip.audio)).astype(np.float32))


def _each_frame(clip: TalkingClip, change: Callable[[Image.Image], Image.Image]) -> TalkingClip:
    frames = [np.asarray(change(Image.fromarray(frame))) for frame in clip.frames]
    return replace(clip, frames=np.stack(frames))


def _other_voice(maker: ClipMaker, index: int, draw: np.random.Generator) -> TalkingClip:
    return _with_audio(maker.good(index), maker.good(index + 1 + int(draw.integers(2))).audio)


def _silence(maker: ClipMaker, index: int, draw: np.random.Generator) -> TalkingClip:
    clip = maker.good(index)
    return _with_audio(clip, 1e-4 * draw.standard_normal(len(clip.audio)).astype(np.float32))


def _music(maker: ClipMaker, index: int, draw: np.random.Generator) -> TalkingClip:
    clip = maker.good(index)
    return _with_audio(clip, 0.08 * masker("music", len(clip.audio), int(draw.integers(10_000))))


def _two_faces(maker: ClipMaker, index: int, draw: np.random.Generator) -> TalkingClip:
    first, second = maker.good(index), maker.good(index + 1)
    count = min(len(first.frames), len(second.frames))
    sides = [first.frames[:count], second.frames[:count]]
    if draw.random() < 0.5:
        sides.reverse()
    return TalkingClip(np.concatenate(sides, axis=2), first.audio[: count * _FRAME_SAMPLES])


def _no_face(maker: ClipMaker, index: int, draw: np.random.Generator) -> TalkingClip:
    clip = maker.good(index)
    noise = draw.integers(0, 255, (9, 9, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((2 * SIZE, 2 * SIZE), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture)
    places = (np.arange(len(clip.frames)) * 2) % SIZE
    frames = [pixels[place : place + SIZE, place : place + SIZE] for place in places]
    return replace(clip, frames=np.stack(frames))


def _tiny_face(maker: ClipMaker, index: int, draw: np.random.Generator) -> TalkingClip:
    side = int(draw.integers(72, 120))
    left, top = (int(v) for v in draw.integers(0, SIZE - side, 2))

    def shrink(picture: Image.Image) -> Image.Image:
        canvas = Image.new("RGB", picture.size, (90, 110, 130))
        canvas.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (left, top))
        return canvas

    return _each_frame(maker.good(index), shrink)


def _profile(maker: ClipMaker, index: int, draw: np.random.Generator) -> TalkingClip:
    """The picture of the head laid on a cylinder that is turned by 50 to 65 degrees.

    The renderer bends its heads by little: it cannot draw a profile.
    """
    clip = maker.good(index)
    turn = float(np.radians(draw.uniform(50, 65))) * (1 if index % 2 else -1)
    radius, middle = 0.36 * SIZE, 0.5 * SIZE
    across = np.clip((np.arange(SIZE) - middle) / radius, -1, 1)
    angle = np.clip(np.arcsin(across) + turn, -np.pi / 2, np.pi / 2)
    columns = np.round(middle + radius * np.sin(angle)).astype(np.int64)
    inside = np.abs(np.arange(SIZE) - middle) < radius
    columns = np.where(inside, columns, np.arange(SIZE))
    return replace(clip, frames=clip.frames[:, :, np.clip(columns, 0, SIZE - 1)])


def _blur(maker: ClipMaker, index: int, draw: np.random.Generator) -> TalkingClip:
    kernel = ImageFilter.GaussianBlur(float(draw.uniform(3.0, 6.0)))
    return _each_frame(maker.good(index), lambda picture: picture.filter(kernel))


def _frozen(maker: ClipMaker, index: int, draw: np.random.Generator) -> TalkingClip:
    clip = maker.good(index)
    length = int(draw.integers(25, 50))
    start = int(draw.integers(10, len(clip.frames) - length - 5))
    frames = clip.frames.copy()
    frames[start : start + length] = frames[start]
    return replace(clip, frames=frames, bad=(start, start + length))


def _dark(maker: ClipMaker, index: int, draw: np.random.Generator) -> TalkingClip:
    gain = draw.uniform(0.08, 0.2)
    return _each_frame(maker.good(index), lambda p: p.point(lambda v: v * gain))


def _black(maker: ClipMaker, index: int, draw: np.random.Generator) -> TalkingClip:
    clip = maker.good(index)
    frames = clip.frames.copy()
    start, length = int(draw.integers(55, 60)), int(draw.integers(3, 12))
    frames[start : start + length] = 0
    return replace(clip, frames=frames, bad=(start, start + length))


def _clipped(maker: ClipMaker, index: int, draw: np.random.Generator) -> TalkingClip:
    clip = maker.good(index)
    gain = draw.uniform(4, 12) / max(float(np.abs(clip.audio).max()), 1e-3)
    return _with_audio(clip, np.clip(clip.audio * gain, -0.98, 0.98))


def _noisy(maker: ClipMaker, index: int, draw: np.random.Generator) -> TalkingClip:
    clip = maker.good(index)
    kind = ("white", "pink", "brown")[int(draw.integers(3))]
    noise = masker(kind, len(clip.audio), int(draw.integers(10_000)))  # type: ignore[arg-type]
    return _with_audio(clip, 0.5 * mix(clip.audio, noise, float(draw.uniform(-3, 3))))


def _quiet(maker: ClipMaker, index: int, draw: np.random.Generator) -> TalkingClip:
    clip = maker.good(index)
    return _with_audio(clip, clip.audio * np.float32(draw.uniform(0.002, 0.006)))


def _subtitle(maker: ClipMaker, index: int, draw: np.random.Generator) -> TalkingClip:
    words = ("so this is what", "they told us then", "and nobody knew", "about the new plan")
    text = words[int(draw.integers(len(words)))]
    font = ImageFont.load_default(int(draw.integers(18, 26)))
    top = int(draw.integers(SIZE - 60, SIZE - 34))
    color = ((255, 255, 255), (255, 230, 40))[int(draw.integers(2))]

    def write(picture: Image.Image) -> Image.Image:
        pen = ImageDraw.Draw(picture)
        place = (SIZE // 2, top)
        pen.text(place, text, color, font, anchor="ma", stroke_width=2, stroke_fill=(0, 0, 0))
        return picture

    return _each_frame(maker.good(index), write)


def _covered(maker: ClipMaker, index: int, draw: np.random.Generator) -> TalkingClip:
    """A dark bar (a microphone, a hand) before the mouth through half of the clip or more."""
    clip = maker.good(index)
    frames = clip.frames.copy()
    first = int(draw.integers(0, len(frames) // 2))
    color = draw.integers(20, 110, 3)
    frames[first:, 145:205, 70:190] = color
    return replace(clip, frames=frames, bad=(first, len(frames)))


PLANTS: dict[str, tuple[Plant, frozenset[str]]] = {
    "other_voice": (_other_voice, frozenset({"sync_peak", "sync_margin", "sync_lag"})),
    "silence": (_silence, frozenset({"speech"})),
    "music": (_music, frozenset({"speech"})),
    "two_faces": (_two_faces, frozenset({"extra_faces"})),
    "no_face": (_no_face, frozenset({"face_share"})),
    "tiny_face": (_tiny_face, frozenset({"face_size", "face_share"})),
    "profile": (_profile, frozenset({"pose", "face_share"})),
    "blur": (_blur, frozenset({"sharpness"})),
    "frozen": (_frozen, frozenset({"frozen"})),
    "dark": (_dark, frozenset({"exposure", "black_frames"})),
    "black": (_black, frozenset({"black_frames"})),
    "clipped": (_clipped, frozenset({"clipping"})),
    "noisy": (_noisy, frozenset({"snr"})),
    "quiet": (_quiet, frozenset({"loudness"})),
    "subtitle": (_subtitle, frozenset({"static_text"})),
    "covered": (_covered, frozenset({"occlusion"})),
}
"""Faults that must be rejected, and the filters made for them."""


FAULTS = (*PLANTS, "delay", "cuts")
"""Every kind of file of the corpus but the good ones."""


def write_corpus(
    folder: Path,
    split: Split,
    *,
    num_good: int,
    num_each: int,
    faults: Collection[str] = FAULTS,
) -> Iterator[PlantedClip]:
    """Write the corpus, one file after the other.

    Besides ``PLANTS`` there are ``delay`` (sound 3 to 12 frames late or early, to be found and
    corrected) and ``cuts`` (two clips in turn, to be cut where they change).

    Parameters
    ----------
    folder : Path
        Where to.
    split : {"train", "held_out"}
        Whose identities, voices and sentences.
    num_good, num_each : int
        Files without a fault, and with each of them.
    faults : collection of str
        Some of ``FAULTS``.

    Yields
    ------
    PlantedClip
        What was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    maker = ClipMaker(split)
    for index in range(num_good):
        yield _write(folder, maker.good(index), PlantedClip(f"good_{index:03d}.mp4", "good"))
    for n in range(num_each):
        # The faults of a round share their clips, so that each is drawn once.
        for kind, (fault, (plant, _)) in enumerate(PLANTS.items()):
            if fault not in faults:
                continue
            draw = np.random.default_rng([n, kind])
            clip = plant(maker, 1_000 + n, draw)
            bad = clip.bad or (0, len(clip.frames))
            yield _write(folder, clip, PlantedClip(f"{fault}_{n:03d}.mp4", fault, bad=bad))
        if "delay" in faults:
            delay = (3 + (7 * n) % 10) * (-1 if n % 2 else 1)
            made = PlantedClip(f"delay_{n:03d}.mp4", "delay", delay=delay)
            yield _write(folder, delayed(maker.good(1_000 + n), delay), made)
        if "cuts" in faults:
            clip, cuts = _in_turn(maker, 1_000 + n)
            yield _write(folder, clip, PlantedClip(f"cuts_{n:03d}.mp4", "cuts", cuts=cuts))


def _in_turn(maker: ClipMaker, index: int) -> tuple[TalkingClip, tuple[int, ...]]:
    """Two clips in turn, and the frames at which they change."""
    first, second = maker.good(index), maker.good(index + 1)
    count = min(len(first.frames), len(second.frames))
    cuts = tuple(range(30, count - 5, 30))
    turn = (np.arange(count) // 30 % 2).astype(np.bool_)
    frames = np.where(turn[:, None, None, None], second.frames[:count], first.frames[:count])
    return TalkingClip(frames, first.audio[: count * _FRAME_SAMPLES]), cuts


def _write(folder: Path, clip: TalkingClip, planted: PlantedClip) -> PlantedClip:
    write_clip(folder / planted.name, clip)
    return planted


def write_clip(path: Path, clip: TalkingClip) -> None:
    """Write a clip as H.264 and AAC.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    _, height, width, _ = clip.frames.shape
    with VideoWriter(
        path, fps=FPS, height=height, width=width, sample_rate=16_000, threads=1
    ) as writer:
        for start in range(0, len(clip.frames), FPS):
            sound = clip.audio[start * _FRAME_SAMPLES : (start + FPS) * _FRAME_SAMPLES]
            writer.write(clip.frames[start : start + FPS], sound[:, None])
