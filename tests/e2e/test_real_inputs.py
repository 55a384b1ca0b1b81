"""The main job on real portraits, speech and video, with the seeded random model."""

import json
import subprocess
import sys

import av
import numpy as np
import pytest

import skyreels_rt as rt
from skyreels_rt.conditioning.edit_mask import resolve_edit_mask
from skyreels_rt.conditioning.face import FaceFinder, face_available
from skyreels_rt.conditioning.portrait import cover_crop
from skyreels_rt.diffusion.blf import plan_group
from skyreels_rt.errors import FaceNotFound
from skyreels_rt.media.video_file import open_video
from skyreels_rt.types import Timeline

MAX_RSS_MIB = 2.5 * 1024
needs_face = pytest.mark.skipif(not face_available(), reason="needs the [face] extra")


JFK, STEREO = "speech/jfk_16k_11s.wav", "speech/speech_44k_stereo.wav"
TALKING = "video/talking_458_25fps_15s.mp4"


@pytest.mark.parametrize(
    ("flag", "source", "speech", "num_frames", "rate", "channels"),
    [
        ("--image", "portraits/girl_1024.png", JFK, 275, 16_000, 1),
        ("--image", "portraits/blogger.jpg", STEREO, 268, 44_100, 2),
        pytest.param("--video", TALKING, JFK, 275, 16_000, 1, marks=needs_face),
    ],
)
def test_command_line(shared_data, tmp_path, flag, source, speech, num_frames, rate, channels):
    target, report = tmp_path / "out.mp4", tmp_path / "out.json"
    command = [
        sys.executable, "-P", "-m", "skyreels_rt", "generate", "--model", "tiny-random",
        flag, str(shared_data / source), "--audio", str(shared_data / speech),
        "-o", str(target), "--json", str(report),
    ]  # fmt: skip
    if flag == "--video":
        command += ["--edit-mask", "mouth"]
    subprocess.run(command, check=True, cwd=tmp_path)
    with av.open(str(target), format="mp4") as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert video.frames == num_frames
        assert (audio.rate, audio.channels) == (rate, channels)
        difference = video.duration * video.time_base - audio.duration * audio.time_base
        assert abs(difference) <= 1 / 25
    data = json.loads(report.read_text())
    rows = {row["name"]: row["value"] for row in data["rows"]}
    assert rows["generate.frames"] == num_frames
    assert rows["generate.peak_rss"] <= MAX_RSS_MIB
    settings = data["details"]["settings"]
    group = plan_group(
        0,
        Timeline().num_latents(num_frames),
        True,
        **{key: settings[key] for key in ("window", "overlap", "horizon")},
    )
    assert len(group.windows) >= 3


@needs_face
def test_mouth_edit_keeps_everything_else(shared_data):
    source = shared_data / "video" / "talking_458_25fps_15s.mp4"
    engine = rt.Engine.from_pretrained("tiny-random")
    video = engine.generate(
        shared_data / "speech" / "jfk_16k_11s.wav", video=source, edit_mask="mouth", num_steps=1
    )
    assert video.frames.shape == (275, 128, 128, 3)
    mask = resolve_edit_mask("mouth", 128, 128, FaceFinder())
    changed = []
    for index, frame in zip(range(275), open_video(source).frames(25), strict=False):
        resized = cover_crop(frame, 128, 128)
        inside = mask.alpha(resized, index) > 0
        assert 0.01 < inside.mean() < 0.35
        np.testing.assert_array_equal(video.frames[index][~inside], resized[~inside])
        changed.append((video.frames[index][inside] != resized[inside]).mean())
    assert np.mean(changed) > 0.8


@needs_face
def test_edit_without_a_face_says_so(shared_data):
    engine = rt.Engine.from_pretrained("tiny-random")
    grey = np.full((30, 128, 128, 3), 127, dtype=np.uint8)
    with pytest.raises(FaceNotFound):
        engine.generate(shared_data / "speech" / "jfk_16k_11s.wav", video=grey, edit_mask="mouth")
