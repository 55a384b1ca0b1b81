"""Training from shards: of `skyreels-rt data build`, or written here by the renderer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skyreels_rt.data.shards import Sample, ShardSet, ShardWriter, sample_files
from skyreels_rt.errors import ModelError
from skyreels_rt.training.clips import (
    MOUTH_PARAMETERS,
    REGIONS,
    ClipSource,
    RecipeClips,
    TrainingClip,
)
from skyreels_rt.training.recipe import Recipe
from skyreels_rt.types import Timeline

_FRAME_SAMPLES = 640


@dataclass(frozen=True)
class ShardClips:
    """Clips read from shards, one at a time, in the order of a :class:`ShardSet`.

    Attributes
    ----------
    shards : ShardSet
        What is read; numbers beyond its length begin the next epoch.
    size : int
        Pixels per side that the training needs.
    num_frames : int, optional
        Longer samples are cut to it, at a place drawn from (seed, number); shorter ones are an
        error. None takes all of them.
    seed : int
        Of those places.
    """

    shards: ShardSet
    size: int
    num_frames: int | None = None
    seed: int = 0

    def clip(self, index: int) -> TrainingClip:
        """Read clip number ``index``.

        Raises
        ------
        ModelError
            The sample is damaged, of another size, too short, or lacks a mask.
        """
        sample = self.shards.sample(index)
        count, height, width, _ = sample.frames.shape
        missing = set(REGIONS) - set(sample.masks)
        wanted = self.num_frames or count
        if (height, width) != (self.size, self.size) or count < wanted or missing:
            raise ModelError(
                f"sample {sample.key}: expected {wanted} or more frames of {self.size} pixels with "
                f"masks of {', '.join(REGIONS)}, got {count} of {width} x {height} with "
                f"{', '.join(sorted(sample.masks))}.",
                stage="data",
                hint="Build the shards with [output] size and [clips] min_s of this training.",
            )
        start = 0
        if count > wanted:
            draw = np.random.default_rng([self.seed, index])
            start = int(draw.integers(count - wanted + 1))
        return _cut(sample, start, start + wanted)


def shard_clips(folder: Path, recipe: Recipe) -> RecipeClips:
    """Clips of a folder of shards for a recipe, shuffled by its seed.

    Raises
    ------
    ModelError
        There are no samples.
    """
    shards = ShardSet(folder, seed=recipe.seed)
    size = recipe.sizes.generation.height
    num_frames = Timeline().num_frames(recipe.clip_latents)
    return RecipeClips(
        ShardClips(shards, size),
        ShardClips(shards, size, num_frames, recipe.seed),
        mark=hashlib.sha256("\n".join(shards.keys).encode()).hexdigest()[:16],
    )


def write_drawn_shards(
    folder: Path, clips: ClipSource, count: int, *, per_shard: int = 256
) -> Iterator[int]:
    """Write clips ``0 .. count - 1`` without loss; shards that are there are kept.

    Parameters
    ----------
    folder : Path
        Where to; made if absent.
    clips : ClipSource
        What is written.
    count : int
        How many.
    per_shard : int
        Samples of a shard.

    Yields
    ------
    int
        Clips that are written, after each.

    Raises
    ------
    OutputError
        A shard cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, count, per_shard):
        path = folder / f"shard-{first // per_shard:06d}.tar"
        last = min(first + per_shard, count)
        if path.exists():
            yield last
            continue
        with ShardWriter(path) as writer:
            for index in range(first, last):
                sample = _sample(clips.clip(index), index)
                writer.add(sample.key, sample_files(sample))
                yield index + 1


def _sample(clip: TrainingClip, index: int) -> Sample:
    facts = {
        "drawn": index,
        "difficulty": clip.difficulty,
        "mouth": list(MOUTH_PARAMETERS),
        "lids": clip.lids.tolist(),
    }
    return Sample(
        key=f"drawn_{index:07d}",
        frames=clip.frames,
        audio=clip.audio,
        caption=clip.caption,
        masks=clip.masks,
        facts=json.loads(json.dumps(facts)),
        mouth=clip.mouth,
    )


def _cut(sample: Sample, start: int, stop: int) -> TrainingClip:
    mouth = sample.mouth
    if mouth is None:
        mouth = np.zeros((len(sample.frames), len(MOUTH_PARAMETERS)), np.float32)
    lids = sample.facts.get("lids", np.full(len(sample.frames), np.nan))
    return TrainingClip(
        frames=sample.frames[start:stop],
        masks={name: sample.masks[name][start:stop] for name in REGIONS},
        audio=sample.audio[start * _FRAME_SAMPLES : stop * _FRAME_SAMPLES],
        caption=sample.caption,
        mouth=mouth[start:stop],
        lids=np.asarray(lids, np.float32)[start:stop],
        difficulty=float(sample.facts.get("difficulty", 0.0)),
    )
