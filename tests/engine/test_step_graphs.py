"""Recorded steps in the engine, and a denoise loop in which host and device never wait."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import skyreels_rt as rt
from skyreels_rt import errors
from skyreels_rt.config import AudioAdapterConfig
from skyreels_rt.diffusion import denoise
from skyreels_rt.diffusion.blf import plan_group, window_weights
from skyreels_rt.diffusion.guidance import guidance_passes
from skyreels_rt.diffusion.noise import timeline_noise
from skyreels_rt.diffusion.predictor import LeadingSlot, PromptContext, WindowPredictor
from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.diffusion.solvers import make_solver
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.runtime.cuda_graphs import CudaRecorder, StepGraphs
from skyreels_rt.runtime.host_reads import HostRead, RefuseHostReads
from skyreels_rt.runtime.step_cache import ChangeGate, StepPlan
from skyreels_rt.testing.graph_recorder import RerunRecorder
from skyreels_rt.testing.tiny import TinyModel, tiny_components

RATE = 16_000
SMALL = TinyModel().with_generation(height=32, width=32, window=5, overlap=2, num_steps=8)
SHARED_QUERY = AudioAdapterConfig(
    kind="shared_query", feature_layers=3, feature_dim=64, num_tokens=9, token_dim=64
)
MODELS = {
    "all_frames": SMALL,
    "leading_slot": SMALL.with_generation(reference_mode="leading_slot"),
    "residual": SMALL.with_transformer(prediction="reference_residual"),
    "shared_query": SMALL.with_transformer(audio=SHARED_QUERY),
}
SPEECH = 0.2 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
PORTRAIT = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
OTHER = np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8)
ALTERNATE = rt.StepMask((True, False) * 4)
GATED = rt.TeaCache(0.3, (0.0, 0.0, 0.0, 1.0, 0.0), "modulated_input")
THREE_PASSES = {"prompt": "hello", "text_guidance_scale": 2.0, "audio_guidance_scale": 3.0}
OPTIONS = {
    "plain": {},
    "skipping": {"teacache": ALTERNATE},
    "three passes, skipping": {"teacache": ALTERNATE, **THREE_PASSES},
    "one pass, unipc": {"audio_guidance_scale": 1.0, "solver": "unipc"},
    "gate": {"teacache": GATED},
    "groups": {"horizon": 1, "teacache": ALTERNATE},
}


def recorded(parts, *, required=True):
    """An engine of the same parts that records, and its recorder."""
    recorder = RerunRecorder()
    return rt.Engine(replace(parts, graphs=StepGraphs(recorder, required=required))), recorder


def frames(engine, **options):
    given = {"image": PORTRAIT, "sample_rate": RATE, "on_progress": lambda _: None} | options
    return engine.generate(SPEECH, **given).frames


@pytest.fixture(scope="module")
def parts():
    return tiny_components(SMALL)


@pytest.mark.parametrize(
    ("model", "options"),
    [*(("all_frames", name) for name in OPTIONS), ("leading_slot", "groups"),
     ("residual", "skipping"), ("shared_query", "skipping")],
)  # fmt: skip
def test_recorded_steps_give_the_same_bytes(model, options):
    plain = tiny_components(MODELS[model])
    engine, recorder = recorded(plain)
    expected = frames(rt.Engine(plain), **OPTIONS[options])
    np.testing.assert_array_equal(frames(engine, **OPTIONS[options]), expected)
    made = recorder.num_recorded
    assert 1 <= made <= 3
    assert recorder.num_replayed >= 8
    np.testing.assert_array_equal(frames(engine, **OPTIONS[options]), expected)
    assert recorder.num_recorded == made


class Stale(RerunRecorder):
    """Replays give what the first run gave."""

    def record(self, work):
        results = work()
        return (lambda: None), results


def test_a_stale_graph_is_seen(parts):
    stale = rt.Engine(replace(parts, graphs=StepGraphs(Stale())))
    assert not np.array_equal(frames(stale), frames(rt.Engine(parts)))


def test_warmup_records_what_a_default_session_needs(parts):
    engine, recorder = recorded(parts)
    engine.warmup()
    graphs = engine.components.graphs
    assert sorted(graphs.kinds) == ["compute", "compute, keep", "skip"]
    for options in (OPTIONS["plain"], OPTIONS["skipping"], OPTIONS["groups"]):
        frames(engine, **options)
    assert recorder.num_recorded == 3
    frames(engine, **OPTIONS["three passes, skipping"])  # other passes, so other graphs
    assert recorder.num_recorded == 5
    assert "required, 5 made" in engine.describe()


def test_sessions_that_share_recordings_do_not_mix(parts):
    engine, recorder = recorded(parts)
    jobs = (
        {"image": PORTRAIT, "seed": 1},
        {"image": OTHER, "seed": 2},
        {"image": OTHER, "seed": 3, "prompt": "red hair", "teacache": ALTERNATE},
    )
    expected = [frames(rt.Engine(parts), horizon=1, **job) for job in jobs]
    sessions = [engine.open_session(**job) for job in jobs]
    made = [[] for _ in jobs]
    for block in np.array_split(SPEECH, 5):
        for session, chunks in zip(sessions, made, strict=True):
            session.push_audio(block, RATE)
            chunks.extend(chunk.frames for chunk in session.frames())
    for session, chunks, frames_alone in zip(sessions, made, expected, strict=True):
        session.end_audio()
        chunks.extend(chunk.frames for chunk in session.frames())
        session.close()
        np.testing.assert_array_equal(np.concatenate(chunks), frames_alone)
    assert recorder.num_recorded == 3


@pytest.mark.parametrize("model", ["all_frames", "leading_slot"])
@pytest.mark.parametrize("options", ["plain", "skipping", "three passes, skipping"])
def test_the_estimate_counts_their_buffers(model, options):
    plain = tiny_components(MODELS[model])
    engine, _ = recorded(plain)
    options = OPTIONS[options] | {"horizon": 9}
    frames(engine, **options)
    counted = engine.estimate(1.0, **options).graphs
    held = engine.components.graphs.num_bytes
    assert held <= counted <= 1.3 * held
    assert rt.Engine(plain).estimate(1.0, **options).graphs == 0


def test_a_step_that_cannot_be_recorded_is_named_or_runs_as_it_is(parts, caplog):
    block = parts.transformer.blocks[1]
    handle = block.register_forward_hook(lambda _, a, out: float(out[0].sum()) and None)
    try:
        engine, _ = recorded(parts)
        with pytest.raises(errors.GraphCaptureFailed, match=r"'compute'.*_local_scalar_dense"):
            frames(engine)
        engine, recorder = recorded(parts, required=False)
        np.testing.assert_array_equal(frames(engine), frames(rt.Engine(parts)))
    finally:
        handle.remove()
    assert (recorder.num_recorded, recorder.num_replayed) == (0, 0)
    assert caplog.text.count("_local_scalar_dense") == 1


# ------------------------------------------------------------------- a loop without host reads


class Unread:
    """Numbers of the steps that nobody reads: all is taken for finite."""

    lag = 1

    def __init__(self, device, num_steps):
        self.device = device

    def send(self, step, number):
        assert (number.device, number.dtype, number.ndim) == (self.device, torch.int64, 0)

    def take(self, step):
        return -1


PLANS = {
    "every step": None,
    "skipping": StepPlan((True, False, False, True, False, True)),
    "gate": StepPlan((True, *[False] * 4, True), ChangeGate((0.0, 0.0, 0.0, 1.0, 0.0), 0.5)),
}


def loop_on(device, model, plan=None, solver="euler", *, graphs=None, parts=None, timesteps=True):
    """A prepared run of the loop: call what it returns, optionally with a wrapped predictor."""
    tiny = MODELS[model]
    if parts is None:
        kernels = "reference" if device.type == "meta" else "auto"
        parts = tiny_components(tiny, plan=KernelPlan.choose("cpu", torch.float32, kernels))
        parts.transformer.to(device)
    transformer, config = parts.transformer, parts.transformer.config
    schedule = FlowSchedule(6, 5.0)
    passes = guidance_passes("text_first", 2.0, 3.0, has_text=True, has_audio=True)
    group = plan_group(0, 8, True, window=5, overlap=2, horizon=9)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(device)

    adapter = config.audio
    width = (adapter.num_tokens, adapter.token_dim)
    slot = None
    if model == "leading_slot":
        heard = tuple(draw(1, *width) for _ in group.windows)
        latents, noise, channels = draw(16, 1, 4, 4), draw(16, 1, 4, 4), draw(20, 6, 4, 4)
        slot = LeadingSlot(latents, noise, channels, heard, draw(1, *width))
    tokens = draw(8, *width)
    inputs = {"channels": draw(20, 8, 4, 4), "tokens": tokens, "silent_tokens": tokens * 0}
    with torch.inference_mode():
        texts = [transformer.text_context(draw(1, 64, 64)) for _ in range(2)]

    @torch.inference_mode()
    def run(wrapped=lambda predict: predict):
        predictor = WindowPredictor(
            transformer, group, passes, PromptContext(*texts), **inputs, slot=slot, steps=plan,
            timesteps=schedule.timesteps if timesteps else (), graphs=graphs,
        )  # fmt: skip
        noise = timeline_noise(0, 0, 8, (16, 4, 4)).to(device)
        weights = window_weights(group, 2).to(device)
        stepper = make_solver(solver, schedule)
        return lambda: denoise.denoise_group(
            group, wrapped(predictor), schedule, stepper, noise=noise, weights=weights,
            guidance=[one.weight for one in passes], impl=parts.plan.blf_step,
        )  # fmt: skip

    return run


@torch.inference_mode()
def refused_run(loop):
    with RefuseHostReads():
        return loop()


@pytest.fixture(params=["meta", "cpu"])
def where(request, monkeypatch):
    """On the meta device copies from the host show; on the CPU the operators of the engine run."""
    monkeypatch.setattr(denoise, "step_numbers", Unread)
    return torch.device(request.param)


@pytest.mark.parametrize(("solver", "plan"), [("euler", "every step"), ("unipc", "skipping")])
@pytest.mark.parametrize("model", list(MODELS))
def test_nothing_in_the_loop_waits_for_the_device(where, model, solver, plan):
    latents = refused_run(loop_on(where, model, PLANS[plan], solver)())
    assert latents.shape == (16, 8, 4, 4) and latents.device == where


def reading(predict):
    def faulty(window, latents, step, timestep):
        velocities = predict(window, latents, step, timestep)
        return velocities * velocities.new_ones(()).item()

    return faulty


def branching(predict):
    def faulty(window, latents, step, timestep):
        return predict(window, latents if latents.isfinite().all() else -latents, step, timestep)

    return faulty


def copying(predict):
    def faulty(window, latents, step, timestep):
        scale = torch.full((1,), timestep / 1000)
        return predict(window, latents, step, timestep) * scale.to(latents.device)

    return faulty


def listing(predict):
    def faulty(window, latents, step, timestep):
        return predict(window, latents, step, timestep) * latents.new_tensor([timestep])

    return faulty


@pytest.mark.parametrize(
    ("fault", "operation", "device"),
    [(reading, "_local_scalar_dense", "cpu"), (branching, "_local_scalar_dense", "meta"),
     (copying, "_to_copy copies from cpu to meta", "meta"), (listing, "lift_fresh", "cpu")],
)  # fmt: skip
def test_planted_waits_are_found(monkeypatch, fault, operation, device):
    monkeypatch.setattr(denoise, "step_numbers", Unread)
    with pytest.raises(HostRead, match=operation):
        refused_run(loop_on(torch.device(device), "all_frames")(fault))


def test_waits_that_are_known_are_found_too(where):
    """The decision on the picture is a host read; timesteps not given in advance are a copy."""
    with pytest.raises(HostRead, match="_local_scalar_dense"):
        refused_run(loop_on(where, "all_frames", PLANS["gate"])())
    with pytest.raises(HostRead, match=r"lift_fresh|_to_copy"):
        refused_run(loop_on(where, "all_frames", timesteps=False)())


# ---------------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("options", list(OPTIONS))
def test_cuda_graphs_give_the_bytes_of_eager(options):
    given = {"device": "cuda", "dtype": "bfloat16"}
    plain = rt.Engine.from_pretrained("tiny-random", graphs=False, **given)
    engine = rt.Engine.from_pretrained("tiny-random", graphs=True, **given)
    engine.warmup()
    size = {"height": 32, "width": 32, "num_steps": 8} | OPTIONS[options]
    expected = frames(plain, **size)
    for _ in range(2):
        np.testing.assert_array_equal(frames(engine, **size), expected)
    assert engine.components.graphs.kinds


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("plan", ["every step", "skipping"])
@pytest.mark.parametrize("model", list(MODELS))
def test_no_synchronisation_between_steps_on_cuda(model, plan, graphs):
    device = torch.device("cuda")
    parts = tiny_components(MODELS[model], device=device)
    recordings = StepGraphs(CudaRecorder(device), required=True) if graphs else None
    run = loop_on(device, model, PLANS[plan], graphs=recordings, parts=parts)
    with torch.inference_mode():
        expected = run()()  # compiles and records
        loop = run()
        torch.cuda.set_sync_debug_mode("error")
        try:
            latents = loop()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(latents, expected)
    with pytest.raises(RuntimeError, match="synchroniz"), torch.inference_mode():
        faulty = run(reading)
        torch.cuda.set_sync_debug_mode("error")
        try:
            faulty()
        finally:
            torch.cuda.set_sync_debug_mode("default")
