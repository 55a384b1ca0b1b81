"""Damaged safetensors files give a typed error or tensors of the right size, never a crash."""

import random

import pytest
import torch
from torch import nn

from skyreels_rt.errors import ModelError, NonFinite, WeightsMismatch
from skyreels_rt.weights.loader import load_weights, save_weights


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def mutate(data: bytes, rng: random.Random, header_end: int) -> bytes:
    """Flip bits anywhere or in the header, cut, insert, double a run, write NaN, change a digit."""
    out = bytearray(data)
    kind = rng.randrange(7)
    if kind == 0:
        for _ in range(rng.randint(1, 8)):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        for _ in range(rng.randint(1, 3)):
            out[rng.randrange(header_end)] = rng.randrange(256)
    elif kind == 2:
        del out[rng.randrange(len(out)) :]
    elif kind == 3:
        at = rng.randrange(len(out))
        out[at:at] = rng.randbytes(rng.randint(1, 16))
    elif kind == 4:
        at, length = rng.randrange(len(out)), rng.randint(1, 64)
        out[at:at] = out[at : at + length]
    elif kind == 5:
        # A run of ones: NaN, where it covers a whole number.
        at = rng.randrange(header_end, len(out) - 8)
        out[at : at + 8] = b"\xff" * 8
    else:
        # A digit of an offset or a shape becomes another: the header stays well-formed JSON.
        digits = [i for i in range(8, header_end) if chr(out[i]).isdigit()]
        out[rng.choice(digits)] = ord(str(rng.randrange(10)))
    return bytes(out)


def run_mutations(tmp_path, count: int, seed: int) -> dict[str, int]:
    save_weights(model().state_dict(), tmp_path, filename="model.safetensors")
    file = tmp_path / "model.safetensors"
    good = file.read_bytes()
    header_end = 8 + int.from_bytes(good[:8], "little")
    rng = random.Random(seed)
    outcomes: dict[str, int] = {}
    for _ in range(count):
        file.write_bytes(mutate(good, rng, header_end))
        with torch.device("meta"):
            module = model()
        shapes = {name: value.shape for name, value in module.state_dict().items()}
        try:
            load_weights(module, tmp_path, device="cpu", dtype=torch.float32)
        except (ModelError, NonFinite) as error:
            outcome = type(error).__name__
            if isinstance(error, WeightsMismatch):
                assert all(parameter.is_meta for parameter in module.parameters())
            elif isinstance(error, ModelError):
                assert "model.safetensors" in str(error)
        else:
            outcome = "loaded"
            state = module.state_dict()
            assert {name: value.shape for name, value in state.items()} == shapes
            assert all(torch.isfinite(value).all() for value in state.values())
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes


def test_300_mutated_files(tmp_path):
    outcomes = run_mutations(tmp_path, 300, seed=20)
    # Each way out must have been taken, or the mutations prove nothing.
    assert outcomes.keys() == {"loaded", "ModelError", "WeightsMismatch", "NonFinite"}, outcomes


@pytest.mark.slow
def test_4000_mutated_files(tmp_path):
    outcomes = run_mutations(tmp_path, 4000, seed=21)
    assert outcomes.keys() == {"loaded", "ModelError", "WeightsMismatch", "NonFinite"}, outcomes


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"\xff" * 64, b"PK\x03\x04" * 9])
def test_files_that_are_something_else(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors: not a readable safetensors file"):
        load_weights(model(), tmp_path, device="cpu", dtype=torch.float32)


def test_a_huge_declared_shape_allocates_nothing(tmp_path):
    header = b'{"0.weight":{"dtype":"F32","shape":[1099511627776,0],"data_offsets":[0,0]}}'
    data = len(header).to_bytes(8, "little") + header
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(WeightsMismatch, match="1099511627776"):
        load_weights(model(), tmp_path, device="cpu", dtype=torch.float32)
