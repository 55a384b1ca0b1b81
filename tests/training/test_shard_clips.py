"""Training from shards is training from the renderer, to the bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from skyreels_rt.data.shards import ShardSet
from skyreels_rt.errors import ModelError
from skyreels_rt.models.tiny_vae import TinyVAE
from skyreels_rt.training.clips import REGIONS, DrawnClips, RecipeClips, TrainingClip, drawn_clips
from skyreels_rt.training.frame_pool import FramePool
from skyreels_rt.training.shard_clips import ShardClips, shard_clips, write_drawn_shards
from skyreels_rt.training.stages import run_recipe
from skyreels_rt.training.vae_stage import reconstruction_losses

COUNT = 10


class InOrder:
    """Drawn clips in the order that a set of shards gives its samples."""

    def __init__(self, clips: DrawnClips, shards: ShardSet) -> None:
        self._clips, self._shards = clips, shards

    def clip(self, index: int) -> TrainingClip:
        return self._clips.clip(self._shards.place(index))


@pytest.fixture(scope="module")
def whole(miniature):
    return drawn_clips(miniature).whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory, whole):
    folder = tmp_path_factory.mktemp("drawn")
    assert list(write_drawn_shards(folder, whole, COUNT, per_shard=4)) == list(range(1, COUNT + 1))
    return folder


def losses(source, recipe, steps):
    """Losses of the first steps of the VAE stage."""
    torch.manual_seed(0)
    vae = TinyVAE(recipe.sizes.vae)
    optimiser = torch.optim.AdamW(vae.parameters(), 1e-3)
    pool = FramePool(source, recipe.crops, capacity=4, seed=1)
    found = []
    for step in range(steps):
        frames, weights = pool.batch(step)
        loss = reconstruction_losses(vae, frames, weights, torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        loss["loss"].backward()
        optimiser.step()
        found.append(float(loss["loss"].detach()))
    return found


def compare(folder, whole, miniature, steps):
    shards = ShardSet(folder, seed=5)
    read = losses(ShardClips(shards, 64), miniature, steps)
    drawn = losses(InOrder(whole, ShardSet(folder, seed=5)), miniature, steps)
    assert read == drawn
    assert len(set(read)) == steps
    return read


def test_steps_from_shards_equal_steps_from_the_renderer(folder, whole, miniature):
    read = compare(folder, whole, miniature, 4)
    other = losses(ShardClips(ShardSet(folder, seed=6), 64), miniature, 4)
    assert other != read


@pytest.mark.slow
def test_hundred_steps_from_shards_equal_the_renderer(folder, whole, miniature):
    compare(folder, whole, miniature, 100)


def test_a_read_clip_is_the_drawn_clip(folder, whole):
    read, drawn = ShardClips(ShardSet(folder), 64).clip(7), whole.clip(7)
    np.testing.assert_array_equal(read.frames, drawn.frames)
    np.testing.assert_array_equal(read.audio, drawn.audio)
    np.testing.assert_array_equal(read.mouth, drawn.mouth)
    assert (read.caption, read.difficulty) == (drawn.caption, drawn.difficulty)
    for name in REGIONS:
        np.testing.assert_array_equal(read.masks[name], drawn.masks[name])


def test_long_samples_are_cut_at_a_place_of_their_number(folder):
    cut = ShardClips(ShardSet(folder), 64, num_frames=9, seed=2)
    one, again, whole = cut.clip(3), cut.clip(3), ShardClips(ShardSet(folder), 64).clip(3)
    assert one.frames.shape[0] == 9
    assert one.audio.shape == (9 * 640,)
    np.testing.assert_array_equal(one.frames, again.frames)
    starts = [
        i for i in range(len(whole.frames) - 8) if (whole.frames[i : i + 9] == one.frames).all()
    ]
    assert len(starts) == 1
    start = starts[0]
    np.testing.assert_array_equal(one.audio, whole.audio[640 * start : 640 * (start + 9)])
    np.testing.assert_array_equal(one.mouth, whole.mouth[start : start + 9])


def test_samples_that_do_not_fit_are_named(folder):
    with pytest.raises(ModelError, match="128 pixels"):
        ShardClips(ShardSet(folder), 128).clip(0)
    with pytest.raises(ModelError, match="9999 or more"):
        ShardClips(ShardSet(folder), 64, num_frames=9999).clip(0)


def test_shards_that_are_there_are_kept(folder, whole):
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert list(write_drawn_shards(folder, whole, COUNT, per_shard=4)) == [4, 8, 10]
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_stages_run_on_shards_and_keep_them_apart(folder, miniature, tmp_path):
    """The VAE, the encoded clips and their statistics come from the shards that are named."""
    short = replace(miniature, num_clips=2, vae=replace(miniature.vae, num_steps=3))
    source = shard_clips(folder, short)
    assert isinstance(source, RecipeClips)
    run_recipe(short, tmp_path, stages=["vae", "clips"], clips=source)
    assert len(list((tmp_path / f"clips-{source.mark}").iterdir())) == 2
    with pytest.raises(ModelError):
        run_recipe(short, tmp_path, stages=["vae"])


def test_commands_draw_shards_and_train_on_them(tmp_path):
    from typer.testing import CliRunner

    from skyreels_rt.cli import app

    drawn, run = str(tmp_path / "shards"), str(tmp_path / "run")
    made = CliRunner().invoke(
        app, ["data", "draw", "-o", drawn, "--recipe", "miniature", "--count", "8"]
    )
    assert made.exit_code == 0
    assert len(ShardSet(tmp_path / "shards")) == 8
    options = ["--recipe", "miniature", "--stage", "vae", "--until", "1", "--data", drawn]
    assert CliRunner().invoke(app, ["train", run, *options]).exit_code == 0
    assert (tmp_path / "run" / "vae.safetensors").exists()
    refused = CliRunner().invoke(app, ["data", "draw", "-o", drawn, "--count", "0"])
    assert refused.exit_code == 2
