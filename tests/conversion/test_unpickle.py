"""The one reader of pickles: tensors alone, and a process that can do nothing else."""

import json
import os
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file, save_file

from skyreels_rt.conversion.unpickle import Refused, convert_file, read_tensors

MODULE = "skyreels_rt.conversion.unpickle"


class Payload:
    """Unpickling this makes a folder."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def saved(tmp_path, content, name="file.pth", **options):
    torch.save(content, tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize(
    "content",
    [
        {"a.b": torch.ones(2), "c": torch.zeros(1, dtype=torch.int64)},
        OrderedDict(a=OrderedDict(b=torch.ones(2)), c=torch.zeros(1, dtype=torch.int64)),
        {"state_dict": {"a.b": torch.ones(2), "c": torch.zeros(1, dtype=torch.int64)}},
    ],
    ids=["flat", "nested", "wrapped"],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_dictionaries_become_dotted_names(tmp_path, content, legacy):
    file = saved(tmp_path, content, _use_new_zipfile_serialization=not legacy)
    found = read_tensors(file)
    assert found.keys() == {"a.b", "c"}
    assert found["a.b"].tolist() == [1, 1]


def test_safetensors_are_read_without_unpickling(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "file.safetensors")
    assert read_tensors(tmp_path / "file.safetensors")["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(2), "step": 3}, "step holds int"),
        ([torch.zeros(2)], "the file holds list"),
        ({}, "no tensors"),
        ({"state_dict": {}}, "no tensors"),
    ],
)
def test_other_objects_are_refused(tmp_path, content, message):
    with pytest.raises(Refused, match=message):
        read_tensors(saved(tmp_path, content))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x80\x02.", b"garbage"])
def test_damaged_files_are_refused(tmp_path, data):
    (tmp_path / "file.pth").write_bytes(data)
    with pytest.raises(Refused):
        read_tensors(tmp_path / "file.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_pickle_runs_nothing(tmp_path, legacy):
    marker = tmp_path / "marker"
    file = saved(tmp_path, {"w": Payload(marker)}, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(Refused):
        read_tensors(file)
    assert not marker.exists()


def test_two_tensors_for_one_name_are_refused(tmp_path):
    clash = {"visual.cls_embedding": torch.zeros(2), "cls_embedding": torch.zeros(2)}
    with pytest.raises(Refused, match="two tensors become"):
        convert_file(saved(tmp_path, clash), tmp_path, "clip")


# ---------------------------------------------------------------- the process


def child(*arguments):
    command = [sys.executable, "-P", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    lines = done.stdout.strip().splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else {}


def test_the_process_writes_safetensors_and_says_so(tmp_path):
    file = saved(tmp_path, {"norm.weight": torch.ones(3)})
    (tmp_path / "out").mkdir()
    code, said = child("-m", MODULE, str(file), str(tmp_path / "out"), "umt5")
    assert (code, said) == (0, {"tensors": 1})
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert state["encoder.final_layer_norm.weight"].tolist() == [1, 1, 1]


ESCAPES = {
    "write": "open({outside!r}, 'w')",
    "os.open": "os.open({outside!r}, os.O_CREAT | os.O_WRONLY)",
    "mkdir": "os.mkdir({outside!r})",
    "chmod": "os.chmod({home!r}, 0o777)",
    "rename": "os.rename({inside!r}, {outside!r})",
    "program": "subprocess.run(['true'])",
    "system": "os.system('true')",
    "connect": "socket.create_connection(('127.0.0.1', 9))",
}


@pytest.mark.parametrize("escape", ESCAPES)
def test_the_fence_ends_a_process_that_would_do_more(tmp_path, escape):
    """What a file could run if it found a way around the unpickler."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    line = ESCAPES[escape].format(
        outside=str(tmp_path / "escaped"),
        inside=str(tmp_path / "out" / "mine"),
        home=str(tmp_path),
    )
    # Without torch, which the fence does not need, a start takes a tenth of the time.
    code, said = child(
        "-c",
        "import os, socket, subprocess, sys, types, importlib.util\n"
        "from pathlib import Path\n"
        "for name in ('torch', 'safetensors', 'safetensors.torch'):\n"
        "    sys.modules[name] = types.SimpleNamespace(Tensor=object, load_file=None)\n"
        "for name, value in (('encoder_maps', 'TENSOR_MAPS'), ('loader', 'save_weights')):\n"
        "    sys.modules[f'skyreels_rt.weights.{name}'] = types.SimpleNamespace(**{value: None})\n"
        f"from {MODULE} import confine\n"
        f"confine(Path({str(tmp_path / 'out')!r}))\n"
        f"open({str(tmp_path / 'out' / 'allowed')!r}, 'w').close()\n"
        f"{line}\n",
    )
    assert code == 3, said
    assert "tried to" in said["error"]
    assert (tmp_path / "out" / "allowed").exists()
    assert not (tmp_path / "escaped").exists()
