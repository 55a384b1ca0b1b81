"""The command ``convert``: an official release becomes a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skyreels_rt.terminal import byte_bar, console, errors_as_exit_codes


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of SkyReels-V3-A2V, or of Wan2.1 T2V or I2V; a model to --quantize."
        ),
    ],
    target: Annotated[Path, typer.Argument(help="Model folder to make; must not exist.")],
    *,
    adapter: Annotated[
        Path | None,
        typer.Option(help="Audio part for a Wan2.1-I2V base: InfiniteTalk, MultiTalk, ..."),
    ] = None,
    audio_encoder: Annotated[
        Path | None, typer.Option(help="wav2vec2 folder, where the source has none.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Settings to run with (the family's own).")
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(help='Write the transformer\'s layers in 8 bits: "fp8" or "fp8_weight".'),
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy safetensors files instead of linking them.")
    ] = False,
) -> None:
    """Make a model folder of an official release; pickles are read in a process of their own."""
    with errors_as_exit_codes():
        from skyreels_rt.conversion.convert import convert as make
        from skyreels_rt.pretrained import model_folder

        with byte_bar() as show:
            made = make(
                model_folder(source),
                target,
                adapter=adapter,
                audio_encoder=audio_encoder,
                preset=preset,
                quantization=quantize,
                link=not copy,
                on_progress=show,
            )
        preset = f", preset {made.preset}" if made.preset else ""
        console.print(
            f"{made.folder}: {made.family}{preset}, {made.num_bytes / 1e9:.2f} GB",
            markup=False,
            soft_wrap=True,
        )
