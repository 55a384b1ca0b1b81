"""Commands about weights and steps: memory, what 8-bit layers cost, what step graphs save."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from skyreels_rt.terminal import (
    Device,
    Dtype,
    JsonFile,
    Model,
    command_line,
    console,
    errors_as_exit_codes,
    report_table,
)

Quantization = Annotated[
    str | None, typer.Option(help='Keep layers in 8 bits: "fp8" or "fp8_weight".')
]
Offload = Annotated[bool, typer.Option("--offload", help="Keep the blocks in host memory.")]


def estimate(
    *,
    model: Model = "demo",
    seconds: Annotated[float, typer.Option(help="Seconds of speech.")] = 60.0,
    height: Annotated[int | None, typer.Option(help="Pixels, multiple of 16.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, multiple of 16.")] = None,
    horizon: Annotated[int | None, typer.Option(help="BLF windows denoised together.")] = None,
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    offload: Offload = False,
    memory: Annotated[float | None, typer.Option(help="GiB of the device meant.")] = None,
) -> None:
    """Say what a job needs in memory, from the folder's sizes; no weight is read."""
    with errors_as_exit_codes():
        from dataclasses import replace

        from skyreels_rt.estimate import estimate_job
        from skyreels_rt.options import resolve_settings
        from skyreels_rt.pretrained import load_shapes

        parts = load_shapes(model, dtype=dtype, quantization=quantization, offload=offload)
        settings = resolve_settings(parts, {"height": height, "width": width, "horizon": horizon})
        found = estimate_job(parts, settings, seconds, has_source=False)
        if memory is not None:
            found = replace(found, available=int(memory * 2**30))
        Console(highlight=False).print(found.describe())


def bench_quantization(
    *,
    model: Model = "demo",
    clips: Annotated[int, typer.Option(help="Held-out clips.", min=1)] = 1,
    latents: Annotated[
        int | None, typer.Option(help="Length in latent frames; one window by default.", min=2)
    ] = None,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Measure what 8-bit layers cost: each kind of layer, PSNR, SSIM and lip sync."""
    with errors_as_exit_codes():
        from skyreels_rt.bench.quantization import measure_quantization
        from skyreels_rt.held_out import HeldOutClips
        from skyreels_rt.pretrained import load_shapes
        from skyreels_rt.report import require_writable

        if json_file is not None:
            require_writable(json_file)
        generation = load_shapes(model, dtype="auto").generation
        listed = HeldOutClips.listed(min(generation.height, generation.width))
        with console.status("measuring ...") as status:
            report = measure_quantization(
                model,
                [listed[index] for index in range(clips)],
                command=command_line(),
                latents=latents,
                device=device,
                on_run=status.update,
            )
        Console().print(report_table(report))
        if json_file is not None:
            report.write(json_file)


def bench_graphs(
    *,
    device: Device = "auto",
    repeats: Annotated[int, typer.Option(help="Timed steps of each kind and side.", min=5)] = 10,
    json_file: JsonFile = None,
) -> None:
    """Time denoising steps on a GPU, eager and as CUDA graphs, computed and skipped."""
    with errors_as_exit_codes():
        from skyreels_rt.bench.graphs import measure_graphs
        from skyreels_rt.report import require_writable
        from skyreels_rt.runtime.device import resolve_device

        if json_file is not None:
            require_writable(json_file)
        where = resolve_device(device)
        with console.status("measuring ...") as status:
            report = measure_graphs(
                command=command_line(),
                device=where,
                repeats=repeats,
                on_row=lambda row: status.update(row.name),
            )
        Console().print(report_table(report))
        if json_file is not None:
            report.write(json_file)
