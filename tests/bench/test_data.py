"""What counts as found, and that the pipeline finds what was planted."""

from dataclasses import replace

import numpy as np
import pytest

from skyreels_rt.bench.data import (
    MIN_DELAYS_FOUND,
    MIN_KEPT,
    MIN_RECALL,
    count_faults,
    measure_data,
    write_rolled,
)
from skyreels_rt.bench.data_corpus import FAULTS, PLANTS, PlantedClip, write_corpus
from skyreels_rt.data.build import MANIFEST, build
from skyreels_rt.data.filters import FILTERS
from skyreels_rt.data.manifest import read_manifest
from skyreels_rt.data.settings import load_settings


def row(start, count, *, kept=False, failed=(), lag=0, reason="x"):
    return {
        "start_frame": start, "num_frames": count, "kept": kept, "failed": list(failed),
        "lag_frames": lag, "reason": "" if kept else reason,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("planted", "rows", "found", "by_filter"),
    [
        (PlantedClip("a", "dark", bad=(0, 90)), [row(0, 90, failed=["exposure"])], 1, 1),
        (PlantedClip("a", "dark", bad=(0, 90)), [row(0, 90, failed=["pose"])], 1, 0),
        (PlantedClip("a", "dark", bad=(0, 90)), [row(0, 90, kept=True)], 0, 0),
        (PlantedClip("a", "dark", bad=(0, 90)), [], 0, 0),
        (PlantedClip("a", "dark", bad=(0, 90)), [row(0, 0, reason="crashed")], 0, 0),
        (
            PlantedClip("a", "black", bad=(50, 60)),
            [row(0, 50, kept=True), row(50, 10, failed=["black_frames"]), row(60, 60, kept=True)],
            1,
            1,
        ),
        (PlantedClip("a", "black", bad=(50, 60)), [row(0, 51, kept=True)], 0, 0),
        (PlantedClip("a", "cuts", cuts=(30,)), [row(0, 30, kept=True), row(30, 40)], 1, 1),
        (PlantedClip("a", "cuts", cuts=(30,)), [row(0, 70, kept=True)], 0, 0),
        (PlantedClip("a", "delay", delay=5), [row(0, 70, kept=True, lag=-4)], 1, 1),
        (PlantedClip("a", "delay", delay=5), [row(0, 70, kept=True, lag=5)], 0, 0),
        (PlantedClip("a", "delay", delay=5), [row(0, 70, lag=-5)], 0, 0),
    ],
)
def test_what_counts_as_found(planted, rows, found, by_filter):
    (count,) = count_faults([planted], {"a": rows})
    assert (count.planted, count.found, count.by_filter) == (1, found, by_filter)


def test_every_fault_has_its_filters():
    known = {cls.name for cls in FILTERS}
    assert len(FAULTS) >= 12
    assert all(filters and filters <= known for _, filters in PLANTS.values())


def test_some_planted_faults_are_found(tmp_path):
    faults = ("other_voice", "delay")
    corpus = list(write_corpus(tmp_path / "in", "held_out", num_good=0, num_each=1, faults=faults))
    assert sorted(p.fault for p in corpus) == sorted(faults)
    packaged = load_settings()
    settings = replace(packaged, output=replace(packaged.output, size=64))
    build([tmp_path / "in"], tmp_path / "out", settings, workers=1)
    by_file = {}
    for found in read_manifest(tmp_path / "out" / MANIFEST):
        by_file.setdefault(found["source"].split("/")[1], []).append(found)
    assert all(c.found == c.by_filter == c.planted for c in count_faults(corpus, by_file))


@pytest.fixture(scope="module")
def real_rows(shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    (folder / "in").mkdir()
    write_rolled(shared_data / "video" / "talking_458_25fps_15s.mp4", folder / "in")
    packaged = load_settings()
    settings = replace(packaged, output=replace(packaged.output, size=64))
    build([folder / "in"], folder / "out", settings, workers=1)
    rows = read_manifest(folder / "out" / MANIFEST)
    return {n: [r for r in rows if n in r["source"]] for n in ("real", "rolled")}


def test_the_real_clip_passes_with_its_lag(real_rows):
    assert [r["num_frames"] for r in real_rows["real"]] == [250, 125]
    assert all(r["kept"] for r in real_rows["real"])
    assert all(1 <= r["lag_frames"] <= 3 for r in real_rows["real"])


def test_the_real_clip_rolled_by_two_seconds_is_out_of_sync(real_rows):
    sync = {"sync_peak", "sync_margin", "sync_lag"}
    for found in real_rows["rolled"]:
        assert sync & set(found["failed"])
        assert found["reason"] in sync


@pytest.mark.slow
def test_the_corpus_of_held_out_people(tmp_path, shared_data):
    report = measure_data(
        tmp_path,
        num_good=96,
        num_each=6,
        workers=None,
        real=shared_data / "video" / "talking_458_25fps_15s.mp4",
        command="test",
    )
    values = {r.name: r.value for r in report.rows}
    assert values["data.recall"] >= MIN_RECALL
    assert values["data.kept"] >= MIN_KEPT
    assert values["data.delays_found"] >= MIN_DELAYS_FOUND
    assert all(r.ok is not False for r in report.rows)
    assert len(report.details["faults"]) == len(FAULTS)
    assert np.all([count["planted"] == 6 for count in report.details["faults"]])
