"""Loading is strict, stays inside its folder, never unpickles, and names every fault."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from skyreels_rt.errors import ModelError, NonFinite, SkyReelsError, WeightsMismatch
from skyreels_rt.weights.files import stored_dtype
from skyreels_rt.weights.loader import load_weights, plan_weights, save_weights


class Tiny(nn.Module):
    """A linear layer, a norm with its counters, a tied pair and a buffer that is not saved."""

    def __init__(self, tied: bool = True):
        super().__init__()
        self.proj = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.embed = nn.Embedding(5, 2)
        self.readout = nn.Linear(2, 5, bias=False)
        if tied:
            self.readout.weight = self.embed.weight
        self.reset_buffers(self.proj.weight.device)

    def reset_buffers(self, device):
        self.register_buffer("steps", torch.arange(6, device=device), persistent=False)


@pytest.fixture
def source():
    torch.manual_seed(0)
    module = Tiny()
    module.norm.num_batches_tracked.fill_(7)
    return module


@pytest.fixture
def folder(tmp_path, source):
    save_weights(source.state_dict(), tmp_path / "ckpt")
    return tmp_path / "ckpt"


def load(module, folder, **options):
    options = {"device": "cpu", "dtype": torch.float32} | options
    load_weights(module, folder, **options)
    return module


def same_bytes(left, right):
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def write(folder, state, name="model.safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous().clone() for key, value in state.items()}, folder / name)
    return folder


# ---------------------------------------------------------------- what loads


def test_in_place_load_keeps_the_parameter_objects(source, folder):
    module = Tiny()
    before = module.proj.weight
    load(module, folder)
    assert module.proj.weight is before
    assert same_bytes(module, source)


def test_meta_module_is_materialised_with_ties_and_buffers(source, folder):
    with torch.device("meta"):
        module = Tiny()
    module.proj.weight.requires_grad_(False)
    load(module, folder)
    assert same_bytes(module, source)
    assert module.readout.weight is module.embed.weight
    assert isinstance(module.proj.weight, nn.Parameter)
    assert not module.proj.weight.requires_grad
    assert module.proj.bias.requires_grad
    assert torch.equal(module.steps, torch.arange(6))
    assert not any(t.is_meta for t in [*module.parameters(), *module.buffers()])


def test_dtype_is_cast_for_floats_only(source, folder):
    with torch.device("meta"):
        module = Tiny()
    load(module, folder, dtype=torch.bfloat16)
    assert torch.equal(module.proj.weight, source.proj.weight.bfloat16())
    assert module.norm.num_batches_tracked.dtype == torch.int64
    assert module.norm.num_batches_tracked == 7
    assert module.steps.dtype == torch.int64


def test_dtype_none_keeps_the_dtypes_of_the_module(folder):
    module = Tiny()
    module.proj.to(torch.float64)
    load(module, folder, dtype=None)
    assert module.proj.weight.dtype == torch.float64
    assert module.embed.weight.dtype == torch.float32


def test_loaded_tensors_do_not_follow_the_file(folder, source):
    with torch.device("meta"):
        module = Tiny()
    load(module, folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    with file.open("r+b") as handle:
        handle.seek(-64, os.SEEK_END)
        handle.write(b"\xff" * 64)
    assert same_bytes(module, source)


def test_key_map_renames_and_drops(tmp_path, source):
    state = {f"net.{name}": value for name, value in source.state_dict().items()}
    folder = write(tmp_path, state | {"optimizer": torch.zeros(1)})
    module = load(Tiny(), folder, key_map=lambda n: n[4:] if n.startswith("net.") else None)
    assert same_bytes(module, source)


@pytest.mark.parametrize("kept", ["embed.weight", "readout.weight"])
def test_one_name_of_a_tied_pair_is_enough(tmp_path, source, kept):
    state = source.state_dict()
    other = {"embed.weight": "readout.weight", "readout.weight": "embed.weight"}[kept]
    state.pop(other)
    module = load(Tiny(), write(tmp_path, state))
    assert torch.equal(module.embed.weight, source.embed.weight)


def test_tied_names_must_agree(tmp_path, source):
    state = source.state_dict()
    assert same_bytes(load(Tiny(), write(tmp_path / "same", state)), source)
    state["readout.weight"] = state["readout.weight"] + 1
    with pytest.raises(ModelError, match=r"embed\.weight and readout\.weight are one tensor"):
        load(Tiny(), write(tmp_path / "other", state))


# ---------------------------------------------------------------- what does not fit


def test_mismatch_names_everything_and_touches_nothing(tmp_path, source):
    state = source.state_dict()
    del state["proj.bias"], state["norm.running_mean"]
    state["extra.one"] = torch.zeros(2)
    state["extra.two"] = torch.zeros(2)
    state["proj.weight"] = torch.zeros(4, 3)
    state["norm.weight"] = torch.zeros(3, dtype=torch.int32)
    state["norm.num_batches_tracked"] = torch.tensor(1.0)
    module = Tiny()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(WeightsMismatch) as caught:
        load(module, write(tmp_path, state))
    error = caught.value
    assert error.missing == ("proj.bias", "norm.running_mean")
    assert error.unexpected == ("extra.one", "extra.two")
    assert error.misshaped == (
        "norm.num_batches_tracked: expected () I64, got () F32",
        "norm.weight: expected (3,) floating point, got (3,) I32",
        "proj.weight: expected (3, 4) floating point, got (4, 3) F32",
    )
    for name in (*error.missing, *error.unexpected, *error.misshaped):
        assert name in str(error)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_meta_module_stays_on_meta_after_a_mismatch(tmp_path, source):
    state = source.state_dict()
    state["proj.weight"] = torch.zeros(1)
    with torch.device("meta"):
        module = Tiny()
    with pytest.raises(WeightsMismatch):
        load(module, write(tmp_path, state))
    assert all(parameter.is_meta for parameter in module.parameters())


def test_two_names_for_one_tensor_are_refused(tmp_path, source):
    state = source.state_dict() | {"old.proj.bias": torch.zeros(3)}
    with pytest.raises(WeightsMismatch, match=r"proj\.bias also claims"):
        load(Tiny(), write(tmp_path, state), key_map=lambda name: name.removeprefix("old."))


def test_diffusers_names_get_a_hint(tmp_path):
    state = {"condition_embedder.time_proj.weight": torch.zeros(1)}
    with pytest.raises(WeightsMismatch, match="diffusers_wan_key"):
        load(Tiny(), write(tmp_path, state))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_weights_are_named(tmp_path, source, value):
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    state["proj.weight"][1, 2] = value
    with pytest.raises(NonFinite, match=r"proj\.weight") as caught:
        load(Tiny(), write(tmp_path, state))
    assert caught.value.stage == "load"


def test_overflow_in_the_requested_dtype_is_non_finite(tmp_path, source):
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    state["proj.weight"][0, 0] = 1e6
    folder = write(tmp_path, state)
    load(Tiny(), folder, dtype=torch.bfloat16)
    with pytest.raises(NonFinite, match="float16"):
        load(Tiny(), folder, dtype=torch.float16)


def test_buffers_nobody_can_compute_are_named(tmp_path):
    class Lost(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(1, 1)
            self.inner.register_buffer("table", torch.zeros(2), persistent=False)

    folder = write(tmp_path, Lost().state_dict())
    with torch.device("meta"):
        module = Lost()
    with pytest.raises(ModelError, match=r"inner\.table.*no checkpoint holds"):
        load(module, folder)


# ---------------------------------------------------------------- folders and paths


def test_empty_and_absent_folders(tmp_path):
    with pytest.raises(ModelError, match="no weights found"):
        load(Tiny(), tmp_path)
    with pytest.raises(ModelError, match="no such model folder"):
        load(Tiny(), tmp_path / "absent")


class Payload:
    """Unpickling this makes a folder, so that it would be noticed."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def pickled(marker, kind):
    """Bytes of a hostile pickle, bare or inside the zip that torch writes."""
    import io
    import pickle

    if kind == "bare":
        return pickle.dumps(Payload(marker))
    buffer = io.BytesIO()
    torch.save({"weight": Payload(marker)}, buffer)
    return buffer.getvalue()


_pickle_events: list[str] = []
_hook_installed: list[bool] = []


@pytest.fixture
def pickle_events():
    """Classes that were looked up by any unpickler during the test."""
    if not _hook_installed:
        # Audit hooks cannot be removed, so there is one for the whole run.
        sys.addaudithook(
            lambda event, args: (
                _pickle_events.append(".".join(args)) if event == "pickle.find_class" else None
            )
        )
        _hook_installed.append(True)
    _pickle_events.clear()
    return _pickle_events


def test_the_audit_hook_sees_unpickling(tmp_path, pickle_events):
    import pickle

    pickle.loads(pickled(tmp_path / "made", "bare"))
    assert pickle_events
    assert (tmp_path / "made").is_dir()


@pytest.mark.parametrize("kind", ["bare", "zip"])
@pytest.mark.parametrize(
    "name",
    [
        "diffusion_pytorch_model.bin",
        "pytorch_model.bin",
        "model.pt",
        "model.pth",
        "model.ckpt",
        "model.PTH",
        "model.pkl",
        "model.safetensors",
        "diffusion_pytorch_model.safetensors",
    ],
)
def test_hostile_pickles_are_refused_unopened(tmp_path, pickle_events, name, kind):
    folder, marker = tmp_path / "ckpt", tmp_path / "marker"
    folder.mkdir()
    (folder / name).write_bytes(pickled(marker, kind))
    with pytest.raises(ModelError) as caught:
        load(Tiny(), folder)
    assert name in str(caught.value)
    if not name.endswith(".safetensors"):
        assert "convert" in str(caught.value)
    assert not marker.exists()
    assert not pickle_events


def test_a_normal_load_unpickles_nothing(folder, pickle_events):
    load(Tiny(), folder)
    assert not pickle_events


HOSTILE_ENTRIES = [
    "../secret.safetensors",
    "..",
    "a/../../secret.safetensors",
    "sub/secret.safetensors",
    "/etc/passwd",
    "{outside}",
    "C:secret.safetensors",
    "C:\\secret.safetensors",
    "\\\\host\\share\\secret.safetensors",
    "..\\secret.safetensors",
    "model\x00.safetensors",
    "secret.safetensors\n",
    "model.bin",
    ".safetensors",
    "",
    "file:secret.safetensors",
    "https://example.org/model.safetensors",
    7,
    None,
    ["model.safetensors"],
]


def index(folder, weight_map):
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


@pytest.mark.parametrize("entry", HOSTILE_ENTRIES, ids=repr)
def test_hostile_index_entries_are_refused_before_any_open(tmp_path, entry):
    # Opening either file would be reported as a damaged file, not as a bad name.
    (tmp_path / "secret.safetensors").write_bytes(b"not a checkpoint")
    if entry == "{outside}":
        entry = str(tmp_path / "secret.safetensors")
    folder = index(tmp_path / "ckpt", {"proj.weight": "good.safetensors", "proj.bias": entry})
    (folder / "good.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match="not the plain name"):
        load(Tiny(), folder)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "shard"])
def test_links_out_of_the_folder_are_refused_before_any_open(tmp_path, name):
    folder = tmp_path / "ckpt"
    (tmp_path / "secret.safetensors").write_bytes(b"not a checkpoint")
    folder.mkdir()
    if name == "shard":
        index(folder, {"proj.weight": "shard.safetensors"})
        (folder / "shard.safetensors").symlink_to("../secret.safetensors")
    else:
        (folder / name).symlink_to("../secret.safetensors")
    with pytest.raises(ModelError, match="outside its folder"):
        load(Tiny(), folder)


def test_links_inside_the_folder_and_to_it_are_followed(tmp_path, source, folder):
    file = folder / "diffusion_pytorch_model.safetensors"
    file.rename(folder / "real.safetensors")
    file.symlink_to("real.safetensors")
    (tmp_path / "alias").symlink_to(folder)
    assert same_bytes(load(Tiny(), tmp_path / "alias"), source)


def test_hub_cache_links_into_blobs_only(tmp_path, source):
    repo = tmp_path / "models--a--b"
    folder = repo / "snapshots" / "rev" / "transformer"
    folder.mkdir(parents=True)
    write(repo / "blobs", source.state_dict(), "abc123")
    write(repo / "other", source.state_dict(), "abc123")
    file = folder / "model.safetensors"
    file.symlink_to("../../../blobs/abc123")
    assert same_bytes(load(Tiny(), folder), source)
    file.unlink()
    file.symlink_to("../../../other/abc123")
    with pytest.raises(ModelError, match="outside its folder"):
        load(Tiny(), folder)


@pytest.mark.parametrize("kind", ["directory", "fifo", "dangling", "loop"])
def test_things_that_are_not_files(tmp_path, kind):
    path = tmp_path / "model.safetensors"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("model.safetensors" if kind == "loop" else "nowhere")
    with pytest.raises(ModelError):
        load(Tiny(), tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": 3}', "\x00"],
)
def test_unusable_indices(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json"):
        load(Tiny(), tmp_path)


def test_an_index_nested_too_deeply_is_an_error_not_a_crash(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": ' + "[" * 200_000)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json"):
        load(Tiny(), tmp_path)


def test_a_shard_that_is_not_there(tmp_path, source):
    folder = index(tmp_path, dict.fromkeys(source.state_dict(), "model-1.safetensors"))
    with pytest.raises(ModelError, match=r"model-1\.safetensors: no such file"):
        load(Tiny(), folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path, source):
    folder = index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    write(folder, source.state_dict(), "one.safetensors")
    write(folder, {"proj.bias": torch.zeros(3)}, "two.safetensors")
    with pytest.raises(ModelError, match=r"proj\.bias: stored twice"):
        load(Tiny(), folder)


def test_every_refusal_is_typed_with_stage_load(tmp_path):
    with pytest.raises(SkyReelsError) as caught:
        load(Tiny(), tmp_path)
    assert caught.value.stage == "load"
    assert caught.value.hint


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_stored_type_is_that_of_most_numbers(tmp_path, dtype):
    tensors = {"large": torch.zeros(50, dtype=dtype), "small": torch.zeros(9, dtype=torch.float64)}
    save_weights(tensors, tmp_path)
    assert stored_dtype(tmp_path) == dtype


def test_a_stored_type_that_no_model_runs_in_is_none(tmp_path):
    save_weights({"x": torch.zeros(3, dtype=torch.float64)}, tmp_path)
    assert stored_dtype(tmp_path) is None


# ---------------------------------------------------------------- several files, one checkpoint


def test_where_two_shards_hold_a_name_the_index_decides(tmp_path, source):
    """Adapters that replace tensors of their base come so."""
    state = source.state_dict()
    folder = write(tmp_path, state | {"proj.bias": torch.zeros(3)}, "base.safetensors")
    write(folder, {"proj.bias": state["proj.bias"]}, "adapter.safetensors")
    base = dict.fromkeys(state, "base.safetensors")
    index(folder, base | {"proj.bias": "adapter.safetensors"})
    assert same_bytes(load(Tiny(), folder), source)
    index(folder, base | {"other": "adapter.safetensors"})
    assert torch.equal(load(Tiny(), folder).proj.bias, torch.zeros(3))


def test_progress_in_bytes(folder, source):
    seen = []
    load(Tiny(), folder, on_bytes=lambda done, total: seen.append((done, total)))
    stored = {id(t): t for t in source.state_dict(keep_vars=True).values()}
    total = sum(t.numel() * t.itemsize for t in stored.values())
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


def test_merge_sees_what_is_stored_and_gives_what_is_loaded(tmp_path, source):
    state = {
        n: t.bfloat16() if t.is_floating_point() else t for n, t in source.state_dict().items()
    }
    names = []

    def merge(name, tensor):
        names.append((name, tensor.dtype))
        return tensor.float() + 1 if name == "proj.bias" else tensor

    module = load(Tiny(), write(tmp_path, state), merge=merge)
    assert torch.equal(module.proj.bias, state["proj.bias"].float() + 1)
    assert torch.equal(module.proj.weight, state["proj.weight"].float())
    assert ("proj.bias", torch.bfloat16) in names


def test_a_plan_reads_headers_only(folder, source):
    """All of a model's files can be checked before a byte is placed."""
    with torch.device("meta"):
        module = Tiny()
    plan = plan_weights(module, folder, dtype=torch.float32)
    assert all(parameter.is_meta for parameter in module.parameters())
    plan.fill("cpu")
    assert same_bytes(module, source)


PEAK = """
import resource, sys
from pathlib import Path
import torch
from torch import nn
from skyreels_rt.weights.loader import load_weights

def build():
    return nn.ModuleList(nn.Linear({width}, {width}, bias=False) for _ in range({count}))

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

load_weights(nn.Linear(1, 1), Path(sys.argv[1]) / "warm", device="cpu", dtype=torch.float32)
with torch.device("meta"):
    module = build()
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = resident()
load_weights(module, Path(sys.argv[1]) / "model", device="cpu", dtype=torch.bfloat16)
peak = int(next(
    line.split()[1] for line in Path("/proc/self/status").read_text().splitlines()
    if line.startswith("VmHWM")
)) * 1024
print(peak - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peak_is_the_model_and_one_shard(tmp_path):
    """In the large: a shard and 1 GB above what is placed. Here one of four shards and 12 MB."""
    width, count, shards = 1024, 16, 4
    stored = 4 * width * width * count
    save_weights(nn.Linear(1, 1).state_dict(), tmp_path / "warm")
    state = {f"{i}.weight": torch.full((width, width), float(i)) for i in range(count)}
    save_weights(state, tmp_path / "model", max_shard_bytes=stored / shards)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == shards
    script = PEAK.format(width=width, count=count)
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, str(tmp_path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak, placed = int(done.stdout), stored / 2
    assert placed / 2 < peak < placed + stored / shards + 12e6
