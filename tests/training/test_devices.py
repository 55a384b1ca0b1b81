"""Training on another device than the CPU: nothing stays behind, and clips come in shares."""

import contextlib

import pytest
import torch

from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.models.tiny_vae import TinyVAE
from skyreels_rt.training.audio_windows import SpeechBatch
from skyreels_rt.training.batches import WindowSampler
from skyreels_rt.training.clips import DrawnClips
from skyreels_rt.training.distillation import DistillationObjective
from skyreels_rt.training.flow_stage import FlowObjective
from skyreels_rt.training.frame_pool import FramePool
from skyreels_rt.training.latent_cache import load_clips
from skyreels_rt.training.portrait_model import PortraitModel
from skyreels_rt.training.speech_stage import HeardClip, SpeechObjective, SpeechSampler
from skyreels_rt.training.stages import Share, run_recipe
from skyreels_rt.training.text_stage import CaptionObjective
from skyreels_rt.training.vae_stage import reconstruction_losses

pytestmark = pytest.mark.xdist_group("miniature")


@pytest.fixture
def elsewhere(monkeypatch):
    """The meta device refuses CPU tensors as CUDA does; it only knows no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *_: contextlib.nullcontext())
    return torch.device("meta")


@pytest.fixture
def clips(trained, miniature):
    return load_clips(trained / "clips", miniature.num_clips)


@pytest.fixture
def sampler(clips, miniature):
    return WindowSampler(clips, miniature.sizes.transformer, miniature.sizes.audio_features)


def flow(model, sampler, clips, miniature):
    return FlowObjective(model, sampler, miniature.curriculum, 80)


def distil(model, sampler, clips, miniature):
    teacher = PortraitModel(miniature.sizes).to(model.device)
    plan = miniature.distillation
    return DistillationObjective(model, teacher, sampler, plan.lesson, FlowSchedule(4, 3.0))


def speech(model, sampler, clips, miniature):
    sizes = miniature.sizes
    utterances = [HeardClip(clip.mels, clip.mouth) for clip in clips]
    grid = sizes.audio_features
    heard = SpeechSampler(utterances, sizes.transformer.audio, grid, window=4, batch_size=2)
    return SpeechObjective(model, heard)


def text(model, sampler, clips, miniature):
    return CaptionObjective(model, 4)


@pytest.mark.parametrize("make", [flow, distil, speech, text])
def test_an_objective_is_computed_where_the_model_is(make, elsewhere, sampler, clips, miniature):
    model = PortraitModel(miniature.sizes).to(elsewhere)
    losses = make(model, sampler, clips, miniature)(0)
    assert losses["loss"].device == elsewhere
    losses["loss"].backward()
    assert {p.grad.device for p in model.parameters() if p.grad is not None} == {elsewhere}


def test_a_batch_left_on_the_cpu_is_noticed(elsewhere, sampler, clips, miniature, monkeypatch):
    monkeypatch.setattr(SpeechBatch, "to", lambda batch, _: batch)
    model = PortraitModel(miniature.sizes).to(elsewhere)
    with pytest.raises(RuntimeError, match="device"):
        flow(model, sampler, clips, miniature)(0)["loss"].backward()


def test_the_vae_is_trained_where_it_is(elsewhere, miniature):
    frames, weights = FramePool(DrawnClips(64, 1.0), miniature.crops, capacity=1).batch(0)
    vae = TinyVAE(miniature.sizes.vae).to(elsewhere)
    losses = reconstruction_losses(vae, frames, weights, torch.Generator())
    losses["loss"].backward()
    assert losses["loss"].device == elsewhere


def test_shares_make_the_clips_of_one_process(trained, miniature, tmp_path):
    for name in ("vae.safetensors", "latent_statistics.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    for part in (1, 0):
        run_recipe(miniature, tmp_path, stages=["clips"], share=Share(part, 2), until=6)
        assert len(list((tmp_path / "clips").iterdir())) == (3 if part else 6)
    for path in (tmp_path / "clips").iterdir():
        assert path.read_bytes() == (trained / "clips" / path.name).read_bytes()


def test_a_share_is_read_from_text():
    assert Share.parse("3/16") == Share(3, 16)
    for wrong in ("16/16", "3", "a/b", "-1/2", "1/0"):
        with pytest.raises(InvalidArgument, match="share"):
            Share.parse(wrong)


@pytest.mark.gpu
def test_the_miniature_trains_on_a_gpu(miniature, tmp_path):
    """Every stage, stopped and gone on with; the CPU goes on from a GPU's checkpoint."""
    for until in (4, 8):
        run_recipe(
            miniature, tmp_path, stages=["vae", "speech", "text"], until=until, device="cuda"
        )
    run_recipe(miniature, tmp_path, stages=["clips"], device="cuda")
    for until in (4, 8):
        run_recipe(miniature, tmp_path, stages=["flow", "distil"], until=until, device="cuda")
    run_recipe(miniature, tmp_path, stages=["flow"], until=10, device="cpu")
    assert (tmp_path / "demo-fast" / "model_index.json").exists()
