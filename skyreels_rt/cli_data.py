"""The commands ``skyreels-rt data``: raw videos, or drawn clips, to shards of triplets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.terminal import (
    EXIT_INTERRUPTED,
    JsonFile,
    command_line,
    console,
    errors_as_exit_codes,
    report_table,
)

data_app = typer.Typer(help="Make training data.", no_args_is_help=True)

Output = Annotated[Path, typer.Option("-o", "--output", help="Folder for the shards.")]


@data_app.command()
def build(
    sources: Annotated[list[Path], typer.Argument(help="Videos, or folders of them.")],
    *,
    output: Output,
    config: Annotated[
        Path | None, typer.Option(help="TOML over skyreels_rt/assets/data/defaults.toml.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes (default: all cores).")] = None,
    captioner: Annotated[
        str | None, typer.Option(help="Your own captioner: package.module:function.")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Run on Ray; needs [ray].")] = False,
) -> None:
    """Filter raw talking videos into synchronised triplets; a second call goes on. Needs [data]."""
    with errors_as_exit_codes():
        from dataclasses import replace

        from skyreels_rt.data.build import build as run_build
        from skyreels_rt.data.settings import CaptionSettings, load_settings

        settings = load_settings(config)
        if captioner is not None:
            settings = replace(settings, caption=CaptionSettings(captioner))
        runner = None
        if ray:
            from skyreels_rt.data.ray_runner import run_on_ray

            runner = run_on_ray
        try:
            with _bar() as bar:
                row = bar.add_task("sources", total=len(sources))
                summary = run_build(
                    sources,
                    output,
                    settings,
                    workers=workers,
                    runner=runner,
                    on_progress=lambda done, total: bar.update(row, completed=done, total=total),
                )
        except KeyboardInterrupt:
            console.print("interrupted; the same command goes on where it stopped")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        console.print(
            f"{output}: {summary.num_kept} of {summary.num_clips} clips kept from "
            f"{summary.num_sources} sources ({summary.num_resumed} done before), "
            f"{summary.num_shards} shards; see report.html",
            markup=False,
            soft_wrap=True,
        )


@data_app.command()
def draw(
    *,
    output: Output,
    count: Annotated[int, typer.Option(help="Clips to draw.")] = 64,
    recipe: Annotated[str, typer.Option(help="Whose clips: size and length.")] = "demo",
    per_shard: Annotated[int, typer.Option(help="Samples of a shard.")] = 256,
) -> None:
    """Write the synthetic training clips of a recipe as shards; needs [train]."""
    with errors_as_exit_codes():
        from skyreels_rt.training.clips import drawn_clips
        from skyreels_rt.training.recipe import find_recipe
        from skyreels_rt.training.shard_clips import write_drawn_shards

        if count < 1 or per_shard < 1:
            raise InvalidArgument("--count, --per-shard", expected=">= 1", got=(count, per_shard))
        with _bar() as bar:
            row = bar.add_task("clips", total=count)
            clips = drawn_clips(find_recipe(recipe)).whole
            for done in write_drawn_shards(output, clips, count, per_shard=per_shard):
                bar.update(row, completed=done)


@data_app.command("convert-syncnet")
def convert_syncnet(
    source: Annotated[Path, typer.Argument(help="Published weights: syncnet_v2.model.")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="Safetensors file to make.")],
) -> None:
    """Make the SyncNet file that `data build` can filter with, and print its settings."""
    with errors_as_exit_codes():
        from skyreels_rt.conversion.syncnet_file import convert_syncnet as make

        digest = make(source, output)
        file = json.dumps(str(output.absolute()))  # a TOML string, too
        text = f'[syncnet]\nfile = {file}\nsha256 = "{digest}"'
        Console().print(text, markup=False, highlight=False, soft_wrap=True)


def bench_data(
    *,
    good: Annotated[int, typer.Option(help="Drawn clips without a fault.")] = 20,
    each: Annotated[int, typer.Option(help="Drawn clips with each of the faults.")] = 4,
    real: Annotated[Path | None, typer.Option(help="A recording that must pass.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes (default: all cores).")] = None,
    json_file: JsonFile = None,
) -> None:
    """Plant faults in drawn clips and count what the data pipeline finds; needs [data], [train]."""
    with errors_as_exit_codes():
        import tempfile

        from skyreels_rt.bench.data import measure_data
        from skyreels_rt.report import require_writable

        if json_file is not None:
            require_writable(json_file)
        with console.status("drawing ...") as status, tempfile.TemporaryDirectory() as folder:
            report = measure_data(
                Path(folder),
                num_good=good,
                num_each=each,
                workers=workers,
                real=real,
                command=command_line(),
                on_step=status.update,
            )
        screen = Console()
        screen.print(report_table(report))
        table = Table("fault", "filters", "planted", "found", "by its filter")
        for count in report.details["faults"]:
            table.add_row(*(str(value) for value in count.values()))
        screen.print(table)
        if json_file is not None:
            report.write(json_file)


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
