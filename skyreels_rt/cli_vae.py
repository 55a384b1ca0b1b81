"""The commands about the VAE: ``export vae`` and ``bench vae``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.terminal import (
    Device,
    JsonFile,
    command_line,
    console,
    errors_as_exit_codes,
    report_table,
)

if TYPE_CHECKING:
    from skyreels_rt.export.tensorrt import BuildOptions, Library
    from skyreels_rt.export.verify import StreamParity
    from skyreels_rt.models.vae import VideoVAE
    from skyreels_rt.report import Row

FORMATS = ("onnx", "tensorrt")

export_app = typer.Typer(help="Write parts of a model for other runtimes.", no_args_is_help=True)


@export_app.callback()
def _export() -> None:
    """Write parts of a model for other runtimes."""


@export_app.command("vae")
def export_vae(
    model: Annotated[str, typer.Argument(help="Model folder, or the name of a built-in model.")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    format_: Annotated[str, typer.Option("--format", help='"onnx" or "tensorrt".')] = "onnx",
    height: Annotated[int | None, typer.Option(help="Pixels (default: the model's).")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels (default: the model's).")] = None,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Leave the frame size open.")] = False,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    opset: Annotated[int | None, typer.Option(help="ONNX opset, 18 to 23.")] = None,
    library: Annotated[str, typer.Option(help='"tensorrt" or "tensorrt-rtx".')] = "tensorrt",
    compute_capability: Annotated[
        str | None, typer.Option(help='Build for this GPU generation, such as "8.9" (RTX only).')
    ] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="TensorRT's timing cache.")] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Engines later versions can run.")
    ] = False,
    device: Device = "auto",
    verify_steps: Annotated[int, typer.Option(help="Steps of the parity check; 0: none.")] = 10,
    json_file: JsonFile = None,
) -> None:
    """Write a model's VAE as ONNX graphs or TensorRT engines, and compare them with torch."""
    with errors_as_exit_codes():
        import torch

        from skyreels_rt.export.exported_vae import load_exported_vae
        from skyreels_rt.export.onnx import DTYPES
        from skyreels_rt.export.onnx import export_vae as write_onnx
        from skyreels_rt.export.tensorrt import BuildOptions, build_engines
        from skyreels_rt.export.verify import verify_stream
        from skyreels_rt.pretrained import load_pretrained
        from skyreels_rt.report import require_writable

        if format_ not in FORMATS:
            raise InvalidArgument("format", expected=f"one of {', '.join(FORMATS)}", got=format_)
        kinds = {str(t).removeprefix("torch."): t for t in DTYPES}
        if dtype not in kinds:
            raise InvalidArgument("dtype", expected=f"one of {', '.join(kinds)}", got=dtype)
        if json_file is not None:
            require_writable(json_file)
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        parts = load_pretrained(model, device=device, dtype=torch.float32, kernels="auto")
        size = (height or parts.generation.height, width or parts.generation.width)
        options = BuildOptions(
            library=cast("Library", library),
            compute_capability=_capability(compute_capability),
            timing_cache=timing_cache,
            version_compatible=version_compatible,
        )
        with console.status("exporting ...") as status:
            write_onnx(
                parts.vae,
                output,
                size=None if dynamic else size,
                dtype=kinds[dtype],
                opset=opset,
                on_graph=lambda graph: status.update(f"{graph} ..."),
            )
            if format_ == "tensorrt":
                build_engines(output, options, on_progress=status.update)
            why_not = _why_not_run(parts.vae, format_, dtype, options)
            if verify_steps and not why_not:
                status.update("comparing with torch ...")
                exported = load_exported_vae(parts.vae, format_, output)
                parity = verify_stream(
                    parts.vae, exported, height=size[0], width=size[1], num_steps=verify_steps
                )
        console.print(f"{output}: written", markup=False)
        if why_not:
            console.print(f"not run: {why_not}", markup=False)
        elif verify_steps:
            _report_parity(parity, str(parts.device), json_file)


def bench_vae(
    *,
    peer: Annotated[str, typer.Option(help='Library to compare with: "diffusers".')] = "diffusers",
    repeats: Annotated[int, typer.Option(help="Timed runs per side, at least 5.")] = 5,
    full: Annotated[bool, typer.Option("--full", help="Also 256x256x33 (minutes).")] = False,
    device: Device = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Time encoding and decoding a clip against a peer with the same weights, in the same run.

    On a GPU: streams at 480x832 and 512x512 in bfloat16, with and without buffers and CUDA graph.
    """
    with errors_as_exit_codes():
        from skyreels_rt.bench.vae import FULL_SHAPES, SHAPES, measure_vae
        from skyreels_rt.bench.vae_stream import measure_decode_streams
        from skyreels_rt.report import require_writable
        from skyreels_rt.runtime.device import resolve_device

        if json_file is not None:
            require_writable(json_file)
        where = resolve_device(device)
        with console.status("measuring ...") as status:

            def on_row(row: Row) -> None:
                status.update(f"{row.name}: {row.value:.3f} {row.unit}")

            if where.type == "cuda":
                report = measure_decode_streams(
                    device=where,
                    peer=peer,
                    repeats=repeats,
                    command=command_line(),
                    on_row=on_row,
                )
            else:
                report = measure_vae(
                    peer=peer,
                    repeats=repeats,
                    command=command_line(),
                    shapes=(*SHAPES, *FULL_SHAPES) if full else SHAPES,
                    on_row=on_row,
                )
        Console().print(report_table(report))
        if json_file is not None:
            report.write(json_file)


def _capability(text: str | None) -> tuple[int, int] | None:
    """``"8.9"`` as (8, 9)."""
    if text is None:
        return None
    major, _, minor = text.partition(".")
    if not (major.isdecimal() and minor.isdecimal()):
        raise InvalidArgument("compute_capability", expected='such as "8.9"', got=text)
    return int(major), int(minor)


def _why_not_run(vae: VideoVAE, format_: str, dtype: str, options: BuildOptions) -> str | None:
    """Why what was written cannot be compared with torch here, or None."""
    if format_ == "tensorrt" and vae.device.type != "cuda":
        return f"engines built with {options.library} need a GPU"
    if format_ == "onnx" and dtype == "bfloat16" and vae.device.type == "cpu":
        return "ONNX Runtime has no bfloat16 convolutions on the CPU"
    return None


def _report_parity(
    parity: tuple[StreamParity, StreamParity], device: str, json_file: Path | None
) -> None:
    """Show how far the exported stream is from torch's."""
    import torch

    from skyreels_rt.report import Report, Row

    rows = [
        Row(f"vae.parity.{one.part}.max_error", one.max_error, "of the largest output", one.limit)
        for one in parity
    ]
    details = {one.part: {"steps": one.num_steps, "mean_error": one.mean_error,
                          "worst_step": one.worst_step} for one in parity}  # fmt: skip
    report = Report(command_line(), device, torch.get_num_threads(), {}, rows, details)
    Console().print(report_table(report))
    if json_file is not None:
        report.write(json_file)
    if not all(one.ok for one in parity):
        raise typer.Exit(1)
