"""Sections made of scored clips: sync, fidelity, eyes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from skyreels_rt.evaluation.clip_scores import (
    MAX_LAG,
    PLANTED_DELAY,
    SHEET_COLUMNS,
    ClipScores,
    SyncScores,
)
from skyreels_rt.evaluation.contact_sheet import contact_sheet
from skyreels_rt.evaluation.curves import Bars, Curve, Series
from skyreels_rt.evaluation.page import Figure, Picture, Section
from skyreels_rt.report import Row


def spread_row(
    name: str,
    values: Sequence[float],
    unit: str,
    target: float | None = None,
    *,
    lower: bool = False,
) -> Row:
    """Mean of ``values`` with least and greatest."""
    low, high = float(min(values)), float(max(values))
    mean = float(np.mean(values))
    return Row(name, mean, unit, target, "lower" if lower else "higher", low, high)


def times_off(value: float, truth: float) -> float:
    """How many times ``value`` lies over or under ``truth`` (both >= 0), from 1 to 99."""
    low, high = sorted((value, truth))
    if high == 0:
        return 1.0
    return min(high / low, 99.0) if low > 0 else 99.0


def clip_sections(
    scores: Sequence[ClipScores], parts: Sequence[str], *, sync_target: float
) -> Iterator[Section]:
    """Summarise clips as sections, in the order of ``CLIP_SECTIONS``.

    Parameters
    ----------
    scores : sequence of ClipScores
        At least one.
    parts : sequence of str
        Which sections.
    sync_target : float
        Bar of the mean correlation.
    """
    if "sync" in parts:
        yield _sync_section(scores, sync_target)
    if "fidelity" in parts:
        yield _fidelity_section(scores)
    if "eyes" in parts:
        yield _eyes_section(scores)


def _sync_section(scores: Sequence[ClipScores], target: float) -> Section:
    clips = [(clip.name, clip.sync) for clip in scores if clip.sync is not None]
    found = [sync for _, sync in clips]
    right = [sync.right for sync in found]
    static = [sync.static for sync in found if sync.static is not None]
    delays = [sync.delay for sync in found if sync.delay is not None]
    lags = np.array([sync.lag for sync in found])
    rows = (
        spread_row("eval.sync.mean", right, "correlation", target),
        Row("eval.sync.p10", float(np.percentile(right, 10)), "correlation", 0.85, "higher"),
        spread_row(
            "eval.sync.wrong_audio_mean", [s.wrong for s in found], "correlation", 0.15, lower=True
        ),
        spread_row(
            "eval.sync.wrong_audio_floor", [s.floor for s in found], "correlation", lower=True
        ),
        spread_row("eval.sync.static_mean", static, "correlation", 0.15, lower=True),
        spread_row("eval.sync.estimator_mean", [s.estimator for s in found], "correlation", 0.95),
        Row(
            "eval.sync.delay_found",
            float(np.mean([abs(delay - PLANTED_DELAY) <= 1 for delay in delays])),
            "share of clips", 0.95, "higher",
        ),
        Row("eval.sync.lag_median", float(np.median(lags)), "frames late", None,
            min=float(lags.min()), max=float(lags.max())),
        Row("eval.sync.lag_within_1", float(np.mean(np.abs(lags) <= 1)), "share of clips",
            None, "higher"),
    )  # fmt: skip
    counts = {lag: int((lags == lag).sum()) for lag in range(-MAX_LAG, MAX_LAG + 1)}
    order = np.argsort(right)
    examples = {"worst": order[0], "median": order[len(order) // 2], "best": order[-1]}
    figures: list[Figure] = [
        Bars("Best lag", "frames late", "clips", tuple(map(str, counts)), tuple(counts.values())),
        Curve(
            "Correlation of every clip, sorted", "clip", "correlation",
            (Series("right speech", range(len(right)), sorted(right)),
             Series("another's speech", range(len(right)), sorted(s.wrong for s in found))),
            target,
        ),
    ]  # fmt: skip
    figures += [
        _opening_curve(f"Opening, the {word} clip ({clips[k][0]})", found[k])
        for word, k in examples.items()
    ]
    shown = scores[:6]
    figures.append(
        Picture(
            "True and generated frames of the same moments",
            contact_sheet(
                [video for clip in shown for video in (clip.truth_shown, clip.shown)],
                [f"{clip.name}: {word}" for clip in shown for word in ("truth", "generated")],
                SHEET_COLUMNS,
            ),
        )
    )
    return Section(
        "sync",
        "Does the mouth follow the voice?",
        rows,
        tuple(figures),
        (
            "Correlation of the mouth opening read from generated frames with the true one, best "
            "of lags -1 to 1. The estimator is judged on the true frames, with them delayed by "
            f"{PLANTED_DELAY} frames, and on a portrait that never moves ({len(static)} clips). "
            "The floor is what a perfect mouth would score with another's speech.",
        ),
        details={
            "clips": {name: round(sync.right, 4) for name, sync in clips},
            "lags": {str(lag): count for lag, count in counts.items()},
        },
    )


def _opening_curve(title: str, sync: SyncScores) -> Curve:
    frames = range(len(sync.truth))
    return Curve(
        title, "frame", "opening, pixels",
        (Series("true", frames, sync.truth.tolist()),
         Series("generated", frames, sync.opening.tolist())),
    )  # fmt: skip


def _fidelity_section(scores: Sequence[ClipScores]) -> Section:
    title = "Does the background stay?"
    found = [(clip.name, clip.fidelity) for clip in scores if clip.fidelity is not None]
    if not found:
        return Section("fidelity", title, skipped="no clip has a background that stays still")
    kept = [fidelity for _, fidelity in found]
    decibels = [f.psnr for f in kept]
    rows = (
        spread_row("eval.fidelity.psnr", decibels, "dB", 36.0),
        spread_row("eval.fidelity.ssim", [f.ssim for f in kept], "ssim"),
        spread_row("eval.fidelity.flicker", [f.flicker for f in kept], "grey levels", lower=True),
        spread_row(
            "eval.fidelity.flicker_truth", [f.truth_flicker for f in kept], "grey levels",
            lower=True,
        ),
        spread_row("eval.fidelity.still_share", [f.share for f in kept], "share of the picture"),
    )  # fmt: skip
    curve = Curve(
        "PSNR of every clip, sorted", "clip", "dB",
        (Series("still pixels", range(len(decibels)), sorted(decibels)),), 36.0,
    )  # fmt: skip
    note = (
        "Measured where no true frame differs from the portrait by 4 grey levels or more, at "
        f"least 1/32 of the height away from pixels that do; {len(scores) - len(found)} clips have "
        "no such place. Equal pictures count as 100 dB."
    )
    details = {"psnr": {name: round(f.psnr, 2) for name, f in found}}
    return Section("fidelity", title, rows, (curve,), (note,), details=details)


def _eyes_section(scores: Sequence[ClipScores]) -> Section:
    eyes = [clip.eyes for clip in scores if clip.eyes is not None]
    minutes = sum(e.seconds for e in eyes) / 60
    rate, truth_rate = (
        sum(b.count for b in blinks) / minutes
        for blinks in ([e.blinks for e in eyes], [e.truth_blinks for e in eyes])
    )
    durations, truth_durations = (
        [float(d) for b in blinks for d in b.durations_s]
        for blinks in ([e.blinks for e in eyes], [e.truth_blinks for e in eyes])
    )
    rows = [
        spread_row(
            "eval.eyes.window_sharpness", [e.window_ratio for e in eyes],
            "last / first quarter", 0.9,
        ),
        spread_row(
            "eval.eyes.window_sharpness_truth", [e.truth_ratio for e in eyes],
            "last / first quarter",
        ),
        Row("eval.eyes.blinks_per_minute", rate, "1/min", None, "higher"),
        Row("eval.eyes.blinks_per_minute_truth", truth_rate, "1/min", None, "higher"),
        Row("eval.eyes.blink_rate_off", times_off(rate, truth_rate), "times", 3.0),
    ]  # fmt: skip
    for name, values in (("", durations), ("_truth", truth_durations)):
        if values:
            rows.append(
                Row(f"eval.eyes.blink_duration{name}", float(np.median(values)), "s", None,
                    "lower", min(values), max(values))
            )  # fmt: skip
    if durations and truth_durations:
        off = times_off(float(np.median(durations)), float(np.median(truth_durations)))
        rows.append(Row("eval.eyes.blink_duration_off", off, "times", 2.0))
    longest = 25
    bins = [min(round(value * 25), longest) for value in durations]
    bars = Bars(
        "Duration of the generated blinks", "frames", "blinks",
        tuple(map(str, range(1, longest + 1))),
        tuple(bins.count(value) for value in range(1, longest + 1)),
    )  # fmt: skip
    note = (
        "The true frames, measured alike, say how far from 1.0 a ratio of quarters comes to lie by "
        "blinks and head motion alone. `off` rows are the greater over the lesser of generated and "
        "true, at most 99."
    )
    return Section("eyes", "Do the eyes stay sharp, and blink?", tuple(rows), (bars,), (note,))
