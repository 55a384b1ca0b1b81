"""The reader of lips: what it sees, what it asks of a prediction, when it keeps silent."""

import shutil
from dataclasses import replace

import pytest
import torch

from skyreels_rt.errors import ModelError
from skyreels_rt.training.batches import WindowSampler
from skyreels_rt.training.checkpoint import load_checkpoint
from skyreels_rt.training.curriculum import Dropout, Lesson, Mix
from skyreels_rt.training.latent_cache import load_clips
from skyreels_rt.training.lip_reader import LipReader, lip_error
from skyreels_rt.training.recipe import ablated
from skyreels_rt.training.stages import run_recipe

pytestmark = pytest.mark.xdist_group("miniature")
KEEP = Dropout(0.0, 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def reader(trained, miniature):
    reader = LipReader(miniature.sizes.transformer.out_channels)
    reader.load_state_dict(load_checkpoint(trained / "lips.safetensors").part("averages"))
    return reader.eval().requires_grad_(False)


def sampler_of(clips, sizes):
    return WindowSampler(clips, sizes.transformer, sizes.audio_features)


@pytest.fixture(scope="module")
def clips(trained, miniature):
    return load_clips(trained / "clips", miniature.num_clips)


@pytest.fixture(scope="module")
def batch(clips, miniature):
    lesson = Lesson("test", 1.0, window=4, batch_size=16, mix=Mix(1, 0, 0, 0))
    return sampler_of(clips, miniature.sizes).batch(0, lesson, KEEP)


def everyone(batch):
    return torch.ones(len(batch.hears), dtype=torch.bool)


def test_truth_costs_nothing_and_a_mouth_that_is_late_or_shut_does(reader, batch):
    late = torch.roll(batch.clean, 1, dims=2)
    still = batch.portrait.unsqueeze(2).expand_as(batch.clean)
    truth, late, still = (
        float(lip_error(reader, latents, batch, everyone(batch)))
        for latents in (batch.clean, late, still)
    )
    assert truth == 0
    assert min(late, still) > 1e-4


def test_only_the_mouth_is_looked_at(reader, batch):
    """Behind three convolutions of three cells, what is four cells away cannot be seen."""
    near = torch.nn.functional.max_pool2d(batch.lips, 7, stride=1, padding=3) > 0
    assert not near.all()
    changed = torch.where(near.unsqueeze(1), batch.clean, batch.clean + 5)
    assert float(lip_error(reader, changed, batch, everyone(batch))) < 1e-9


def test_the_prediction_alone_has_a_gradient(reader, batch):
    latents = (0.9 * batch.clean).requires_grad_()
    lip_error(reader, latents, batch, everyone(batch)).backward()
    assert latents.grad.abs().max() > 0
    assert not batch.clean.requires_grad
    assert all(p.grad is None for p in reader.parameters())


def test_who_is_not_asked_does_not_count(reader, batch):
    wrong = batch.clean.clone()
    wrong[0] += 1
    asked = everyone(batch)
    asked[0] = False
    assert float(lip_error(reader, wrong, batch, asked)) == 0
    assert float(lip_error(reader, wrong, batch, torch.zeros_like(asked))) == 0
    assert float(lip_error(reader, wrong, batch, everyone(batch))) > 0


def test_unseen_portraits_cut_mouths_and_unknown_shapes_are_not_read(clips, miniature):
    sampler = sampler_of(clips, miniature.sizes)
    whole = Lesson("test", 1.0, window=4, batch_size=24, mix=Mix(1, 0, 0, 0))
    assert sampler.batch(0, whole, KEEP).shows_lips.all()
    assert not sampler.batch(0, whole, Dropout(0.0, 0.0, 1.0, 0.0)).shows_lips.any()
    from_text = replace(whole, mix=Mix(0, 1, 0, 0))
    assert not sampler.batch(0, from_text, KEEP).shows_lips.any()
    cut = sampler.batch(0, replace(whole, crop=2), KEEP)
    assert not cut.shows_lips.all()
    unknown = [replace(clip, mouth=torch.zeros_like(clip.mouth)) for clip in clips]
    assert not sampler_of(unknown, miniature.sizes).batch(0, whole, KEEP).shows_lips.any()


def test_flow_needs_the_reader_unless_faces_are_not_weighted(trained, miniature, tmp_path):
    shutil.copytree(
        trained, tmp_path, ignore=shutil.ignore_patterns("lips.*", "flow.*"), dirs_exist_ok=True
    )
    with pytest.raises(ModelError, match=r"lips\.safetensors"):
        run_recipe(miniature, tmp_path, stages=["flow"], until=1)
    run_recipe(ablated(miniature, "facial-mask"), tmp_path, stages=["flow"], until=1)
    assert load_checkpoint(tmp_path / "flow.safetensors").facts["step"] == 1
