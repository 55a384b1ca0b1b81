"""The recipe at a small size: every stage learns, resumes bit for bit, ends in usable models."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import skyreels_rt as rt
from skyreels_rt.errors import InvalidArgument, ModelError
from skyreels_rt.training.checkpoint import load_checkpoint
from skyreels_rt.training.latent_cache import load_clips
from skyreels_rt.training.recipe import ABLATIONS, RECIPES, ablated, find_recipe
from skyreels_rt.training.stages import load_vae, run_recipe
from skyreels_rt.training.trainer import Optimisation

pytestmark = pytest.mark.xdist_group("miniature")


def column(folder, stage, name):
    history = load_checkpoint(folder / f"{stage}.safetensors").facts["history"]
    return [row[name] for row in history if name in row]


@pytest.mark.parametrize(
    ("stage", "name", "share"),
    [
        ("vae", "loss", 0.9),
        ("speech", "loss", 0.6),
        ("text", "loss", 0.9),
        ("reader", "loss", 0.6),
        ("flow", "loss", 0.8),
        ("distil", "loss", 0.9),
    ],
)
def test_the_losses_of_every_stage_fall(trained, stage, name, share):
    values = column(trained, stage, name)
    assert np.mean(values[-2:]) < share * values[0]


@pytest.mark.parametrize(
    ("stage", "stop"),
    [("vae", 7), ("speech", 9), ("text", 9), ("reader", 9), ("flow", 11), ("distil", 5)],
)
def test_every_stage_resumes_bit_for_bit(trained, miniature, tmp_path, stage, stop):
    """Stopped at a step and gone on with, a stage ends with the bytes of one run."""
    ends = {}
    for kind, stops in (("whole", [2 * stop]), ("parts", [stop, 2 * stop])):
        folder = tmp_path / kind
        shutil.copytree(trained, folder, ignore=shutil.ignore_patterns(f"{stage}.safetensors"))
        for until in stops:
            run_recipe(miniature, folder, stages=[stage], until=until)
        ends[kind] = load_checkpoint(folder / f"{stage}.safetensors")
    assert ends["whole"].facts == ends["parts"].facts
    for name, tensor in ends["whole"].tensors.items():
        assert torch.equal(tensor, ends["parts"].tensors[name]), name


@pytest.mark.parametrize("name", ["demo", "demo-fast"])
def test_the_models_of_a_run_talk(trained, miniature, name):
    engine = rt.Engine.from_pretrained(trained / name)
    generation = engine.components.generation
    assert (generation.num_steps, generation.audio_guidance_scale) == (
        (4, 1.0) if name == "demo-fast" else (6, 1.5)
    )
    size = miniature.sizes.generation.height
    portrait = np.full((size, size, 3), 120, np.uint8)
    sound = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    video = engine.generate(sound, sample_rate=16_000, image=portrait, on_progress=lambda _: None)
    assert video.frames.shape == (25, size, size, 3)


def test_the_sheets_and_curves_are_pictures(trained):
    for name in (
        "vae", "speech", "text", "reader", "flow", "distil", "flow_sample", "distil_sample",
    ):  # fmt: skip
        with Image.open(trained / f"{name}.png") as picture:
            picture.load()
            assert min(picture.size) > 100


def test_latents_are_normalised_after_the_clips_stage(trained, miniature):
    values = torch.cat(
        [c.latents.float().flatten(1) for c in load_clips(trained / "clips", miniature.num_clips)],
        1,
    )
    assert values.mean(1).abs().max() < 0.5
    assert values.var(1).mean().sqrt() == pytest.approx(1, abs=0.3)
    assert load_vae(miniature, trained).config.latents_std != (1.0,)


def test_a_stage_without_the_one_before_says_so(tmp_path, miniature):
    with pytest.raises(ModelError, match=r"vae\.safetensors"):
        run_recipe(miniature, tmp_path, stages=["clips"])


def test_a_missing_clip_is_named(trained, miniature, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    clip = folder / "clips" / "clip_000003.safetensors"
    clip.write_bytes(b"damaged")
    for _ in range(2):
        with pytest.raises(ModelError, match="clip_000003"):
            run_recipe(miniature, folder, stages=["flow"])
        clip.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("stage", "part"), [("speech", "audio_encoder.conv1.bias"), ("text", "text_encoder.norm.bias")]
)
def test_the_models_hear_and_read_as_they_learned_to(trained, miniature, tmp_path, stage, part):
    learned = load_checkpoint(trained / f"{stage}.safetensors").part("averages")[part]
    component, _, name = part.partition(".")
    shipped = load_file(trained / "demo" / component / "model.safetensors")
    assert any(
        tensor.shape == learned.shape and torch.equal(tensor, learned.bfloat16())
        for key, tensor in shipped.items()
        if key.endswith(name)
    )
    folder = tmp_path / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("flow*", f"{stage}.*"))
    with pytest.raises(ModelError, match=rf"{stage}\.safetensors"):
        run_recipe(miniature, folder, stages=["flow"])


def test_unknown_names_are_refused(tmp_path, miniature):
    with pytest.raises(InvalidArgument, match="stages"):
        run_recipe(miniature, tmp_path, stages=["paint"])
    with pytest.raises(InvalidArgument, match="recipe"):
        find_recipe("huge")
    with pytest.raises(InvalidArgument, match="what"):
        ablated(miniature, "sleep")


@pytest.mark.parametrize("what", ABLATIONS)
def test_an_ablation_changes_one_thing(what):
    recipe = RECIPES["demo"]
    other = ablated(recipe, what)
    changed = [name for name in vars(recipe) if getattr(recipe, name) != getattr(other, name)]
    assert changed == (["facial_mask"] if what == "facial-mask" else ["curriculum"])
    assert other.fingerprint == recipe.fingerprint


def test_a_longer_schedule_goes_on_from_the_same_checkpoint(miniature):
    """Steps are not part of the fingerprint: a run may be lengthened."""
    longer = replace(miniature, flow=Optimisation(200))
    assert longer.fingerprint == miniature.fingerprint
    assert replace(miniature, clip_s=2.0).fingerprint != miniature.fingerprint
