"""The command line: what it writes, and how it refuses bad input."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib

import av
import numpy as np
import pytest
import soundfile
from PIL import Image
from typer.testing import CliRunner

from skyreels_rt.cli import app
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.terminal import parse_loras
from skyreels_rt.testing.tiny import TinyModel, write_tiny_model

SMALL = TinyModel().with_generation(height=32, width=32, window=5, overlap=2, num_steps=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "small"
    write_tiny_model(folder, SMALL)
    return folder


@pytest.fixture
def inputs(tmp_path):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "speech.wav", 0.1 * rng.standard_normal(16_000), 16_000)
    picture = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "face.png")
    return tmp_path


def run(model, inputs, **changes):
    """Exit code, stderr and the files left in the output folder."""
    arguments = {
        "model": str(model),
        "audio": str(inputs / "speech.wav"),
        "image": str(inputs / "face.png"),
        "output": str(inputs / "out" / "video.mp4"),
    } | changes
    (inputs / "out").mkdir(exist_ok=True)
    flags = [part for key, value in arguments.items() if value is not None
             for part in (f"--{key.replace('_', '-')}", str(value))]  # fmt: skip
    result = CliRunner().invoke(app, ["generate", *flags])
    return result, sorted(path.name for path in (inputs / "out").iterdir())


def test_generate_writes_video_and_report(model, inputs):
    result, files = run(model, inputs, json=inputs / "out" / "report.json", seed=3)
    assert result.exit_code == 0, result.output
    assert files == ["report.json", "video.mp4"]
    with av.open(str(inputs / "out" / "video.mp4"), format="mp4") as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert video.frames == 25
        assert abs(video.duration * video.time_base - audio.duration * audio.time_base) <= 1 / 25
        assert "ynthetic" in container.metadata["comment"]
    report = json.loads((inputs / "out" / "report.json").read_text())
    assert report["schema"] == 1
    assert report["details"]["settings"]["seed"] == 3
    assert report["kernel_plan"]["operators"]["frames_to_uint8"]["impl"]
    rows = {row["name"]: row["value"] for row in report["rows"]}
    assert rows["generate.frames"] == 25
    assert rows["generate.rtf"] == pytest.approx(rows["generate.seconds"])
    assert {"generate.peak_rss", "generate.stage.denoise", "generate.stage.decode"} <= set(rows)


def wav_header(rate=16_000, channels=1, data=b"\0\0" * 100):
    block = 2 * channels
    return (
        b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, channels, rate, (rate * block) & 0xFFFFFFFF,
                      block & 0xFFFF, 16)
        + b"data" + struct.pack("<I", len(data)) + data
    )  # fmt: skip


def bad_audio(kind, path):
    if kind == "missing":
        return path / "nothing.wav"
    if kind == "directory":
        return path
    target = path / f"{kind}.wav"
    if kind == "nan":
        samples = np.zeros(1600, dtype=np.float32)
        samples[700] = np.nan
        soundfile.write(target, samples, 16_000, subtype="FLOAT")
        return target
    target.write_bytes(
        {
            "empty": b"",
            "text": b"hello, I am not sound\n" * 20,
            "zero-hertz": wav_header(rate=0),
            "many-channels": wav_header(channels=1024, data=b"\0" * 2048 * 8),
            "one-sample": wav_header(data=b"\1\1"),
            "no-samples": wav_header(data=b""),
            "playlist": b"ffconcat version 1.0\nfile speech.wav\n",
            "hls": b"#EXTM3U\n#EXTINF:1,\nspeech.wav\n",
        }[kind]
    )
    return target


@pytest.mark.parametrize(
    "kind",
    ["missing", "directory", "empty", "text", "zero-hertz", "many-channels", "one-sample",
     "no-samples", "nan", "playlist", "hls"],
)  # fmt: skip
def test_bad_audio_is_refused(model, inputs, kind):
    assert_refused(*run(model, inputs, audio=bad_audio(kind, inputs)))


def assert_refused(result, files):
    assert result.exit_code == 2
    assert "error" in result.output
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert files == []


def blank_png(side):
    """A PNG of side x side pixels in a few kilobytes."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 + (side + 7) // 8) * side, 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.png", None),
        ("empty.png", b""),
        ("text.png", b"not a picture"),
        ("one.png", blank_png(1)),
        ("huge.png", blank_png(20_000)),
    ],
)
def test_bad_image_is_refused(model, inputs, name, content):
    if content is not None:
        (inputs / name).write_bytes(content)
    assert_refused(*run(model, inputs, image=inputs / name))


@pytest.mark.parametrize("mode", ["CMYK", "P", "I;16", "L", "RGBA", "exif"])
def test_odd_images_are_taken(model, inputs, mode):
    picture = Image.open(inputs / "face.png")
    name = inputs / ("odd.jpg" if mode in ("CMYK", "exif") else "odd.png")
    if mode == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(name, exif=exif)
    elif mode == "I;16":
        Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16).save(name)
    else:
        picture.convert(mode).save(name)
    result, files = run(model, inputs, image=name)
    assert result.exit_code == 0, result.output
    assert files == ["video.mp4"]


@pytest.mark.parametrize(
    ("flag", "value", "named"),
    [
        ("steps", 0, "num_steps"),
        ("steps", 10**6, "num_steps"),
        ("text_guidance_scale", -1.0, "text_guidance_scale"),
        ("audio_guidance_scale", "nan", "audio_guidance_scale"),
        ("audio_guidance_scale", "inf", "audio_guidance_scale"),
        ("shift", 0.0, "shift"),
        ("solver", "rk4", "solver"),
        ("height", 33, "height"),
        ("width", 0, "width"),
        ("horizon", 0, "horizon"),
        ("seed", -1, "seed"),
        ("device", "tpu", "device"),
        ("dtype", "int8", "dtype"),
        ("kernels", "fastest", "kernels"),
        ("edit_mask", "mouth", "edit_mask"),
        ("image", None, "image"),
        ("output", "video.avi", "mp4"),
    ],
)  # fmt: skip
def test_wrong_numbers_are_refused_by_name(model, inputs, flag, value, named):
    if flag == "output":
        value = inputs / "out" / value
    result, files = run(model, inputs, **{flag: value})
    assert_refused(result, files)
    assert named in result.output


def test_report_that_cannot_be_written_stops_before_the_work(model, inputs):
    result, files = run(model, inputs, json=inputs / "nowhere" / "report.json")
    assert_refused(result, files)
    assert "nowhere" in result.output


def test_names_are_printed_as_they_are(model, inputs):
    result, files = run(model, inputs, output=inputs / "out" / "a[bold]b.mp4")
    assert result.exit_code == 0
    assert files == ["a[bold]b.mp4"]
    assert "a[bold]b.mp4" in result.output
    assert "[face] extra" in CliRunner().invoke(app, ["doctor"]).output


def test_output_folder_that_does_not_exist(model, inputs):
    result, files = run(model, inputs, output=inputs / "nowhere" / "x.mp4")
    assert_refused(result, files)
    assert "nowhere" in result.output


@pytest.mark.parametrize("kind", ["unknown", "pickle", "text"])
def test_unknown_models_are_refused(inputs, kind):
    name = {"unknown": "no-such-model", "pickle": inputs / "m.pth", "text": inputs / "face.png"}[
        kind
    ]
    if kind == "pickle":
        name.write_bytes(b"\x80\x04K\x01.")
    result, files = run(name, inputs)
    assert_refused(result, files)
    if kind == "pickle":
        assert "convert" in result.output


def test_folder_without_one_tensor_names_it(model, inputs):
    from safetensors.torch import load_file, save_file

    folder = inputs / "broken"
    shutil.copytree(model, folder)
    path = folder / "transformer" / "model.safetensors"
    tensors = load_file(path)
    del tensors["blocks.1.audio_cross_attn.proj.weight"]
    save_file(tensors, path)
    result, files = run(folder, inputs)
    assert_refused(result, files)
    assert "blocks.1.audio_cross_attn.proj.weight" in result.output.replace("\n", "")


def test_existing_output_survives_a_refusal(model, inputs):
    (inputs / "out").mkdir()
    (inputs / "out" / "video.mp4").write_bytes(b"precious")
    result, files = run(model, inputs, audio=bad_audio("nan", inputs))
    assert result.exit_code == 2
    assert files == ["video.mp4"]
    assert (inputs / "out" / "video.mp4").read_bytes() == b"precious"


def test_doctor_says_what_is_active():
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    data = json.loads(result.output)
    names = {check["name"]: check for check in data["checks"]}
    assert {"torch", "_C", "cuda device", "[face] extra"} <= set(names)
    assert all(check["detail"] for check in data["checks"])
    assert "qk_norm_rope" in data["kernel_plan"]["operators"]
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0


def start_long_job(inputs):
    """A real process that denoises and writes for a while; returns when its file has begun."""
    soundfile.write(inputs / "long.wav", np.zeros(16_000 * 120), 16_000)
    (inputs / "out").mkdir(exist_ok=True)
    command = [
        sys.executable, "-P", "-m", "skyreels_rt", "generate", "--model", "tiny-random",
        "--audio", str(inputs / "long.wav"), "--image", str(inputs / "face.png"),
        "-o", str(inputs / "out" / "x.mp4"), "--steps", "50",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=inputs, env=environment
    )
    for _ in range(600):
        if list((inputs / "out").iterdir()) or process.poll() is not None:
            break
        time.sleep(0.1)
    assert process.poll() is None, "the job ended before it could be stopped"
    return process


def test_ctrl_c_leaves_no_file(inputs):
    process = start_long_job(inputs)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert list((inputs / "out").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0.0, 0.3, 1.1, 2.7, 5.2])
def test_kill_leaves_nothing_under_the_final_name(inputs, moment):
    """SIGKILL cannot be cleaned up after; an existing file must survive it all the same."""
    (inputs / "out").mkdir()
    process = start_long_job(inputs)
    (inputs / "out" / "x.mp4").write_bytes(b"precious")
    time.sleep(moment)
    process.kill()
    process.communicate(timeout=60)
    assert (inputs / "out" / "x.mp4").read_bytes() == b"precious"
    again, _ = run("tiny-random", inputs, output=inputs / "out" / "x.mp4", steps=1)
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(("text", "scale"), [("a=b.safetensors=0.5", 0.5), ("a.safetensors", 1.0)])
def test_loras_are_files_with_a_scale(text, scale):
    (lora,) = parse_loras([text])
    assert (str(lora.path), lora.scale) == (text.removesuffix("=0.5"), scale)


@pytest.mark.parametrize("text", ["a.safetensors=x", "a.safetensors=", "a.safetensors=nan"])
def test_a_lora_scale_that_is_no_number(text):
    with pytest.raises(InvalidArgument, match="lora"):
        parse_loras([text])
