"""Messages between an engine and its workers: what goes in comes out, and nothing else does."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyreels_rt import errors
from skyreels_rt.distributed.messages import (
    DTYPES,
    Message,
    error_facts,
    error_of,
    pack_options,
    read_message,
    write_message,
)


def sent(message):
    stream = io.BytesIO()
    write_message(stream, message)
    stream.seek(0)
    return stream


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4)])
def test_arrays_come_out_as_they_went_in(dtype, shape):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    found = read_message(sent(Message("kind", {"number": 1.5}, {"x": array, "t": array.T})))
    assert (found.kind, found.facts) == ("kind", {"number": 1.5})
    np.testing.assert_array_equal(found.arrays["x"], array)
    np.testing.assert_array_equal(found.arrays["t"], array.T)
    assert found.arrays["x"].dtype == array.dtype
    found.arrays["x"][...] = 0  # what comes is the reader's own


def test_other_byte_orders_arrive_in_the_machine_s():
    found = read_message(sent(Message("k", {}, {"x": np.arange(5, dtype=">f8")}))).arrays["x"]
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, np.arange(5))


@pytest.mark.parametrize("array", [np.array([object()]), np.zeros(2, complex), np.array(["a"])])
def test_arrays_of_other_things_are_refused(array):
    with pytest.raises(errors.InvalidArgument, match="image"):
        write_message(io.BytesIO(), Message("k", {}, {"image": array}))


@given(st.integers(0, 200))
@settings(max_examples=50, deadline=None)
def test_a_stream_that_ends_early_gives_no_message(cut):
    whole = sent(Message("k", {"a": "b"}, {"x": np.arange(20.0)})).getvalue()
    if cut < len(whole):
        assert read_message(io.BytesIO(whole[:cut])) is None


@pytest.mark.parametrize(
    "line",
    [
        b"\n", b"[]\n", b"{}\n", b"\xff\n", b'{"kind": "k", "arrays": [["x", "object", [1]]]}\n',
        b'{"kind": "k", "arrays": [["x", "uint8", [-1]]]}\n', b'{"kind": "k", "arrays": 3}\n',
        b'{"kind": "k", "arrays": [["x", "uint8", ["1"]]]}\n',
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused(line):
    with pytest.raises(errors.WorkerFailed, match="cannot be read"):
        read_message(io.BytesIO(line + bytes(100)))


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidArgument("seed", expected="a number", got="x", stage="s", hint="Do."),
        errors.InvalidMesh("parallel", expected="2", got=3, suggestions=("window=2", "ring=2")),
        errors.WeightsMismatch("bad", missing=("a",), misshaped=("b",), hint="h"),
        errors.WorkerDied(3, 9),
        errors.WorkerTimeout(1, 2.5, "was silent"),
        errors.OutputError("full", stage="output"),
        errors.MissingDependency("diffusers"),
        errors.OutOfMemory("no room"),
    ],
)
def test_errors_arrive_with_their_type_and_facts(error):
    found = error_of(json.loads(json.dumps(error_facts(error))))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert vars(found) == vars(error)


def test_an_error_without_a_type_says_what_it_was():
    found = error_of(error_facts(ZeroDivisionError("division by zero")))
    assert type(found) is errors.WorkerFailed
    assert "ZeroDivisionError: division by zero" in str(found)


def test_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mouth").mkdir()
    pixels = np.zeros((2, 2, 3), np.uint8)
    facts, arrays = pack_options(
        {
            "image": pixels, "audio": "a.wav", "edit_mask": "mouth", "prompt": "mouth",
            "seed": np.int64(3), "shift": np.float32(0.5), "video": None,
        }
    )  # fmt: skip
    assert facts == {
        "audio": str(tmp_path / "a.wav"), "edit_mask": "mouth", "prompt": "mouth",
        "seed": 3, "shift": 0.5,
    }  # fmt: skip
    assert arrays == {"image": pixels} or arrays["image"] is pixels
    with pytest.raises(errors.InvalidArgument, match="seed"):
        pack_options({"seed": object()})
