"""Clips as training reads them: latents, masks on the latent grid, log-mel segments, caption.

A clip is drawn or read, encoded once, and its pixels are dropped: about 1 MB instead of 20. One
safetensors file a clip; files that exist are kept, so an interrupted run goes on where it stopped.

Legend: F frames, n latents, C channels, h w latent rows and columns, S grid steps of the audio.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from skyreels_rt.audio.whisper import WhisperFeatures
from skyreels_rt.conditioning.condition_track import to_video_tensor
from skyreels_rt.config import AudioFeatureConfig
from skyreels_rt.errors import ModelError
from skyreels_rt.models.vae import VideoVAE
from skyreels_rt.training.clips import REGIONS, ClipSource, TrainingClip, has_edit
from skyreels_rt.types import Timeline

NUM_PORTRAITS = 2
_CELL = 8
_TENSORS = ("latents", "portraits", "edited", "known", "regions", "mels", "mouth", "lids")


@dataclass(frozen=True)
class LatentClip:
    """One clip, encoded.

    Attributes
    ----------
    latents : Tensor, shape (C, n, h, w), bfloat16
        Of the whole clip.
    portraits : Tensor, shape (P, C, h, w), bfloat16
        Of single frames of it, the first one first: what a user would give.
    edited : Tensor, shape (C, n, h, w), bfloat16, or None
        Of the clip whose edited cells are blank; every fifth clip has it.
    known : Tensor, shape (4, n, h, w), uint8, or None
        1 where a frame slot of a cell is not edited.
    regions : Tensor, shape (R, n, h, w), uint8
        Share of face, mouth, jaw and eyes in a cell, largest of its frames, 0 to 255.
    mels : Tensor, shape (S, bins, 2 * context), float16
        Log-mel spectrogram of every grid step's segment.
    mouth : Tensor, shape (F, 5), float32
        True mouth parameters.
    lids : Tensor, shape (F,), float32
        How far the eyes are closed, 0 to 1; NaN where nobody knows it.
    caption : str
        What the clip shows.
    difficulty : float
        Of the sound, 0 (clean) to 1.
    """

    latents: Tensor
    portraits: Tensor
    edited: Tensor | None
    known: Tensor | None
    regions: Tensor
    mels: Tensor
    mouth: Tensor
    lids: Tensor
    caption: str
    difficulty: float

    @property
    def num_latents(self) -> int:
        """Latents n."""
        return self.latents.shape[1]


def encode_clip(
    vae: VideoVAE,
    front_end: WhisperFeatures,
    audio_features: AudioFeatureConfig,
    clip: TrainingClip,
    index: int,
) -> LatentClip:
    """Encode a clip.

    Parameters
    ----------
    vae : VideoVAE
        Trained; its dtype is the dtype of the arithmetic.
    front_end : WhisperFeatures
        Makes the log-mel spectrograms; the encoder's weights play no part.
    audio_features : AudioFeatureConfig
        The grid.
    clip : TrainingClip
        Frames beyond a whole number of latents are left out.
    index : int
        Its number, from which the choices of portraits and edit are drawn.
    """
    generator = np.random.default_rng([0x1A7, index])
    timeline = Timeline(vae.temporal_stride)
    num_latents = (len(clip.frames) - 1) // vae.temporal_stride + 1
    num_frames = timeline.num_frames(num_latents)
    frames = clip.frames[:num_frames]
    masks = {name: cells(clip.masks[name][:num_frames]) for name in REGIONS}
    edit = edit_cells(masks, generator) if has_edit(index) else None
    others = generator.choice(num_frames, NUM_PORTRAITS - 1)
    portraits = np.concatenate([frames[:1], frames[others]])
    with torch.no_grad():
        video = to_video_tensor(frames, vae)
        versions = video if edit is None else torch.cat([video, _blanked(video, edit)])
        encoded = vae.encode(versions).to("cpu", torch.bfloat16)
        stills = to_video_tensor(portraits, vae).transpose(0, 2)
        first = vae.encode(stills)[:, :, 0].to("cpu", torch.bfloat16)
    return LatentClip(
        latents=encoded[0],
        portraits=first,
        edited=None if edit is None else encoded[1],
        known=None if edit is None else _slots(torch.from_numpy(~edit).to(torch.uint8)),
        regions=torch.stack([_slots(torch.from_numpy(masks[name])).amax(0) for name in REGIONS]),
        mels=log_mels(front_end, audio_features, clip.audio, num_frames),
        mouth=torch.from_numpy(clip.mouth)[:num_frames],
        lids=torch.from_numpy(clip.lids)[:num_frames],
        caption=clip.caption,
        difficulty=clip.difficulty,
    )


def cells(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Share of a mask in each 8 x 8 cell: (F, H, W) to (F, h, w), 0 to 255, 0 only if empty."""
    num_frames, height, width = mask.shape
    share = mask.reshape(num_frames, height // _CELL, _CELL, width // _CELL, _CELL).mean((2, 4))
    counts: NDArray[np.uint8] = np.ceil(share * 255).astype(np.uint8)
    return counts


def edit_cells(
    masks: dict[str, NDArray[np.uint8]], generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Cells to be generated anew in an edit, shape (F, h, w): the mouth's surroundings or the face.

    Half of the edits follow the head, the others are one region for the whole clip.
    """
    region = masks["jaw"] if generator.random() < 0.65 else np.maximum(masks["face"], masks["jaw"])
    edit = region > 0
    if generator.random() < 0.5:
        edit = np.broadcast_to(edit.any(0), edit.shape)
    for axis in (1, 2):
        for shift in (-1, 1):
            if generator.random() < 0.5:
                edit = edit | np.roll(edit, shift, axis)
    return edit


def encode_frames(vae: VideoVAE, frames: NDArray[np.uint8]) -> Tensor:
    """Latents (C, n, h, w), bfloat16, of frames uint8 (F, H, W, 3); a rest is left out."""
    num_latents = (len(frames) - 1) // vae.temporal_stride + 1
    whole = frames[: Timeline(vae.temporal_stride).num_frames(num_latents)]
    with torch.no_grad():
        return vae.encode(to_video_tensor(whole, vae))[0].to("cpu", torch.bfloat16)


def log_mels(
    front_end: WhisperFeatures,
    grid: AudioFeatureConfig,
    audio: NDArray[np.float32],
    num_frames: int,
) -> Tensor:
    """Log-mel spectrograms of all grid steps that ``num_frames`` frames and a margin look at."""
    features_needed = 2 * (num_frames + 4)
    segments = []
    for step in range(-(-features_needed // grid.step)):
        start = (step * grid.step - grid.past) * grid.hop
        segment = np.zeros(grid.context * grid.hop, np.float32)
        first, last = max(start, 0), min(start + len(segment), len(audio))
        if first < last:
            segment[first - start : last - start] = audio[first:last]
        segments.append(front_end.log_mel(segment)[0])
    return torch.stack(segments).half()


def prepare_clips(
    folder: Path,
    indices: Sequence[int],
    vae: VideoVAE,
    front_end: WhisperFeatures,
    audio_features: AudioFeatureConfig,
    source: ClipSource,
) -> None:
    """Get and encode training clips of these numbers that ``folder`` does not hold yet."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [index for index in indices if not _path(folder, index).exists()]
    with ThreadPoolExecutor(1) as ahead, tqdm(total=len(missing), desc="clips") as bar:
        pending = [ahead.submit(source.clip, i) for i in missing[:2]]
        for position, index in enumerate(missing):
            drawn = pending.pop(0).result()
            if position + 2 < len(missing):
                following = missing[position + 2]
                pending.append(ahead.submit(source.clip, following))
            clip = encode_clip(vae, front_end, audio_features, drawn, index)
            save_clip(_path(folder, index), clip)
            bar.update()


def load_clips(folder: Path, count: int) -> list[LatentClip]:
    """Clips ``0 .. count - 1`` of a prepared folder.

    Raises
    ------
    ModelError
        One is missing or damaged.
    """
    return [load_clip(_path(folder, index)) for index in range(count)]


def save_clip(path: Path, clip: LatentClip) -> None:
    """Write one clip; the file appears when it is complete."""
    tensors = {
        name: getattr(clip, name).contiguous()
        for name in _TENSORS
        if getattr(clip, name) is not None
    }
    facts = {"caption": clip.caption, "difficulty": clip.difficulty}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"facts": json.dumps(facts)})
    partial.replace(path)


def load_clip(path: Path) -> LatentClip:
    """Read one clip.

    Raises
    ------
    ModelError
        The file is missing or holds no clip.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            held = set(file.keys())
            tensors: dict[str, Any] = {
                name: file.get_tensor(name) if name in held else None for name in _TENSORS
            }
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(
            f"{path}: not an encoded clip ({error}).",
            stage="train",
            hint="Delete the file if it is there and run the stage clips.",
        ) from error
    return LatentClip(**tensors, caption=facts["caption"], difficulty=facts["difficulty"])


def _path(folder: Path, index: int) -> Path:
    return folder / f"clip_{index:06d}.safetensors"


def _blanked(video: Tensor, edit: NDArray[np.bool_]) -> Tensor:
    """Copy of ``video`` (1, 3, F, H, W) whose cells in ``edit`` (F, h, w) are mid-grey."""
    pixels = torch.from_numpy(np.repeat(np.repeat(edit, _CELL, 1), _CELL, 2))
    return video.masked_fill(pixels.to(video.device), 0)


def _slots(per_frame: Tensor) -> Tensor:
    """Frames (F, h, w) as slots of latents (4, n, h, w); the first frame fills its four slots."""
    num_latents = (len(per_frame) - 1) // 4 + 1
    repeated = torch.cat([per_frame[:1].expand(4, -1, -1), per_frame[1:]])
    slots: Tensor = repeated.unflatten(0, (num_latents, 4)).transpose(0, 1).contiguous()
    return slots
