"""Brings engine and drawn held-out clips to the evaluation: the command ``skyreels-rt eval``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch

from skyreels_rt.calibration import CalibrationClip
from skyreels_rt.diffusion.blf import plan_group
from skyreels_rt.engine import Engine
from skyreels_rt.errors import InvalidArgument, ModelError, OutputError
from skyreels_rt.evaluation.clips import EvalClip, EvalModel, eye_boxes, mask_box
from skyreels_rt.evaluation.conditions import Voice
from skyreels_rt.evaluation.curves import Strip
from skyreels_rt.evaluation.page import Section, render_page
from skyreels_rt.evaluation.suite import OnProgress, SuiteSize, check_sections, evaluate
from skyreels_rt.media.audio_file import open_audio
from skyreels_rt.media.image import load_image
from skyreels_rt.options import GenerateOptions, resolve_settings
from skyreels_rt.report import Report, Row, require_writable
from skyreels_rt.runtime.magcache import MagCache
from skyreels_rt.runtime.step_cache import StepRun
from skyreels_rt.runtime.teacache import TeaCache
from skyreels_rt.training.data.speech import SAMPLE_RATE
from skyreels_rt.training.data.triplets import FPS, Triplet, TripletSource
from skyreels_rt.types import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

HELD_OUT = Path(__file__).with_name("evaluation") / "held_out.json"
FAST_NAME = "demo-fast"
SYNC_TARGET, FAST_SYNC_TARGET = 0.93, 0.90
"""Bars of the mean correlation; the distilled model has a lower one."""


@dataclass(frozen=True)
class HeldOutClips(Sequence[EvalClip]):
    """The committed list of clips that no training sees, drawn when asked for.

    Parameters
    ----------
    source : TripletSource
        Draws them.
    numbers : tuple of int
        Their numbers in the source's split.
    """

    source: TripletSource
    numbers: tuple[int, ...]

    @classmethod
    def listed(cls, size: int, path: Path = HELD_OUT) -> HeldOutClips:
        """The clips of a list, at another size in pixels.

        Raises
        ------
        InvalidArgument
            ``size`` cannot be drawn.
        """
        listed = json.loads(path.read_text(encoding="utf-8"))
        numbers = tuple(listed.pop("numbers"))
        return cls(TripletSource(**{**listed, "size": size}), numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> EvalClip: ...
    @overload
    def __getitem__(self, index: slice) -> HeldOutClips: ...
    def __getitem__(self, index: int | slice) -> EvalClip | HeldOutClips:
        if isinstance(index, slice):
            return replace(self, numbers=self.numbers[index])
        return _drawn(self.source, self.numbers[index])


# Sections ask for a clip and its successor; two would do, the first comes back at the end.
@lru_cache(maxsize=3)
def _drawn(source: TripletSource, number: int) -> EvalClip:
    return clip_of(source.triplet(number), f"clip {number}")


def clip_of(triplet: Triplet, name: str) -> EvalClip:
    """A drawn triplet as a clip of the evaluation."""
    drawn, identity = triplet.clip, triplet.identity
    return EvalClip(
        name=name,
        frames=drawn.frames,
        audio=triplet.audio,
        sample_rate=SAMPLE_RATE,
        caption=triplet.caption,
        opening_px=drawn.opening_px,
        mouth_box=mask_box(drawn.mouth_mask[0]),
        face_box=mask_box(drawn.face_mask[0]),
        eye_boxes=eye_boxes(drawn.eye_mask[0]),
        edit_mask=drawn.jaw_mask,
        hair=None if identity.hair_style == "bald" else identity.hair_color,
        background=identity.background_color,
    )


def engine_model(
    engine: Engine,
    size: int,
    on_frames: Callable[[Progress], None],
    *,
    teacache: TeaCache | MagCache | None = None,
    on_steps: Callable[[Sequence[StepRun]], None] = lambda _: None,
) -> EvalModel:
    """An engine as a model of the evaluation.

    Parameters
    ----------
    engine : Engine
        A loaded model.
    size : int
        Height and width of what it makes.
    on_frames : callable
        Receives the progress inside one video.
    teacache : TeaCache or MagCache, optional
        Step cache of every video.
    on_steps : callable
        Receives which steps each video computed.

    Raises
    ------
    ModelError
        The model has another frame rate than the drawn clips.
    """
    parts = engine.components
    if parts.generation.fps != FPS:
        raise ModelError(
            f"{parts.name}: makes {parts.generation.fps} frames per second.",
            stage="eval",
            hint=f"The held-out clips are drawn at {FPS}.",
        )

    def generate(
        *,
        audio: NDArray[np.float32],
        sample_rate: int,
        seed: int,
        **options: Any,  # noqa: ANN401
    ) -> NDArray[np.uint8]:
        given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
        given |= {"height": size, "width": size, "on_progress": on_frames}
        given["teacache"] = teacache
        video = engine.generate(audio, sample_rate=sample_rate, seed=seed, **given)
        on_steps(video.steps)
        return video.frames

    def windows(num_frames: int) -> list[tuple[int, int]]:
        return window_frames(engine, num_frames, {"height": size, "width": size})

    scale = parts.generation.audio_guidance_scale
    return EvalModel(generate, windows, FPS, scale)


def window_frames(
    engine: Engine, num_frames: int, options: GenerateOptions
) -> list[tuple[int, int]]:
    """Frames (first, last + 1) of every window the engine denoises for such a video, in order."""
    parts = engine.components
    settings, timeline = resolve_settings(parts, options), parts.timeline
    total, emitted = timeline.num_latents(num_frames), 0
    found: list[tuple[int, int]] = []
    while True:
        group = plan_group(
            emitted,
            total,
            True,
            window=settings.window,
            overlap=settings.overlap,
            horizon=settings.horizon,
        )
        if group is None:
            return found
        emitted = group.stop
        found += [
            (timeline.first_frame(window.start), min(timeline.first_frame(window.stop), num_frames))
            for window in group.windows
        ]


def given_clips(images: Sequence[str], audios: Sequence[str]) -> list[CalibrationClip]:
    """Portraits and recordings to calibrate a model on, pair by pair.

    Raises
    ------
    InvalidArgument
        Not as many of the one as of the other.
    MediaError
        A file cannot be read.
    """
    if len(images) != len(audios):
        raise InvalidArgument(
            "audio", expected=f"{len(images)} recordings, one per portrait", got=len(audios)
        )
    voices = [read_voice(Path(audio)) for audio in audios]
    return [
        CalibrationClip(voice.audio, voice.sample_rate, load_image(image))
        for image, voice in zip(images, voices, strict=True)
    ]


CALIBRATION_CLIPS = range(1000, 1048)
"""Clips of the held-out split to calibrate step caches on: not those of the list."""


def calibration_clips(size: int, count: int) -> list[CalibrationClip]:
    """Drawn clips to calibrate a model on.

    Raises
    ------
    InvalidArgument
        ``count`` is not 1 to 48, or ``size`` cannot be drawn.
    MissingDependency
        The speech synthesiser of the ``train`` extra is not installed.
    """
    if not 1 <= count <= len(CALIBRATION_CLIPS):
        raise InvalidArgument("clips", expected=f"1 to {len(CALIBRATION_CLIPS)}", got=count)
    source = HeldOutClips.listed(size).source
    drawn = (clip_of(source.triplet(n), f"clip {n}") for n in CALIBRATION_CLIPS[:count])
    return [
        CalibrationClip(clip.audio, clip.sample_rate, clip.portrait, clip.caption) for clip in drawn
    ]


def read_voice(path: Path) -> Voice:
    """A recording as mono samples; its rows are named by the file.

    Raises
    ------
    MediaError
        The file cannot be read as sound.
    """
    source = open_audio(path)
    samples = np.concatenate(list(source.blocks())).mean(axis=1, dtype=np.float32)
    return Voice(path.stem, samples, source.sample_rate)


@dataclass(frozen=True)
class EvalRun:
    """What the command was asked for.

    Attributes
    ----------
    command : str
        Command line, for the report.
    clips : int
        Clips of the list to use.
    quick : bool
        Fewer clips and a shorter long video.
    only : tuple of str
        Sections; all if empty.
    voices : tuple of Path
        Recordings.
    json_file : Path or None
        A second place for the report.
    teacache : TeaCache, MagCache or None
        Step cache the videos are made with.
    """

    command: str
    clips: int = 48
    quick: bool = False
    only: tuple[str, ...] = ()
    voices: tuple[Path, ...] = ()
    json_file: Path | None = None
    teacache: TeaCache | MagCache | None = None


def run_evaluation(
    engine: Engine,
    folder: Path,
    run: EvalRun,
    *,
    size: SuiteSize | None = None,
    on_progress: OnProgress | None = None,
    on_frames: Callable[[Progress], None] = lambda _: None,
) -> Report:
    """Evaluate a model on the held-out clips; write ``eval.json`` and ``eval.html``.

    Parameters
    ----------
    engine : Engine
        The model.
    folder : Path
        Where both files go; made if it is not there. Until all is done they are not touched.
    run : EvalRun
        What to do.
    size : SuiteSize, optional
        How much to generate, in place of what ``run`` says.
    on_progress : callable, optional
        Called with (section, videos done, videos planned).
    on_frames : callable
        Receives the progress inside one video.

    Raises
    ------
    InvalidArgument
        An unknown section, or a number of clips that is not on the list.
    MissingDependency
        The speech synthesiser of the ``train`` extra is not installed.
    MediaError
        A recording cannot be read.
    OutputError
        A file cannot be written.
    """
    generation = engine.components.generation
    pixels = min(generation.height, generation.width)
    clips = HeldOutClips.listed(pixels)
    names = check_sections(run.only)
    if not 2 <= run.clips <= len(clips):
        raise InvalidArgument("clips", expected=f"2 to {len(clips)}", got=run.clips)
    voices = [read_voice(path) for path in run.voices]
    size = size or (SuiteSize.quick() if run.quick else SuiteSize())
    size = size.limited(min(size.clips, run.clips))
    if run.json_file is not None:
        require_writable(run.json_file)
    steps: list[StepRun] = []
    with _both_files(folder) as (json_path, html_path):
        is_fast = engine.components.name.rstrip("/").endswith(FAST_NAME)
        sections = evaluate(
            engine_model(engine, pixels, on_frames, teacache=run.teacache, on_steps=steps.extend),
            clips,
            size=size,
            only=names,
            voices=voices,
            sync_target=FAST_SYNC_TARGET if is_fast else SYNC_TARGET,
            on_progress=on_progress,
        )
        if run.teacache is not None:
            sections = [*sections, _steps_section(steps)]
        report = _report(engine, run, size, sections)
        report.write(json_path)
        page = render_page(f"Evaluation of {engine.components.name}", _facts(report), sections)
        html_path.write_text(page, encoding="utf-8")
    if run.json_file is not None:
        report.write(run.json_file)
    return report


def _report(engine: Engine, run: EvalRun, size: SuiteSize, sections: Sequence[Section]) -> Report:
    parts = engine.components
    return Report(
        command=run.command,
        device=str(parts.device),
        threads=torch.get_num_threads(),
        kernel_plan=parts.plan.to_json(),
        rows=[row for section in sections for row in section.rows],
        details={
            "model": parts.name,
            "size": asdict(size),
            "skipped": {s.name: s.skipped for s in sections if s.skipped is not None},
            "sections": {s.name: s.details for s in sections if s.details},
        },
    )


def _steps_section(runs: Sequence[StepRun]) -> Section:
    """Which steps the videos computed, each pattern once."""
    patterns = list(dict.fromkeys(run.computed for run in runs))
    windows = {p: sum(run.windows for run in runs if run.computed == p) for p in patterns}
    computed = sum(windows[p] * sum(p) for p in patterns)
    share = computed / max(1, sum(windows[p] * len(p) for p in patterns))
    strip = Strip(
        "Denoising steps computed (filled) and skipped",
        tuple(f"{windows[p]} windows" for p in patterns),
        tuple(patterns),
    )
    row = Row("eval.steps.computed", share, "share of steps")
    return Section("steps", "Which steps were computed?", (row,), (strip,))


def _facts(report: Report) -> dict[str, str]:
    data = report.to_json()
    return {
        "model": data["details"]["model"],
        "device": f"{report.device}, {report.threads} threads",
        "commit": str(data["commit"]),
        "command": report.command,
        "clips": f"{report.details['size']['clips']} held-out drawn clips",
    }


@contextmanager
def _both_files(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Temporary paths that become ``eval.json`` and ``eval.html`` if all goes well."""
    is_new = not folder.exists()
    names = ("eval.json", "eval.html")
    parts = [folder / f".{name}.part" for name in names]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        parts[0].touch()
        yield parts[0], parts[1]
        for part, name in zip(parts, names, strict=True):
            part.replace(folder / name)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"{folder}: cannot be written ({error.strerror}).",
            stage="output",
            hint="Give a folder that can be made or written to.",
        ) from error
    finally:
        with suppress(OSError):
            for part in parts:
                part.unlink(missing_ok=True)
            if is_new and not any(folder.iterdir()):
                folder.rmdir()
