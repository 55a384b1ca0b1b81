"""Writing MP4: exact times, true colours, and a name that only a complete file ever has."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from skyreels_rt.errors import InvalidArgument, NonFinite, OutputError
from skyreels_rt.media.audio_file import open_audio
from skyreels_rt.media.encoder import SYNTHETIC_MARK
from skyreels_rt.media.video import Video
from skyreels_rt.media.video_file import open_video
from skyreels_rt.media.video_writer import VideoWriter

H, W = 48, 64
COLOURS = np.array(
    [
        [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255],
        [255, 255, 255], [0, 0, 0], [128, 128, 128], [224, 172, 105], [141, 85, 36], [20, 60, 200],
    ],
    np.uint8,
)  # fmt: skip


def clip(count: int = 10) -> np.ndarray:
    """Frames that differ from each other."""
    levels = (np.arange(count) * 20 % 256).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(levels[:, None, None, None], (count, H, W, 3)))


def speechlike(samples: int, channels: int = 1, rate: int = 16_000) -> np.ndarray:
    time = np.arange(samples)[:, None] / rate
    sweep = np.sin(2 * np.pi * (200 + 300 * time) * time)
    return (0.4 * sweep * np.linspace(1, 0.5, channels)).astype(np.float32)


def writer(path, **options) -> VideoWriter:
    return VideoWriter(path, **({"fps": 25, "height": H, "width": W} | options))


def decoded_times(path: Path, kind: str) -> list[Fraction]:
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return [frame.pts * frame.time_base for frame in container.decode(stream)]


def stream_seconds(path: Path, kind: str) -> Fraction:
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return stream.duration * stream.time_base


def read_sound(path: Path) -> np.ndarray:
    return np.concatenate(list(open_audio(path).blocks()))


@pytest.mark.parametrize("fps", [1, 12, 24, 25, 30, 60])
@pytest.mark.parametrize("sample_rate", [16_000, 44_100])
def test_times_are_exact(tmp_path, fps, sample_rate):
    count = 2 * fps + 1
    samples = count * sample_rate // fps
    sound = speechlike(samples, rate=sample_rate)
    with writer(tmp_path / "a.mp4", fps=fps, sample_rate=sample_rate) as output:
        for first in range(0, count, 7):
            last = min(first + 7, count)
            span = slice(first * sample_rate // fps, last * sample_rate // fps)
            output.write(clip(count)[first:last], sound[span])
    assert decoded_times(tmp_path / "a.mp4", "video") == [Fraction(i, fps) for i in range(count)]
    times = decoded_times(tmp_path / "a.mp4", "audio")
    assert times == [Fraction(1024 * i, sample_rate) for i in range(len(times))]
    assert stream_seconds(tmp_path / "a.mp4", "video") == Fraction(count, fps)
    assert stream_seconds(tmp_path / "a.mp4", "audio") == Fraction(samples, sample_rate)
    assert open_video(tmp_path / "a.mp4").num_frames == count


@pytest.mark.parametrize("channels", [1, 2])
def test_sound_comes_back_in_place(tmp_path, channels):
    sound = speechlike(32_000, channels)
    Video(clip(50), sound, 16_000, 25).save(tmp_path / "a.mp4")
    got = read_sound(tmp_path / "a.mp4")
    assert got.shape == sound.shape
    for channel in range(channels):
        assert np.corrcoef(got[:, channel], sound[:, channel])[0, 1] > 0.99
    # Not a sample early or late: any shift fits worse.
    error = {shift: np.abs(np.roll(got, shift, 0) - sound).mean() for shift in (-2, -1, 0, 1, 2)}
    assert min(error, key=error.__getitem__) == 0


def test_real_clip_survives(tmp_path, shared_data):
    source = shared_data / "video/talking_458_25fps_15s.mp4"
    frames = np.stack([f for f, _ in zip(open_video(source).frames(25), range(20), strict=False)])
    sound = np.concatenate(list(open_audio(source).blocks()))[:35_280]
    Video(frames, sound, 44_100, 25).save(tmp_path / "a.mp4")
    again = np.stack(list(open_video(tmp_path / "a.mp4").frames(25)))
    assert again.shape == frames.shape
    error = np.square(again.astype(float) - frames).mean()
    assert 10 * np.log10(255**2 / error) > 38
    assert read_sound(tmp_path / "a.mp4").shape == sound.shape


def test_colours_come_back(tmp_path):
    side = 32
    tiles = COLOURS.reshape(3, 4, 1, 1, 3).repeat(side, 2).repeat(side, 3)
    picture = np.ascontiguousarray(tiles.swapaxes(1, 2).reshape(3 * side, 4 * side, 3))
    Video(np.stack([picture] * 3), None, None, 25).save(tmp_path / "a.mp4", crf=1)
    for frame in open_video(tmp_path / "a.mp4").frames(25):
        difference = np.abs(frame.astype(int) - picture).reshape(3, side, 4, side, 3)
        assert difference[:, 6:-6, :, 6:-6].max() <= 3
    with av.open(str(tmp_path / "a.mp4")) as container:
        frame = next(container.decode(video=0))
        tags = (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range)
        assert [int(tag) for tag in tags] == [1, 1, 1, 1]
        assert frame.format.name == "yuv420p"


@pytest.mark.parametrize("channels", range(3, 9))
def test_more_channels_are_mixed_to_stereo(tmp_path, channels):
    sound = np.zeros((16_000, channels), np.float32)
    sound[:, 0] = speechlike(16_000)[:, 0]
    with writer(tmp_path / "a.mp4", sample_rate=16_000, channels=channels) as output:
        output.write(clip(25), sound)
    got = read_sound(tmp_path / "a.mp4")
    assert got.shape == (16_000, 2)
    assert np.corrcoef(got[:, 0], sound[:, 0])[0, 1] > 0.99
    assert np.abs(got[:, 1]).max() < 0.02
    with writer(tmp_path / "a.mp4", sample_rate=16_000, channels=channels) as output:
        output.write(clip(25), np.ones((16_000, channels), np.float32))
    assert np.abs(read_sound(tmp_path / "a.mp4")[4000:12_000]).max() <= 1.1


def test_missing_sound_is_silence_in_its_place(tmp_path):
    sound = speechlike(16_000)
    with writer(tmp_path / "a.mp4", sample_rate=16_000) as output:
        output.write(clip(25), None)
        output.write(clip(25), sound)
        output.write(clip(25), sound[:8000])
    got = read_sound(tmp_path / "a.mp4")
    assert got.shape == (48_000, 1)
    assert np.abs(got[:15_000]).max() < 1e-3
    assert np.corrcoef(got[16_000:32_000, 0], sound[:, 0])[0, 1] > 0.99
    assert np.abs(got[42_000:]).max() < 1e-3


def test_synthetic_mark(tmp_path):
    for options, expected in (
        ({}, SYNTHETIC_MARK),
        ({"synthetic_mark": "made by a machine"}, "made by a machine"),
        ({"synthetic_mark": None}, None),
    ):
        with writer(tmp_path / "a.mp4", **options) as output:
            output.write(clip(2))
        with av.open(str(tmp_path / "a.mp4")) as container:
            assert container.metadata.get("comment") == expected
    assert "Synthetic" in SYNTHETIC_MARK
    assert "trainedAlgorithmicMedia" in SYNTHETIC_MARK


def test_same_input_gives_the_same_bytes(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        Video(clip(30), speechlike(19_200), 16_000, 25).save(tmp_path / name)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("before", [None, b"precious"])
@pytest.mark.parametrize("way", ["exception", "abort", "bad frames", "nothing written", "nan"])
def test_failure_leaves_the_name_as_it_was(tmp_path, before, way):
    target = tmp_path / "a.mp4"
    if before is not None:
        target.write_bytes(before)
    expected = {
        "exception": RuntimeError,
        "abort": OutputError,
        "bad frames": InvalidArgument,
        "nothing written": OutputError,
        "nan": NonFinite,
    }[way]
    with pytest.raises(expected), writer(target, sample_rate=16_000) as output:
        if way != "nothing written":
            output.write(clip(60), speechlike(38_400))
        assert len(list(tmp_path.iterdir())) == (1 if before is None else 2)
        if way == "exception":
            raise RuntimeError
        if way == "abort":
            output.abort()
            output.write(clip(1))
        if way == "bad frames":
            output.write(clip(1)[:, :-2])
        if way == "nan":
            output.write(clip(1), np.full((640, 1), np.nan, np.float32))
    left = list(tmp_path.iterdir())
    assert left == ([] if before is None else [target])
    assert before is None or target.read_bytes() == before


def test_success_replaces_and_hides_the_growing_file(tmp_path):
    target = tmp_path / "a.mp4"
    target.write_bytes(b"old")
    output = writer(target)
    output.write(clip(60))
    assert target.read_bytes() == b"old"
    (part,) = [path for path in tmp_path.iterdir() if path != target]
    assert part.name.startswith(".")
    output.close()
    output.close()
    output.abort()
    assert list(tmp_path.iterdir()) == [target]
    assert open_video(target).num_frames == 60
    with pytest.raises(OutputError, match="closed"):
        output.write(clip(1))


def test_a_killed_writer_leaves_a_playable_part(tmp_path):
    output = writer(tmp_path / "a.mp4", sample_rate=16_000)
    noise = np.random.default_rng(0).integers(0, 256, (300, H, W, 3), dtype=np.uint8)
    output.write(noise, speechlike(300 * 640))
    (part,) = tmp_path.iterdir()
    (tmp_path / "copy.mp4").write_bytes(part.read_bytes())
    output.abort()
    count = sum(1 for _ in open_video(tmp_path / "copy.mp4").frames(25))
    assert count >= 150
    assert np.isfinite(read_sound(tmp_path / "copy.mp4")).all()


def test_full_disk(tmp_path):
    # A file-size limit in a process of its own stands for the full disk.
    program = f"""
        import resource
        import numpy as np
        from skyreels_rt.errors import OutputError
        from skyreels_rt.media.video_writer import VideoWriter
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        frames = np.random.default_rng(0).integers(0, 256, (200, 64, 64, 3), dtype=np.uint8)
        try:
            with VideoWriter({str(tmp_path / "a.mp4")!r}, fps=25, height=64, width=64) as output:
                output.write(frames)
        except OutputError as error:
            raise SystemExit(0 if "a.mp4" in str(error) and error.hint else 3)
        raise SystemExit(4)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    assert list(tmp_path.iterdir()) == []


def test_targets_that_cannot_be_written(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for target in ("folder.mp4", "absent/a.mp4", "file/a.mp4", "n" * 300 + ".mp4"):
        with pytest.raises(OutputError, match="mp4") as caught:
            writer(tmp_path / target)
        assert caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.mp4"]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("height", 47),
        ("width", 63),
        ("height", 0),
        ("width", 8),
        ("fps", 0),
        ("fps", 25.0),
        ("fps", 500),
        ("crf", 52),
        ("preset", "warp"),
        ("threads", 0),
        ("channels", 0),
        ("channels", 9),
        ("sample_rate", 0),
        ("sample_rate", 15_999),
    ],
)
def test_bad_settings(tmp_path, argument, value):
    with pytest.raises(InvalidArgument) as caught:
        writer(tmp_path / "a.mp4", **{argument: value})
    assert caught.value.argument == argument
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.avi", "a", "mp4", "a.mp4.txt"])
def test_bad_suffix(tmp_path, name):
    with pytest.raises(InvalidArgument, match="mp4"):
        writer(tmp_path / name)


@pytest.mark.parametrize(
    ("frames", "audio", "argument"),
    [
        (clip()[0], None, "frames"),
        (clip() / 255.0, None, "frames"),
        (clip()[:, :, :-2], None, "frames"),
        (clip().transpose(0, 3, 1, 2), None, "frames"),
        (clip(), speechlike(6400)[:, 0], "audio"),
        (clip(), speechlike(6400, 2), "audio"),
        (clip(), speechlike(6400).astype(np.float64), "audio"),
    ],
)
def test_bad_frames_and_sound(tmp_path, frames, audio, argument):
    output = writer(tmp_path / "a.mp4", sample_rate=16_000)
    with pytest.raises(InvalidArgument) as caught:
        output.write(frames, audio)
    assert caught.value.argument == argument
    # A refused call changes nothing: the writer still works.
    output.write(clip(), speechlike(6400))
    output.close()
    assert open_video(tmp_path / "a.mp4").num_frames == 10


def test_sound_for_a_silent_writer(tmp_path):
    with pytest.raises(InvalidArgument, match="audio"), writer(tmp_path / "a.mp4") as output:
        output.write(clip(), speechlike(6400))
    assert list(tmp_path.iterdir()) == []


def test_video_object(tmp_path):
    video = Video(clip(30), speechlike(16_000), 16_000, 24)
    assert (video.num_frames, video.duration) == (30, Fraction(5, 4))
    with pytest.raises(AttributeError):
        video.fps = 30  # type: ignore[misc]
    for bad in (
        {"frames": clip()[0]},
        {"frames": clip() / 255},
        {"audio": speechlike(100)[:, 0]},
        {"audio": None},
        {"sample_rate": None},
        {"fps": 0},
    ):
        fields = {"frames": clip(), "audio": speechlike(100), "sample_rate": 16_000, "fps": 25}
        with pytest.raises(InvalidArgument):
            Video(**(fields | bad))
    # Sound longer than the picture is kept to its end.
    Video(clip(25), speechlike(20_000), 16_000, 25).save(tmp_path / "a.mp4")
    assert read_sound(tmp_path / "a.mp4").shape == (20_000, 1)
