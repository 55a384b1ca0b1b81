"""The public surface, frozen: a change here is a change for users and belongs in CHANGELOG.md."""

import dataclasses
import inspect

import pytest

import skyreels_rt as rt
from skyreels_rt import cli, env, errors, kernels
from skyreels_rt.options import GenerateOptions, LiveOptions

NAMES = [
    "AsyncSession", "Engine", "FrameChunk", "GenerateOptions", "GenerationSummary", "Health",
    "Interruption",
    "LiveOptions", "LiveSession", "LoadProgress", "Lora", "MagCache",
    "MemoryEstimate", "Parallel", "Progress", "QuantPolicy", "SkyReelsError", "StepMask",
    "TeaCache", "Timeouts", "VAEOptions", "Video", "WorkerEngine", "__version__",
]  # fmt: skip

AUDIO = "(self, audio: 'str | Path | NDArray[Any]', **options: 'Unpack[GenerateOptions]')"
ENGINE = {
    "close": "(self) -> 'None'",
    "components": None,
    "describe": "(self) -> 'str'",
    "estimate": (
        "(self, seconds: 'float', **options: 'Unpack[GenerateOptions]') -> 'MemoryEstimate'"
    ),
    "from_pretrained": (
        "(model: 'str | Path', *, device: 'str | torch.device' = 'auto', "
        "devices: 'Sequence[str | torch.device] | None' = None, "
        "parallel: 'Parallel | Mesh | None' = None, timeouts: 'Timeouts | None' = None, "
        "max_sessions: 'int' = 64, on_progress: 'LoadCallback | None' = None, "
        "**options: 'Unpack[LoadOptions]') -> 'Engine | WorkerEngine'"
    ),
    "facts": None,
    "generate": f"{AUDIO} -> 'Video'",
    "generate_file": AUDIO.replace("(self, ", "(self, path: 'str | Path', ")
    + " -> 'GenerationSummary'",
    "health": "(self) -> 'Health'",
    "measure_links": "(self) -> 'Links'",
    "mesh": None,
    "metrics": "(self) -> 'str'",
    "open_job": (
        "(self, audio: 'str | Path | NDArray[Any]', options: 'GenerateOptions') -> 'OfflineJob'"
    ),
    "step_shape": ("(self, seconds: 'float', **options: 'Unpack[GenerateOptions]') -> 'StepShape'"),
    "open_session": "(self, **options: 'Unpack[LiveOptions]') -> 'LiveSession'",
    "restore_session": (
        "(self, snapshot: 'bytes | str | Path', **options: 'Unpack[LiveOptions]') -> 'LiveSession'"
    ),
    "transformer_config": None,
    "warmup": "(self) -> 'float'",
    "workers": None,
    "writes_files": None,
    "stream": f"{AUDIO} -> 'Iterator[FrameChunk]'",
}

OPTIONS = {
    "audio_guidance_scale", "cancel", "color_correction", "color_reference", "edit_mask",
    "guidance_form", "height", "horizon", "image", "long_form", "negative_prompt", "num_steps",
    "on_progress", "prompt", "sample_rate", "seed", "shift",
    "solver", "teacache", "text_guidance_scale", "video", "width",
}  # fmt: skip

GENERATE_FLAGS = {
    "--audio", "--output", "--model", "--image", "--video", "--edit-mask", "--prompt",
    "--negative-prompt", "--steps",
    "--guidance-form", "--text-guidance-scale", "--audio-guidance-scale", "--solver",
    "--shift", "--height", "--width", "--horizon", "--seed", "--device", "--dtype", "--kernels",
    "--vae", "--vae-folder",
    "--json", "--teacache", "--magcache", "--color-correction", "--long-form", "--lora",
    "--quantization", "--offload", "--devices", "--parallel",
}  # fmt: skip

LIVE_OPTIONS = (OPTIONS - {"cancel", "long_form", "on_progress", "sample_rate"}) | {
    "idle", "max_ahead_s", "on_full",
}  # fmt: skip

ERRORS = {
    "AdmissionRefused": "admission_refused", "QueueFull": "queue_full",
    "SessionStateError": "session_state",
    "Cancelled": "cancelled", "FaceNotFound": "face_not_found",
    "GraphCaptureFailed": "graph_capture",
    "InvalidArgument": "invalid_argument", "MediaError": "media",
    "InvalidMesh": "invalid_mesh", "PeerFailed": "peer_failed",
    "MissingDependency": "missing_dependency", "ModelError": "model",
    "NonFinite": "non_finite", "OutputError": "output", "SkyReelsError": "error",
    "UnsupportedKernel": "unsupported_kernel", "WeightsMismatch": "weights_mismatch",
    "OutOfMemory": "out_of_memory", "WorkerDied": "worker_died", "WorkerFailed": "worker_failed",
    "WorkerTimeout": "worker_timeout",
}  # fmt: skip


def test_public_names():
    assert sorted(rt.__all__) == sorted(NAMES)
    assert all(getattr(rt, name) is not None for name in NAMES)


EVAL_FLAGS = {
    "--output", "--clips", "--quick", "--only", "--voice", "--device", "--dtype", "--kernels",
    "--json", "--teacache", "--magcache",
}  # fmt: skip
CALIBRATE_FLAGS = {
    "--clips", "--image", "--audio", "--steps", "--output", "--device", "--dtype", "--kernels",
}  # fmt: skip
EXPORT_VAE_FLAGS = {
    "--output", "--format", "--height", "--width", "--dynamic", "--dtype", "--opset", "--library",
    "--compute-capability", "--timing-cache", "--version-compatible", "--device", "--verify-steps",
    "--json",
}  # fmt: skip
CONVERT_FLAGS = {"--adapter", "--audio-encoder", "--preset", "--quantize", "--copy"}
TRAIN_FLAGS = {
    "--data", "--device", "--from", "--recipe", "--share", "--stage", "--until", "--without",
}  # fmt: skip


def test_engine_methods():
    found = {}
    for name, member in inspect.getmembers(rt.Engine):
        if not name.startswith("_"):
            found[name] = None if isinstance(member, property) else str(inspect.signature(member))
    assert found == ENGINE


def test_options():
    assert set(GenerateOptions.__annotations__) == OPTIONS
    assert set(LiveOptions.__annotations__) == LIVE_OPTIONS


def test_command_line():
    import typer

    command = typer.main.get_command(cli.app)
    assert set(command.commands) == {
        "generate", "stream", "serve", "doctor", "bench", "eval", "calibrate", "train", "data",
        "estimate", "convert", "export",
    }  # fmt: skip
    assert set(command.commands["bench"].commands) == {
        "data", "graphs", "kernels", "parallel", "quantization", "scaling", "step", "stream",
        "teacache", "vae",
    }  # fmt: skip
    assert set(command.commands["data"].commands) == {"build", "convert-syncnet", "draw"}
    assert set(command.commands["export"].commands) == {"vae"}
    for name, expected in (
        ("generate", GENERATE_FLAGS), ("eval", EVAL_FLAGS), ("train", TRAIN_FLAGS),
        ("calibrate", CALIBRATE_FLAGS), ("convert", CONVERT_FLAGS),
        ("export vae", EXPORT_VAE_FLAGS),
    ):  # fmt: skip
        found = command
        for part in name.split():
            found = found.commands[part]
        flags = {o for p in found.params for o in p.opts if o.startswith("--")}
        assert flags - {"--help"} == expected


def test_errors():
    found = {
        name: value.code
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.SkyReelsError)
    }
    assert found == ERRORS


def test_environment_variables():
    assert env.VARIABLES == {"SKYREELS_RT_NATIVE": ("auto", "off")}


MEMBERS = {
    "FrameChunk": ["audio", "frames", "index", "pts", "sample_rate"],
    "GenerationSummary": [
        "fps", "num_frames", "rtf", "seconds", "seed", "settings", "stage_seconds",
        "steps",
    ],
    "MemoryEstimate": [
        "activations", "available", "describe", "fits", "graphs", "host", "residuals", "timeline",
        "total", "vae_cache", "weights",
    ],
    "Progress": ["done", "frames", "stage", "total"],
    "Video": ["audio", "duration", "fps", "frames", "num_frames", "sample_rate", "save", "steps"],
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_members(name):
    cls = getattr(rt, name)
    found = {field.name for field in dataclasses.fields(cls)}
    found |= {member for member in vars(cls) if not member.startswith("_")}
    assert sorted(found) == MEMBERS[name]


def test_kernel_names():
    assert sorted(kernels.__all__) == [
        "AttentionBackend", "AudioFold", "Impl", "KernelPlan", "absorbed_audio_attention",
        "audio_cross_attention", "blf_step", "blf_velocity", "causal_conv3d", "dense_attention",
        "fold_audio_projections", "frames_to_uint8", "gate_residual_norm_modulate",
        "gate_residual_norm_modulate_quantize", "norm_modulate", "norm_modulate_quantize",
        "qk_norm_rope", "quantize_rows", "residual_apply",
        "residual_store", "rms_norm_silu", "teacache_gate",
    ]  # fmt: skip
