"""SyncNet against its authors' classes, and the filter: lags, digests, broken files, a build.

``official_syncnet_outputs.safetensors`` holds what the classes of joonson/syncnet_python and the
function of python_speech_features return for the seeded weights and inputs below.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from skyreels_rt.bench.data_corpus import TalkingClip, delayed, write_clip
from skyreels_rt.conversion.syncnet_file import convert_syncnet
from skyreels_rt.data.build import MANIFEST, build
from skyreels_rt.data.manifest import read_manifest
from skyreels_rt.data.mfcc import cepstra
from skyreels_rt.data.settings import SyncNetSettings, load_settings
from skyreels_rt.data.shards import ShardSet
from skyreels_rt.data.sync import sync_scores
from skyreels_rt.data.syncnet import (
    face_picture,
    face_squares,
    load_syncnet,
    mean_distances,
    syncnet_scores,
)
from skyreels_rt.errors import (
    InvalidArgument,
    ModelError,
    NonFinite,
    WeightsMismatch,
    WorkerFailed,
)
from skyreels_rt.models.syncnet import SyncNet
from skyreels_rt.weights.loader import weights_fingerprint

GOLDEN = Path(__file__).parent / "official_syncnet_outputs.safetensors"


def seeded_syncnet(seed=3):
    """Weights that keep activations near unit size; none of them is zero or one."""
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        network = SyncNet()
    state = {}
    for name, value in sorted(network.state_dict().items()):
        noise = torch.randn(value.shape, generator=draw)
        if name.endswith("running_var"):
            state[name] = 0.5 + noise.square()
        elif value.dim() > 1:
            state[name] = noise * (2 / value[0].numel()) ** 0.5
        else:
            state[name] = 0.1 * noise + name.endswith("weight")
    state["netcnnlip.0.weight"] /= 720  # of grey levels
    state["netcnnaud.0.weight"] /= 60  # of cepstra
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def seeded_faces(count, seed=5):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 224, 224, 3), generator=draw, dtype=torch.uint8)


def seeded_sound(seconds, seed=7):
    noise = np.random.default_rng(seed).standard_normal(round(16_000 * seconds))
    return (0.1 * noise).astype(np.float32)


def seeded_points(count=60, lag=4):
    """Points of pictures, and of sound that they are ``lag`` windows later than."""
    draw = torch.Generator().manual_seed(5)
    sound = torch.randn(count, 1024, generator=draw)
    return sound.roll(lag, 0) + 0.5 * torch.randn(count, 1024, generator=draw), sound


@pytest.fixture(scope="module")
def network():
    return seeded_syncnet()


def golden(name):
    with safe_open(GOLDEN, framework="pt") as file:
        return file.get_tensor(name)


# ---------------------------------------------------------------- against the official classes


def test_outputs_are_those_of_the_official_class(network):
    with safe_open(GOLDEN, framework="pt") as file:
        digest = file.metadata()["weights"]
    assert weights_fingerprint(network) == digest, "torch draws other numbers now"
    columns = torch.from_numpy(cepstra(seeded_sound(0.4))).float()
    with torch.inference_mode():
        pictures = network.embed_pictures(seeded_faces(6))
        sound = network.embed_sound(columns.unfold(1, 20, 4).transpose(0, 1)[:2])
    for found, name in ((pictures, "pictures"), (sound, "sound")):
        assert golden(name).std() > 0.3
        assert (found - golden(name)).abs().max() <= 1e-5


def test_cepstra_are_those_of_the_official_front_end():
    found = cepstra(seeded_sound(0.4))
    assert found.shape == golden("mfcc").shape == (13, 39)
    assert np.abs(found - golden("mfcc").numpy()).max() <= 1e-9


def test_distances_and_their_sign_are_official():
    distances = mean_distances(*seeded_points())
    assert (distances - golden("distances")).abs().max() <= 1e-5
    assert 15 - int(distances.argmin()) == int(golden("offset")) == 4


def test_windows_stand_alone(network):
    """What is embedded in one go is what single windows give."""
    faces = seeded_faces(7)
    with torch.inference_mode():
        together = network.embed_pictures(faces)
        single = torch.cat([network.embed_pictures(faces[i : i + 5]) for i in range(3)])
    assert together.shape == (3, 1024)
    torch.testing.assert_close(together, single, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- lags


class LevelEmbedder:
    """Points that are known: brightness of a face, and loudness beside it, on one line."""

    def __init__(self, gain=1.0, offset=0.0):
        self.gain, self.offset = gain, offset
        self.most = 0

    def embed_pictures(self, frames):
        self.most = max(self.most, len(frames))
        return frames.float().mean((1, 2, 3)).unfold(0, 5, 1).mean(1, keepdim=True)

    def embed_sound(self, windows):
        return windows[:, 0].mean(1, keepdim=True) * self.gain + self.offset


def leveled(seed, count=110):
    """Grey level of every frame, and noise that is as loud as the frame is bright."""
    draw = np.random.default_rng(seed)
    levels = np.convolve(draw.standard_normal(count + 2), np.ones(3) / 3, "valid")
    noise = draw.standard_normal(640 * count) * 0.02 * np.exp(np.repeat(levels, 640))
    return np.clip(128 + 40 * levels, 0, 255), noise.astype(np.float32)


def faces_of(greys):
    return (np.full((224, 224, 3), grey, np.uint8) for grey in greys)


@pytest.fixture(scope="module")
def levels():
    """Embedder whose line from loudness to brightness was fitted on a clip in sync."""
    greys, noise = leveled(0)
    heard = cepstra(noise)[0]
    windows = np.array([heard[4 * i : 4 * i + 20].mean() for i in range(len(greys) - 5)])
    seen = np.convolve(np.floor(greys), np.ones(5) / 5, "valid")[: len(windows)]
    return LevelEmbedder(*np.polyfit(windows, seen, 1))


def moved(samples, frames):
    """Sound that is ``frames`` late."""
    clip = TalkingClip(np.zeros((len(samples) // 640, 1, 1, 3), np.uint8), samples)
    return delayed(clip, frames).audio


@pytest.mark.parametrize("delay", [-12, -7, -1, 0, 1, 5, 12])
def test_planted_delays_have_the_lag_of_the_other_sync_filters(levels, delay):
    greys, noise = leveled(1)
    sound = moved(noise, delay)
    found = syncnet_scores(faces_of(greys), sound, levels)
    assert found.lag == -delay
    assert sync_scores(greys, sound, 15).lag == found.lag
    assert found.confidence > 0
    assert levels.most <= 12, "a clip is never held as a whole"


def test_own_sound_is_more_certain_than_that_of_others(levels):
    own = [syncnet_scores(faces_of(leveled(n)[0]), leveled(n)[1], levels) for n in (2, 3, 4)]
    other = [syncnet_scores(faces_of(leveled(n)[0]), leveled(n + 1)[1], levels) for n in (2, 3, 4)]
    assert min(s.confidence for s in own) > 2 * max(s.confidence for s in other)
    assert max(s.distance for s in own) < min(s.distance for s in other)


@pytest.mark.parametrize("count", [0, 1, 4, 5, 35])
def test_clips_that_are_too_short_have_no_score(levels, count):
    greys, noise = leveled(1)
    assert syncnet_scores(faces_of(greys[:count]), noise[: 640 * count], levels) is None
    assert syncnet_scores(faces_of(greys[:36]), noise[: 640 * 36], levels) is not None


# ---------------------------------------------------------------- faces


def mesh(left, top, right, bottom):
    """Points on the edge of a box."""
    points = np.zeros((468, 2), np.float32)
    points[:, 0] = np.linspace(left, right, 468)
    points[:, 1] = np.linspace(top, bottom, 468)
    return points


def test_the_place_of_the_face_is_steady():
    meshes = np.stack([mesh(100, 40, 180, 140)] * 30)
    meshes[11:13] += 25  # two frames lost
    squares = face_squares(meshes)
    assert squares.shape == (30, 3)
    np.testing.assert_allclose(squares, np.tile([140, 90, 50], (30, 1)))


def test_faces_are_cut_out_blue_first_and_grey_beyond():
    rows, columns = np.mgrid[0:240, 0:320]
    frame = np.stack([columns % 256, rows, np.full_like(rows, 7)], axis=2).astype(np.uint8)
    face = face_picture(frame, np.array([140.0, 90.0, 50.0]))
    # 70 pixels to both sides, 50 above and 90 below: 140 pixels become 224.
    assert face.shape == (224, 224, 3)
    assert face[112, 112, 0] == 7
    assert abs(int(face[112, 112, 2]) - 140) <= 1
    assert abs(int(face[112, 112, 1]) - 110) <= 1
    low = face_picture(frame, np.array([5.0, 230.0, 50.0]))
    assert (low[:, :100] == 110).all()
    assert (low[100:] == 110).all()
    assert (face_picture(frame, np.array([900.0, 90.0, 50.0])) == 110).all()


# ---------------------------------------------------------------- the user's file


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    """File of the seeded weights, and its digest."""
    file = tmp_path_factory.mktemp("syncnet") / "mine.safetensors"
    save_file(network.state_dict(), file)
    return file, hashlib.sha256(file.read_bytes()).hexdigest()


def saved(path, change):
    state = seeded_syncnet().state_dict()
    change(state)
    save_file(state, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_checked_file_is_the_network(network, weights):
    assert weights_fingerprint(load_syncnet(*weights)) == weights_fingerprint(network)


def test_another_digest_is_refused(weights):
    other = "0" * 64
    with pytest.raises(ModelError, match=f"{other}, got .*{weights[1]}"):
        load_syncnet(weights[0], other)


@pytest.mark.parametrize(
    ("data", "message"),
    [(None, "no such file"), (b"", "safetensors"), (b"garbage" * 9, "safetensors")],
)
def test_files_that_are_none(tmp_path, data, message):
    file = tmp_path / "file.safetensors"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(ModelError, match=message):
        load_syncnet(file, hashlib.sha256(data or b"").hexdigest())


def test_a_huge_file_is_not_read(tmp_path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelError, match="at most"):
        load_syncnet(tmp_path / "huge", "0" * 64)


def put(name, value):
    return lambda state: state.update({name: value})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda state: state.pop("netfcaud.3.bias"), WeightsMismatch, "missing .*netfcaud.3.bias"),
        (put("extra", torch.ones(1)), WeightsMismatch, "unexpected .*extra"),
        (put("netfcaud.3.bias", torch.ones(1023)), WeightsMismatch, "1024.*1023"),
        (put("netfcaud.3.bias", torch.ones(1024, dtype=torch.int32)), WeightsMismatch, "floating"),
        (put("netfclip.3.bias", torch.full((1024,), torch.nan)), NonFinite, "netfclip.3.bias"),
    ],
)
def test_files_of_other_networks(tmp_path, change, error, message):
    digest = saved(tmp_path / "other.safetensors", change)
    with pytest.raises(error, match=message):
        load_syncnet(tmp_path / "other.safetensors", digest)


def test_published_weights_are_converted(network, tmp_path):
    """Pickled as of old, with counters of batch norms; the command prints the settings to use."""
    from typer.testing import CliRunner

    from skyreels_rt.cli import app

    state = network.state_dict() | {"netcnnaud.1.num_batches_tracked": torch.tensor(3)}
    source, target = tmp_path / "syncnet_v2.model", tmp_path / "it's.safetensors"
    torch.save(state, source, _use_new_zipfile_serialization=False)
    made = CliRunner().invoke(app, ["data", "convert-syncnet", str(source), "-o", str(target)])
    assert made.exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [target.name, source.name]
    (tmp_path / "mine.toml").write_text(made.stdout)
    settings = load_settings(tmp_path / "mine.toml").syncnet
    loaded = load_syncnet(Path(settings.file), settings.sha256)
    assert weights_fingerprint(loaded) == weights_fingerprint(network)
    with pytest.raises(InvalidArgument, match="does not exist"):
        convert_syncnet(source, target)


def test_what_is_no_syncnet_is_not_converted(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.model")
    with pytest.raises(WeightsMismatch, match=r"other\.model: not a SyncNet"):
        convert_syncnet(tmp_path / "other.model", tmp_path / "made")
    with pytest.raises(ModelError, match="no such file"):
        convert_syncnet(tmp_path / "none.model", tmp_path / "made")
    assert [p.name for p in tmp_path.iterdir()] == ["other.model"]


# ---------------------------------------------------------------- settings and builds


def test_settings_depend_on_the_weights_and_not_on_where_they_lie():
    packaged = load_settings()
    assert packaged.syncnet == SyncNetSettings("", "")
    here, there = (
        replace(packaged, syncnet=SyncNetSettings(place, "1" * 64)) for place in ("/a", "/b")
    )
    other = replace(packaged, syncnet=SyncNetSettings("/a", "2" * 64))
    assert here.digest == there.digest
    assert len({packaged.digest, here.digest, other.digest}) == 3


@pytest.mark.parametrize(
    "text",
    ["file = 'a'", f"sha256 = '{'0' * 64}'", "file = 'a'\nsha256 = 'zz'", "file = 3"],
)
def test_refused_settings(tmp_path, text):
    (tmp_path / "mine.toml").write_text(f"[syncnet]\n{text}")
    with pytest.raises(InvalidArgument, match="syncnet"):
        load_settings(tmp_path / "mine.toml")


def test_a_build_with_wrong_weights_does_not_begin(weights, settings, good, tmp_path):
    write_clip(tmp_path / "clip.mp4", good(1))
    wrong = replace(settings, syncnet=SyncNetSettings(str(weights[0]), "0" * 64))
    with pytest.raises(WorkerFailed, match="SHA-256"):
        build([tmp_path / "clip.mp4"], tmp_path / "out", wrong, workers=1)


def bounded(settings, weights, **bounds):
    """Settings with SyncNet on and its confidence bounded so."""
    confidence = next(f for f in settings.filters if f.name == "syncnet_confidence")
    offset = next(f for f in settings.filters if f.name == "syncnet_offset")
    changed = {confidence: replace(confidence, **bounds), offset: replace(offset, maximum=15.0)}
    return replace(
        settings,
        syncnet=SyncNetSettings(str(weights[0]), weights[1]),
        filters=tuple(changed.get(f, f) for f in settings.filters),
    )


@pytest.fixture(scope="module")
def talking(good, tmp_path_factory):
    """Folder with a clip that passes all other filters, and one without sound."""
    folder = tmp_path_factory.mktemp("in") / "in"
    folder.mkdir()
    clip = TalkingClip(good(1).frames[:55], good(1).audio[: 640 * 55])
    write_clip(folder / "clip.mp4", clip)
    write_clip(folder / "silent.mp4", replace(clip, audio=0 * clip.audio))
    return folder


def rows_of(folder):
    return {Path(r["source"]).stem: r for r in read_manifest(folder / MANIFEST)}


def test_the_filter_rejects_what_passed_the_others(weights, settings, talking, tmp_path):
    strict = bounded(settings, weights, minimum=1e9)
    summary = build([talking], tmp_path, strict, workers=1)
    rows = rows_of(tmp_path)
    row, silent = rows["clip"], rows["silent"]
    assert row["failed"] == ["syncnet_confidence"] == [row["reason"]]
    assert (row["kept"], row["shard"], row["crop_side"], summary.num_shards) == (False, "", None, 0)
    assert row["score_syncnet_confidence"] >= 0
    assert row["score_syncnet_offset"] <= 15
    assert silent["reason"] == "speech"
    assert silent["score_syncnet_confidence"] is None
    assert summary.seconds["syncnet"] > 0


@pytest.mark.slow
def test_samples_keep_their_scores_of_the_filter(weights, settings, talking, tmp_path):
    build([talking], tmp_path, bounded(settings, weights, minimum=-1e9), workers=1)
    row = rows_of(tmp_path)["clip"]
    assert row["kept"]
    sample = ShardSet(tmp_path).sample(0)
    assert sample.facts["scores"]["syncnet_confidence"] == row["score_syncnet_confidence"] >= 0
