"""Shards keep samples without loss, depend on nothing else, and are read in any order."""

import tarfile
import time
from itertools import islice

import numpy as np
import pytest

from skyreels_rt.data.shards import (
    Sample,
    Shard,
    ShardSet,
    ShardWriter,
    float_wave,
    pack_masks,
    sample_files,
    unpack_masks,
)
from skyreels_rt.errors import InvalidArgument, ModelError


def made(number: int, *, num_frames: int = 3, size: int = 36) -> Sample:
    draw = np.random.default_rng(number)
    return Sample(
        key=f"s_{number:03d}",
        frames=draw.integers(0, 256, (num_frames, size, size, 3), dtype=np.uint8),
        audio=draw.standard_normal(num_frames * 640).astype(np.float32),
        caption=f"person number {number}, größer",
        masks={name: draw.random((num_frames, size, size)) < 0.3 for name in ("face", "mouth")},
        facts={"number": number, "lag": None},
        mouth=draw.random((num_frames, 5)).astype(np.float32) if number % 2 else None,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten samples in four shards."""
    folder = tmp_path_factory.mktemp("shards")
    for shard, numbers in enumerate(np.array_split(np.arange(10), 4)):
        with ShardWriter(folder / f"shard-{shard:06d}.tar") as writer:
            for number in numbers:
                sample = made(int(number))
                writer.add(sample.key, sample_files(sample))
    return folder


def test_nothing_is_lost(folder):
    held = ShardSet(folder)
    assert len(held) == 10
    for number in range(10):
        got, expected = held.sample(number), made(number)
        np.testing.assert_array_equal(got.frames, expected.frames)
        np.testing.assert_array_equal(got.audio, expected.audio)
        assert (got.key, got.caption) == (expected.key, expected.caption)
        assert got.facts == expected.facts
        for name, mask in expected.masks.items():
            np.testing.assert_array_equal(got.masks[name], mask)
        if expected.mouth is None:
            assert got.mouth is None
        else:
            np.testing.assert_array_equal(got.mouth, expected.mouth)


def test_bytes_do_not_depend_on_the_time(tmp_path):
    paths = []
    for name in ("a.tar", "b.tar"):
        with ShardWriter(tmp_path / name) as writer:
            writer.add("s_1", sample_files(made(1)))
        paths.append(tmp_path / name)
        time.sleep(1.1)  # files know the time to the second
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_any_webdataset_reader_can_group_the_members(folder):
    with tarfile.open(folder / "shard-000000.tar") as tar:
        names = tar.getnames()
    assert [n for n in names if n.startswith("s_001.")] == [
        "s_001.json", "s_001.masks.npz", "s_001.mkv", "s_001.mouth.npy", "s_001.txt", "s_001.wav",
    ]  # fmt: skip


def test_the_order_is_shuffled_complete_and_a_function_of_the_number(folder):
    held = ShardSet(folder, seed=3, mix=2)
    epochs = [[held.place(n) for n in range(e * 10, e * 10 + 10)] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != sorted(epochs[0])
    late = ShardSet(folder, seed=3, mix=2)
    assert [late.place(n) for n in (17, 4, 29)] == [epochs[1][7], epochs[0][4], epochs[2][9]]
    assert [ShardSet(folder, seed=4, mix=2).place(n) for n in range(10)] != epochs[0]
    assert [ShardSet(folder).place(n) for n in range(12)] == [*range(10), 0, 1]


def test_a_stream_goes_on_where_it_stopped(folder):
    whole = [s.key for s in islice(ShardSet(folder, seed=1).stream(), 14)]
    resumed = [s.key for s in islice(ShardSet(folder, seed=1).stream(9), 5)]
    assert whole[9:] == resumed


def test_an_interrupted_shard_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "a.tar") as writer:
        writer.add("s_1", sample_files(made(1)))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["", "a.b", "../a", "a/b"])
def test_refused_keys(tmp_path, key):
    with ShardWriter(tmp_path / "a.tar") as writer, pytest.raises(InvalidArgument):
        writer.add(key, {"txt": b""})


def test_damage_is_named(folder, tmp_path):
    with pytest.raises(ModelError, match="no samples"):
        ShardSet(tmp_path)
    whole = (folder / "shard-000000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="readable shard"):
        held = Shard(tmp_path / "cut.tar")
        for index in range(len(held)):
            held.sample(index)
    (tmp_path / "text.tar").write_text("not a tar file")
    with pytest.raises(ModelError, match="readable shard"):
        Shard(tmp_path / "text.tar")


@pytest.mark.parametrize("missing", ["wav", "masks.npz", "mkv", "json"])
def test_a_sample_without_a_member(tmp_path, missing):
    files = sample_files(made(2))
    del files[missing]
    with ShardWriter(tmp_path / "a.tar") as writer:
        writer.add("s", files)
    with pytest.raises(ModelError, match="sample s"):
        ShardSet(tmp_path).sample(0)


def test_masks_of_odd_width():
    masks = {"face": np.random.default_rng(0).random((2, 5, 13)) < 0.5}
    np.testing.assert_array_equal(unpack_masks(pack_masks(masks))["face"], masks["face"])


def test_sound_opens_anywhere(tmp_path):
    import soundfile

    audio = np.linspace(-1.2, 1.2, 1_000, dtype=np.float32)
    (tmp_path / "a.wav").write_bytes(float_wave(audio))
    samples, rate = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert rate == 16_000
    np.testing.assert_array_equal(samples, audio)
