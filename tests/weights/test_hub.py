"""Hub ids come from huggingface_hub's cache; nothing is asked of a network here."""

import builtins
import logging

import pytest

import skyreels_rt as rt
from skyreels_rt.errors import MissingDependency, ModelError
from skyreels_rt.testing.tiny import TinyModel, write_tiny_model
from skyreels_rt.weights.hub import PATTERNS, fetch_snapshot, is_hub_id

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/tiny-model"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache as huggingface_hub lays it out: blobs, and links to them from a snapshot."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # a test that asks a network fails
    repo = tmp_path / "hub" / "models--someone--tiny-model"
    snapshot, blobs = repo / "snapshots" / COMMIT, repo / "blobs"
    write_tiny_model(tmp_path / "model", TinyModel())
    blobs.mkdir(parents=True)
    for number, file in enumerate(
        sorted(p for p in (tmp_path / "model").rglob("*") if p.is_file())
    ):
        file.rename(blobs / str(number))
        link = snapshot / file.relative_to(tmp_path / "model")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(number))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_cached_repository_loads(cache, revision):
    engine = rt.Engine.from_pretrained(NAME, revision=revision, offline=True)
    assert engine.components.name == str(cache)


def test_a_revision_that_is_not_pinned_is_logged(cache, caplog):
    with caplog.at_level(logging.INFO, logger="skyreels_rt.weights.hub"):
        fetch_snapshot(NAME, offline=True)
        assert COMMIT in caplog.text
        caplog.clear()
        fetch_snapshot(NAME, revision=COMMIT, offline=True)
        assert not caplog.text


@pytest.mark.parametrize("offline", [True, False])
def test_what_is_not_there_is_told(cache, offline):
    for name, revision in (("someone/other", None), (NAME, "f" * 40)):
        with pytest.raises(ModelError, match=name) as caught:
            fetch_snapshot(name, revision=revision, offline=offline)
        assert caught.value.hint


def test_only_json_and_safetensors_are_asked_for(cache, monkeypatch):
    import huggingface_hub

    asked = {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: asked.update(k) or str(cache)
    )
    fetch_snapshot(NAME, revision="v1")
    assert asked == {"revision": "v1", "local_files_only": False, "allow_patterns": list(PATTERNS)}
    assert set(PATTERNS) == {"*.json", "*.safetensors"}


def test_without_the_extra_it_is_named(monkeypatch):
    imported = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingDependency, match=r"\[hub\]"):
        fetch_snapshot(NAME)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("someone/tiny-model", True), ("A1/b_c.d", True), ("demo", False), ("./a/b", False),
        ("a/b/c", False), ("/a/b", False), ("../a/b", False), ("a/..", False), ("a/b ", False),
        ("https://x/y", False), ("a/b@main", False), ("", False),
    ],
)  # fmt: skip
def test_what_reads_as_a_hub_id(model, expected):
    assert is_hub_id(model) == expected


def test_an_existing_folder_is_never_a_hub_id(tmp_path, monkeypatch):
    (tmp_path / "someone" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("someone/model")


def test_a_mistyped_path_into_an_existing_folder_asks_nobody(tmp_path, monkeypatch):
    (tmp_path / "models" / "v3").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("models/v4")
    with pytest.raises(ModelError, match="models/v4: no such model"):
        rt.Engine.from_pretrained("models/v4")
