"""The commands about many ranks: ``bench parallel`` and ``bench scaling``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from skyreels_rt.terminal import (
    JsonFile,
    Model,
    command_line,
    console,
    errors_as_exit_codes,
    report_table,
)


def bench_parallel(
    *,
    model: Model = "demo",
    repeats: Annotated[int, typer.Option(help="Timed runs per side, at least 5.")] = 5,
    full: Annotated[
        bool, typer.Option("--full", help="Guidance, Ulysses and ring, too (minutes).")
    ] = False,
    links: Annotated[
        bool, typer.Option("--links", help="Measure what travels between two ranks instead.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Time two ranks of one thread against one rank of one thread, on a job of four windows."""
    with errors_as_exit_codes():
        from skyreels_rt.bench.parallel import measure_parallel, measured_links
        from skyreels_rt.report import require_writable

        if json_file is not None:
            require_writable(json_file)
        with console.status("starting ...") as status:
            if links:
                report = measured_links(model, 2, command=command_line())
            else:
                report = measure_parallel(
                    model,
                    repeats=repeats,
                    full=full,
                    command=command_line(),
                    on_run=status.update,
                )
        Console().print(report_table(report))
        if json_file is not None:
            report.write(json_file)


def bench_scaling(*, json_file: JsonFile = None) -> None:
    """Predict steps over 1 to 64 H200s by the cost model, as in docs/scaling.md; runs nothing."""
    with errors_as_exit_codes():
        from skyreels_rt.bench.scaling import scaling_report, scaling_tables
        from skyreels_rt.report import require_writable

        if json_file is not None:
            require_writable(json_file)
        Console(width=120).print(scaling_tables(), markup=False)
        if json_file is not None:
            scaling_report(command_line()).write(json_file)
