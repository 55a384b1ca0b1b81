"""A build of good, faulty, broken and disguised files: every verdict, every byte, every restart."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skyreels_rt.bench.data_corpus import TalkingClip, delayed, write_clip
from skyreels_rt.data.build import MANIFEST, REPORT, build
from skyreels_rt.data.manifest import read_manifest
from skyreels_rt.data.processes import run_in_processes
from skyreels_rt.data.settings import CaptionSettings, load_settings
from skyreels_rt.data.shards import ShardSet
from skyreels_rt.data.source import answer_for
from skyreels_rt.data.sync import sync_scores
from skyreels_rt.errors import InvalidArgument, WorkerFailed

FRAMES = 75
QUARTER_TURN = (0, 1 << 16, 0, -(1 << 16), 0, 0, 256 << 16, 0, 1 << 30)
DELAY = 6


def cut(clip, frames=FRAMES) -> TalkingClip:
    return TalkingClip(clip.frames[:frames], clip.audio[: frames * 640])


@pytest.fixture(scope="module")
def sources(tmp_path_factory, good, encode):
    """Files as a crawl may bring them."""
    folder = tmp_path_factory.mktemp("crawl")
    clip = cut(good(1))
    write_clip(folder / "good.mp4", clip)
    write_clip(folder / "late.mkv.mp4", delayed(clip, DELAY))
    silent = replace(clip, audio=np.zeros_like(clip.audio))
    write_clip(folder / "silent.mp4", silent)
    shutil.copy(folder / "good.mp4", folder / "twin.mp4")
    whole = (folder / "good.mp4").read_bytes()
    (folder / "halved.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").touch()
    (folder / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{folder / 'good.mp4'}'\n")
    (folder / "stream.mkv").write_text(f"#EXTM3U\n#EXTINF:1,\n{folder / 'good.mp4'}\n")
    encode(folder / "mute.mp4", cut(clip, 10), audio=False)
    encode(folder / "blind.mp4", cut(clip, 30), video=False)
    steps = np.tile([20, 40, 60], FRAMES // 3)
    encode(folder / "uneven.mkv", clip, pts=(np.cumsum(steps) - 20).tolist())
    turned = replace(clip, frames=np.rot90(clip.frames, 1, (1, 2)))
    encode(folder / "turned.mp4", turned, display=QUARTER_TURN)
    encode(folder / "rare.mkv", cut(clip, 10), codec="wavpack")
    broken = clip.audio.copy()
    broken[20_000] = np.nan
    encode(folder / "nan.mkv", cut(replace(clip, audio=broken), 60), codec="pcm_f32le")
    loud = clip.audio.copy()
    loud[20_000] = 1e6
    encode(folder / "loud.mkv", cut(replace(clip, audio=loud), 60), codec="pcm_f32le")
    (folder / "torn.mp4").write_bytes(_torn(whole))
    flat = np.zeros((2, 2400, 4096, 3), np.uint8)
    encode(folder / "huge.mp4", TalkingClip(flat, clip.audio[: 2 * 1280]))
    (folder / "notes.txt").write_text("not looked at")
    return folder


def _torn(whole: bytes) -> bytes:
    """A file whose index is whole and whose second half is noise."""
    middle = (whole.index(b"mdat") + len(whole)) // 2
    noise = np.random.default_rng(0).integers(0, 256, (len(whole) - middle) // 2, np.uint8)
    return whole[:middle] + noise.tobytes() + whole[middle + len(noise) :]


@pytest.fixture(scope="module")
def built(sources, settings, tmp_path_factory):
    """Folder and summary of a build by one worker."""
    folder = tmp_path_factory.mktemp("built")
    return folder, build([sources], folder, settings, workers=1)


@pytest.fixture(scope="module")
def rows(built):
    """Rows of the manifest by file; one clip or verdict each."""
    return {Path(row["source"]).name: row for row in read_manifest(built[0] / MANIFEST)}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("good.mp4", ""), ("late.mkv.mp4", ""), ("uneven.mkv", ""), ("turned.mp4", ""),
        ("silent.mp4", "speech"), ("twin.mp4", "duplicate"), ("halved.mp4", "unreadable"),
        ("empty.mp4", "unreadable"), ("list.mp4", "unreadable"), ("stream.mkv", "unreadable"),
        ("rare.mkv", "unreadable_sound"), ("nan.mkv", "damaged_sound"),
        ("loud.mkv", "damaged_sound"), ("mute.mp4", "no_audio"), ("blind.mp4", "no_video"),
        ("huge.mp4", "too_large"),
    ],
)  # fmt: skip
def test_every_file_has_its_verdict(rows, name, reason):
    row = rows[name]
    assert (row["reason"], row["kept"]) == (reason, reason == "")
    assert bool(row["shard"]) == row["kept"]
    assert row["kept"] or row["detail"] or row["failed"]


def test_a_torn_file_has_a_reason(built):
    """What lies before the damage is judged, the rest has a row of its own or looks bad."""
    rows = [r for r in read_manifest(built[0] / MANIFEST) if "torn" in r["source"]]
    assert rows
    assert not any(r["reason"] == "crashed" for r in rows)
    assert any(not r["kept"] for r in rows)


def test_what_was_unusual_is_noted(rows):
    assert rows["uneven.mkv"]["notes"] == ["variable_frame_rate"]
    assert rows["turned.mp4"]["notes"] == ["rotated"]
    assert rows["good.mp4"]["notes"] == []


def test_manifest_names_no_folder_of_this_machine(rows, sources):
    assert not any(str(sources.parent) in str(row) for row in rows.values())
    assert set(rows) == {p.name for p in sources.iterdir()} - {"notes.txt"}


def test_samples_are_cropped_resampled_and_in_sync(built, rows, settings):
    held = ShardSet(built[0])
    assert len(held) == built[1].num_kept == 4
    assert built[1].num_shards == 2
    by_source = {}
    for index in range(len(held)):
        sample = held.sample(index)
        by_source[Path(sample.facts["source"]).name] = sample
        size = settings.output.size
        count = len(sample.frames)
        assert abs(count - FRAMES) <= ("uneven" in sample.facts["source"])
        assert sample.frames.shape == (count, size, size, 3)
        assert sample.audio.shape == (count * 640,)
        masks = {name: mask.mean() for name, mask in sample.masks.items()}
        assert masks["face"] > masks["jaw"] > masks["mouth"] > 0.005
        assert 0 < masks["eye"] < 0.1
        assert not (sample.masks["mouth"] & ~sample.masks["face"]).mean() > 0.01
        assert sample.caption == rows[Path(sample.facts["source"]).name]["caption"] != ""
    late, good = by_source["late.mkv.mp4"], by_source["good.mp4"]
    assert abs(late.facts["lag_frames"] + DELAY) <= 1
    shift = late.facts["corrected_frames"] + DELAY
    assert abs(shift) <= 1
    # Where the correction is right to the frame, so is the sound that was cut out.
    first, last = 640 * (8 - shift), 640 * (FRAMES - shift - 8)
    moved = good.audio[first:last]
    same = np.corrcoef(moved, late.audio[640 * 8 : 640 * 8 + len(moved)])[0, 1]
    assert same > 0.95


def test_turned_files_come_out_upright(built, rows):
    held = ShardSet(built[0])
    samples = {Path(s.facts["source"]).name: s for s in map(held.sample, range(len(held)))}
    upright, turned = samples["good.mp4"].frames[5], samples["turned.mp4"].frames[5]
    assert np.abs(upright.astype(int) - turned.astype(int)).mean() < 12
    assert rows["turned.mp4"]["lag_frames"] is not None


def test_report_stands_alone(built, settings):
    page = (built[0] / REPORT).read_text()
    assert "<script" not in page
    assert "http" not in page
    for word in ("Funnel", "core-seconds", "Kept", "Rejected: speech", "duplicate", "no_audio"):
        assert word in page
    assert all(f">{f.name}<" in page for f in settings.filters)
    assert "/good.mp4, 0.0 s</figcaption>" in page
    assert re.search(r"/silent.mp4, 0.0 s<br>speech 0, passes &ge; 0.4<", page)
    assert re.search(r"<td>speech<td>&ge; 0.4<td class=n>1<td class=n>1<td class=n>\d+<td>", page)
    assert re.search(
        r"<td>syncnet_offset<td>&le; 3 frames<td class=n>0<td class=n>not measured", page
    )


def test_memory_and_core_seconds_are_measured(built):
    summary = built[1]
    assert 0 < summary.peak_rss_mb < 1024
    assert {"probe", "decode", "shots", "picture", "faces", "sound", "sync", "write"} == set(
        summary.seconds
    )


def products(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".tar", ".parquet")}


@pytest.mark.slow
def test_two_workers_write_the_same_bytes(built, sources, settings, tmp_path):
    build([sources], tmp_path, settings, workers=2)
    assert products(tmp_path) == products(built[0])


def test_a_finished_build_is_not_done_again(built, sources, settings):
    before = {p.name: p.stat().st_mtime_ns for p in built[0].iterdir()}

    def nobody(tasks, settings, folder):
        raise AssertionError

    summary = build([sources], built[0], settings, runner=nobody)
    assert summary.num_resumed == summary.num_sources
    assert (summary.num_kept, summary.num_clips) == (built[1].num_kept, built[1].num_clips)
    after = {p.name: p.stat().st_mtime_ns for p in built[0].iterdir()}
    assert {**before, ".lock": 0} == {**after, ".lock": 0}


def test_a_folder_of_other_settings_is_refused(built, sources, settings):
    other = replace(settings, output=replace(settings.output, size=32))
    with pytest.raises(InvalidArgument, match="another folder"):
        build([sources], built[0], other)


def test_missing_sources(tmp_path, settings):
    with pytest.raises(InvalidArgument, match="existing"):
        build([tmp_path / "none"], tmp_path / "out", settings)
    with pytest.raises(InvalidArgument, match="at least one"):
        build([tmp_path], tmp_path / "out", settings)


HOOK = """
import os
def fine(frame, scores):
    assert frame.shape == (64, 64, 3) and scores.sync.peak > 0
    return "someone  says\\nsomething"
def deadly(frame, scores):
    os.kill(os.getpid(), 9)
def wrong(frame, scores):
    return 3
"""


@pytest.mark.parametrize(
    ("name", "caption", "reason"),
    [
        ("fine", "someone says something", ""),
        pytest.param("deadly", "", "crashed", marks=pytest.mark.slow),
    ],
)
def test_captioner_of_the_user(sources, settings, tmp_path, monkeypatch, name, caption, reason):
    """Also: a worker that dies costs its source, not the build."""
    (tmp_path / "hook.py").write_text(HOOK)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    mine = replace(settings, caption=CaptionSettings(f"hook:{name}"))
    build([sources / "good.mp4", sources / "empty.mp4"], tmp_path / "out", mine, workers=1)
    rows = {row["source"]: row for row in read_manifest(tmp_path / "out" / MANIFEST)}
    assert rows["good.mp4"]["caption"] == caption
    assert rows["good.mp4"]["reason"] == reason
    assert rows["empty.mp4"]["reason"] == "unreadable"


def test_a_source_that_takes_too_long_is_given_up(sources, settings, tmp_path):
    quick = partial(run_in_processes, workers=1, timeout_s=0.05)
    build([sources / "good.mp4"], tmp_path, settings, runner=quick)
    (row,) = read_manifest(tmp_path / MANIFEST)
    assert (row["reason"], row["kept"]) == ("crashed", False)


def test_a_failing_disk_ends_the_build_and_blames_no_source():
    class FullDisk:
        def run(self, path, name, target):
            raise OSError(28, "No space left on device")

    task = {"path": "a", "name": "a.mp4", "target": "b"}
    assert answer_for(FullDisk(), task)["error"]["code"] == "output"


def test_captioner_that_does_not_exist(sources, settings, tmp_path):
    mine = replace(settings, caption=CaptionSettings("nowhere:none"))
    with pytest.raises(WorkerFailed, match="package"):
        build([sources / "good.mp4"], tmp_path, mine, workers=1)


def start(sources, folder, config) -> subprocess.Popen:
    command = [
        sys.executable, "-P", "-m", "skyreels_rt", "data", "build", str(sources), "-o",
        str(folder), "--workers", "2", "--config", str(config),
    ]  # fmt: skip
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "small.toml"
    file.write_text("[output]\nsize = 64\nsamples_per_shard = 3\n")
    return file


def test_a_killed_build_goes_on(built, sources, config, settings, tmp_path):
    """Killed once the first source is done; the rest is done by the next call."""
    assert load_settings(config) == settings
    process = start(sources, tmp_path, config)
    while not list((tmp_path / "parts").glob("*.json")) and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    summary = build([sources], tmp_path, settings, workers=2)
    assert summary.num_resumed >= 1
    assert products(tmp_path) == products(built[0])
    assert not (tmp_path / "parts").exists()


@pytest.mark.slow
def test_killed_at_ten_random_moments(built, sources, config, tmp_path):
    draw = random.Random(0)
    for _ in range(10):
        process = start(sources, tmp_path, config)
        time.sleep(draw.uniform(0.5, 12.0))
        os.killpg(process.pid, signal.SIGKILL) if draw.random() < 0.5 else process.kill()
        process.wait()
    assert start(sources, tmp_path, config).wait() == 0
    assert products(tmp_path) == products(built[0])


@pytest.mark.slow
def test_ray_writes_the_same_bytes(built, sources, settings, tmp_path):
    pytest.importorskip("ray.data", reason="the [ray] extra is not installed")
    from skyreels_rt.data.ray_runner import run_on_ray

    build([sources], tmp_path, settings, runner=run_on_ray)
    assert products(tmp_path) == products(built[0])


@pytest.mark.slow
def test_a_long_large_source_stays_in_memory(shared_data, encode, settings, tmp_path):
    """Half a minute of 1080p: the clips are cut out of a stream, never held."""
    from skyreels_rt.media.video_file import open_video

    real = list(open_video(shared_data / "video" / "talking_458_25fps_15s.mp4").frames(25))[:100]
    tall = [np.kron(frame, np.ones((2, 2, 1), np.uint8))[:900] for frame in real]
    wide = np.stack([np.pad(f, ((90, 90), (502, 502), (0, 0)), mode="edge") for f in tall])
    order = np.concatenate([np.arange(100), np.arange(98, 0, -1)])
    frames = [wide[order[i % len(order)]] for i in range(30 * 25)]
    noise = np.random.default_rng(0).standard_normal(30 * 16_000).astype(np.float32)
    encode(tmp_path / "long.mp4", TalkingClip(frames, 0.05 * noise), size=wide.shape[1:3])
    summary = build([tmp_path / "long.mp4"], tmp_path / "out", settings, workers=1)
    assert summary.num_clips >= 3
    assert summary.peak_rss_mb <= 1024


def test_sync_of_a_built_sample_is_within_a_frame(built):
    """What the pipeline corrected is measured again, on the sample itself."""
    from skyreels_rt.conditioning.face import FaceFinder
    from skyreels_rt.data.faces import FaceTrack

    held = ShardSet(built[0])
    late = next(s for s in map(held.sample, range(len(held))) if "late" in s.facts["source"])
    track = FaceTrack(FaceFinder(), 5)
    for frame in late.frames:
        track.add(np.asarray(Image.fromarray(frame).resize((256, 256), Image.Resampling.BICUBIC)))
    assert abs(sync_scores(track.openings(), late.audio, 15).lag) <= 1
