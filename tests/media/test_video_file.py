"""Video files: every frame once at its own rate, right colours, right way up, typed errors."""

from __future__ import annotations

import gc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from skyreels_rt.errors import InvalidArgument, MediaError
from skyreels_rt.media.video_file import MAX_HOLD_SECONDS, open_video

H, W = 48, 64
PATCHES = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]


def patches(height: int = H, width: int = W) -> np.ndarray:
    """Saturated patches in two rows of three."""
    pixels = np.zeros((height, width, 3), np.uint8)
    rows, columns = np.array_split(np.arange(height), 2), np.array_split(np.arange(width), 3)
    for index, colour in enumerate(PATCHES):
        pixels[np.ix_(rows[index // 3], columns[index % 3])] = colour
    return pixels


def numbered(count: int) -> np.ndarray:
    """Grey frames whose level says which one they are."""
    return np.broadcast_to(
        (16 + np.arange(count, dtype=np.uint8) * 4)[:, None, None, None], (count, H, W, 3)
    )


def numbers(frames) -> list[int]:
    return [round((float(frame.mean()) - 16) / 4) for frame in frames]


def encode(
    path: Path,
    frames: np.ndarray,
    *,
    pts: list[int] | None = None,
    time_base: Fraction = Fraction(1, 25),
    rate: int = 25,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    matrix: Colorspace = Colorspace.ITU601,
    colour: tuple[int, int] = (0, 0),
    display: tuple[int, ...] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write frames through PyAV, tagged with ``colour`` = (matrix, range) where it is not 0."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.time_base = stream.codec_context.time_base = time_base
        if display is not None:
            stream.set_display_matrix(display)
        if any(colour):
            stream.codec_context.colorspace, stream.codec_context.color_range = colour
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            full = colour[1] == ColorRange.JPEG
            frame = frame.reformat(
                format=pix_fmt,
                dst_colorspace=matrix,
                dst_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
            )
            frame.pts, frame.time_base = (index if pts is None else pts[index]), time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def patch_error(got: np.ndarray, expected: np.ndarray) -> int:
    """Largest difference away from the edges between patches, where chroma is shared."""
    difference = np.abs(got.astype(int) - expected)
    height, width = expected.shape[:2]
    rows, columns = np.array_split(np.arange(height), 2), np.array_split(np.arange(width), 3)
    return max(difference[np.ix_(r[6:-6], c[6:-6])].max() for r in rows for c in columns)


def test_real_video(shared_data):
    path = shared_data / "video/talking_458_25fps_15s.mp4"
    source = open_video(path)
    assert (source.width, source.height, source.fps) == (458, 458, 25)
    assert (source.num_frames, source.has_audio) == (375, True)
    count = 0
    for frame in source.frames(25):
        assert (frame.shape, frame.dtype) == ((458, 458, 3), np.uint8)
        count += 1
    assert count == 375


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.avi"])
def test_equal_rates_give_every_frame_once(tmp_path, name):
    source = open_video(encode(tmp_path / name, numbered(40)))
    assert source.fps == 25
    for _ in range(2):
        assert numbers(source.frames(25)) == list(range(40))


@pytest.mark.parametrize("rate", [24, 30, 60])
def test_rounded_timestamps_neither_drop_nor_repeat(tmp_path, rate):
    # Matroska stores milliseconds: 1/30 s is 33, 67, 100 ms.
    path = encode(tmp_path / "a.mkv", numbered(50), time_base=Fraction(1, rate), rate=rate)
    assert numbers(open_video(path).frames(rate)) == list(range(50))


@pytest.mark.parametrize("fps", [1, 10, 12, 24, 25, 30, 50, 60])
def test_resampling_takes_the_latest_earlier_frame(tmp_path, fps):
    path = encode(tmp_path / "a.mp4", numbered(50))
    expected = [index * 25 // fps for index in range(2 * fps)]
    assert numbers(open_video(path).frames(fps)) == expected
    assert numbers(open_video(numbered(50), fps=25).frames(fps)) == expected


def test_uneven_timestamps_and_late_start(tmp_path):
    # Frames at 0, 1, 2, 10, 11 hundredths after a start at 3 s, read every 2 hundredths.
    pts = [300, 301, 302, 310, 311]
    path = encode(tmp_path / "a.mp4", numbered(5), pts=pts, time_base=Fraction(1, 100), rate=100)
    got = numbers(open_video(path).frames(50))
    assert got[:6] == [0, 2, 2, 2, 2, 3]


def test_forged_gap_is_refused(tmp_path):
    pts = [0, 1, 25 * (MAX_HOLD_SECONDS + 2)]
    frames = open_video(encode(tmp_path / "a.mp4", numbered(3), pts=pts)).frames(25)
    with pytest.raises(MediaError, match="gap"):
        list(frames)


@pytest.mark.parametrize(
    ("matrix", "tag"),
    [
        (Colorspace.ITU709, (1, ColorRange.MPEG)),
        (Colorspace.ITU601, (6, ColorRange.MPEG)),
        (Colorspace.ITU601, (5, ColorRange.MPEG)),
        (Colorspace.BT2020, (9, ColorRange.MPEG)),
        (Colorspace.ITU709, (1, ColorRange.JPEG)),
        (Colorspace.ITU601, (0, 0)),
    ],
)
def test_colours_follow_the_tags(tmp_path, matrix, tag):
    path = encode(
        tmp_path / "a.mp4", patches()[None], matrix=matrix, colour=tag, options={"crf": "4"}
    )
    (frame,) = open_video(path).frames(25)
    assert patch_error(frame, patches()) <= 5


def test_untagged_high_definition_is_bt709(tmp_path):
    tall = patches(720, 96)
    path = encode(tmp_path / "a.mp4", tall[None], matrix=Colorspace.ITU709, options={"crf": "4"})
    (frame,) = open_video(path).frames(25)
    assert patch_error(frame, tall) <= 5


def test_ten_bit_and_rgb_sources(tmp_path):
    deep = encode(
        tmp_path / "deep.mkv", patches()[None], pix_fmt="yuv420p10le", options={"crf": "4"}
    )
    (frame,) = open_video(deep).frames(25)
    assert patch_error(frame, patches()) <= 5
    rgb = encode(tmp_path / "rgb.mkv", patches()[None], codec="ffv1", pix_fmt="bgr0")
    (frame,) = open_video(rgb).frames(25)
    np.testing.assert_array_equal(frame, patches())


ONE, UNIT = 1 << 16, 1 << 30


@pytest.mark.parametrize(
    ("display", "turned"),
    [
        ((ONE, 0, 0, 0, ONE, 0, 0, 0, UNIT), lambda p: p),
        # As phones held upright write it: the stored left edge is seen on top.
        ((0, ONE, 0, -ONE, 0, 0, H * ONE, 0, UNIT), lambda p: np.rot90(p, -1)),
        ((-ONE, 0, 0, 0, -ONE, 0, W * ONE, H * ONE, UNIT), lambda p: np.rot90(p, 2)),
        ((0, -ONE, 0, ONE, 0, 0, 0, W * ONE, UNIT), np.rot90),
        ((-ONE, 0, 0, 0, ONE, 0, W * ONE, 0, UNIT), np.fliplr),
        ((0, ONE, 0, ONE, 0, 0, 0, 0, UNIT), lambda p: p.swapaxes(0, 1)),
    ],
)
def test_display_matrix(tmp_path, display, turned):
    expected = turned(patches())
    path = encode(tmp_path / "a.mp4", np.stack([patches()] * 3), display=display)
    source = open_video(path)
    assert (source.height, source.width) == expected.shape[:2]
    for frame in source.frames(25):
        assert frame.shape == expected.shape
        assert np.abs(frame.astype(int) - expected).mean() < 12
        assert np.abs(frame[8, 8].astype(int) - expected[8, 8]).max() < 12


def test_decoded_frames_do_not_wait_for_the_garbage_collector(shared_data):
    """Frames of 1080p that wait for it are gigabytes."""
    gc.collect()
    gc.disable()
    try:
        frames = open_video(shared_data / "video" / "talking_458_25fps_15s.mp4").frames(25)
        for _ in range(40):
            next(frames)
        alive = sum(type(item) is av.VideoFrame for item in gc.get_objects())
    finally:
        gc.enable()
    assert alive <= 10  # the first, and those that decoder and reader hold


def test_arrays_are_copied_out():
    frames = numbered(4).copy()
    source = open_video(frames, fps=Fraction(30_000, 1001))
    assert (source.width, source.height, source.num_frames) == (W, H, 4)
    assert (source.fps, source.has_audio) == (Fraction(30_000, 1001), False)
    first = next(iter(source.frames(30)))
    first[:] = 0
    assert frames.min() == 16
    assert open_video(frames, fps=29.97).fps == Fraction(2997, 100)


@pytest.mark.parametrize(
    ("frames", "fps", "argument"),
    [
        (numbered(2), None, "fps"),
        (numbered(2), 0, "fps"),
        (numbered(2), float("nan"), "fps"),
        (numbered(2)[0], 25, "video"),
        (numbered(0), 25, "video"),
        (numbered(2) / 255.0, 25, "video"),
        (numbered(2).transpose(0, 3, 1, 2), 25, "video"),
        (b"bytes", 25, "video"),
    ],
)
def test_bad_arrays(frames, fps, argument):
    with pytest.raises(InvalidArgument) as caught:
        open_video(frames, fps)
    assert caught.value.argument == argument


def test_frame_size_limits():
    with pytest.raises(MediaError, match="8x8"):
        open_video(np.zeros((1, 8, 8, 3), np.uint8), 25)


def test_too_large_video_is_refused_from_its_header(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as output:
        stream = output.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 8192, 4352, "yuvj420p"
        output.mux(stream.encode(av.VideoFrame(8192, 4352, "yuvj420p")))
        output.mux(stream.encode(None))
    with pytest.raises(MediaError, match="got 8192x4352"):
        open_video(tmp_path / "a.mkv")


@pytest.mark.parametrize("fps", [0, -1, 241, 25.0, "25"])
def test_bad_output_rate(fps):
    with pytest.raises(InvalidArgument, match="fps"):
        open_video(numbered(1), 25).frames(fps)


def test_a_file_knows_its_own_rate(tmp_path):
    with pytest.raises(InvalidArgument, match="fps"):
        open_video(encode(tmp_path / "a.mp4", numbered(1)), fps=25)


def test_bad_files(tmp_path, shared_data):
    whole = (shared_data / "video/talking_458_25fps_15s.mp4").read_bytes()
    sound = (shared_data / "speech/jfk_16k_11s.wav").read_bytes()
    cases = {
        "cut.mp4": (whole[:5000], "decoded|damaged|rate"),
        "text.mp4": (b"hello, this is not a film at all", "begins like none"),
        "empty.mp4": (b"", "empty"),
        "sound.mp4": (sound, "begins like none"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError, match=reason) as caught:
            list(open_video(tmp_path / name).frames(25))
        assert caught.value.hint
        assert caught.value.stage == "video"
    for source in (tmp_path, tmp_path / "absent.mp4", "rtsp://example.org/a"):
        with pytest.raises(MediaError):
            open_video(source)


def test_cover_picture_is_not_a_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        stream = output.add_stream("aac", rate=44_100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44_100), np.float32), "fltp", "mono")
        frame.sample_rate = 44_100
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with pytest.raises(MediaError, match="without one"):
        open_video(tmp_path / "a.mp4")


def test_rare_codec_is_refused(tmp_path):
    path = encode(tmp_path / "a.mkv", numbered(1), codec="snow")
    with pytest.raises(MediaError, match="snow"):
        open_video(path)


def test_damaged_packets(tmp_path, shared_data):
    data = bytearray((shared_data / "video/talking_458_25fps_15s.mp4").read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8).tobytes()
    middle = len(data) // 2
    data[middle : middle + len(noise)] = noise
    (tmp_path / "a.mp4").write_bytes(data)
    try:
        for frame in open_video(tmp_path / "a.mp4").frames(25):
            assert frame.shape == (458, 458, 3)
    except MediaError as error:
        assert error.hint
