"""What step caches save and what they cost: speed-up against lip sync, PSNR, SSIM and seams.

Every clip is made without a cache and with the model's default threshold, one right after the
other: a pair. Its speed-up is the median of the pairs, its loss of sync a mean over clips with an
interval. The other points of the curve are made of the first clips alone, once each, and set
against the uncached run of the same clip. Processor seconds, which other programs disturb less, are
compared beside.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from skyreels_rt.config import config_to_dict
from skyreels_rt.engine import Engine
from skyreels_rt.errors import InvalidArgument, ModelError
from skyreels_rt.evaluation.clip_scores import aligned_sync
from skyreels_rt.evaluation.clips import EvalClip
from skyreels_rt.evaluation.curves import Curve, Series, Strip
from skyreels_rt.evaluation.fidelity import psnr, ssim
from skyreels_rt.evaluation.long_run import window_borders
from skyreels_rt.evaluation.mouth import mouth_opening
from skyreels_rt.evaluation.page import Figure, Section
from skyreels_rt.evaluation.seam import seam_score
from skyreels_rt.report import Report, Row
from skyreels_rt.runtime.magcache import MagCache
from skyreels_rt.runtime.step_cache import StepRun
from skyreels_rt.runtime.teacache import TeaCache

if TYPE_CHECKING:
    from skyreels_rt.media.video import Video

SPEEDUP_TARGET, SYNC_LOSS_TARGET, SEAM_TARGET = 1.6, 0.03, 0.02
"""Bars of TeaCache at its default threshold."""

MIN_PAIRS = 5
Better = Literal["lower", "higher"]

_SSIM_STEP = 4  # every so many frames: SSIM takes longest
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's two-sided 95 % quantiles for 1, 2, ... degrees of freedom."""
_IN_PAIRS = ("off", "teacache.default")
_LABELS = {0.5: "half", 1.0: "default", 2.0: "double", 4.0: "fourfold"}


@dataclass(frozen=True)
class CurveSize:
    """How much is generated.

    Attributes
    ----------
    num_steps : tuple of int
        Denoising steps of the runs.
    clips : int
        Clips, of the given ones, that are made without a cache and with TeaCache's default.
    curve_clips : int
        Of them, from the first on, those made at every other point too.
    latents, border_latents : int
        Length of the clips in latent frames, and of those at every point: more than a window, to
        have a border.
    factors : tuple of float
        Thresholds as multiples of the model's default: of 0.5, 1, 2 and 4, with 1.
    pairs : int
        Timed pairs at the default threshold, at least 5; the clips repeat until there are enough.
    """

    num_steps: tuple[int, ...] = (20, 40)
    clips: int = 5
    curve_clips: int = 1
    latents: int = 9
    border_latents: int = 15
    factors: tuple[float, ...] = (1.0,)
    pairs: int = 5

    def __post_init__(self) -> None:
        if self.pairs < MIN_PAIRS:
            raise InvalidArgument("pairs", expected=f"at least {MIN_PAIRS}", got=self.pairs)
        if not 1 <= self.curve_clips <= self.clips:
            raise InvalidArgument(
                "curve_clips", expected=f"1 to clips={self.clips}", got=self.curve_clips
            )
        if 1.0 not in self.factors or not set(self.factors) <= set(_LABELS):
            raise InvalidArgument(
                "factors", expected=f"some of {tuple(_LABELS)}, with 1", got=self.factors
            )

    @classmethod
    def full(cls, num_steps: tuple[int, ...] = (20, 40)) -> CurveSize:
        """All thresholds, on eight clips with a border."""
        return cls(
            num_steps, clips=8, curve_clips=8, latents=15, factors=(0.5, 1.0, 2.0, 4.0), pairs=8
        )


@dataclass
class _Point:
    """One rule at one threshold, and what its runs gave, by clip."""

    name: str
    cache: TeaCache | MagCache | None
    speedups: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    cpu_speedups: list[float] = field(default_factory=list)
    sync: list[float] = field(default_factory=list)
    seam: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    steps: tuple[StepRun, ...] = ()

    def compare(self, off: _Point) -> None:
        """Set the last run against the last one without a cache, of the same clip."""
        self.speedups.append(off.seconds[-1] / self.seconds[-1])
        self.cpu_speedups.append(off.cpu_seconds[-1] / self.cpu_seconds[-1])


def measure_step_caches(
    engine: Engine,
    clips: Sequence[EvalClip],
    windows: Callable[[int], Sequence[tuple[int, int]]],
    *,
    command: str,
    size: CurveSize | None = None,
    on_row: Callable[[Row], None] | None = None,
    on_run: Callable[[str], None] | None = None,
) -> tuple[Report, list[Section]]:
    """Measure the curve of TeaCache and MagCache on a calibrated model.

    Parameters
    ----------
    engine : Engine
        The model.
    clips : sequence of EvalClip
        Portraits, voices and truth.
    windows : callable
        From a number of frames to the (first, last + 1) frames of every BLF window.
    command : str
        Command line recorded in the report.
    size : CurveSize, optional
        How much to generate.
    on_row, on_run : callable, optional
        Called with every finished row, and with the name of the run that starts.

    Returns
    -------
    Report, list of Section
        The rows, and the same as sections of a page, with curves and strips.

    Raises
    ------
    ModelError
        The model has no calibration.
    SkyReelsError
        From the model or the measures.
    """
    size, parts = size or CurveSize(), engine.components
    calibration = parts.calibration
    if calibration is None:
        raise ModelError(
            f"{parts.name}: has no calibration.",
            stage="bench",
            hint=f"Run `skyreels-rt calibrate {parts.name}`.",
        )
    defaults = (calibration.timestep.threshold, calibration.magnitude.threshold)
    rows: list[Row] = []
    sections: list[Section] = []
    for num_steps in size.num_steps:
        points = _points(size, defaults)
        bench = _Bench(engine, windows, num_steps, points, on_run or (lambda _: None))
        for index in range(size.clips):
            has_curve = index < size.curve_clips
            bench.measure(
                clips[index],
                size.border_latents if has_curve else size.latents,
                points if has_curve else [p for p in points if p.name in _IN_PAIRS],
                pairs=math.ceil((size.pairs - index) / size.clips),
            )
        found = [
            row for point in points for row in _rows(f"teacache.{num_steps}", points[0], point)
        ]
        for row in found:
            rows.append(row)
            if on_row is not None:
                on_row(row)
        sections.append(_section(num_steps, found, points))
    details: dict[str, Any] = {
        "model": parts.name,
        "size": config_to_dict(size),
        "thresholds": {point.name: point.cache.threshold for point in points if point.cache},
        "steps": {section.name: section.details["steps"] for section in sections},
        "calibration": config_to_dict(calibration.run),
    }
    report = Report(
        command=command,
        device=str(parts.device),
        threads=torch.get_num_threads(),
        kernel_plan=parts.plan.to_json(),
        rows=rows,
        details=details,
    )
    return report, sections


def _points(size: CurveSize, defaults: tuple[float, float]) -> list[_Point]:
    """The uncached point, then TeaCache and MagCache by threshold."""
    tea, mag = defaults
    return [
        _Point("off", None),
        *(_Point(f"teacache.{_LABELS[k]}", TeaCache(k * tea)) for k in size.factors),
        *(_Point(f"magcache.{_LABELS[k]}", MagCache(k * mag)) for k in size.factors),
    ]


@dataclass
class _Bench:
    """Runs clips at one number of steps."""

    engine: Engine
    windows: Callable[[int], Sequence[tuple[int, int]]]
    num_steps: int
    points: Sequence[_Point]
    on_run: Callable[[str], None]
    turn: int = 0

    def measure(
        self, clip: EvalClip, latents: int, points: Sequence[_Point], *, pairs: int
    ) -> None:
        """Make a clip at ``points``, and repeat the pair of the default for its times."""
        off, default = self._named("off"), self._named("teacache.default")
        made = self._pair(clip, latents, off, default)
        for point in points:
            if point.name not in made:
                made[point.name] = self._run(clip, latents, point)
                point.compare(off)
        truth = made["off"].frames
        borders = window_borders(self.windows(len(truth)), len(truth))
        for point in points:
            video = made[point.name]
            point.steps = point.steps or video.steps
            opening = mouth_opening(video.frames, clip.mouth_box)
            point.sync.append(aligned_sync(opening, clip.opening_px))
            if any(borders):
                point.seam.append(max(seam_score(video.frames, kind) for kind in borders if kind))
            point.psnr.append(psnr(video.frames, truth))
            point.ssim.append(ssim(video.frames[::_SSIM_STEP], truth[::_SSIM_STEP]))
        for _ in range(pairs - 1):
            self._pair(clip, latents, off, default)

    def _pair(self, clip: EvalClip, latents: int, off: _Point, default: _Point) -> dict[str, Video]:
        """Both, who is first changing from pair to pair."""
        order = (off, default) if self.turn % 2 == 0 else (default, off)
        self.turn += 1
        made = {point.name: self._run(clip, latents, point) for point in order}
        default.compare(off)
        return made

    def _run(self, clip: EvalClip, latents: int, point: _Point) -> Video:
        self.on_run(f"{clip.name}, {self.num_steps} steps, {point.name}")
        parts = self.engine.components
        frames = parts.timeline.num_frames(latents)
        start, cpu_start = time.perf_counter(), time.process_time()
        video = self.engine.generate(
            clip.audio[: frames * clip.sample_rate // parts.generation.fps],
            sample_rate=clip.sample_rate,
            image=clip.portrait,
            prompt=clip.caption,
            num_steps=self.num_steps,
            teacache=point.cache,
            on_progress=lambda _: None,
        )
        point.seconds.append(time.perf_counter() - start)
        point.cpu_seconds.append(time.process_time() - cpu_start)
        return video

    def _named(self, name: str) -> _Point:
        return next(point for point in self.points if point.name == name)


def _rows(prefix: str, off: _Point, point: _Point) -> list[Row]:
    """Rows of one point; the bars are for TeaCache at its default threshold."""
    name, is_default = f"{prefix}.{point.name}", point.name == "teacache.default"
    rows = [
        _row(f"{name}.seconds", point.seconds, "s"),
        _row(f"{name}.sync", point.sync, "correlation", better="higher", mean=True),
        *([_row(f"{name}.seam", point.seam, "score")] if point.seam else []),
    ]
    if point is off:
        return rows
    # A point has the first clips, so the first values of what had all.
    lost = np.subtract(off.sync[: len(point.sync)], point.sync).tolist()
    changed = np.subtract(point.seam, off.seam[: len(point.seam)]).tolist()
    flags = [flag for run in point.steps for flag in run.computed]
    rows += [
        _row(f"{name}.speedup", point.speedups, "off / on", better="higher"),
        _row(f"{name}.cpu_speedup", point.cpu_speedups, "off / on", better="higher"),
        _row(f"{name}.computed", [float(np.mean(flags))], "share of steps"),
        _row(f"{name}.sync_loss", lost, "correlation", mean=True),
        *([_row(f"{name}.seam_change", changed, "score", mean=True)] if changed else []),
        _row(f"{name}.psnr", point.psnr, "dB to off", better="higher", mean=True),
        _row(f"{name}.ssim", point.ssim, "to off", better="higher", mean=True),
    ]
    if len(lost) > 1:
        low, high = mean_interval(lost)
        rows += [
            Row(f"{name}.sync_loss_lower95", low, "correlation"),
            Row(f"{name}.sync_loss_upper95", high, "correlation"),
        ]
    targets = {"speedup": SPEEDUP_TARGET, "sync_loss": SYNC_LOSS_TARGET, "seam_change": SEAM_TARGET}
    if not is_default:
        return rows
    return [replace(row, target=targets.get(row.name.rsplit(".", 1)[1])) for row in rows]


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Two-sided 95 % interval of the mean of two or more normal values, after Student.

    Raises
    ------
    InvalidArgument
        There are fewer than two values.
    """
    if len(values) < 2:
        raise InvalidArgument("values", expected="two or more numbers", got=len(values))
    freedom = len(values) - 1
    quantile = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else 1.96 + 2.5 / freedom
    reach = quantile * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - reach, mean + reach


def _row(
    name: str, values: list[float], unit: str, *, better: Better = "lower", mean: bool = False
) -> Row:
    """Median (or mean, over clips) with spread."""
    middle = statistics.fmean(values) if mean else statistics.median(values)
    return Row(name, middle, unit, None, better, min(values), max(values))


def _section(num_steps: int, rows: Sequence[Row], points: Sequence[_Point]) -> Section:
    values = {row.name.removeprefix(f"teacache.{num_steps}."): row.value for row in rows}

    def line(rule: str, measure: str) -> Series:
        names = [point.name for point in points if point.name.startswith(rule)]
        return Series(
            rule,
            [values[f"{name}.speedup"] for name in names],
            [values[f"{name}.{measure}"] for name in names],
        )

    def curve(title: str, measure: str, target: float | None = None) -> Curve:
        lines = (line("teacache", measure), line("magcache", measure))
        return Curve(title, "times as fast", measure, lines, target)

    figures: list[Figure] = [
        curve("Lip sync lost", "sync_loss", SYNC_LOSS_TARGET),
        curve("PSNR against the uncached video", "psnr"),
        curve("SSIM against the uncached video", "ssim"),
        curve("Change of the seam score", "seam_change", SEAM_TARGET),
        Strip(
            "Steps computed (filled) and skipped, by rule and threshold",
            tuple(point.name for point in points),
            tuple(point.steps[0].computed for point in points),
        ),
    ]
    return Section(
        f"steps-{num_steps}",
        f"{num_steps} denoising steps",
        tuple(rows),
        tuple(figures),
        ("Speed-ups are end to end: audio, denoising, decoding.",),
        details={"steps": {point.name: [run.text for run in point.steps] for point in points}},
    )
