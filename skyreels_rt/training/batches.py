"""Batches of windows: which clip, which task, which conditions, all drawn from (seed, step).

The conditions are laid out by :func:`skyreels_rt.conditioning.channels.condition_channels`, so the
model learns on what the engine will show it.

Legend: B samples, C channels, W latents of a window, h w latent rows and columns, S grid steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skyreels_rt.conditioning.channels import condition_channels
from skyreels_rt.config import AudioFeatureConfig, TransformerConfig
from skyreels_rt.training.audio_windows import AudioWindows, SpeechBatch, frames_of_latents
from skyreels_rt.training.clips import REGIONS
from skyreels_rt.training.curriculum import Dropout, Lesson
from skyreels_rt.training.latent_cache import LatentClip

REGION_WEIGHTS = {"face": 2.0, "mouth": 8.0, "jaw": 0.0, "eye": 5.0}
"""What the facial-mask loss adds to a cell's weight of 1 where the region fills it."""

BLINK_WEIGHT = 10.0
"""What it adds to the eyes' cells in a latent whose eyes close: such latents are rare."""

UNSEEN_WEIGHT = 0.3
"""Factor of a sample without portrait: its error is an order larger and would rule the gradient."""

_WHOLE = 0.95  # share of a region that counts as all of it
_WHOLE_MOUTHS = 0.7  # share of the crops that hold all of the mouth

TASKS = ("image_to_video", "text_to_video", "edit", "continuation")


@dataclass(frozen=True)
class WindowBatch(SpeechBatch):
    """Windows with everything the losses need; their sound is the base class's.

    Attributes
    ----------
    clean, noise : Tensor, shape (B, C, W, h, w), float32
        Latents and the noise that hides them.
    sigma : Tensor, shape (B,)
        Noise levels.
    channels : Tensor, shape (B, Cc, W, h, w)
        Condition channels.
    weights : Tensor, shape (B, 1, W, h, w)
        Of the flow loss; zero where nothing is to be generated.
    prompts : list of str
        Captions, empty where left out.
    portrait : Tensor, shape (B, C, h, w), float32
        Of the sample's cells, whether the model sees it or not.
    lids : Tensor, shape (B, W, 4), float32
        How far the eyes are truly closed in each latent's frames.
    mouth_cells, eye_cells : Tensor, shape (B, W, h, w), float32
        Share of the mouth, and of the eyes, in a cell.
    shows_mouth, shows_eyes : Tensor, shape (B,), bool
        The portrait is given, the region lies inside the cells, and its true shape is known.
    """

    clean: Tensor
    noise: Tensor
    sigma: Tensor
    channels: Tensor
    weights: Tensor
    prompts: list[str]
    portrait: Tensor
    lids: Tensor
    mouth_cells: Tensor
    eye_cells: Tensor
    shows_mouth: Tensor
    shows_eyes: Tensor


class WindowSampler:
    """Draws batches from encoded clips.

    Parameters
    ----------
    clips : sequence of LatentClip
        Training clips.
    transformer : TransformerConfig
        Layout of the condition channels and of the audio windows.
    grid : AudioFeatureConfig
        Grid of the audio features.
    shift : float
        Shift of the noise levels, as in :class:`~skyreels_rt.diffusion.schedule.FlowSchedule`.
    facial_mask : bool
        Weight face, mouth and eyes up; an ablation switches it off.
    seed : int
        Of everything drawn.
    """

    def __init__(
        self,
        clips: Sequence[LatentClip],
        transformer: TransformerConfig,
        grid: AudioFeatureConfig,
        *,
        shift: float = 3.0,
        facial_mask: bool = True,
        seed: int = 0,
    ) -> None:
        self._clips = clips
        self._config = transformer
        assert transformer.audio is not None
        self._windows = AudioWindows(transformer.audio, grid)
        self._shift = shift
        self._facial_mask = facial_mask
        self._seed = seed

    def batch(self, step: int, lesson: Lesson, dropout: Dropout) -> WindowBatch:
        """Batch of step ``step``."""
        draw = np.random.default_rng([self._seed, step])
        allowed = [c for c in self._clips if c.difficulty <= lesson.max_difficulty]
        samples = [self._sample(draw, allowed, lesson, dropout) for _ in range(lesson.batch_size)]
        columns: dict[str, list[Any]] = {
            name: [sample[name] for sample in samples] for name in samples[0]
        }
        clean = torch.stack(columns["clean"])
        generator = torch.Generator().manual_seed(int(draw.integers(2**31)))
        return WindowBatch(
            clean=clean,
            noise=torch.randn(clean.shape, generator=generator),
            sigma=self._sigmas(draw, lesson.batch_size),
            channels=torch.stack(columns["channels"]),
            weights=torch.stack(columns["weights"]),
            mels=torch.stack(columns["mels"]),
            frame_features=torch.stack(columns["frame_features"]),
            starts_clip=torch.tensor(columns["starts_clip"]),
            hears=torch.tensor(columns["hears"]),
            prompts=columns["prompt"],
            mouth=torch.stack(columns["mouth"]),
            portrait=torch.stack(columns["portrait"]),
            lids=torch.stack(columns["lids"]),
            mouth_cells=torch.stack(columns["mouth_cells"]),
            eye_cells=torch.stack(columns["eye_cells"]),
            shows_mouth=torch.tensor(columns["shows_mouth"]),
            shows_eyes=torch.tensor(columns["shows_eyes"]),
        )

    def _sigmas(self, draw: np.random.Generator, count: int) -> Tensor:
        """Noise levels, one in each of ``count`` equal strata before the shift."""
        even = (draw.permutation(count) + draw.random(count)) / count
        shifted = self._shift * even / (1 + (self._shift - 1) * even)
        return torch.from_numpy(np.clip(shifted, 1e-3, 1.0).astype(np.float32))

    def _sample(
        self,
        draw: np.random.Generator,
        clips: Sequence[LatentClip],
        lesson: Lesson,
        dropout: Dropout,
    ) -> dict[str, Any]:
        shares = np.array([getattr(lesson.mix, task) for task in TASKS])
        task = TASKS[int(draw.choice(len(TASKS), p=shares / shares.sum()))]
        # Clips for edits have livelier heads than anything but their surroundings can tell.
        suited = [clip for clip in clips if (clip.edited is not None) == (task == "edit")]
        clips = suited or clips
        clip = clips[int(draw.integers(len(clips)))]
        last = clip.num_latents - lesson.window
        # Windows at the start of a clip differ (their first latent is one frame): see enough.
        start = 0 if draw.random() < 0.25 else int(draw.integers(last + 1))
        stop = start + lesson.window
        chances = draw.random(4)
        nothing = chances[3] < dropout.everything
        if task == "text_to_video" and not nothing:
            hears, reads, sees = chances[0] >= dropout.audio, True, False
        else:
            hears = not nothing and chances[0] >= dropout.audio
            reads = not nothing and chances[1] >= dropout.text
            sees = not nothing and chances[2] >= dropout.image
        num_given = int(draw.integers(1, 4)) if task == "continuation" else 0
        portrait = int(draw.integers(len(clip.portraits)))
        channels, to_make = self._conditions(
            clip, start, stop, task, portrait if sees else None, num_given
        )
        weights = self._weights(clip, start, stop) * to_make * (1 if sees else UNSEEN_WEIGHT)
        rows, columns = self._crop(draw, clip.regions[:, start:stop], lesson.crop)
        shown = clip.regions[:, start:stop, rows, columns].float() / 255
        whole = clip.regions[:, start:stop].float().sum((1, 2, 3)) / 255
        is_whole = (shown.sum((1, 2, 3)) >= _WHOLE * whole) & (whole > 0)
        mouth, eye = REGIONS.index("mouth"), REGIONS.index("eye")
        return {
            "clean": clip.latents[:, start:stop, rows, columns].float(),
            "channels": channels[..., rows, columns],
            "weights": weights[..., rows, columns],
            "hears": hears,
            "prompt": clip.caption if reads else "",
            "portrait": clip.portraits[portrait][..., rows, columns].float(),
            "lids": frames_of_latents(clip.lids, start, stop),
            "mouth_cells": shown[mouth],
            "eye_cells": shown[eye],
            "shows_mouth": sees and bool(is_whole[mouth] and clip.mouth.any()),
            "shows_eyes": sees and bool(is_whole[eye] and clip.lids.isfinite().all()),
            **self._windows.cut(clip.mels, clip.mouth, start, stop),
        }

    def _conditions(
        self,
        clip: LatentClip,
        start: int,
        stop: int,
        task: str,
        portrait: int | None,
        num_given: int,
    ) -> tuple[Tensor, Tensor]:
        """Condition channels, and where something is to be generated (1, W, h, w)."""
        height, width = clip.latents.shape[2:]
        window = stop - start
        given = torch.zeros(clip.latents.shape[0], window, height, width)
        known = torch.zeros(4, window, height, width)
        if task == "edit":
            assert clip.edited is not None and clip.known is not None
            given = clip.edited[:, start:stop].float()
            known = clip.known[:, start:stop].float()
        if num_given:
            given[:, :num_given] = clip.latents[:, start : start + num_given].float()
            known[:, :num_given] = 1
        channels = condition_channels(
            self._config,
            window,
            height,
            width,
            reference_latents=None if portrait is None else clip.portraits[portrait].float(),
            given_latents=given,
            given_mask=known,
        )
        # The cells of an edit that stay are composited anyway, but keep the seam honest.
        to_make = 1 - known.amin(0, keepdim=True) * (0.9 if task == "edit" else 1.0)
        return channels, to_make

    def _weights(self, clip: LatentClip, start: int, stop: int) -> Tensor:
        """Facial-mask weights (1, W, h, w)."""
        regions = clip.regions[:, start:stop].float() / 255
        if not self._facial_mask:
            return torch.ones_like(regions[:1])
        added = torch.tensor([REGION_WEIGHTS[name] for name in REGIONS]).view(-1, 1, 1, 1)
        closed = frames_of_latents(clip.lids, start, stop).nan_to_num().amax(1)
        blinking = BLINK_WEIGHT * closed.view(1, -1, 1, 1) * regions[REGIONS.index("eye")]
        return 1 + (regions * added).sum(0, keepdim=True) + blinking

    def _crop(
        self, draw: np.random.Generator, regions: Tensor, side: int | None
    ) -> tuple[slice, slice]:
        """Rows and columns of a square of patches: mostly with the mouth, else a cell of it."""
        if side is None:
            return slice(None), slice(None)
        mouth = regions[REGIONS.index("mouth")].amax(0).numpy()
        inside = np.argwhere(mouth > 0)
        if not len(inside):
            inside = np.zeros((1, 2), np.int64)
        cell = inside[int(draw.integers(len(inside)))]
        holds_all = draw.random() < _WHOLE_MOUTHS
        cut = []
        for axis, patch in enumerate(self._config.patch_size[1:]):
            first, last = int(cell[axis]) - side + 1, int(cell[axis])
            whole_first = int(inside[:, axis].max()) - side + patch
            if holds_all and whole_first <= (whole_last := int(inside[:, axis].min())):
                first, last = whole_first, whole_last
            corner = int(draw.integers(first, last + 1)) // patch * patch
            corner = min(max(corner, 0), mouth.shape[axis] - side)
            cut.append(slice(corner, corner + side))
        return cut[0], cut[1]
