"""What all commands share: the console, common options, exit codes, tables of reports."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from skyreels_rt.distributed.parallel import Parallel
from skyreels_rt.env import launched_rank
from skyreels_rt.errors import InvalidArgument, PeerFailed, SkyReelsError

if TYPE_CHECKING:
    from skyreels_rt.report import Report
    from skyreels_rt.types import LoadCallback, LoadProgress
    from skyreels_rt.weights.lora import Lora

Plan = Literal["auto", "reference"]

EXIT_INPUT = 2
EXIT_INTERRUPTED = 130

console = Console(stderr=True, highlight=False)

JsonFile = Annotated[Path | None, typer.Option("--json", help="Write a JSON report here.")]
Model = Annotated[str, typer.Option(help='Model folder, or "demo", "demo-fast" or "tiny-random".')]
Device = Annotated[str, typer.Option(help='"auto", "cpu" or "cuda[:n]".')]
Devices = Annotated[
    str | None,
    typer.Option(
        help='One worker process each: "cpu,cpu" or "cuda:0,cuda:1", instead of --device.'
    ),
]
Dtype = Annotated[str, typer.Option(help='"auto", "float32", "bfloat16" or "float16".')]
Kernels = Annotated[str, typer.Option(help='"auto" or "reference".')]


def device_list(text: str) -> list[str]:
    """Devices of an option, with commas between them."""
    return [part.strip() for part in text.split(",") if part.strip()]


def report_table(report: Report) -> Table:
    """The rows of a report for the terminal."""
    table = Table("name", "value", "unit", "target", "ok")
    for row in report.rows:
        target = "" if row.target is None else f"{row.target:g}"
        ok = {None: "", True: "yes", False: "NO"}[row.ok]
        table.add_row(escape(row.name), f"{row.value:.4g}", row.unit, target, ok)
    return table


def command_line() -> str:
    """Command of this process as it would be typed."""
    return shlex.join(["skyreels-rt", *sys.argv[1:]])


def requested_axes(text: str | None) -> Parallel | None:
    """Axes that ``--parallel`` names; None for one process without it.

    Among the processes that ``torchrun`` started only the first goes on speaking.

    Raises
    ------
    InvalidArgument
        The text has another form.
    """
    place = launched_rank()
    if place is not None and place.rank > 0:
        console.quiet = True
    if text is None and (place is None or place.world_size == 1):
        return None
    return Parallel.from_text(text or "")


@contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """Typed errors become one sentence on stderr and exit code 2; Ctrl-C becomes 130."""
    try:
        yield
    except SkyReelsError as error:
        if console.quiet:  # not the rank that speaks, but perhaps the only one that failed
            place = launched_rank()
            console.quiet = isinstance(error, PeerFailed)
            console.print(f"[dim]rank {place.rank if place else '?'}:[/] ", end="")
        console.print(f"[bold red]error[/] [dim]({error.code})[/] ", end="")
        console.print(str(error), markup=False, soft_wrap=True)
        raise typer.Exit(EXIT_INPUT) from None
    except KeyboardInterrupt:
        console.print("interrupted; nothing was written")
        raise typer.Exit(EXIT_INTERRUPTED) from None


@contextmanager
def byte_bar() -> Iterator[LoadCallback]:
    """A progress bar of bytes for a terminal."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=None)

        def show(state: LoadProgress) -> None:
            bar.update(task, description=state.component, completed=state.done, total=state.total)

        yield show


def parse_loras(texts: list[str] | None) -> tuple[Lora, ...]:
    """LoRAs written as ``FILE`` or ``FILE=SCALE``.

    Raises
    ------
    InvalidArgument
        A scale that is no finite number.
    """
    from skyreels_rt.weights.lora import Lora

    loras = []
    for text in texts or []:
        path, equals, scale = text.rpartition("=")
        try:
            loras.append(Lora(path, float(scale)) if equals else Lora(text))
        except ValueError as error:
            raise InvalidArgument("--lora", expected="FILE or FILE=SCALE", got=text) from error
    return tuple(loras)
