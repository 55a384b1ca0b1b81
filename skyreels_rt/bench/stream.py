"""A live session under real conditions: speech at its own pace, frames timed when they come out."""

from __future__ import annotations

import asyncio
import itertools
import statistics as numbers
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from skyreels_rt.audio.resample import ResampledAudio
from skyreels_rt.bench.stream_sync import MAX_SYNC_S, SyncLoss, sync_loss
from skyreels_rt.conditioning.face import face_available
from skyreels_rt.errors import FaceNotFound, InvalidArgument, MissingDependency
from skyreels_rt.media.audio_file import AudioSource, in_blocks
from skyreels_rt.media.encoder import AAC_SAMPLE_RATES
from skyreels_rt.options import LiveOptions, resolve_settings
from skyreels_rt.report import Report, Row
from skyreels_rt.streaming.needs import AudioNeeds
from skyreels_rt.streaming.pcm import block_samples, paced
from skyreels_rt.streaming.run import LiveRun
from skyreels_rt.streaming.statistics import LiveFigures, LiveStatistics

if TYPE_CHECKING:
    from skyreels_rt.engine import Engine

MAX_RTF = 1.0
MAX_FIRST_FRAME_S = 0.6
MAX_FIRST_NEED_S = 1.6
TICK_S = 0.01
MAX_TICK_LATE_S = 0.02
TICK_SPEECH_S = 10.0


def measure_stream(
    engine: Engine,
    *,
    voice: AudioSource,
    image: str | Path | None,
    seconds: float,
    sessions: int,
    horizon: int,
    command: str,
    on_figures: Callable[[LiveFigures], None] | None = None,
) -> Report:
    """Push ``seconds`` of speech in real time into live sessions and time their chunks.

    Parameters
    ----------
    engine : Engine
        The loaded model.
    voice : AudioSource
        Speech, repeated until ``seconds``.
    image : path or None
        Portrait.
    seconds : float
        Speech pushed into each session.
    sessions : int
        Sessions side by side, 1 to 64.
    horizon : int
        Windows denoised together.
    command : str
        Command line for the report.
    on_figures : callable, optional
        Called with the figures of the first session after every chunk.

    Returns
    -------
    Report
        Rows ``stream.*`` of docs/benchmarks.md; with several sessions of the worst of them.

    Raises
    ------
    InvalidArgument
        ``seconds`` or ``sessions`` out of range.
    """
    _check(sessions, seconds)
    samples, rate = _voice(voice, seconds)
    options: LiveOptions = {"image": image, "horizon": horizon, "seed": 0}
    settings = resolve_settings(engine.components, options, LiveOptions)
    needs = AudioNeeds(engine.components, settings)
    engine.warmup()
    collected = [LiveStatistics(needs, settings.fps) for _ in range(sessions)]
    problems: list[BaseException] = []
    shown: list[NDArray[np.uint8]] = []  # of the first session

    def run(number: int) -> None:
        try:
            blocks = paced(in_blocks([samples], block_samples(rate)), rate)
            session = engine.open_session(**options)
            with LiveRun(session, blocks, rate, collected[number]) as live:
                for chunk in live:
                    if number > 0:
                        continue
                    if chunk.pts < MAX_SYNC_S:
                        shown.append(chunk.frames)
                    if on_figures is not None:
                        on_figures(collected[0].figures())
        except BaseException as error:  # raised again below
            problems.append(error)

    start, busy = time.perf_counter(), time.process_time()
    threads = [threading.Thread(target=run, args=(number,)) for number in range(1, sessions)]
    for thread in threads:
        thread.start()
    run(0)
    for thread in threads:
        thread.join()
    elapsed, busy = time.perf_counter() - start, time.process_time() - busy
    if problems:
        raise problems[0]
    late = asyncio.run(_tick_beside(engine, options, samples[: int(TICK_SPEECH_S * rate)], rate))
    figures = [one.figures() for one in collected]
    expected = -(-len(samples) * settings.fps // rate)
    loss = _sync_loss(engine, image, np.concatenate(shown), samples, rate)
    return Report(
        command=command,
        device=str(engine.components.device),
        threads=torch.get_num_threads(),
        kernel_plan=engine.components.plan.to_json(),
        rows=[
            *_rows(figures, needs, settings.fps, expected, elapsed, busy),
            Row("stream.tick_late_p99", late, "s", MAX_TICK_LATE_S),
            *(loss.rows() if isinstance(loss, SyncLoss) else []),
        ],
        details={
            "model": engine.components.name,
            "voice": Path(voice.name).name,
            "sessions": sessions,
            "seconds": seconds,
            "settings": vars(settings),
            "sync": loss.details() if isinstance(loss, SyncLoss) else f"not measured: {loss}",
        },
    )


def _check(sessions: int, seconds: float) -> None:
    if not 1 <= sessions <= 64:
        raise InvalidArgument("sessions", expected="1 to 64", got=sessions)
    if not 1 <= seconds <= 3600:
        raise InvalidArgument("seconds", expected="1 to 3600", got=seconds)


def measure_sync(
    engine: Engine,
    *,
    voice: AudioSource,
    image: str | Path | None,
    seconds: float,
    horizon: int,
    command: str,
) -> Report:
    """Compare the lips of a live session with an offline job; nothing is timed.

    The session gets its speech as fast as it takes it, which changes no byte.

    Parameters
    ----------
    engine, voice, image, horizon, command
        As in :func:`measure_stream`.
    seconds : float
        Speech, 1 to 120.

    Returns
    -------
    Report
        Rows ``stream.sync_*`` of docs/benchmarks.md.

    Raises
    ------
    InvalidArgument
        ``seconds`` out of range.
    MissingDependency
        The ``face`` extra is missing.
    FaceNotFound
        The video shows no face.
    """
    if not 1 <= seconds <= MAX_SYNC_S:
        raise InvalidArgument("seconds", expected=f"1 to {MAX_SYNC_S:g}", got=seconds)
    samples, rate = _voice(voice, seconds)
    options: LiveOptions = {"image": image, "horizon": horizon, "seed": 0}
    settings = resolve_settings(engine.components, options, LiveOptions)
    blocks = in_blocks([samples], block_samples(rate))
    statistics = LiveStatistics(AudioNeeds(engine.components, settings), settings.fps)
    with LiveRun(engine.open_session(**options), blocks, rate, statistics) as live:
        frames = np.concatenate([chunk.frames for chunk in live])
    loss = _sync_loss(engine, image, frames, samples, rate)
    if not isinstance(loss, SyncLoss):
        if not face_available():
            raise MissingDependency("bench stream: no mouth can be found.", hint=f"It {loss}.")
        raise FaceNotFound(f"bench stream: {loss}.", stage="bench")
    return Report(
        command=command,
        device=str(engine.components.device),
        threads=torch.get_num_threads(),
        kernel_plan=engine.components.plan.to_json(),
        rows=loss.rows(),
        details={
            "model": engine.components.name,
            "voice": Path(voice.name).name,
            "seconds": seconds,
            "settings": vars(settings),
            "sync": loss.details(),
        },
    )


def _sync_loss(
    engine: Engine,
    image: str | Path | None,
    live: NDArray[np.uint8],
    samples: NDArray[np.float32],
    rate: int,
) -> SyncLoss | str:
    """Lip sync of the frames streamed against an offline job of the same speech."""
    video = engine.generate(
        samples[: int(MAX_SYNC_S * rate)], sample_rate=rate, image=image, seed=0,
        on_progress=lambda _: None,
    )  # fmt: skip
    return sync_loss(live, video.frames, samples, rate, video.fps)


async def _tick_beside(
    engine: Engine, options: LiveOptions, samples: NDArray[np.float32], rate: int
) -> float:
    """99th percentile of how late a 10 ms ticker of the event loop is while frames are made."""
    loop = asyncio.get_running_loop()
    late: list[float] = []

    async def tick() -> None:
        due = loop.time()
        while True:
            due += TICK_S
            await asyncio.sleep(max(0.0, due - loop.time()))
            late.append(loop.time() - due)
            due = max(due, loop.time() - TICK_S)

    async with engine.open_session(**options) as session:
        ticker = asyncio.create_task(tick())
        await session.push_audio(samples, rate)
        await session.end_audio()
        async for _ in session:
            pass
        ticker.cancel()
    return float(np.quantile(late, 0.99))


def _rows(
    figures: list[LiveFigures],
    needs: AudioNeeds,
    fps: int,
    expected: int,
    elapsed: float,
    busy: float,
) -> list[Row]:
    """Rows of the report; with several sessions the worst of each."""
    first = needs.first()
    later = needs.after(first)
    group_s = (later.stop_frame - later.first_frame) / fps

    def worst(values: Iterator[float | None]) -> float:
        return max(value if value is not None else 0.0 for value in values)

    frames = sum(one.frames for one in figures)
    return [
        Row("stream.rtf", worst(one.rtf for one in figures), "s/s", MAX_RTF),
        Row("stream.first_need", float(first.seconds), "s of speech", MAX_FIRST_NEED_S),
        Row("stream.first_frame", worst(one.first_frame_s for one in figures), "s",
            MAX_FIRST_FRAME_S),
        Row("stream.chunk_length", group_s, "s"),
        Row("stream.chunk_p50", numbers.median(one.chunk_p50_s or 0.0 for one in figures), "s"),
        Row("stream.chunk_p95", worst(one.chunk_p95_s for one in figures), "s", group_s),
        Row("stream.late", sum(one.late for one in figures), "chunks"),
        Row("stream.dropped", expected * len(figures) - frames, "frames", 0.0),
        Row("stream.head_start", worst(one.head_start_s for one in figures), "s"),
        Row("stream.throughput", frames / elapsed, "frames/s", better="higher"),
        Row("stream.cpu", busy * fps / max(frames, 1), "CPU s/s"),
    ]  # fmt: skip


def _voice(source: AudioSource, seconds: float) -> tuple[NDArray[np.float32], int]:
    """``seconds`` of speech (S, channels), repeated as often as it takes, and its rate."""
    if source.sample_rate not in AAC_SAMPLE_RATES:
        source = ResampledAudio(source, 48_000)
    length, have = int(seconds * source.sample_rate), 0
    blocks: list[NDArray[np.float32]] = []
    for block in itertools.chain.from_iterable(source.blocks() for _ in range(3600)):
        blocks.append(block)
        have += len(block)
        if have >= length:
            break
    return np.concatenate(blocks)[:length], source.sample_rate
