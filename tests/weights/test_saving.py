"""Saved weights come back byte for byte, whole or not at all, in one file or in shards."""

import errno
import json
import os

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from skyreels_rt.errors import InvalidArgument, ModelError, OutputError
from skyreels_rt.weights.loader import load_weights, save_weights, weights_fingerprint


def model(seed=0, layers=4):
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def loaded(folder, **options):
    module = model(seed=99)
    load_weights(module, folder, device="cpu", dtype=None, **options)
    return module


def test_single_file_round_trip(tmp_path):
    save_weights(model().state_dict(), tmp_path / "new" / "folder")
    assert names(tmp_path / "new" / "folder") == ["diffusion_pytorch_model.safetensors"]
    assert weights_fingerprint(loaded(tmp_path / "new" / "folder")) == weights_fingerprint(model())


def test_sharded_round_trip(tmp_path):
    state = model().state_dict()
    save_weights(state, tmp_path, filename="model.safetensors", max_shard_bytes=300)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == state.keys()
    assert index["metadata"]["total_size"] == 4 * (64 + 8) * 4
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [f"model-{i:05}-of-00004.safetensors" for i in range(1, 5)]
    for key, shard in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / shard)[key], state[key])
    assert all((tmp_path / shard).stat().st_size < 1200 for shard in shards)
    assert weights_fingerprint(loaded(tmp_path)) == weights_fingerprint(model())


def test_a_tensor_above_the_limit_gets_its_own_shard(tmp_path):
    save_weights(model().state_dict(), tmp_path, max_shard_bytes=1)
    assert len(names(tmp_path)) == 8 + 1
    assert weights_fingerprint(loaded(tmp_path)) == weights_fingerprint(model())


@pytest.mark.parametrize(("first", "second"), [(600, 5e9), (5e9, 600), (600, 300), (300, 600)])
def test_saving_again_leaves_nothing_of_the_old_checkpoint(tmp_path, first, second):
    save_weights(model(seed=1).state_dict(), tmp_path, max_shard_bytes=first)
    save_weights(model(seed=2).state_dict(), tmp_path, max_shard_bytes=second)
    assert weights_fingerprint(loaded(tmp_path)) == weights_fingerprint(model(seed=2))
    alone = tmp_path / "alone"
    save_weights(model(seed=2).state_dict(), alone, max_shard_bytes=second)
    assert [name for name in names(tmp_path) if name != "alone"] == names(alone)


def test_tied_and_viewed_tensors(tmp_path):
    base = torch.arange(12.0)
    state = {"a": base[:4], "b": base.view(3, 4).t(), "c": base, "tied": base, "e": torch.ones(0)}
    save_weights(state, tmp_path, filename="model.safetensors")
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() == {"a", "b", "c", "e"}
    for name, value in stored.items():
        assert torch.equal(value, state[name])


def test_saving_the_same_weights_twice_gives_the_same_bytes(tmp_path):
    save_weights(model().state_dict(), tmp_path / "a")
    save_weights(model().state_dict(), tmp_path / "b")
    (left,), (right,) = (tmp_path / "a").iterdir(), (tmp_path / "b").iterdir()
    assert left.read_bytes() == right.read_bytes()


def test_files_get_ordinary_permissions(tmp_path):
    save_weights(model().state_dict(), tmp_path / "ckpt")
    (tmp_path / "plain").touch()
    (file,) = (tmp_path / "ckpt").iterdir()
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch, call):
    from skyreels_rt.weights import loader

    save_weights(model(seed=1).state_dict(), tmp_path, max_shard_bytes=300)
    before = names(tmp_path)
    real, calls = loader.save_file, []

    def fails_once(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **kwargs)

    monkeypatch.setattr(loader, "save_file", fails_once)
    with pytest.raises(OutputError, match="No space left"):
        save_weights(model(seed=2).state_dict(), tmp_path, max_shard_bytes=300)
    assert names(tmp_path) == before
    assert weights_fingerprint(loaded(tmp_path)) == weights_fingerprint(model(seed=1))


def test_a_file_in_the_folders_place(tmp_path):
    (tmp_path / "ckpt").write_text("taken")
    with pytest.raises(OutputError):
        save_weights(model().state_dict(), tmp_path / "ckpt")
    assert (tmp_path / "ckpt").read_text() == "taken"


@pytest.mark.parametrize("filename", ["../a.safetensors", "a/b.safetensors", "a.bin", "", "a\x00"])
def test_file_names_that_are_refused(tmp_path, filename):
    with pytest.raises(InvalidArgument, match="filename"):
        save_weights(model().state_dict(), tmp_path, filename=filename)
    assert not names(tmp_path)


def test_fingerprint_sees_values_names_dtypes_and_shapes():
    base = weights_fingerprint(model())
    assert base == weights_fingerprint(model())
    assert len(base) == 64
    changed = model()
    with torch.no_grad():
        changed[3].bias[7] += 1e-6
    reshaped = model()
    reshaped[0].weight = nn.Parameter(reshaped[0].weight.reshape(4, 16))
    prints = {base, weights_fingerprint(changed), weights_fingerprint(reshaped)}
    prints |= {weights_fingerprint(nn.ModuleDict({"m": model()}))}
    prints |= {weights_fingerprint(model().bfloat16()), weights_fingerprint(model().half())}
    assert len(prints) == 6


def test_fingerprint_does_not_depend_on_registration_order():
    one, two = nn.Module(), nn.Module()
    for name in ("a", "b"):
        one.register_buffer(name, torch.full((2,), float(ord(name))))
    for name in ("b", "a"):
        two.register_buffer(name, torch.full((2,), float(ord(name))))
    assert weights_fingerprint(one) == weights_fingerprint(two)


def test_what_cannot_be_stored_leaves_no_file(tmp_path):
    with pytest.raises(OutputError):
        save_weights({"x": torch.zeros(2, dtype=torch.complex128)}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_checkpoints_in_one_folder_are_refused(tmp_path):
    save_weights({"x": torch.zeros(2)}, tmp_path)
    save_weights({"x": torch.ones(2)}, tmp_path, filename="model.safetensors")
    with pytest.raises(ModelError, match="two checkpoints"):
        load_weights(model(), tmp_path, device="cpu", dtype=None)
