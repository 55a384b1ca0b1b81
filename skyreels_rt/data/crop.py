"""The second pass over a source: its kept clips are cut out, in time and in the picture."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from skyreels_rt.data.clip import SAMPLES_PER_FRAME, Crop
from skyreels_rt.data.dependencies import opencv
from skyreels_rt.data.faces import REGIONS, region_polygons
from skyreels_rt.data.measures import ClipScores
from skyreels_rt.data.shards import FPS, ShardWriter, save_packed_masks, side_files
from skyreels_rt.data.soundtrack import SoundTrack
from skyreels_rt.media.video_file import open_video
from skyreels_rt.media.video_writer import VideoWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from skyreels_rt.data.caption import Captioner
    from skyreels_rt.data.settings import OutputSettings


@dataclass(frozen=True)
class KeptClip:
    """A clip that passed, and what is needed to cut it out.

    Attributes
    ----------
    key : str
        Of the sample.
    start, num_frames : int
        Frames of the source at 25 fps.
    crop : Crop
        Square of the picture.
    shift : int
        Frames by which the sound is moved to be later.
    scores : ClipScores
        What was measured; the captioner sees it.
    landmarks : Path
        ``.npy`` file of the mesh, shape (F, 468, 2), float32.
    facts : dict
        For the sample's JSON member.
    """

    key: str
    start: int
    num_frames: int
    crop: Crop
    shift: int
    scores: ClipScores
    landmarks: Path
    facts: dict[str, Any]

    @property
    def stop(self) -> int:
        """First frame after the clip."""
        return self.start + self.num_frames


def write_samples(
    source: Path,
    clips: Sequence[KeptClip],
    sound: SoundTrack,
    writer: ShardWriter,
    settings: OutputSettings,
    captioner: Captioner,
) -> list[str]:
    """Cut the clips out of ``source`` and append them to ``writer``.

    Parameters
    ----------
    source : Path
        The file.
    clips : sequence of KeptClip
        In time order, without overlap.
    sound : SoundTrack
        Of the file, unread.
    writer : ShardWriter
        Takes the samples.
    settings : OutputSettings
        Size and quality.
    captioner : callable
        Writes the captions.

    Returns
    -------
    list of str
        Captions, in the order of ``clips``.

    Raises
    ------
    MediaError
        The file is gone or damaged.
    OutputError
        Something cannot be written.
    """
    captions = []
    for clip, frames, audio in read_again(source, clips, sound):
        picture, masks, caption = _cut_picture(frames, clip, settings, captioner)
        facts = {**clip.facts, "caption": caption}
        files = {"mp4": picture, **side_files(audio, caption, masks, facts)}
        writer.add(clip.key, files)
        captions.append(caption)
    return captions


def read_again(
    source: Path, clips: Sequence[KeptClip], sound: SoundTrack
) -> Iterator[tuple[KeptClip, Iterator[NDArray[np.uint8]], NDArray[np.float32]]]:
    """Decode a source once more and stop at the clips.

    Parameters
    ----------
    source : Path
        The file.
    clips : sequence of KeptClip
        In time order, without overlap.
    sound : SoundTrack
        Of the file, unread.

    Yields
    ------
    clip, frames, audio
        The clip; its frames, shape (H, W, 3), uint8, to be taken before the next clip is; its sound
        after the correction, shape (640 F,), float32.

    Raises
    ------
    MediaError
        The file is gone or damaged.
    """
    with closing(_frames_of(source)) as pixels:
        for clip in clips:
            first = (clip.start - clip.shift) * SAMPLES_PER_FRAME
            sound.forget(first)
            audio = sound.cut(first, first + clip.num_frames * SAMPLES_PER_FRAME)
            yield clip, _between(pixels, clip.start, clip.stop), audio


def _frames_of(source: Path) -> Generator[tuple[int, NDArray[np.uint8]], None, None]:
    yield from enumerate(open_video(source).frames(FPS))


def _between(
    pixels: Iterator[tuple[int, NDArray[np.uint8]]], start: int, stop: int
) -> Iterator[NDArray[np.uint8]]:
    """Frames ``start .. stop - 1`` of a stream that has not passed them yet."""
    for index, frame in pixels:
        if index >= start:
            yield frame
        if index == stop - 1:
            return


def _cut_picture(
    frames: Iterator[NDArray[np.uint8]],
    clip: KeptClip,
    settings: OutputSettings,
    captioner: Captioner,
) -> tuple[bytes, bytes, str]:
    """Video file, masks file and caption of one clip."""
    size = settings.size
    landmarks = np.load(clip.landmarks, allow_pickle=False)
    packed: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in REGIONS}
    caption = ""
    with tempfile.TemporaryDirectory(dir=clip.landmarks.parent) as folder:
        path = Path(folder) / "clip.mp4"
        with VideoWriter(
            path, fps=FPS, height=size, width=size, crf=settings.crf, threads=1, synthetic_mark=None
        ) as video:
            for index, frame in enumerate(frames):
                square = _cropped(frame, clip.crop, size)
                if index == 0:
                    caption = captioner(square, clip.scores)
                video.write(square[None])
                for name, mask in _masks(landmarks[index], clip.crop, size).items():
                    packed[name].append(np.packbits(mask, axis=-1))
        picture = path.read_bytes()
    masks_file = save_packed_masks({name: np.stack(rows) for name, rows in packed.items()}, size)
    return picture, masks_file, caption


def _cropped(frame: NDArray[np.uint8], crop: Crop, size: int) -> NDArray[np.uint8]:
    """Square of a frame at the size of the output."""
    cv = opencv()
    part = frame[crop.top : crop.top + crop.side, crop.left : crop.left + crop.side]
    if crop.side == size:
        return np.ascontiguousarray(part)
    how = cv.INTER_AREA if crop.side > size else cv.INTER_CUBIC
    square: NDArray[np.uint8] = cv.resize(
        np.ascontiguousarray(part), (size, size), interpolation=how
    )
    return square


def _masks(landmarks: NDArray[np.float32], crop: Crop, size: int) -> dict[str, NDArray[np.bool_]]:
    """Masks of the regions, shape (S, S), in the pixels of the output."""
    placed = (landmarks - np.array([crop.left, crop.top], np.float32)) * np.float32(
        size / crop.side
    )
    masks = {}
    for name, polygons in region_polygons(placed).items():
        canvas = Image.new("1", (size, size))
        draw = ImageDraw.Draw(canvas)
        for polygon in polygons:
            draw.polygon([(float(x) - 0.5, float(y) - 0.5) for x, y in polygon], fill=1)
        masks[name] = np.asarray(canvas, np.bool_)
    return masks
