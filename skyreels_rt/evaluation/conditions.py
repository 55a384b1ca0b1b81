"""Sections on what steers the video: audio guidance, edits, prompts, real voices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from skyreels_rt.evaluation.attributes import dominant_background, hair_colour, portrait_layout
from skyreels_rt.evaluation.clip_scores import (
    SHEET_COLUMNS,
    aligned_sync,
    generated_frames,
    require_size,
)
from skyreels_rt.evaluation.clip_sections import spread_row
from skyreels_rt.evaluation.clips import EvalClip, EvalModel
from skyreels_rt.evaluation.contact_sheet import contact_sheet, spread
from skyreels_rt.evaluation.curves import Curve, Series
from skyreels_rt.evaluation.mouth import mouth_opening
from skyreels_rt.evaluation.page import Figure, Picture, Section
from skyreels_rt.evaluation.sync import energy_sync
from skyreels_rt.report import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

GUIDANCE_SCALES = (1.0, 1.5, 2.0, 3.0)
_STUDENT_12 = 1.8  # one-sided 95 % quantile for the differences of 12 clips
_TEXT_SECONDS = 2.0  # colours show at once: no need to hear the whole clip
_TEXT_LOOKS = 5  # frames whose colours vote
_VOICE_LAG = 4
_ROLLS_S = (1.0, 1.5, 2.0, 2.5, 3.0)
_SHOWN = 6

Step = Callable[[], None]


@dataclass(frozen=True, eq=False)
class Voice:
    """A recording to let a drawn portrait speak.

    Attributes
    ----------
    name : str
        Part of its rows' names.
    audio : ndarray, shape (S,), float32 in [-1, 1]
        Mono.
    sample_rate : int
        Hz.
    """

    name: str
    audio: NDArray[np.float32]
    sample_rate: int


def guidance_section(
    model: EvalModel,
    clips: Sequence[EvalClip],
    *,
    seed: int,
    known: Mapping[str, float],
    on_step: Step,
) -> Section:
    """Correlation of mouth and truth over ``audio_guidance_scale``.

    Parameters
    ----------
    model : EvalModel
        Generates; without guidance by default there is nothing to measure.
    clips : sequence of EvalClip
        Two or more; each is generated at every scale.
    seed : int
        Seed of the first clip.
    known : mapping of str to float
        Correlations at the default scale by the clip's name, where measured already.
    on_step : callable
        Called after every clip.

    Raises
    ------
    SkyReelsError
        From the model or the measures.
    """
    title, default = "Does audio guidance help?", model.audio_guidance_scale
    if default == 1.0:
        return Section(
            "guidance", title, skipped="the model's default audio_guidance_scale is 1.0 (off)"
        )
    scales = sorted({*GUIDANCE_SCALES, default})
    table: dict[float, list[float]] = {scale: [] for scale in scales}
    for index, clip in enumerate(clips):
        for scale in scales:
            if scale == default and clip.name in known:
                table[scale].append(known[clip.name])
                continue
            frames = generated_frames(
                model, clip, audio=clip, seed=seed + index, audio_guidance_scale=scale
            )
            opening = mouth_opening(frames, clip.mouth_box)
            table[scale].append(aligned_sync(opening, clip.opening_px))
        on_step()
    means = {scale: float(np.mean(values)) for scale, values in table.items()}
    rows = [spread_row(f"eval.guidance.sync_at_{s:g}", table[s], "correlation") for s in scales]
    gains = np.subtract(table[default], table[1.0])
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    rows += [
        spread_row("eval.guidance.gain", gains.tolist(), "correlation"),
        Row("eval.guidance.gain_lower95", float(gains.mean() - _STUDENT_12 * error), "correlation",
            0.001, "higher"),
    ]  # fmt: skip
    curve = Curve(
        f"Correlation over audio_guidance_scale; the default is {default:g}",
        "audio_guidance_scale", "correlation",
        (Series("mean", scales, [means[scale] for scale in scales]),),
        marks=(default,),
    )  # fmt: skip
    note = f"{len(clips)} clips; the gain is the default's correlation less that at 1.0 (off)."
    return Section("guidance", title, tuple(rows), (curve,), (note,))


def edit_section(
    model: EvalModel, clips: Sequence[EvalClip], *, seed: int, on_step: Step
) -> Section:
    """Let the mouths of source videos say what the next clip says.

    Parameters
    ----------
    model : EvalModel
        Generates.
    clips : sequence of EvalClip
        Two or more; each clip's frames are the source of one edit.
    seed : int
        Seed of the first edit.
    on_step : callable
        Called after every edit.

    Raises
    ------
    SkyReelsError
        From the model or the measures.
    """
    sync, kept, old = [], [], []
    shown: list[NDArray[np.uint8]] = []
    labels: list[str] = []
    for index, clip in enumerate(clips):
        other = clips[(index + 1) % len(clips)]
        frames = model.generate(
            audio=other.audio,
            sample_rate=other.sample_rate,
            seed=seed + index,
            prompt=clip.caption,
            video=clip.frames,
            edit_mask=clip.edit_mask,
        )
        require_size(frames, clip)
        length = min(len(frames), len(clip.frames), len(other.frames))
        frames, source = frames[:length], clip.frames[:length]
        opening = mouth_opening(frames, clip.mouth_box)
        sync.append(aligned_sync(opening, other.opening_px))
        old.append(aligned_sync(opening, clip.opening_px))
        outside = ~clip.edit_mask[:length]
        equal = (frames == source).all(axis=-1)
        kept.append(float(equal[outside].mean()) if outside.any() else 1.0)
        if len(labels) < 2 * _SHOWN:
            moments = spread(length, SHEET_COLUMNS)
            shown += [source[moments], frames[moments]]
            labels += [f"{clip.name}: source", f"{clip.name}: saying what {other.name} says"]
        on_step()
    rows = (
        spread_row("eval.edit.sync_mean", sync, "correlation", 0.85),
        spread_row("eval.edit.source_sync_mean", old, "correlation", lower=True),
        spread_row("eval.edit.outside_equal", kept, "share of pixels", 1.0),
    )
    note = (
        "The source video shows one clip and the speech is another's, so no mouth can be copied. "
        "`source_sync` is the correlation with what the source's own mouth did."
    )
    sheet = Picture("Source and edit", contact_sheet(shown, labels, SHEET_COLUMNS))
    return Section("edit", "Audio + video: does an edit speak?", rows, (sheet,), (note,))


def text_section(
    model: EvalModel, clips: Sequence[EvalClip], *, seed: int, on_step: Step
) -> Section:
    """Draw people from captions alone and read the named colours back.

    Parameters
    ----------
    model : EvalModel
        Generates.
    clips : sequence of EvalClip
        Their captions are the prompts.
    seed : int
        Seed of the first clip.
    on_step : callable
        Called after every clip.

    Raises
    ------
    SkyReelsError
        From the model or the measures.
    """
    found: list[tuple[str, str]] = []
    seen: list[tuple[str, str]] = []
    shown: list[NDArray[np.uint8]] = []
    labels: list[str] = []
    for index, clip in enumerate(clips):
        frames = model.generate(
            audio=clip.audio[: round(_TEXT_SECONDS * clip.sample_rate)],
            sample_rate=clip.sample_rate,
            seed=seed + index,
            prompt=clip.caption,
        )
        require_size(frames, clip)
        found.append(_colours(frames))
        seen.append(_colours(clip.frames))
        if len(labels) < 2 * _SHOWN:
            shown.append(frames)
            labels.append(clip.caption)
        on_step()
    rows = []
    for part, name in enumerate(("hair", "background")):
        wanted = [getattr(clip, name) for clip in clips]
        judged = [k for k, colour in enumerate(wanted) if colour is not None]
        if not judged:
            continue
        right, truth = (
            float(np.mean([colours[k][part] == wanted[k] for k in judged]))
            for colours in (found, seen)
        )
        rows += [
            Row(f"eval.text.{name}_right", right, "share of clips", 0.8, "higher"),
            Row(f"eval.text.{name}_chance", _chance(found, wanted, judged, part),
                "share of clips", None, "higher"),
            Row(f"eval.text.{name}_estimator", truth, "share of clips", 0.9, "higher"),
        ]  # fmt: skip
    note = (
        "Only the caption and speech are given. A colour is right if most of "
        f"{_TEXT_LOOKS} frames show it; chance is how often it would be right with the captions of "
        "the other clips; the estimator reads the true frames."
    )
    sheet = Picture("Drawn from captions", contact_sheet(shown, labels, SHEET_COLUMNS))
    details = {"measured": {c.name: list(f) for c, f in zip(clips, found, strict=True)}}
    return Section(
        "text", "Audio + text: does the caption show?", tuple(rows), (sheet,), (note,),
        details=details,
    )  # fmt: skip


def _colours(frames: NDArray[np.uint8]) -> tuple[str, str]:
    """Names of the colours of hair and background that most looks agree on."""
    hair: Counter[str] = Counter()
    background: Counter[str] = Counter()
    for index in spread(len(frames), _TEXT_LOOKS):
        face_box, head_box = portrait_layout(frames[index])
        hair[hair_colour(frames[index], face_box)] += 1
        background[dominant_background(frames[index], head_box)] += 1
    return hair.most_common(1)[0][0], background.most_common(1)[0][0]


def _chance(
    found: Sequence[tuple[str, str]], wanted: Sequence[str | None], judged: Sequence[int], part: int
) -> float:
    """Share of right colours over all pairs of a video with another clip's caption."""
    pairs = [found[i][part] == wanted[j] for i in judged for j in judged if i != j]
    return float(np.mean(pairs)) if pairs else 0.0


def voices_section(
    model: EvalModel,
    clips: Sequence[EvalClip],
    voices: Sequence[Voice],
    *,
    seed: int,
    on_step: Step,
) -> Section:
    """Let drawn portraits speak with real voices, whose true mouths nobody knows.

    Parameters
    ----------
    model : EvalModel
        Generates.
    clips : sequence of EvalClip
        Their portraits are used in turn.
    voices : sequence of Voice
        Recordings.
    seed : int
        Seed of the first video.
    on_step : callable
        Called after every video.

    Raises
    ------
    SkyReelsError
        From the model or the measures.
    """
    title = "Real voices"
    if not voices:
        return Section("voices", title, skipped="no recording given (--voice FILE)")
    rows: list[Row] = []
    figures: list[Figure] = []
    for index, voice in enumerate(voices):
        clip = clips[index % len(clips)]
        frames = model.generate(
            audio=voice.audio,
            sample_rate=voice.sample_rate,
            seed=seed + index,
            image=clip.portrait,
            prompt=clip.caption,
        )
        require_size(frames, clip)
        opening = mouth_opening(frames, clip.mouth_box)

        def peak(
            audio: NDArray[np.float32],
            opening: NDArray[np.float32] = opening,
            rate: int = voice.sample_rate,
        ) -> tuple[int, float]:
            return energy_sync(opening, audio, rate, model.fps, max_lag=_VOICE_LAG)

        lag, right = peak(voice.audio)
        rolled = [peak(np.roll(voice.audio, round(s * voice.sample_rate)))[1] for s in _ROLLS_S]
        name = f"eval.voices.{voice.name}"
        rows += [
            Row(f"{name}.energy_sync", right, "correlation", 0.45, "higher"),
            spread_row(f"{name}.rolled", rolled, "correlation", 0.2, lower=True),
            Row(f"{name}.lag", lag, "frames late"),
        ]
        times = (np.arange(len(opening)) / model.fps).tolist()
        figures += [
            Curve(f"{voice.name}: opening", "s", "pixels",
                  (Series("generated", times, opening.tolist()),)),
            Picture(f"{voice.name}: frames",
                    contact_sheet([frames], [voice.name], SHEET_COLUMNS)),
        ]  # fmt: skip
        on_step()
    note = (
        "Correlation of mouth opening with speech energy, a moving mean of one second removed, at "
        f"its peak within {_VOICE_LAG} frames; the control rolls the speech by 1 to 3 s."
    )
    return Section("voices", title, tuple(rows), tuple(figures), (note,))
