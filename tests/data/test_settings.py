"""Settings are versioned, strict, and tell builds apart."""

import pytest

from skyreels_rt.data.filters import FILTERS, Clipping, FaceSize, Filter, SyncPeak
from skyreels_rt.data.measures import (
    ClipScores,
    FaceScores,
    PictureScores,
    SpeechScores,
    SyncNetScores,
    SyncScores,
)
from skyreels_rt.data.settings import load_settings, settings_from
from skyreels_rt.errors import InvalidArgument

SCORES = ClipScores(
    picture=PictureScores(25.0, 5.0, 0.0, 0.04, 0.0),
    face=FaceScores(1.0, 0.0, 120.0, 8.0, 130.0, 0.6, 0.92),
    speech=SpeechScores(0.9, 30.0, 0.001, -23.0),
    sync=SyncScores(0.6, 0, 0.4),
    syncnet=SyncNetScores(6.0, 0, 7.0),
)
UNSEEN = ClipScores(
    picture=SCORES.picture,
    face=FaceScores(0.0, 0.0, None, None, None, None, None),
    speech=SpeechScores(0.0, None, 0.0, -70.0),
    sync=None,
)


def test_packaged_settings_name_every_filter_in_order():
    settings = load_settings()
    assert [type(f) for f in settings.filters] == list(FILTERS)
    assert all(f.bounds() for f in settings.filters)


def test_packaged_bounds_keep_a_good_clip():
    assert all(f.passes(f.score(SCORES)) for f in load_settings().filters)


def test_a_clip_without_face_or_speech_fails_by_that_alone():
    failed = {f.name for f in load_settings().filters if not f.passes(f.score(UNSEEN))}
    assert failed == {"face_share", "speech", "loudness"}


@pytest.mark.parametrize("cls", FILTERS, ids=lambda cls: cls.name)
def test_bounds_are_inclusive(cls: type[Filter]):
    score = cls().score(SCORES)
    assert cls(minimum=score, maximum=score).passes(score)
    assert not cls(minimum=score + 0.5).passes(score)
    assert not cls(maximum=score - 0.5).passes(score)
    assert cls(minimum=1e9).passes(None)


def test_a_file_overlays_the_packaged_settings(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[filters.face_size]\nminimum = 10\n[output]\nsize = 128\n")
    mine, packaged = load_settings(file), load_settings()
    assert FaceSize(minimum=10.0) in mine.filters
    assert mine.output.size == 128
    assert mine.clips == packaged.clips
    assert Clipping(maximum=0.01) in mine.filters
    assert mine.digest != packaged.digest


def test_settings_survive_json():
    packaged = load_settings()
    assert settings_from(packaged.to_json()) == packaged
    assert settings_from(packaged.to_json()).digest == packaged.digest


@pytest.mark.parametrize(
    "text",
    [
        "version = 2",
        "[filters.beauty]\nminimum = 1",
        "[filters.pose]\nlimit = 1",
        "[filters.pose]\nmaximum = nan",
        "[output]\nsize = 63",
        "[output]\nsize = 1e9",
        "[output]\nsize = '64'",
        "[clips]\nmin_s = 9\nmax_s = 3",
        "[clips]\nspeed = 3",
        "[sound]\nrate = 3",
        "clips = 3",
        "not toml",
    ],
)
def test_refused_settings(tmp_path, text):
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(InvalidArgument):
        load_settings(file)


def test_missing_file(tmp_path):
    with pytest.raises(InvalidArgument, match="TOML"):
        load_settings(tmp_path / "none.toml")


def test_filters_are_documented():
    for cls in FILTERS:
        assert cls.__doc__
        assert cls.score.__doc__
    assert SyncPeak.name == "sync_peak"
