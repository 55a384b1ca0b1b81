"""The public surface, frozen: a change here is a change for users and belongs in CHANGELOG.md."""

import inspect

import skyreels_rt as rt
from skyreels_rt import cli, env, errors
from skyreels_rt.options import GenerateOptions

NAMES = [
    "Engine", "FrameChunk", "GenerateOptions", "GenerationSummary", "MemoryEstimate", "Progress",
    "SkyReelsError", "Video", "__version__",
]  # fmt: skip

AUDIO = "(self, audio: 'str | Path | NDArray[Any]', **options: 'Unpack[GenerateOptions]')"
ENGINE = {
    "components": None,
    "describe": "(self) -> 'str'",
    "estimate": (
        "(self, seconds: 'float', **options: 'Unpack[GenerateOptions]') -> 'MemoryEstimate'"
    ),
    "from_pretrained": (
        "(model: 'str | Path', *, device: 'str | torch.device' = 'auto', "
        "dtype: 'str | torch.dtype' = 'auto', "
        "kernels: \"Literal['auto', 'reference'] | Mapping[str, str]\" = 'auto') -> 'Engine'"
    ),
    "generate": f"{AUDIO} -> 'Video'",
    "generate_file": AUDIO.replace("(self, ", "(self, path: 'str | Path', ")
    + " -> 'GenerationSummary'",
    "stream": f"{AUDIO} -> 'Iterator[FrameChunk]'",
}

OPTIONS = {
    "audio_guidance_scale", "cancel", "edit_mask", "guidance_form", "height", "horizon", "image",
    "negative_prompt", "num_steps", "on_progress", "prompt", "sample_rate", "seed", "shift",
    "solver", "text_guidance_scale", "video", "width",
}  # fmt: skip

GENERATE_FLAGS = {
    "--audio", "--output", "--model", "--image", "--video", "--edit-mask", "--prompt",
    "--negative-prompt", "--steps",
    "--guidance-form", "--text-guidance-scale", "--audio-guidance-scale", "--solver",
    "--shift", "--height", "--width", "--horizon", "--seed", "--device", "--dtype", "--kernels",
    "--json",
}  # fmt: skip

ERRORS = {
    "Cancelled": "cancelled", "FaceNotFound": "face_not_found",
    "InvalidArgument": "invalid_argument", "MediaError": "media",
    "MissingDependency": "missing_dependency", "ModelError": "model",
    "NonFinite": "non_finite", "OutputError": "output", "SkyReelsError": "error",
    "UnsupportedKernel": "unsupported_kernel", "WeightsMismatch": "weights_mismatch",
}  # fmt: skip


def test_public_names():
    assert sorted(rt.__all__) == sorted(NAMES)
    assert all(getattr(rt, name) is not None for name in NAMES)


def test_engine_methods():
    found = {}
    for name, member in inspect.getmembers(rt.Engine):
        if not name.startswith("_"):
            found[name] = None if isinstance(member, property) else str(inspect.signature(member))
    assert found == ENGINE


def test_generate_options():
    assert set(GenerateOptions.__annotations__) == OPTIONS


def test_command_line():
    import typer

    command = typer.main.get_command(cli.app)
    assert set(command.commands) == {"generate", "doctor", "bench"}
    assert set(command.commands["bench"].commands) == {"step"}
    flags = {o for p in command.commands["generate"].params for o in p.opts if o.startswith("--")}
    assert flags - {"--help"} == GENERATE_FLAGS


def test_errors():
    found = {
        name: value.code
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.SkyReelsError)
    }
    assert found == ERRORS


def test_environment_variables():
    assert len(env.VARIABLES) <= 6
