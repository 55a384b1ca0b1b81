"""An official release, converted, is the canonical model; a failed conversion leaves nothing."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import skyreels_rt as rt
from skyreels_rt.conversion.convert import SUMS_FILE, convert
from skyreels_rt.errors import InvalidArgument, ModelError, OutputError, WeightsMismatch
from skyreels_rt.presets import PRESETS

FAMILIES = [
    "skyreels-v3-a2v",
    "fantasytalking",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("infinitetalk", "multitalk", "wan2.1-i2v", "wan2.1-t2v")
    ),
]


@pytest.fixture(scope="session")
def converted(releases, tmp_path_factory):
    """``converted(name)`` -> Conversion; each made once."""
    made = {}

    def get(name):
        if name not in made:
            source, adapter = releases(name)
            target = tmp_path_factory.mktemp(f"converted-{name}") / "model"
            made[name] = convert(source, target, adapter=adapter)
        return made[name]

    return get


@pytest.fixture
def portrait():
    return np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)


# ---------------------------------------------------------------- what loads


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_loads_as_the_canonical_model(converted, canonical_model, name):
    parts = rt.Engine.from_pretrained(converted(name).folder).components
    expected = canonical_model(name)
    assert parts.transformer.config == expected.config
    state, wanted = parts.transformer.state_dict(), expected.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)
    assert converted(name).preset == name
    assert parts.generation == PRESETS[name].generation


def test_an_official_transformer_loads_beside_other_components(converted, releases, tmp_path):
    """Without conversion, where the rest is in safetensors: class ``WanModel``, its own config."""
    source, _ = releases("skyreels-v3-a2v")
    folder = tmp_path / "model"
    shutil.copytree(converted("skyreels-v3-a2v").folder, folder)
    shutil.copyfile(source / "config.json", folder / "transformer" / "config.json")
    index = json.loads((folder / "model_index.json").read_text())
    index["transformer"] = ["official", "WanModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    ours = rt.Engine.from_pretrained(converted("skyreels-v3-a2v").folder).components.transformer
    theirs = rt.Engine.from_pretrained(folder).components.transformer
    assert theirs.config == ours.config
    assert all(map(torch.equal, theirs.state_dict().values(), ours.state_dict().values()))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loaded_model_predicts_what_the_canonical_one_does(converted, canonical_model, name):
    from skyreels_rt.models.transformer import ContextCache

    models = canonical_model(name), rt.Engine.from_pretrained(
        converted(name).folder
    ).components.transformer  # fmt: skip
    config = models[0].config
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(1, config.in_channels, 3, 4, 4, generator=generator)
    prompt = torch.randn(1, config.text_length, config.text_dim, generator=generator)
    velocities = []
    with torch.inference_mode():
        for model in models:
            image = audio = None
            if config.image_dim:
                image = model.image_context(torch.ones(1, 5, config.image_dim))
            if config.audio:
                tokens = torch.ones(1, 3, config.audio.num_tokens, config.audio.token_dim)
                audio = model.audio_context(tokens)
            context = ContextCache(model.text_context(prompt), image, audio)
            velocities.append(model(latents, torch.tensor([500.0]), context))
    assert torch.equal(*velocities)


def test_a_converted_v3_model_talks(converted, portrait):
    """Every component of the release takes part, from speech to frames."""
    engine = rt.Engine.from_pretrained(converted("skyreels-v3-a2v").folder)
    speech = 0.1 * np.random.default_rng(1).standard_normal(16_000 // 2).astype(np.float32)
    options = {"sample_rate": 16_000, "height": 32, "width": 32, "num_steps": 1, "image": portrait}

    def frames(speech, prompt="a man speaks"):
        return engine.generate(speech, prompt=prompt, **options).frames

    base = frames(speech)
    assert base.shape == (13, 32, 32, 3)
    assert (base != frames(0 * speech)).any()
    assert (base != frames(speech, "a woman speaks")).any()


@pytest.mark.slow
@pytest.mark.parametrize("long_form", ["blf", "continuation"])
def test_a_converted_v3_model_talks_for_half_a_minute(converted, portrait, long_form):
    """Through overlapping windows and through its published scheme of clips."""
    engine = rt.Engine.from_pretrained(converted("skyreels-v3-a2v").folder)
    speech = 0.1 * np.random.default_rng(2).standard_normal(30 * 16_000).astype(np.float32)
    count, means = 0, []
    for chunk in engine.stream(
        speech, sample_rate=16_000, image=portrait, height=32, width=32, num_steps=1,
        long_form=long_form,
    ):  # fmt: skip
        assert chunk.index == count
        count += len(chunk.frames)
        means.append(chunk.frames.mean())
    assert count == 30 * 25
    assert np.ptp(means) < 128  # it drifts to neither black nor white


def test_fantasy_talking_hears(converted, portrait):
    engine = rt.Engine.from_pretrained(converted("fantasytalking").folder)
    speech = 0.1 * np.random.default_rng(1).standard_normal(16_000 // 2).astype(np.float32)
    options = {"sample_rate": 16_000, "height": 32, "width": 32, "num_steps": 1, "image": portrait}
    heard = engine.generate(speech, **options).frames
    assert (heard != engine.generate(0 * speech, **options).frames).any()


def test_the_checksums_are_those_of_the_files(converted):
    made = converted("skyreels-v3-a2v")
    folder = made.folder
    listed = dict(
        reversed(line.split("  ")) for line in (folder / SUMS_FILE).read_text().splitlines()
    )
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    del files[SUMS_FILE]
    assert listed == {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in files.items()}
    assert made.num_bytes == sum(p.stat().st_size for p in files.values())
    suffixes = {p.suffix for p in files.values()}
    assert suffixes == {".json", ".safetensors"}


def test_safetensors_share_their_bytes_with_the_source(converted, releases):
    source, _ = releases("skyreels-v3-a2v")
    shard = converted("skyreels-v3-a2v").folder / "transformer" / "model-00001-of-00003.safetensors"
    assert shard.samefile(source / "diffusion_pytorch_model-00001-of-00003.safetensors")


def test_copied_files_and_progress(releases, tmp_path):
    states = []
    source, _ = releases("wan2.1-t2v")
    folder = convert(
        source, tmp_path / "model", link=False, on_progress=states.append
    ).folder  # fmt: skip
    shard = folder / "transformer" / "model-00001-of-00003.safetensors"
    original = source / "diffusion_pytorch_model-00001-of-00003.safetensors"
    assert not shard.samefile(original)
    assert shard.read_bytes() == original.read_bytes()
    components = list(dict.fromkeys(state.component for state in states))
    assert components == ["transformer", "vae", "text_encoder", "checksums"]
    assert all(0 <= state.done <= state.total for state in states)
    assert states[-1].done == states[-1].total


# ---------------------------------------------------------------- what does not


def attempt(source, tmp_path, error, **options):
    """Convert, expect ``error``, and nothing left."""
    before = set(tmp_path.iterdir())
    with pytest.raises(error) as caught:
        convert(source, tmp_path / "model", **options)
    assert set(tmp_path.iterdir()) == before
    return str(caught.value)


@pytest.fixture
def release(write_to, tmp_path):
    folder, _ = write_to(tmp_path / "release", "wan2.1-t2v")
    return folder


def test_a_pickle_that_is_none_is_named(release, tmp_path):
    file = release / "Wan2.1_VAE.pth"
    file.write_bytes(file.read_bytes()[:5000])
    assert "Wan2.1_VAE.pth" in attempt(release, tmp_path, ModelError)


def test_tensors_that_the_model_lacks_are_named(release, tmp_path):
    file = release / "Wan2.1_VAE.pth"
    state = torch.load(file, weights_only=True)
    state["decoder.head.7.weight"] = state.pop("decoder.head.2.weight")
    torch.save(state, file)
    message = attempt(release, tmp_path, WeightsMismatch)
    assert "decoder.conv_out.weight" in message
    assert "decoder.head.7.weight" in message


def test_all_missing_parts_are_named_at_once(release, tmp_path):
    (release / "Wan2.1_VAE.pth").unlink()
    (release / "google" / "umt5-xxl" / "tokenizer.json").unlink()
    message = attempt(release, tmp_path, ModelError)
    assert "vae" in message
    assert "tokenizer.json" in message


def test_a_target_that_exists_is_left_alone(release, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").touch()
    attempt(release, tmp_path, InvalidArgument)
    assert (tmp_path / "model" / "mine").exists()


def test_a_model_folder_needs_no_conversion(converted, tmp_path):
    message = attempt(converted("wan2.1-t2v").folder, tmp_path, ModelError)
    assert "nothing to convert" in message


def test_an_adapter_alone_is_no_release(releases, tmp_path):
    source, adapter = releases("infinitetalk")
    (tmp_path / "release").mkdir()
    folder = tmp_path / "release"
    (folder / "config.json").write_text((source / "config.json").read_text())
    os.link(adapter, folder / "infinitetalk.safetensors")
    assert "without its Wan2.1-I2V base" in attempt(folder, tmp_path, ModelError)


def test_a_full_disk_is_told_before_anything_is_written(release, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "GB needed" in attempt(release, tmp_path, OutputError)


def test_what_is_linked_needs_no_room(write_to, tmp_path, monkeypatch):
    folder, _ = write_to(tmp_path / "release", "wan2.1-t2v")
    room = 2 * sum(path.stat().st_size for path in folder.glob("*.pth"))
    save_file({"unused": torch.zeros(room)}, folder / "large.safetensors")
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"] | {"unused": "large.safetensors"}
    index.write_text(json.dumps({"weight_map": weight_map}))
    usage = shutil.disk_usage(tmp_path)._replace(free=room)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "GB needed" in attempt(folder, tmp_path, OutputError, link=False)
    assert "unused" in attempt(folder, tmp_path, WeightsMismatch)


def test_an_interruption_leaves_nothing(release, tmp_path):
    def stop(state):
        if state.component == "text_encoder":
            raise KeyboardInterrupt

    attempt(release, tmp_path, KeyboardInterrupt, on_progress=stop)


def test_the_runtime_names_the_command_for_a_release(releases):
    source, _ = releases("skyreels-v3-a2v")
    with pytest.raises(ModelError, match="skyreels-rt convert"):
        rt.Engine.from_pretrained(source)


@pytest.mark.slow
def test_a_release_in_the_hub_s_cache_converts(release, tmp_path):
    """There every file is a link into a folder of blobs, whose names have no suffix."""
    pickled = release / "Wan2.1_VAE.pth"
    save_file(torch.load(pickled, weights_only=True), release / "Wan2.1_VAE.safetensors")
    pickled.unlink()
    repo = tmp_path / "models--a--b"
    (repo / "blobs").mkdir(parents=True)
    for number, file in enumerate(p for p in sorted(release.rglob("*")) if p.is_file()):
        link = repo / "snapshots" / "commit" / file.relative_to(release)
        link.parent.mkdir(parents=True, exist_ok=True)
        file.rename(repo / "blobs" / str(number))
        link.symlink_to(repo / "blobs" / str(number))
    made = convert(repo / "snapshots" / "commit", tmp_path / "model")
    assert made.preset == "wan2.1-t2v"
    assert not any(path.is_symlink() for path in made.folder.rglob("*"))
    assert rt.Engine.from_pretrained(made.folder).components.vae is not None


@pytest.mark.slow
def test_the_command(releases, tmp_path):
    from typer.testing import CliRunner

    from skyreels_rt.cli import app

    source, _ = releases("wan2.1-t2v")
    done = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "model"), "--copy"])
    assert done.exit_code == 0, done.output
    assert "preset wan2.1-t2v" in done.output.replace("\n", "")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["_preset"] == "wan2.1-t2v"
    done = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "model")])
    assert done.exit_code == 2
