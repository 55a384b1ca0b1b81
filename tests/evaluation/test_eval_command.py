"""The command `eval`: what it writes for a real model, and how it refuses and stops."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

pytest.importorskip("espeakng_loader", reason="the speech synthesiser is not installed ([train])")

from skyreels_rt.cli import app
from skyreels_rt.engine import Engine
from skyreels_rt.errors import InvalidArgument, ModelError, OutputError
from skyreels_rt.evaluation.suite import SECTIONS, SuiteSize
from skyreels_rt.held_out import EvalRun, HeldOutClips, engine_model, run_evaluation, window_frames
from skyreels_rt.testing.tiny import TinyModel, tiny_components, write_tiny_model

SMALL = TinyModel().with_generation(height=96, width=96, window=9, overlap=3, num_steps=1)
SHORT = SuiteSize(
    clips=2, guidance_clips=2, edit_clips=2, text_clips=2, identities=2, long_seconds=5.0,
    long_windows=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "small"
    write_tiny_model(folder, SMALL)
    return folder


def invoke(*arguments):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


# ------------------------------------------------------------------------------ the whole of it


def test_a_random_model_is_measured_and_misses(tmp_path):
    engine = Engine(tiny_components(SMALL))
    soundfile.write(
        tmp_path / "voice.wav", 0.1 * np.random.default_rng(0).normal(size=32_000), 8000
    )
    run = EvalRun("test", voices=(tmp_path / "voice.wav",), json_file=tmp_path / "copy.json")
    seen = []
    report = run_evaluation(
        engine, tmp_path / "out", run, size=SHORT, on_progress=lambda *step: seen.append(step)
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["eval.html", "eval.json"]
    text = (tmp_path / "out" / "eval.json").read_text()
    assert text == (tmp_path / "copy.json").read_text()
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    rows = {row["name"]: row for row in data["rows"]}
    assert len(rows) == len(data["rows"]) == len(report.rows)
    assert data["details"]["skipped"] == {}
    assert {name.split(".")[1] for name in rows} == set(SECTIONS)
    for name in ("sync.mean", "sync.p10", "fidelity.psnr", "edit.sync_mean"):
        assert rows[f"eval.{name}"]["ok"] is False
    assert rows["eval.edit.outside_equal"]["ok"] is True
    assert rows["eval.sync.estimator_mean"]["value"] > 0.5  # small faces are hard to read
    assert {step[0] for step in seen} == {"clips", *SECTIONS[3:]}
    page = (tmp_path / "out" / "eval.html").read_text()
    assert all(
        value.startswith("data:image/") for value in re.findall(r'(?:src|href)="([^"]*)', page)
    )
    assert not re.search(r"<script|<link|url\(|@import", page)
    assert all(name in page for name in rows)


def test_every_row_is_documented(tmp_path):
    """Names in the page of reports: `eval.` and what the run above gives."""
    documented = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    names = re.findall(r'f?"(eval\.[a-z0-9_.{}:]+)"', "".join(
        path.read_text()
        for path in (Path(__file__).parents[2] / "skyreels_rt" / "evaluation").glob("*.py")
    ))  # fmt: skip
    assert len(names) > 25
    for name in names:
        known = re.sub(r"\{[^}]*\}", "", name).rstrip("._")
        assert known in documented or known.rsplit(".", 1)[0] in documented, name


# ----------------------------------------------------------------------------------- the command


def test_command_writes_both_files_and_says_what_was_skipped(model, tmp_path):
    result = invoke(
        model, "-o", tmp_path / "new" / "out", "--clips", 2, "--only", "fidelity, voices",
        "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "eval.fidelity.psnr" in result.output
    assert "voices: not measured" in result.output
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["details"]["size"]["clips"] == 2
    assert data["details"]["model"] == str(model)
    assert (tmp_path / "new" / "out" / "eval.html").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "sinc"], "only"),
        (["--clips", "1"], "clips"),
        (["--clips", "49"], "clips"),
        (["--voice", "nothing.wav"], "nothing.wav"),
        (["--json", "no/such/folder/x.json"], "x.json"),
    ],
)
def test_command_refuses_and_leaves_nothing(model, tmp_path, arguments, said):
    result = invoke(model, "-o", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused(model, tmp_path):
    (tmp_path / "out").write_text("mine")
    result = invoke(model, "-o", tmp_path / "out", "--clips", 2)
    assert result.exit_code == 2
    assert (tmp_path / "out").read_text() == "mine"


def test_an_unwritable_page_leaves_the_old_files(tmp_path):
    (tmp_path / "eval.json").write_text("old")
    (tmp_path / ".eval.html.part").mkdir()
    engine = Engine(tiny_components(SMALL))
    with pytest.raises(OutputError):
        run_evaluation(engine, tmp_path, EvalRun("test", only=("voices",)), size=SuiteSize.quick())
    assert (tmp_path / "eval.json").read_text() == "old"
    assert not (tmp_path / "eval.html").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_leaves_no_file(model, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "skyreels_rt", "eval", str(model), "-o", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    for _ in range(1200):
        if out.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert not out.exists()


# -------------------------------------------------------------------------------------- the glue


def test_the_list_holds_48_clips_of_the_held_out_half():
    clips = HeldOutClips.listed(64)
    assert clips.numbers == tuple(range(48))
    assert clips.source.split == "held_out"
    assert (clips.source.size, clips.source.difficulty, clips.source.motion) == (64, 0.3, 1.0)
    assert list(clips[1:3].numbers) == [1, 2]
    clip, again = clips[1:3][0], clips[1]
    assert clip is again
    assert len(clip.audio) == 640 * len(clip.frames) and clip.sample_rate == 16_000
    left, top, right, bottom = clip.mouth_box
    face = clip.face_box
    assert face[0] < left < right < face[2] and face[1] < top < bottom < face[3]
    assert clip.eye_boxes[0][2] <= clip.eye_boxes[1][0]
    assert clip.background in clip.caption
    assert clip.hair is None or clip.hair in clip.caption
    with pytest.raises(IndexError):
        clips[48]


@pytest.mark.parametrize("mode", ["all_frames", "leading_slot"])
@pytest.mark.parametrize("num_frames", [5, 40, 77, 130])
def test_windows_cover_the_video_and_have_the_models_size(mode, num_frames):
    tiny = SMALL.with_generation(reference_mode=mode)
    if mode == "leading_slot":
        tiny = tiny.with_transformer(in_channels=36)
    engine = Engine(tiny_components(tiny))
    windows = window_frames(engine, num_frames, {})
    assert windows[0][0] == 0 and windows[-1][1] == num_frames
    for (start, stop), (later, _) in itertools.pairwise(windows):
        assert start < later <= stop
    # 9 latents of 4 frames; the first latent of an unprimed timeline is one frame.
    assert all(stop - start <= 36 for start, stop in windows)
    assert num_frames < 40 or windows[1][1] - windows[1][0] >= 33


def test_a_model_of_another_frame_rate_is_refused():
    engine = Engine(tiny_components(SMALL.with_generation(fps=30)))
    with pytest.raises(ModelError, match="30"):
        engine_model(engine, 96, lambda _: None)


def test_a_size_may_ask_for_no_more_clips_than_listed():
    engine = Engine(tiny_components(SMALL))
    with pytest.raises(InvalidArgument, match="clips"):
        run_evaluation(engine, None, EvalRun("test", clips=60))
