"""The command ``skyreels-rt``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from skyreels_rt import cli_convert, cli_data, cli_live, cli_parallel, cli_vae, cli_weights
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.terminal import (
    Device,
    Devices,
    Dtype,
    JsonFile,
    Kernels,
    Model,
    Plan,
    byte_bar,
    command_line,
    console,
    device_list,
    errors_as_exit_codes,
    parse_loras,
    report_table,
    requested_axes,
)

if TYPE_CHECKING:
    from skyreels_rt.distributed.parallel import Parallel
    from skyreels_rt.export.exported_vae import VAERunner
    from skyreels_rt.offline import GenerationSummary
    from skyreels_rt.options import GenerateOptions
    from skyreels_rt.pretrained import LoadOptions
    from skyreels_rt.runtime.magcache import MagCache
    from skyreels_rt.runtime.teacache import TeaCache
    from skyreels_rt.types import Progress as JobProgress
    from skyreels_rt.video_maker import VideoMaker

app = typer.Typer(
    help="Talking portraits from speech.", no_args_is_help=True, pretty_exceptions_enable=False
)
bench_app = typer.Typer(help="Measure; every command ends within minutes.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
app.add_typer(cli_data.data_app, name="data")
Teacache = Annotated[
    str | None, typer.Option(help='Skip steps: threshold, or "auto" for a calibrated model.')
]
Magcache = Annotated[
    str | None, typer.Option(help='Skip steps by MagCache: threshold, or "auto"; calibrated model.')
]
app.command("stream")(cli_live.stream)
app.command("serve")(cli_live.serve)
app.command("convert")(cli_convert.convert)
bench_app.command("stream")(cli_live.bench_stream)
bench_app.command("data")(cli_data.bench_data)
app.add_typer(cli_vae.export_app, name="export")
bench_app.command("vae")(cli_vae.bench_vae)
app.command("estimate")(cli_weights.estimate)
bench_app.command("quantization")(cli_weights.bench_quantization)
bench_app.command("graphs")(cli_weights.bench_graphs)
bench_app.command("parallel")(cli_parallel.bench_parallel)
bench_app.command("scaling")(cli_parallel.bench_scaling)


@app.command()
def generate(
    *,
    audio: Annotated[str, typer.Option(help="Speech file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="MP4 file to write.")],
    model: Model = "demo",
    image: Annotated[str | None, typer.Option(help="Portrait.")] = None,
    video: Annotated[str | None, typer.Option(help="Source video to edit.")] = None,
    edit_mask: Annotated[
        str | None, typer.Option(help='"mouth", "face" or a mask picture (default: mouth).')
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What to show.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to show.")] = None,
    num_steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps.")] = None,
    text_guidance_scale: Annotated[float | None, typer.Option(help="1.0 = off.")] = None,
    audio_guidance_scale: Annotated[float | None, typer.Option(help="1.0 = off.")] = None,
    guidance_form: Annotated[
        str | None, typer.Option(help='"text_first" or "audio_first".')
    ] = None,
    solver: Annotated[str | None, typer.Option(help='"euler" or "unipc".')] = None,
    shift: Annotated[float | None, typer.Option(help="Timestep shift.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, multiple of 16.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, multiple of 16.")] = None,
    horizon: Annotated[int | None, typer.Option(help="BLF windows denoised together.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    color_correction: Annotated[
        float | None, typer.Option(help="0 to 1: keep the portrait's colours.")
    ] = None,
    long_form: Annotated[
        str | None, typer.Option(help='"blf", or the family\'s own "continuation".')
    ] = None,
    quantization: cli_weights.Quantization = None,
    offload: cli_weights.Offload = False,
    device: Device = "auto",
    devices: Devices = None,
    dtype: Dtype = "auto",
    kernels: Kernels = "auto",
    vae: Annotated[str, typer.Option(help='Who decodes: "torch", "onnx", "tensorrt".')] = "torch",
    vae_folder: Annotated[Path | None, typer.Option(help="Of `export vae`.")] = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="LoRA file, or FILE=SCALE; repeatable.")
    ] = None,
    teacache: Teacache = None,
    magcache: Magcache = None,
    parallel: Annotated[
        str | None,
        typer.Option(help='With --devices or torchrun: axes such as "window=2,ulysses=2".'),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Make a talking video from speech and a portrait, a source video or a prompt."""
    options: dict[str, Any] = {
        "image": image,
        "video": video,
        "edit_mask": edit_mask,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "num_steps": num_steps,
        "text_guidance_scale": text_guidance_scale,
        "audio_guidance_scale": audio_guidance_scale,
        "guidance_form": guidance_form,
        "solver": solver,
        "shift": shift,
        "height": height,
        "width": width,
        "horizon": horizon,
        "seed": seed,
        "color_correction": color_correction,
        "long_form": long_form,
    }
    with errors_as_exit_codes():
        from skyreels_rt.pretrained import TINY_NAME
        from skyreels_rt.report import require_writable

        options["teacache"] = _step_cache(teacache, magcache)

        if json_file is not None:
            require_writable(json_file)
        load: LoadOptions = {
            "dtype": dtype,
            "kernels": cast("Plan", kernels),
            "quantization": quantization,
            "offload": offload,
            "loras": parse_loras(lora),
            "vae": cast("VAERunner", vae),
            "vae_folder": vae_folder,
        }
        engine = _open_engine(model, device, devices, requested_axes(parallel), load)
        if engine.facts.name == TINY_NAME:
            console.print(f"{TINY_NAME}: random weights, the picture will be noise", style="dim")
        summary = _generate_with_bar(engine, output, audio, options)
        console.print(
            f"{output}: {summary.num_frames} frames in {summary.seconds:.1f} s "
            f"(rtf {summary.rtf:.2f})",
            markup=False,
            soft_wrap=True,
        )
        if json_file is not None and engine.writes_files:
            _write_generate_report(json_file, engine, summary)
        engine.close()


@app.command()
def doctor(*, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what is installed, which native layers are active, and why others are not."""
    with errors_as_exit_codes():
        from skyreels_rt.doctor import examine, examine_json

        out = Console(highlight=False)
        if as_json:
            out.print_json(json.dumps(examine_json()))
            return
        checks, plan = examine()
        table = Table("part", "state", "detail")
        for check in checks:
            table.add_row(escape(check.name), check.state, escape(check.detail))
        out.print(table)
        out.print(plan.describe(), markup=False)


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help='Model name or folder, or "tiny-random".')],
    *,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for eval.json and eval.html.")
    ],
    clips: Annotated[int, typer.Option(help="Held-out clips, 2 to 48.")] = 48,
    quick: Annotated[bool, typer.Option("--quick", help="8 clips, 20 s of long video.")] = False,
    only: Annotated[
        str,
        typer.Option(
            help="Sections, with commas: sync, fidelity, eyes, long, guidance, edit, text, voices."
        ),
    ] = "",
    voice: Annotated[
        list[Path] | None, typer.Option(help="Recording for the section voices; repeatable.")
    ] = None,
    teacache: Teacache = None,
    magcache: Magcache = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    kernels: Kernels = "auto",
    json_file: JsonFile = None,
) -> None:
    """Measure a model on held-out drawn clips: lip sync, fidelity, identity, conditions."""
    with errors_as_exit_codes():
        from skyreels_rt.engine import Engine
        from skyreels_rt.held_out import EvalRun, run_evaluation

        engine = Engine.from_pretrained(
            model, device=device, dtype=dtype, kernels=cast("Plan", kernels)
        )
        run = EvalRun(
            command=command_line(),
            clips=clips,
            quick=quick,
            only=tuple(name.strip() for name in only.split(",") if name.strip()),
            voices=tuple(voice or ()),
            json_file=json_file,
            teacache=_step_cache(teacache, magcache),
        )
        with _bar() as bar:
            videos, frames = bar.add_task("videos", total=None), bar.add_task("frames", total=None)
            report = run_evaluation(
                engine,
                output,
                run,
                on_progress=lambda name, done, total: bar.update(
                    videos, description=name, completed=done, total=total
                ),
                on_frames=lambda state: bar.update(
                    frames, description=state.stage, completed=state.done, total=state.total
                ),
            )
        Console().print(report_table(report))
        for name, why in report.details["skipped"].items():
            console.print(f"{name}: not measured: {why}", markup=False, soft_wrap=True)
        console.print(f"{output / 'eval.html'}", markup=False, soft_wrap=True)


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help='Model folder, or "demo".')],
    *,
    clips: Annotated[int, typer.Option(help="Drawn clips, 1 to 48; needs the [train] extra.")] = 4,
    image: Annotated[
        list[str] | None, typer.Option(help="Portrait to use instead; repeatable, with --audio.")
    ] = None,
    audio: Annotated[
        list[str] | None, typer.Option(help="Its speech; as many as portraits.")
    ] = None,
    num_steps: Annotated[
        list[int] | None, typer.Option("--steps", help="Steps of a run (10, 20, 40); repeatable.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Model folder to write to (its own).")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    kernels: Kernels = "auto",
) -> None:
    """Fit TeaCache and MagCache to a model and write step_cache.json into its folder."""
    with errors_as_exit_codes():
        from skyreels_rt.calibration import DEFAULT_STEPS, write_calibration
        from skyreels_rt.calibration import calibrate as measure
        from skyreels_rt.engine import Engine
        from skyreels_rt.held_out import calibration_clips, given_clips
        from skyreels_rt.pretrained import model_folder

        engine = Engine.from_pretrained(
            model, device=device, dtype=dtype, kernels=cast("Plan", kernels)
        )
        parts, folder = engine.components, output or model_folder(model)
        if image or audio:
            inputs, chosen = "given", given_clips(image or [], audio or [])
        else:
            generation = parts.generation
            inputs = f"drawn, held out, {clips} from 1000"
            chosen = calibration_clips(min(generation.height, generation.width), clips)
        with _bar() as bar:
            runs = bar.add_task("runs", total=None)
            found = measure(
                parts,
                chosen,
                num_steps=tuple(num_steps or DEFAULT_STEPS),
                inputs=inputs,
                on_run=lambda done, total: bar.update(runs, completed=done, total=total),
            )
        console.print(f"{write_calibration(folder, found)}", markup=False, soft_wrap=True)


@app.command()
def train(
    output: Annotated[Path, typer.Argument(help="Folder of the run; an old run goes on.")],
    *,
    recipe: Annotated[str, typer.Option(help='"demo" or "miniature".')] = "demo",
    stage: Annotated[
        list[str] | None,
        typer.Option(
            help="vae, speech, text, clips, reader, flow or distil (default: all); repeatable."
        ),
    ] = None,
    until: Annotated[int | None, typer.Option(help="Stop each stage at this step.")] = None,
    without: Annotated[
        str | None, typer.Option(help="Ablation: facial-mask, curriculum or dropout.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of shards for the stages that look at pictures.")
    ] = None,
    device: Annotated[str, typer.Option(help='"cpu", "cuda[:n]" or "auto".')] = "auto",
    start: Annotated[
        str | None,
        typer.Option("--from", help="Model to begin with, by name or folder; in a new RUN only."),
    ] = None,
    share: Annotated[
        str | None,
        typer.Option(help='Of the stage "clips": "3/16" prepares part 3 (from 0) of 16.'),
    ] = None,
) -> None:
    """Train a model from nothing on drawn, synthesised clips; needs the [train] extra."""
    with errors_as_exit_codes():
        from skyreels_rt.training.recipe import ablated, find_recipe
        from skyreels_rt.training.stages import STAGES, Share, run_recipe

        chosen = find_recipe(recipe)
        if without is not None:
            chosen = ablated(chosen, without)
        clips = None
        if data is not None:
            from skyreels_rt.training.shard_clips import shard_clips

            clips = shard_clips(data, chosen)
        run_recipe(
            chosen,
            output,
            stages=cast("Any", stage or STAGES),
            until=until,
            clips=clips,
            device=device,
            share=None if share is None else Share.parse(share),
            start=start,
        )
        console.print(f"{output}: done", markup=False)


@bench_app.command("step")
def bench_step(
    *,
    peer: Annotated[str, typer.Option(help='Library to compare with: "diffusers".')] = "diffusers",
    repeats: Annotated[int, typer.Option(help="Timed runs per side, at least 5.")] = 9,
    full: Annotated[
        bool, typer.Option("--full", help="SkyReels-V3-A2V's size, random weights; needs a GPU.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Time one transformer step against a peer with the same weights, in the same run."""
    with errors_as_exit_codes():
        from skyreels_rt.bench.large_step import measure_large_steps
        from skyreels_rt.bench.step import measure_steps
        from skyreels_rt.report import Row, require_writable
        from skyreels_rt.runtime.device import resolve_device

        if json_file is not None:
            require_writable(json_file)

        with console.status("measuring ...") as status:

            def show(row: Row) -> None:
                status.update(f"{row.name}: {row.value:.3f} {row.unit}")

            if full:
                report = measure_large_steps(
                    command=command_line(),
                    device=resolve_device("cuda"),
                    repeats=repeats,
                    on_row=show,
                )
            else:
                report = measure_steps(
                    peer=peer, repeats=repeats, command=command_line(), on_row=show
                )
        Console().print(report_table(report))
        if json_file is not None:
            report.write(json_file)


@bench_app.command("kernels")
def bench_kernels(
    *,
    repeats: Annotated[int, typer.Option(help="Timed runs per side, at least 5.")] = 9,
    device: Device = "cpu",
    compile_: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Also time torch.compile (minutes).")
    ] = True,
    json_file: JsonFile = None,
) -> None:
    """Time every operator against eager torch and torch.compile, in the same run."""
    with errors_as_exit_codes():
        from skyreels_rt.bench.kernels import measure_kernels
        from skyreels_rt.report import require_writable
        from skyreels_rt.runtime.device import resolve_device

        if json_file is not None:
            require_writable(json_file)
        with console.status("measuring ...") as status:
            report = measure_kernels(
                repeats=repeats,
                command=command_line(),
                device=resolve_device(device),
                with_compile=compile_,
                on_row=lambda row: status.update(f"{row.name}: {row.value:.3g} {row.unit}"),
            )
        Console().print(report_table(report))
        if json_file is not None:
            report.write(json_file)


@bench_app.command("teacache")
def bench_teacache(
    *,
    model: Model = "demo",
    full: Annotated[
        bool, typer.Option("--full", help="8 clips at all thresholds; about half an hour.")
    ] = False,
    num_steps: Annotated[
        list[int] | None, typer.Option("--steps", help="Steps of a run (20, 40); repeatable.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Write a page with curves and strips here.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Measure what step caches save, and what they cost in lip sync, PSNR, SSIM and seams."""
    with errors_as_exit_codes():
        from skyreels_rt.bench.teacache import CurveSize, measure_step_caches
        from skyreels_rt.engine import Engine
        from skyreels_rt.evaluation.page import render_page
        from skyreels_rt.held_out import HeldOutClips, window_frames
        from skyreels_rt.report import require_writable

        for path in (json_file, html_file):
            if path is not None:
                require_writable(path)
        engine = Engine.from_pretrained(model)
        generation = engine.components.generation
        steps = tuple(num_steps or (20, 40))
        with console.status("measuring ...") as status:
            report, sections = measure_step_caches(
                engine,
                HeldOutClips.listed(min(generation.height, generation.width)),
                lambda num_frames: window_frames(engine, num_frames, {}),
                command=command_line(),
                size=CurveSize.full(steps) if full else CurveSize(steps),
                on_run=status.update,
            )
        Console().print(report_table(report))
        if json_file is not None:
            report.write(json_file)
        if html_file is not None:
            facts = {"model": model, "command": report.command}
            html_file.write_text(render_page("Step caches", facts, sections), encoding="utf-8")


def main() -> None:
    """Entry point of the console script."""
    app()


def _step_cache(teacache: str | None, magcache: str | None) -> TeaCache | MagCache | None:
    """What the options ask for."""
    from skyreels_rt.errors import InvalidArgument
    from skyreels_rt.runtime.magcache import MagCache
    from skyreels_rt.runtime.teacache import TeaCache

    if teacache is not None and magcache is not None:
        raise InvalidArgument("magcache", expected="no --teacache beside it", got=magcache)
    for name, value in (("teacache", teacache), ("magcache", magcache)):
        if value is None:
            continue
        kind = TeaCache if name == "teacache" else MagCache
        if value == "auto":
            return kind()
        try:
            return kind(float(value))
        except ValueError:
            raise InvalidArgument(name, expected='a number or "auto"', got=value) from None
    return None


def _bar() -> Progress:
    """A progress bar for a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _open_engine(
    model: str, device: str, devices: str | None, parallel: Parallel | None, load: LoadOptions
) -> VideoMaker:
    """Engine in this process, or of worker processes where ``devices`` names them."""
    from skyreels_rt.engine import Engine

    if devices is None:
        with byte_bar() as show:
            return Engine.from_pretrained(
                model, device=device, parallel=parallel, on_progress=show, **load
            )
    if device != "auto":
        raise InvalidArgument("--device", expected="none beside --devices", got=device)
    return Engine.from_pretrained(model, devices=device_list(devices), parallel=parallel, **load)


def _generate_with_bar(
    engine: VideoMaker, output: Path, audio: str, options: dict[str, Any]
) -> GenerationSummary:
    """Run the job with a rich progress bar."""
    with _bar() as bar:
        frames = bar.add_task("frames", total=None)
        steps = bar.add_task("denoise", total=None)

        def show(state: JobProgress) -> None:
            if state.stage == "denoise":
                bar.update(steps, completed=state.done, total=state.total)
            else:
                bar.update(frames, completed=state.done, total=state.total)

        given: GenerateOptions = {**options, "on_progress": show}  # type: ignore[typeddict-item]
        return engine.generate_file(output, audio, **given)


def _write_generate_report(path: Path, engine: VideoMaker, summary: GenerationSummary) -> None:
    """Write the report of one job in the shared format."""
    import resource

    from skyreels_rt.job import settings_facts
    from skyreels_rt.report import Report, Row

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
    peak = max([peak, *(one.usage["peak_rss"] for one in engine.workers)])
    rows = [
        Row("generate.frames", summary.num_frames, "frames", better="higher"),
        Row("generate.seconds", summary.seconds, "s"),
        Row("generate.rtf", summary.rtf, "compute s / media s"),
        Row("generate.peak_rss", peak / 2**20, "MiB"),
        Row("generate.steps_computed", _share_computed(summary), "share of steps"),
    ]
    rows += [
        Row(f"generate.stage.{stage}", seconds, "s")
        for stage, seconds in sorted(summary.stage_seconds.items())
    ]
    Report(
        command=command_line(),
        device=engine.facts.device,
        threads=engine.facts.threads,
        kernel_plan=engine.facts.kernel_plan,
        rows=rows,
        details={
            "model": engine.facts.name,
            "settings": settings_facts(summary.settings),
            "steps": [
                {"start": run.start, "stop": run.stop, "windows": run.windows, "computed": run.text}
                for run in summary.steps
            ],
            "ranks": [asdict(one) for one in engine.workers],
        },
    ).write(path)


def _share_computed(summary: GenerationSummary) -> float:
    """Steps that ran the blocks, of all steps of all windows."""
    computed = sum(run.windows * sum(run.computed) for run in summary.steps)
    return computed / sum(run.windows * len(run.computed) for run in summary.steps)


_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
