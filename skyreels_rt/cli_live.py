"""The commands that work live: ``stream``, ``serve`` and ``bench stream``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, cast

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from skyreels_rt.errors import InvalidArgument, MissingDependency
from skyreels_rt.terminal import (
    EXIT_INTERRUPTED,
    Device,
    Dtype,
    JsonFile,
    Kernels,
    Plan,
    command_line,
    console,
    errors_as_exit_codes,
    report_table,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from skyreels_rt.engine import Engine
    from skyreels_rt.media.audio_file import AudioSource
    from skyreels_rt.options import LiveOptions
    from skyreels_rt.streaming.pcm import PCMFormat
    from skyreels_rt.streaming.sinks import FrameSink
    from skyreels_rt.streaming.statistics import LiveFigures

STANDARD = "-"
_SYNTHESISED = 2004
"""Held-out clip whose voice is used where no recording is given."""

LiveModel = Annotated[str, typer.Option(help='Model folder, or "demo-fast" or "tiny-random".')]
Image = Annotated[
    str | None, typer.Option(help="Portrait: a picture, or the name of a built-in one.")
]


def stream(
    audio: Annotated[str, typer.Argument(help='Speech file, or "-": PCM from standard input.')],
    *,
    output: Annotated[
        str, typer.Option("-o", "--output", help='File to write, or "-": standard output.')
    ],
    model: LiveModel = "demo-fast",
    image: Image = None,
    prompt: Annotated[str | None, typer.Option(help="What to show.")] = None,
    output_format: Annotated[
        str, typer.Option("--format", help='"mp4" (fragmented) or "rgb24" (raw frames).')
    ] = "mp4",
    input_format: Annotated[
        str, typer.Option(help='Samples on standard input: "s16le" or "f32le".')
    ] = "s16le",
    sample_rate: Annotated[int, typer.Option(help="Of standard input, Hz.")] = 16_000,
    channels: Annotated[int, typer.Option(help="Of standard input.")] = 1,
    pace: Annotated[
        str, typer.Option(help='Of a file: "real-time" or "fast", as it is taken.')
    ] = "real-time",
    horizon: Annotated[int, typer.Option(help="BLF windows denoised together.")] = 1,
    num_steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    kernels: Kernels = "auto",
) -> None:
    """Make a talking video while the speech comes in, and send it out while it is made."""
    with errors_as_exit_codes():
        from skyreels_rt.engine import Engine
        from skyreels_rt.streaming.pcm import PCMFormat

        for name, value, known in (
            ("--format", output_format, ("mp4", "rgb24")),
            ("--pace", pace, ("real-time", "fast")),
        ):
            if value not in known:
                raise InvalidArgument(name, expected=" or ".join(known), got=repr(value))
        layout = PCMFormat(cast("Any", input_format), sample_rate, channels)
        blocks, rate = _speech(audio, layout, pace)
        engine = Engine.from_pretrained(
            model, device=device, dtype=dtype, kernels=cast("Plan", kernels)
        )
        options: LiveOptions = {
            "image": _portrait(image),
            "prompt": prompt,
            "horizon": horizon,
            "num_steps": num_steps,
            "seed": seed,
        }
        with _output(output) as file:
            finished = _stream(engine, options, blocks, rate, _sink(output_format, file, engine))
        if not finished:
            raise typer.Exit(EXIT_INTERRUPTED)


def serve(
    model: Annotated[str, typer.Argument(help='Model folder, or "demo-fast" or "tiny-random".')],
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    token: Annotated[
        str | None, typer.Option(help="Clients must know it; needed on other addresses.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Further origin whose pages may connect; repeatable.")
    ] = None,
    max_sessions: Annotated[int, typer.Option(help="Sessions at a time.")] = 4,
    max_seconds: Annotated[float, typer.Option(help="Seconds of speech a session may take.")] = 600,
    max_bytes: Annotated[int, typer.Option(help="Bytes a connection may send.")] = 128 * 2**20,
    device: Device = "auto",
    dtype: Dtype = "auto",
    kernels: Kernels = "auto",
) -> None:
    """Serve live sessions over a WebSocket, and a page that speaks to it; needs [serve]."""
    with errors_as_exit_codes():
        from skyreels_rt.engine import Engine

        try:
            from skyreels_rt.serve.run import require_safe, run_server
        except ImportError as error:
            raise MissingDependency(
                f"serve: {error.name} is not installed.",
                hint="Install the [serve] extra: pip install 'skyreels-rt[serve]'.",
            ) from error
        from skyreels_rt.serve.admission import Access, is_loopback
        from skyreels_rt.serve.protocol import ServeLimits

        require_safe(host, token)
        limits = ServeLimits(
            max_sessions=max_sessions, max_seconds=max_seconds, max_bytes=max_bytes
        )
        access = Access(token, tuple(allow_origin or ()), local_only=is_loopback(host))
        engine = Engine.from_pretrained(
            model,
            device=device,
            dtype=dtype,
            kernels=cast("Plan", kernels),
            max_sessions=max_sessions,
        )
        run_server(
            engine,
            host=host,
            port=port,
            access=access,
            limits=limits,
            on_listening=lambda address: console.print(f"listening on {address}", markup=False),
        )


def bench_stream(
    *,
    model: LiveModel = "demo-fast",
    audio: Annotated[
        Path | None, typer.Option(help="Recorded voice; synthesised speech ([train]) without it.")
    ] = None,
    image: Image = "mira",
    seconds: Annotated[float, typer.Option(help="Speech to push, at its own pace.")] = 60.0,
    sessions: Annotated[int, typer.Option(help="Live sessions side by side.")] = 1,
    horizon: Annotated[int, typer.Option(help="BLF windows denoised together.")] = 1,
    sync_only: Annotated[
        bool, typer.Option("--sync-only", help="Only compare lips with an offline job, untimed.")
    ] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    kernels: Kernels = "auto",
    json_file: JsonFile = None,
) -> None:
    """Push speech in real time, 20 ms at once, and measure when its frames come out."""
    with errors_as_exit_codes():
        from skyreels_rt.bench.stream import measure_stream, measure_sync
        from skyreels_rt.engine import Engine
        from skyreels_rt.report import require_writable

        if json_file is not None:
            require_writable(json_file)
        engine = Engine.from_pretrained(
            model, device=device, dtype=dtype, kernels=cast("Plan", kernels)
        )
        voice, picture = _voice(audio), _portrait(image)
        if sync_only:
            report = measure_sync(
                engine,
                voice=voice,
                image=picture,
                seconds=seconds,
                horizon=horizon,
                command=command_line(),
            )
        else:
            with _figures_on_screen() as show:
                report = measure_stream(
                    engine,
                    voice=voice,
                    image=picture,
                    seconds=seconds,
                    sessions=sessions,
                    horizon=horizon,
                    command=command_line(),
                    on_figures=show,
                )
        Console().print(report_table(report))
        if json_file is not None:
            report.write(json_file)


def _voice(audio: Path | None) -> AudioSource:
    """A recording, or speech of a held-out voice."""
    from skyreels_rt.media.audio_file import open_audio

    if audio is not None:
        return open_audio(audio)
    try:
        from skyreels_rt.training.data.triplets import TripletSource

        clip = TripletSource("held_out", 256, 10.0, 0.0).triplet(_SYNTHESISED)
    except ImportError as error:
        raise MissingDependency(
            f"bench stream: {error.name} is not installed.",
            hint="Give --audio FILE, or install the [train] extra.",
        ) from error
    return open_audio(clip.audio[:, None], 16_000)


def _portrait(image: str | None) -> str | Path | None:
    """A file, or the built-in portrait of that name."""
    from skyreels_rt.media.portraits import portrait_names, portrait_path

    return portrait_path(image) if image in portrait_names() else image


def _speech(audio: str, layout: PCMFormat, pace: str) -> tuple[Iterable[NDArray[np.float32]], int]:
    """Blocks of the speech and its sample rate."""
    from skyreels_rt.audio.resample import ResampledAudio
    from skyreels_rt.media.audio_file import open_audio
    from skyreels_rt.media.encoder import AAC_SAMPLE_RATES
    from skyreels_rt.streaming.pcm import block_samples, paced, read_pcm

    if audio == STANDARD:
        # Unbuffered: Python aborts at its exit where a thread waits inside sys.stdin's buffer.
        stream = FileIO(sys.stdin.fileno(), closefd=False)
        return read_pcm(stream, layout), layout.sample_rate
    source = open_audio(audio)
    if source.sample_rate not in AAC_SAMPLE_RATES:
        source = ResampledAudio(source, 48_000)
    rate = source.sample_rate
    blocks = source.blocks(block_samples(rate))
    return (blocks if pace == "fast" else paced(blocks, rate)), rate


@contextmanager
def _output(name: str) -> Iterator[BinaryIO]:
    from skyreels_rt.streaming.sinks import output_errors

    if name == STANDARD:
        if sys.stdout.isatty():
            raise InvalidArgument(
                "--output", expected="a file or a pipe", got="a terminal",
                hint="Try: ... -o - | ffplay -",
            )  # fmt: skip
        yield sys.stdout.buffer
        return
    with ExitStack() as stack:
        with output_errors(name):
            file = stack.enter_context(Path(name).open("wb"))
        yield file


def _sink(output_format: str, file: BinaryIO, engine: Engine) -> FrameSink:
    from skyreels_rt.streaming.sinks import Mp4Sink, RawSink

    if output_format == "mp4":
        return Mp4Sink(file, engine.components.generation.fps)
    return RawSink(file)


def _stream(
    engine: Engine,
    options: LiveOptions,
    blocks: Iterable[NDArray[np.float32]],
    rate: int,
    sink: FrameSink,
) -> bool:
    """Run one session into ``sink``; False after Ctrl-C, with the video complete up to there."""
    from skyreels_rt.options import LiveOptions, resolve_settings
    from skyreels_rt.streaming.needs import AudioNeeds
    from skyreels_rt.streaming.run import LiveRun
    from skyreels_rt.streaming.statistics import LiveStatistics

    settings = resolve_settings(engine.components, options, LiveOptions)
    statistics = LiveStatistics(AudioNeeds(engine.components, settings), settings.fps)
    session = engine.open_session(**options)
    finished = True
    with _figures_on_screen() as show:
        try:
            with LiveRun(session, blocks, rate, statistics) as run:
                for chunk in run:
                    sink.write(chunk)
                    show(statistics.figures())
        except KeyboardInterrupt:
            finished = False
        sink.finish()
    figures = statistics.figures()
    console.print(
        f"{figures.frames} frames, {figures.seconds:.2f} s, rtf {figures.rtf:.2f}, first frame "
        f"{_seconds(figures.first_frame_s)}, chunks p50 {_seconds(figures.chunk_p50_s)} "
        f"p95 {_seconds(figures.chunk_p95_s)}, late {figures.late}"
        + ("" if finished else "; interrupted"),
        markup=False,
        soft_wrap=True,
    )
    return finished


class _Screen:
    """Live figures on the terminal; nothing where there is none."""

    def __init__(self, live: Live | None) -> None:
        self._live = live

    def __call__(self, figures: LiveFigures) -> None:
        """Show the figures."""
        if self._live is None:
            return
        table = Table("made", "rtf", "first frame", "chunk p50", "chunk p95", "late", "buffered")
        table.add_row(
            f"{figures.seconds:.1f} s",
            f"{figures.rtf:.2f}",
            _seconds(figures.first_frame_s),
            _seconds(figures.chunk_p50_s),
            _seconds(figures.chunk_p95_s),
            str(figures.late),
            f"{figures.buffered_s:.2f} s",
        )
        self._live.update(table)


@contextmanager
def _figures_on_screen() -> Iterator[_Screen]:
    if not console.is_terminal:
        yield _Screen(None)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield _Screen(live)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
