"""A run that begins with a trained model."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from skyreels_rt.errors import ModelError
from skyreels_rt.training.checkpoint import load_checkpoint
from skyreels_rt.training.stages import run_recipe

pytestmark = pytest.mark.xdist_group("miniature")


@pytest.fixture(scope="module")
def begun(trained, miniature, tmp_path_factory):
    """Folder of a run that begins with the miniature's model, before its first step."""
    folder = tmp_path_factory.mktemp("begun")
    stages = ["vae", "speech", "text", "clips", "reader"]
    run_recipe(miniature, folder, stages=stages, start=trained / "demo")
    run_recipe(miniature, folder, stages=["flow"], until=0)
    return folder


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "audio_encoder"])
def test_before_its_first_step_the_model_is_the_one_it_began_with(trained, begun, part):
    for path in (trained / "demo" / part).glob("*.safetensors"):
        there, here = load_file(path), load_file(begun / "demo" / part / path.name)
        assert there.keys() == here.keys()
        assert all(torch.equal(there[name], here[name]) for name in there)


def test_its_clips_are_those_of_the_model(trained, begun):
    for path in (trained / "clips").iterdir():
        assert path.read_bytes() == (begun / "clips" / path.name).read_bytes()


def test_it_trains_the_transformer_on(begun, miniature, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(begun, folder)
    before = load_checkpoint(begun / "flow.safetensors").part("weights")
    run_recipe(miniature, folder, stages=["flow"], until=2)
    after = load_checkpoint(folder / "flow.safetensors")
    assert after.facts["step"] == 2
    moved = {n for n, tensor in after.part("weights").items() if not torch.equal(tensor, before[n])}
    assert moved
    assert all(name.startswith("transformer.") for name in moved)


def test_the_student_alone_can_be_begun_with(trained, miniature, tmp_path):
    """A folder that shares its encoders with the one beside it."""
    for name in ("demo", "demo-fast"):
        shutil.copytree(trained / name, tmp_path / name)
    for part in ("vae", "text_encoder", "audio_encoder"):
        shutil.rmtree(tmp_path / "demo-fast" / part)
    index = tmp_path / "demo-fast" / "model_index.json"
    index.write_text(index.read_text().replace("{", '{"_base": "demo",', 1))
    run_recipe(miniature, tmp_path / "run", stages=[], start=tmp_path / "demo-fast")
    assert load_checkpoint(tmp_path / "run" / "flow.safetensors").facts["step"] == 0


def test_other_sizes_and_old_runs_are_refused(trained, begun, miniature, tmp_path):
    with pytest.raises(ModelError, match="sizes"):
        run_recipe(miniature, tmp_path / "other", stages=[], start="demo")
    assert not list((tmp_path / "other").iterdir())
    with pytest.raises(ModelError, match="holds a run"):
        run_recipe(miniature, begun, stages=[], start=trained / "demo")
