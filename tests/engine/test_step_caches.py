"""Step caches in the engine: what a skipped step does, who keeps what, what is reported."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import skyreels_rt as rt
from skyreels_rt import errors
from skyreels_rt.calibration import CalibrationClip, calibrate, write_calibration
from skyreels_rt.cli import app
from skyreels_rt.config import config_to_dict, write_json
from skyreels_rt.diffusion.blf import plan_group, window_weights
from skyreels_rt.diffusion.denoise import denoise_group
from skyreels_rt.diffusion.guidance import guidance_passes
from skyreels_rt.diffusion.noise import timeline_noise
from skyreels_rt.diffusion.predictor import PromptContext, WindowPredictor
from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.diffusion.solvers import make_solver
from skyreels_rt.models.transformer import ContextCache
from skyreels_rt.runtime.step_cache import ChangeGate, StepPlan, StepRun
from skyreels_rt.session import Session
from skyreels_rt.testing.tiny import TinyModel, tiny_components, write_tiny_model

RATE = 16_000
SMALL = TinyModel().with_generation(height=32, width=32, window=5, overlap=2, num_steps=8)
COEFFICIENTS = (0.0, 0.0, 0.0, 1.0, 0.0)
SPEECH = 0.2 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
PORTRAIT = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
ALTERNATE = rt.StepMask((True, False) * 4)


@pytest.fixture(scope="module")
def engine():
    return rt.Engine(tiny_components(SMALL))


def generate(engine, **options):
    given = {"image": PORTRAIT, "sample_rate": RATE, "on_progress": lambda _: None} | options
    return engine.generate(SPEECH, **given)


@pytest.fixture(scope="module")
def uncached(engine):
    return generate(engine)


@pytest.mark.parametrize(
    "cache", [rt.TeaCache(0.0), rt.MagCache(0.0), rt.StepMask((True,) * 8),
              rt.TeaCache(1e-9, COEFFICIENTS), rt.TeaCache(1e-9, COEFFICIENTS, "modulated_input")],
)  # fmt: skip
def test_a_cache_that_skips_nothing_gives_the_same_bytes(engine, uncached, cache):
    video = generate(engine, teacache=cache)
    np.testing.assert_array_equal(video.frames, uncached.frames)
    assert [run.text for run in video.steps] == ["########"]


def test_skipped_steps_run_no_block(engine, uncached):
    ran = []
    handle = engine.components.transformer.blocks[0].register_forward_hook(lambda *_: ran.append(1))
    try:
        video = generate(engine, teacache=ALTERNATE, horizon=1)
    finally:
        handle.remove()
    (run,) = video.steps
    assert (run.start, run.stop, run.computed) == (0, 7, ALTERNATE.flags)
    assert len(ran) == 2 * run.windows * 4  # passes, windows, computed steps
    assert not np.array_equal(video.frames, uncached.frames)


@pytest.fixture(scope="module")
def window(engine):
    """A transformer with the arguments of one call."""
    model, generator = engine.components.transformer, torch.Generator().manual_seed(2)
    latents = torch.randn(1, 36, 5, 4, 4, generator=generator)
    with torch.inference_mode():
        text = model.text_context(torch.randn(1, 64, 64, generator=generator))
        audio = model.audio_context(torch.randn(1, 5, 8, 64, generator=generator))
    return model, latents, torch.tensor([700.0]), ContextCache(text, None, audio)


def test_a_kept_residual_is_what_the_blocks_added(window):
    model, latents, time, context = window
    seen, keep = [], torch.empty(1, model.num_tokens(5, 4, 4), 96)
    first = model.blocks[0].register_forward_pre_hook(lambda _, a: seen.append(a[0].clone()))
    last = model.blocks[-1].register_forward_hook(lambda _, a, out: seen.append(out[0].clone()))
    with torch.inference_mode():
        try:
            plain = model(latents, time, context)
            kept = model(latents, time, context, keep=keep)
        finally:
            first.remove()
            last.remove()
        torch.testing.assert_close(kept, plain, rtol=0, atol=0)
        torch.testing.assert_close(keep, seen[1] - seen[0], rtol=0, atol=0)
        reused = model(latents, time, context, reuse=keep)
        torch.testing.assert_close(reused, plain, rtol=1e-4, atol=1e-5)
        other = model(latents, time, context, reuse=2 * keep)
    assert (other - plain).abs().max() > 0.01


def predictor_of(parts, passes, plan, total=13):
    group = plan_group(0, total, True, window=5, overlap=2, horizon=9)
    generator = torch.Generator().manual_seed(0)
    adapter = parts.transformer.config.audio
    tokens = torch.randn(total, adapter.num_tokens, adapter.token_dim, generator=generator)
    encode = parts.text_encoder.encode
    texts = [parts.transformer.text_context(encode(text)[None]) for text in ("hello", "")]
    return WindowPredictor(
        parts.transformer, group, passes, PromptContext(*texts),
        channels=torch.randn(20, total, 4, 4, generator=generator),
        tokens=tokens, silent_tokens=torch.zeros_like(tokens), steps=plan,
    ), group  # fmt: skip


PLANS = {
    "static": StepPlan((True, False, False, True, False, True)),
    "gate": StepPlan((True, *[False] * 4, True), ChangeGate(COEFFICIENTS, 0.5)),
}


@pytest.mark.parametrize("kind", list(PLANS))
@pytest.mark.parametrize(("text", "audio", "count"), [(1.0, 1.0, 1), (1.0, 3.0, 2), (2.0, 3.0, 3)])
def test_order_and_passes_do_not_matter(engine, kind, text, audio, count):
    parts, schedule = engine.components, FlowSchedule(6, 5.0)
    passes = guidance_passes("text_first", text, audio, has_text=True, has_audio=True)
    assert len(passes) == count
    results, decided = [], []
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)):
        with torch.inference_mode():
            predictor, group = predictor_of(parts, passes, PLANS[kind])
            results.append(
                denoise_group(
                    group, predictor, schedule, make_solver("euler", schedule),
                    guidance=[one.weight for one in passes], weights=window_weights(group, 2),
                    noise=timeline_noise(0, 0, 13, (16, 4, 4)), order=order,
                )
            )  # fmt: skip
        decided.append([predictor.computed_steps(window) for window in group.windows])
    assert all(torch.equal(result, results[0]) for result in results)
    assert decided[0] == decided[1] == decided[2]
    if kind == "static":
        assert decided[0] == [PLANS[kind].computed] * 4
    else:
        assert any(not all(flags) for flags in decided[0])
        assert any(sum(flags) > 2 for flags in decided[0])


def test_each_pass_and_window_reuses_its_own_residual(engine):
    """At an unchanged input a skipped step repeats the computed one, pass by pass."""
    parts = engine.components
    passes = guidance_passes("audio_first", 2.0, 3.0, has_text=True, has_audio=True)
    with torch.inference_mode():
        predictor, group = predictor_of(parts, passes, StepPlan((True, False)))
        noise = timeline_noise(0, 0, 13, (16, 4, 4))
        parts_of = {w: noise[:, w.start : w.stop].contiguous() for w in group.windows}
        first = {w: predictor(w, part, 0, 500.0) for w, part in parts_of.items()}
        again = {w: predictor(w, part, 1, 500.0) for w, part in parts_of.items()}
    for window in group.windows:
        torch.testing.assert_close(again[window], first[window], rtol=1e-4, atol=1e-5)
    assert (first[group.windows[0]][0] - first[group.windows[0]][1]).abs().max() > 1e-3


def test_steps_come_in_order_and_end_with_the_plan(engine):
    passes = guidance_passes("text_first", 1.0, 1.0, has_text=False, has_audio=True)
    part = torch.zeros(16, 5, 4, 4)
    with torch.inference_mode():
        predictor, group = predictor_of(engine.components, passes, StepPlan((True, False)))
        window = group.windows[0]
        with pytest.raises(errors.InvalidArgument, match="step"):
            predictor(window, part, 1, 500.0)
        predictor(window, part, 0, 900.0)
        predictor(window, part, 1, 500.0)
        with pytest.raises(errors.InvalidArgument, match="step"):
            predictor(window, part, 2, 100.0)


def test_groups_and_cutting_the_audio(engine):
    whole = generate(engine, teacache=ALTERNATE, horizon=1)
    settings = whole_settings(engine)
    with Session(engine.components, settings, portrait=PORTRAIT) as session:
        chunks = []
        for block in np.array_split(SPEECH, 7):
            session.push_audio(block, RATE)
            chunks += [chunk.frames for chunk in session.frames()]
        session.end_audio()
        chunks += [chunk.frames for chunk in session.frames()]
        assert session.steps == whole.steps
    np.testing.assert_array_equal(np.concatenate(chunks), whole.frames)
    assert whole.steps == (StepRun(0, 7, 2, ALTERNATE.flags),)


def whole_settings(engine):
    from skyreels_rt.options import resolve_settings

    return resolve_settings(engine.components, {"teacache": ALTERNATE, "horizon": 1})


def test_the_plan_is_made_of_what_the_steps_embed(engine):
    parts, embedded = engine.components, []
    handle = parts.transformer.time_embedding.register_forward_hook(
        lambda _, a, out: embedded.append(out.clone())
    )
    try:
        generate(engine, audio_guidance_scale=1.0, horizon=99)
    finally:
        handle.remove()
    timesteps = FlowSchedule(8, parts.generation.shift).timesteps
    signals = parts.run_facts(timesteps).signals("timestep")
    windows = len(embedded) // 8
    for step, signal in enumerate(signals):
        assert torch.equal(embedded[step * windows], signal)
    cache = rt.TeaCache(0.3, COEFFICIENTS)
    assert parts.step_plan(cache, timesteps) is parts.step_plan(cache, timesteps)


def test_unfit_caches_are_refused_before_anything_runs(engine, tmp_path):
    with pytest.raises(errors.InvalidArgument, match="8 flags, one per step"):
        generate(engine, teacache=rt.StepMask((True,) * 7))
    with pytest.raises(errors.InvalidArgument, match="skyreels-rt calibrate"):
        generate(engine, teacache=rt.TeaCache())
    with pytest.raises(errors.InvalidArgument, match="skyreels-rt calibrate"):
        generate(engine, teacache=rt.MagCache(0.1))
    with pytest.raises(errors.InvalidArgument, match="teacache"):
        generate(engine, teacache=0.1)


def test_few_steps_are_warned_about(engine, caplog):
    cache = rt.TeaCache(9.0, COEFFICIENTS)
    video = generate(engine, num_steps=4, teacache=cache)
    assert "does nothing at 4 steps" in caplog.text
    assert video.steps[0].computed == (True,) * 4
    caplog.clear()
    assert not all(generate(engine, num_steps=5, teacache=cache).steps[0].computed)
    generate(engine, num_steps=4, teacache=rt.StepMask((True, False, True, True)))
    assert "does nothing" not in caplog.text


def test_estimate_counts_residuals_and_the_horizon_does_not(engine):
    off = engine.estimate(10.0, prompt="x", text_guidance_scale=3.0)
    on = engine.estimate(10.0, prompt="x", text_guidance_scale=3.0, teacache=ALTERNATE)
    assert off.residuals == 0
    group = plan_group(0, 64, True, window=5, overlap=2, horizon=10**6)
    assert on.residuals == len(group.windows) * 3 * (5 * 2 * 2) * 96 * 4
    assert replace(on, residuals=0) == off
    assert on.total == off.total + on.residuals
    gate = rt.TeaCache(0.1, COEFFICIENTS, "modulated_input")
    assert engine.estimate(10.0, teacache=gate).residuals == len(group.windows) * 3 * 20 * 96 * 4


# ------------------------------------------------------------------------- calibration, commands


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "small"
    write_tiny_model(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def found(model):
    parts = rt.Engine.from_pretrained(model).components
    clips = [
        CalibrationClip(SPEECH, RATE, PORTRAIT, "x"),
        CalibrationClip(SPEECH[::-1], RATE, PORTRAIT),
    ]
    seen = []
    result = calibrate(
        parts, clips, num_steps=(10, 20), inputs="noise", on_run=lambda *run: seen.append(run)
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    return result


def test_a_calibrated_folder_runs_its_own_defaults(model, found, tmp_path, caplog):
    assert found.run.num_steps == (10, 20)
    assert (found.run.num_clips, found.run.num_windows, found.run.inputs) == (2, 4, "noise")
    assert found.magnitude.timesteps == FlowSchedule(20, 5.0).timesteps
    write_calibration(model, found)
    engine = rt.Engine.from_pretrained(model)
    assert engine.components.calibration == found
    for cache in (rt.TeaCache(), rt.MagCache(), rt.TeaCache(signal="timestep_projection")):
        video = generate(engine, num_steps=20, teacache=cache)
        assert sum(video.steps[0].computed) <= 10
    assert "calibrat" not in caplog.text
    data = config_to_dict(found)
    write_json(model / "step_cache.json", data | {"run": data["run"] | {"weights": "other"}})
    rt.Engine.from_pretrained(model)
    assert "calibrate the model again" in caplog.text
    write_json(model / "step_cache.json", {"what": 1})
    with pytest.raises(errors.ModelError, match="unknown key"):
        rt.Engine.from_pretrained(model)
    (model / "step_cache.json").unlink()
    with pytest.raises(errors.OutputError, match="no model folder"):
        write_calibration(tmp_path, found)


def test_fits_are_those_of_the_measured_changes(engine, found):
    """A quartic through what was measured beats any constant."""
    for signal in ("timestep", "timestep_projection", "modulated_input"):
        fit = found.fit(signal)
        assert 0 < fit.least < fit.greatest
        assert fit.error < 0.5
    sizes = np.exp(found.magnitude.log_magnitudes)
    assert sizes[0] == 1.0
    assert np.all(np.isfinite(sizes))


def test_calibration_refuses_what_it_cannot_fit(engine):
    clip = CalibrationClip(SPEECH, RATE, PORTRAIT)
    with pytest.raises(errors.InvalidArgument, match="clips"):
        calibrate(engine.components, [], inputs="")
    with pytest.raises(errors.InvalidArgument, match="num_steps"):
        calibrate(engine.components, [clip], num_steps=(9,), inputs="")


def command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_commands(model, tmp_path):
    import soundfile

    voice, face, out = tmp_path / "a.wav", tmp_path / "a.png", tmp_path / "out.json"
    soundfile.write(voice, SPEECH, RATE)
    Image.fromarray(PORTRAIT).save(face)
    job = ["generate", "--model", model, "--audio", voice, "--image", face,
           "-o", tmp_path / "o.mp4", "--json", out, "--steps", 20]  # fmt: skip
    refused = command(*job, "--teacache", "auto")
    assert refused.exit_code == 2
    assert "calibrate" in refused.output
    assert command(*job, "--teacache", "much").exit_code == 2
    assert command(*job, "--teacache", "0.1", "--magcache", "0.1").exit_code == 2
    done = command(
        "calibrate", model, "--image", face, "--audio", voice, "--steps", 10, "--steps", 20
    )
    assert done.exit_code == 0, done.output
    assert command("calibrate", model, "--image", face).exit_code == 2
    for flag, rule in (("--teacache", "TeaCache"), ("--magcache", "MagCache")):
        done = command(*job, flag, "auto")
        assert done.exit_code == 0, done.output
        report = json.loads(out.read_text())
        (steps,) = report["details"]["steps"]
        assert (steps["start"], steps["stop"], len(steps["computed"])) == (0, 7, 20)
        assert report["details"]["settings"]["teacache"]["rule"] == rule
        rows = {row["name"]: row["value"] for row in report["rows"]}
        assert rows["generate.steps_computed"] == steps["computed"].count("#") / 20 < 1
    (model / "step_cache.json").unlink()


@pytest.mark.parametrize("steps", [4, 5])
def test_the_command_says_that_few_steps_leave_nothing_to_skip(model, found, tmp_path, steps):
    import soundfile

    voice, face = tmp_path / "a.wav", tmp_path / "a.png"
    soundfile.write(voice, SPEECH, RATE)
    Image.fromarray(PORTRAIT).save(face)
    write_calibration(model, found)
    done = subprocess.run(
        [sys.executable, "-m", "skyreels_rt", "generate", "--model", model, "--audio", voice,
         "--image", face, "-o", tmp_path / "o.mp4", "--steps", str(steps), "--teacache", "0.1"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (model / "step_cache.json").unlink()
    assert ("does nothing at 4 steps or fewer" in done.stderr) == (steps == 4)


@pytest.mark.parametrize(
    "cache", [ALTERNATE, rt.TeaCache(0.3, COEFFICIENTS), rt.MagCache(0.1, ratios=(1.0, 0.99))]
)
def test_a_live_session_and_its_snapshot_keep_the_cache(engine, cache):
    speech, cut = np.tile(SPEECH, 2), RATE * 9 // 5
    whole = engine.generate(
        speech, sample_rate=RATE, image=PORTRAIT, teacache=cache, horizon=1,
        on_progress=lambda _: None,
    )  # fmt: skip
    with engine.open_session(image=PORTRAIT, teacache=cache) as session:
        session.push_audio(speech[:cut], RATE)
        chunks = [next(session.frames()).frames]
        snapshot = session.snapshot()
    with engine.restore_session(snapshot) as session:
        session.push_audio(speech[cut:], RATE)
        session.end_audio()
        chunks += [chunk.frames for chunk in session.frames()]
    np.testing.assert_array_equal(np.concatenate(chunks), whole.frames)
