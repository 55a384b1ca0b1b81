"""What a model folder makes of portraits and speech that it was not trained on, as one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from skyreels_rt.engine import Engine
from skyreels_rt.training.data.speech import SAMPLE_RATE
from skyreels_rt.training.data.triplets import FPS, TripletSource

FIRST_SAMPLE = 900_000
"""Training clips from this number on are never trained on; the held-out half is left for tests."""


def write_sample_sheet(
    folder: Path,
    path: Path,
    *,
    num_clips: int = 3,
    num_frames: int = 8,
    seconds: float = 2.0,
    device: str | torch.device = "cpu",
) -> None:
    """Generate clips and write rows of truth above rows of result.

    Parameters
    ----------
    folder : Path
        Model folder.
    path : Path
        PNG to write.
    num_clips : int
        Portraits.
    num_frames : int
        Frames shown of each.
    seconds : float
        Length of each.
    device : str or torch.device
        Where to generate.
    """
    engine = Engine.from_pretrained(folder, device=device, dtype="bfloat16")
    size = engine.components.generation.height
    source = TripletSource("train", size, max(seconds, 1.0), 0.0)
    rows = []
    for index in range(FIRST_SAMPLE, FIRST_SAMPLE + num_clips):
        triplet = source.triplet(index)
        count = min(round(seconds * FPS), len(triplet.clip.frames))
        audio = triplet.audio[: count * SAMPLE_RATE // FPS]
        made = engine.generate(
            audio,
            sample_rate=SAMPLE_RATE,
            image=triplet.clip.frames[0],
            prompt=triplet.caption,
            on_progress=lambda _: None,
        )
        shown = np.linspace(0, count - 1, num_frames).round().astype(int)
        for frames in (triplet.clip.frames, made.frames):
            rows.append(np.concatenate(list(frames[shown]), axis=1))
    partial = path.with_suffix(".partial.png")
    Image.fromarray(np.concatenate(rows, axis=0)).save(partial)
    partial.replace(path)
