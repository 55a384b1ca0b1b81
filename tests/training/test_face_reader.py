"""The reader of faces: what it sees, what it asks of a prediction, when it keeps silent."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from skyreels_rt.errors import ModelError
from skyreels_rt.training.batches import WindowSampler
from skyreels_rt.training.checkpoint import load_checkpoint
from skyreels_rt.training.curriculum import Dropout, Lesson, Mix
from skyreels_rt.training.face_reader import (
    FaceJudge,
    FaceReader,
    ReaderObjective,
    RegionReader,
    reading_errors,
)
from skyreels_rt.training.flow_stage import FlowObjective
from skyreels_rt.training.latent_cache import load_clips
from skyreels_rt.training.portrait_model import PortraitModel
from skyreels_rt.training.recipe import ablated
from skyreels_rt.training.stages import run_recipe

pytestmark = pytest.mark.xdist_group("miniature")
KEEP = Dropout(0.0, 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def reader(trained, miniature):
    reader = FaceReader(miniature.sizes.transformer.out_channels)
    reader.load_state_dict(load_checkpoint(trained / "reader.safetensors").part("averages"))
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


def error(reader, latents, batch, asked):
    return {k: float(v) for k, v in reading_errors(reader, latents, batch, asked).items()}


def test_truth_costs_nothing_and_a_face_that_is_late_or_still_does(reader, batch):
    late = torch.roll(batch.clean, 1, dims=2)
    still = batch.portrait.unsqueeze(2).expand_as(batch.clean)
    truth, late, still = (
        error(reader, latents, batch, everyone(batch)) for latents in (batch.clean, late, still)
    )
    assert truth == {"mouth": 0, "lids": 0}
    for name, part, region in (
        ("mouth", reader.mouth, batch.mouth_cells), ("lids", reader.lids, batch.eye_cells),
    ):  # fmt: skip
        # A reader of few steps says little, whatever it looks at: measured by what it does say.
        spread = float(part(batch.clean, batch.portrait, region).var(1).mean())
        assert spread > 0
        assert min(late[name], still[name]) > 0.5 * spread


@pytest.mark.parametrize("cells", [(6, 8), (5, 3)])
def test_a_region_is_read_alike_wherever_it_lies(cells):
    torch.manual_seed(0)
    reader = RegionReader(4, cells, 3, width=8)
    latents, portrait = torch.randn(2, 4, 3, 24, 24), torch.randn(2, 4, 24, 24)
    region = torch.zeros(2, 3, 24, 24)
    region[0, :, 9:12, 10:14] = 1
    region[1, 2, 11:14, 8:10] = 1
    moved = [torch.roll(x, (2, -3), (-2, -1)) for x in (latents, portrait, region)]
    torch.testing.assert_close(reader(*moved), reader(latents, portrait, region))


def test_only_the_region_is_looked_at_and_no_single_latent_says_where():
    reader = RegionReader(4, (6, 8), 3, width=8)
    latents, portrait = torch.randn(1, 4, 3, 24, 24), torch.randn(1, 4, 24, 24)
    region = torch.zeros(1, 3, 24, 24)
    region[:, 0, 10:12, 10:14] = 1
    read = reader(latents, portrait, region)
    elsewhere = torch.ones(24, 24, dtype=torch.bool)
    elsewhere[8:14, 8:16] = False
    changed = torch.where(elsewhere, latents + 5, latents)
    torch.testing.assert_close(reader(changed, portrait, region), read)
    at_another_time = region.roll(1, 1)
    torch.testing.assert_close(reader(latents, portrait, at_another_time), read)


def test_a_region_at_the_edge_is_read_with_nothing_beyond():
    reader = RegionReader(4, (6, 8), 3, width=8)
    region = torch.zeros(1, 2, 8, 8)
    region[..., 7, 7] = 1
    read = reader(torch.randn(1, 4, 2, 8, 8), torch.randn(1, 4, 8, 8), region)
    assert read.shape == (1, 2, 4, 3)
    assert read.isfinite().all()


def test_the_prediction_alone_has_a_gradient(reader, batch):
    latents = (0.9 * batch.clean).requires_grad_()
    sum(reading_errors(reader, latents, batch, everyone(batch)).values()).backward()
    assert latents.grad.abs().max() > 0
    assert not batch.clean.requires_grad
    assert all(p.grad is None for p in reader.parameters())


def test_who_is_not_asked_does_not_count(reader, batch):
    wrong = batch.clean.clone()
    wrong[0] += 1
    asked = everyone(batch)
    asked[0] = False
    nobody = torch.zeros_like(asked)
    assert error(reader, wrong, batch, asked) == error(reader, wrong, batch, nobody)
    assert error(reader, wrong, batch, nobody) == {"mouth": 0, "lids": 0}
    assert min(error(reader, wrong, batch, everyone(batch)).values()) > 0


class Exact(torch.nn.Module):
    """Reads what `told` wrote into the latents, linearly, as a mean of faces is to be read."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))

    def mouth(self, latents, portrait, region):
        return self.gain * latents[:, :20, :, 0, 0].transpose(1, 2).unflatten(2, (4, 5))

    def lids(self, latents, portrait, region):
        return self.gain * latents[:, 20:, :, 0, 0].transpose(1, 2).unsqueeze(3)


def told(batch):
    """The batch with its true parameters as latents, and no noise on them."""
    mouth = batch.mouth.flatten(2).transpose(1, 2)
    clean = torch.cat([mouth, batch.lids.transpose(1, 2)], dim=1)[..., None, None]
    return replace(batch, clean=clean, noise=torch.zeros_like(clean))


def test_blends_of_faces_are_read_as_blends(batch):
    lesson = Lesson("test", 1.0, window=4, batch_size=16)
    sampler = SimpleNamespace(batch=lambda step, lesson, dropout: told(batch))
    losses = ReaderObjective(Exact(), sampler, lesson)(0)
    assert float(losses["loss"]) < 1e-5  # bfloat16
    unblended = SimpleNamespace(
        batch=lambda step, lesson, dropout: replace(told(batch), mouth=batch.mouth.roll(1, 1))
    )
    assert float(ReaderObjective(Exact(), unblended, lesson)(0)["loss"]) > 1e-3


def test_a_judge_asks_for_what_weighs_something_and_names_both_errors(batch):
    clear = told(batch)
    latents = (clear.clean + 0.5).requires_grad_()
    loss, errors = FaceJudge(Exact(), mouth_weight=8.0, lids_weight=0.0)(latents, clear)
    assert float(loss) == pytest.approx(8 * 0.25)
    assert {k: float(v) for k, v in errors.items()} == pytest.approx({"mouth": 0.25, "lids": 0.25})
    loss.backward()
    assert latents.grad[:, :20].abs().max() > 0
    assert not latents.grad[:, 20:].any()
    both, _ = FaceJudge(Exact(), mouth_weight=8.0, lids_weight=2.0)(latents, clear)
    assert float(both) == pytest.approx(10 * 0.25)


def test_a_face_that_hears_nothing_is_not_judged(batch):
    deaf = replace(told(batch), hears=torch.zeros_like(batch.hears))
    loss, _ = FaceJudge(Exact(), mouth_weight=8.0, lids_weight=2.0)(deaf.clean + 0.5, deaf)
    assert float(loss) == 0


def test_what_the_judge_says_is_part_of_the_loss(reader, clips, miniature):
    torch.manual_seed(0)
    model = PortraitModel(miniature.sizes)
    plan = replace(miniature.curriculum, dropout=KEEP)
    parts = (model, sampler_of(clips, miniature.sizes), plan, 80)
    plain = FlowObjective(*parts)(0)
    judged = FlowObjective(*parts, judge=FaceJudge(reader, 5.0, 3.0))(0)
    assert judged["mouth"] > 0
    added = 5 * judged["mouth"] + 3 * judged["lids"]
    torch.testing.assert_close(judged["loss"] - plain["loss"], added, rtol=1e-3, atol=1e-6)


def test_a_blink_is_told_with_its_frame(clips, miniature):
    """What a batch says of lids is what the clip's frames of those latents do."""
    from_start = Lesson("test", 1.0, window=6, batch_size=8, mix=Mix(1, 0, 0, 0))
    batch = sampler_of(clips, miniature.sizes).batch(0, from_start, KEEP)
    told = {tuple(lids.flatten().tolist()) for lids in batch.lids}
    known = {tuple(torch.cat([c.lids[:1].expand(4), c.lids[1:21]]).tolist()) for c in clips}
    assert told <= known
    assert any(max(lids) == 1 for lids in known)


def test_unseen_portraits_cut_mouths_and_unknown_shapes_are_not_read(clips, miniature):
    sampler = sampler_of(clips, miniature.sizes)
    whole = Lesson("test", 1.0, window=4, batch_size=24, mix=Mix(1, 0, 0, 0))
    assert sampler.batch(0, whole, KEEP).shows_mouth.all()
    assert not sampler.batch(0, whole, Dropout(0.0, 0.0, 1.0, 0.0)).shows_mouth.any()
    from_text = replace(whole, mix=Mix(0, 1, 0, 0))
    assert not sampler.batch(0, from_text, KEEP).shows_mouth.any()
    cut = sampler.batch(0, replace(whole, crop=2), KEEP)
    assert not cut.shows_mouth.all()
    unknown = [replace(clip, mouth=torch.zeros_like(clip.mouth)) for clip in clips]
    assert not sampler_of(unknown, miniature.sizes).batch(0, whole, KEEP).shows_mouth.any()
    assert sampler.batch(0, whole, KEEP).shows_eyes.any()
    unknown = [replace(clip, lids=torch.full_like(clip.lids, torch.nan)) for clip in clips]
    assert not sampler_of(unknown, miniature.sizes).batch(0, whole, KEEP).shows_eyes.any()


def test_flow_needs_the_reader_unless_faces_are_not_weighted(trained, miniature, tmp_path):
    shutil.copytree(
        trained, tmp_path, ignore=shutil.ignore_patterns("reader.*", "flow.*"), dirs_exist_ok=True
    )
    with pytest.raises(ModelError, match=r"reader\.safetensors"):
        run_recipe(miniature, tmp_path, stages=["flow"], until=1)
    run_recipe(ablated(miniature, "facial-mask"), tmp_path, stages=["flow"], until=1)
    assert load_checkpoint(tmp_path / "flow.safetensors").facts["step"] == 1
