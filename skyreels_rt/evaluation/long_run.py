"""The section "long": a minute of speech on one portrait, over many windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from skyreels_rt.evaluation.clip_scores import eye_energy, require_size, sharpness
from skyreels_rt.evaluation.clips import EvalClip, EvalModel, still_mask
from skyreels_rt.evaluation.contact_sheet import contact_sheet
from skyreels_rt.evaluation.curves import Curve, Series
from skyreels_rt.evaluation.fidelity import psnr
from skyreels_rt.evaluation.identity import drift, identity_descriptor, identity_distances
from skyreels_rt.evaluation.page import Figure, Picture, Section
from skyreels_rt.evaluation.seam import seam_score
from skyreels_rt.report import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

TITLE = "Does a long video stay the same?"
_MOST_SECONDS = 180.0
_EDGE_S = 5.0  # start and end of the video that are compared
_LOOKS_PER_S = 2  # frames a second looked at for slow changes
_CUT_CLIPS = 6  # drawn clips with planted cuts


def long_seconds(model: EvalModel, *, seconds: float, windows: int) -> float:
    """Seconds of video that last at least ``seconds`` and take at least ``windows`` windows.

    Not more than 180, whatever the windows.
    """
    while len(model.windows(round(seconds * model.fps))) < windows and seconds < _MOST_SECONDS:
        seconds += 1.0
    return seconds


def joined_speech(clips: Sequence[EvalClip], num_samples: int) -> tuple[NDArray[np.float32], int]:
    """Speech of one clip after another, over again if they do not suffice, and how many it took.

    Returns
    -------
    audio : ndarray, shape (num_samples,), float32
    used : int
        Clips joined.
    """
    parts: list[NDArray[np.float32]] = []
    total = 0
    while total < num_samples:
        parts.append(clips[len(parts) % len(clips)].audio)
        total += len(parts[-1])
    return np.concatenate(parts)[:num_samples], len(parts)


def mean_distance(clips: Sequence[EvalClip]) -> float:
    """Mean distance between the identities of different portraits; nan for fewer than two."""
    seen = np.stack([identity_descriptor(clip.portrait, clip.face_box) for clip in clips])
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
    pairs = apart[np.triu_indices(len(seen), 1)]
    return float(pairs.mean()) if len(pairs) else float("nan")


def window_borders(
    windows: Sequence[tuple[int, int]], num_frames: int
) -> tuple[list[int], list[int]]:
    """Frames inside the video at which a window starts, and at which one has just ended."""
    kinds = ({start for start, _ in windows}, {stop for _, stop in windows})
    starts, stops = (sorted(b for b in kind if 0 < b < num_frames) for kind in kinds)
    return starts, stops


def planted_cuts(
    frames: NDArray[np.uint8], borders: Sequence[int]
) -> tuple[NDArray[np.uint8], list[int]]:
    """Cut the video at its borders and join the pieces in another order.

    Returns
    -------
    frames : ndarray, shape (F, H, W, 3), uint8
        Every second piece, then the others: hardly any two that were neighbours still are.
    borders : list of int
        Where the pieces meet.
    """
    pieces = np.split(np.arange(len(frames)), list(borders))
    order = pieces[1::2] + pieces[::2]
    joints = np.cumsum([len(piece) for piece in order])[:-1]
    return frames[np.concatenate(order)], [int(joint) for joint in joints]


def long_section(
    model: EvalModel,
    clips: Sequence[EvalClip],
    *,
    seconds: float,
    windows: int,
    num_identities: int,
    seed: int,
) -> Section:
    """Generate one long video of the first clip's portrait and measure what changes over it.

    Parameters
    ----------
    model : EvalModel
        Generates.
    clips : sequence of EvalClip
        Their speech is joined; the first gives the portrait, all give identities.
    seconds : float
        Least length.
    windows : int
        Least number of windows; the video is made longer, up to 180 s, to have them.
    num_identities : int
        Portraits whose mean distance is the unit of drift.
    seed : int
        Seed of the noise.

    Raises
    ------
    SkyReelsError
        From the model or the measures.
    """
    first = clips[0]
    seconds = long_seconds(model, seconds=seconds, windows=windows)
    audio, used = joined_speech(clips, round(seconds * first.sample_rate))
    frames = model.generate(
        audio=audio,
        sample_rate=first.sample_rate,
        seed=seed,
        image=first.portrait,
        prompt=first.caption,
    )
    require_size(frames, first)
    planned = model.windows(len(frames))
    borders = window_borders(planned, len(frames))
    rows = [
        Row("eval.long.seconds", len(frames) / model.fps, "s", None, "higher"),
        Row("eval.long.windows", len(planned), "windows", float(windows), "higher"),
    ]
    figures: list[Figure] = []
    for part in (
        _identity(model, clips, frames, num_identities),
        _eyes(model, first, frames),
        _seams(model, clips, frames, borders),
        _background(model, first, frames),
    ):
        rows += part[0]
        figures += part[1]
    label = f"{first.name}, {len(frames) / model.fps:.0f} s"
    figures.append(Picture("Frames spread over the video", contact_sheet([frames], [label], 10)))
    note = (
        f"Speech of {used} clips in a row. The planted control cuts drawn clips, whose heads move, "
        "at windows' starts and joins the pieces in another order; `itself` does so with the "
        "generated video, where a still head leaves less to see. The seam score is the worse of "
        "that at the windows' starts and that at their ends."
    )
    return Section(
        "long",
        TITLE,
        tuple(rows),
        tuple(figures),
        (note,),
        details={"starts": borders[0], "ends": borders[1]},
    )


Part = tuple[list[Row], list[Figure]]


def _looks(model: EvalModel, num_frames: int) -> NDArray[np.int64]:
    """Indices of frames looked at for slow changes."""
    return np.arange(0, num_frames, max(1, model.fps // _LOOKS_PER_S))


def _identity(
    model: EvalModel, clips: Sequence[EvalClip], frames: NDArray[np.uint8], num_identities: int
) -> Part:
    first, looks = clips[0], _looks(model, len(frames))
    between = mean_distance(clips[:num_identities])
    distances = identity_distances(frames[looks], first.portrait, first.face_box)
    times = looks / model.fps
    found = drift(distances, times, between)
    rows = [
        Row("eval.long.identity_drift", found.relative_60s, "of an identity / 60 s",
            0.02),
        Row("eval.long.identity_distance", float(np.mean(distances)) / between, "of an identity",
            None, "lower", float(np.min(distances)) / between, float(np.max(distances)) / between),
    ]  # fmt: skip
    relative = Series("distance", times.tolist(), (distances / between).tolist())
    curve = Curve(
        "Distance to the portrait's identity; 1 is another person", "s", "of an identity",
        (relative,),
    )  # fmt: skip
    return rows, [curve]


def _eyes(model: EvalModel, clip: EvalClip, frames: NDArray[np.uint8]) -> Part:
    energy = eye_energy(frames, clip)
    edge = max(1, min(round(_EDGE_S * model.fps), len(frames) // 2))
    ratio = sharpness(energy[-edge:], energy[:edge])
    row = Row("eval.long.eye_sharpness", ratio, "end / start", 0.9, "higher")
    times = (np.arange(len(energy)) / model.fps).tolist()
    curve = Curve(
        "Gradient energy around the eyes", "s", "energy",
        (Series("energy", times, energy.tolist()),),
    )  # fmt: skip
    return [row], [curve]


def _seams(
    model: EvalModel,
    clips: Sequence[EvalClip],
    frames: NDArray[np.uint8],
    kinds: tuple[list[int], list[int]],
) -> Part:
    """Seams at starts and at ends of windows; where they overlap, both could show."""
    found = [seam_score(frames, borders) for borders in kinds if borders]
    if not found:
        return [], []
    rows = [Row("eval.long.seam", max(found), "score", 1.1, "lower", min(found), max(found))]
    planted = [
        seam_score(*planted_cuts(clip.frames, starts))
        for clip in clips[:_CUT_CLIPS]
        if (starts := window_borders(model.windows(len(clip.frames)), len(clip.frames))[0])
    ]
    if planted:
        rows.append(
            Row("eval.long.seam_planted", float(np.median(planted)), "score", 1.5, "higher",
                min(planted), max(planted))
        )  # fmt: skip
    itself = seam_score(*planted_cuts(frames, kinds[0]))
    rows.append(Row("eval.long.seam_planted_itself", itself, "score", None, "higher"))
    return rows, []


def _background(model: EvalModel, clip: EvalClip, frames: NDArray[np.uint8]) -> Part:
    still, looks = still_mask(clip.frames, clip.portrait), _looks(model, len(frames))
    if not still.any():
        return [], []
    portrait = clip.portrait[None]
    decibels = [psnr(frames[k : k + 1], portrait, still) for k in looks]
    edge = max(1, min(round(_EDGE_S * _LOOKS_PER_S), len(looks) // 2))
    row = Row(
        "eval.long.background_psnr", float(np.mean(decibels)), "dB", None, "higher",
        min(decibels), max(decibels),
    )  # fmt: skip
    lost = Row(
        "eval.long.background_loss",
        float(np.mean(decibels[:edge]) - np.mean(decibels[-edge:])),
        "dB from start to end",
    )
    curve = Curve(
        "PSNR of the background over time", "s", "dB",
        (Series("still pixels of the first clip", (looks / model.fps).tolist(), decibels),),
    )  # fmt: skip
    return [row, lost], [curve]
