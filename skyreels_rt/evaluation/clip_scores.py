"""What is measured on every generated clip: its mouth, its still background, its eyes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from skyreels_rt.errors import ModelError
from skyreels_rt.evaluation.clips import EvalClip, EvalModel, still_mask
from skyreels_rt.evaluation.contact_sheet import spread
from skyreels_rt.evaluation.fidelity import (
    Blinks,
    count_blinks,
    eye_openness,
    flicker,
    gradient_energy,
    psnr,
    sharpness_ratio,
    ssim,
)
from skyreels_rt.evaluation.mouth import mouth_opening
from skyreels_rt.evaluation.sync import best_lag, sync_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLIP_SECTIONS = ("sync", "fidelity", "eyes")
MAX_LAG = 10
PLANTED_DELAY = 5
SHEET_COLUMNS = 8
_LEAST_STILL = 0.02  # share of the picture below which a clip has no background to speak of
_EDGE = 5  # pixels at the border that SSIM's window does not fit around
_SSIM_STEP = 5  # frames; SSIM costs more than all else and hardly changes from frame to frame
_LEAST_WINDOW = 8  # frames: a quarter of a shorter window is a single frame


@dataclass(frozen=True, eq=False)
class SyncScores:
    """How the mouths of one clip follow its speech.

    Attributes
    ----------
    opening : ndarray, shape (F,), float32
        Of the generated mouth, pixels.
    truth : ndarray, shape (F,), float32
        True one.
    right : float
        Best correlation of the two within one frame of lag.
    lag : int
        Frames by which the generated mouth comes late, at the peak within ``MAX_LAG``.
    wrong : float
        Correlation with this clip's truth when another clip's speech drives the portrait.
    estimator : float
        Correlation of the opening measured on the true frames with the true opening.
    floor : float
        Correlation of the other clip's truth with this one's: what a perfect mouth would score as
        ``wrong``.
    static : float or None
        Correlation for a video that repeats the portrait; None where not asked for.
    delay : int or None
        Lag found when the true frames come ``PLANTED_DELAY`` frames late; None where not asked for.
    """

    opening: NDArray[np.float32]
    truth: NDArray[np.float32]
    right: float
    lag: int
    wrong: float
    estimator: float
    floor: float
    static: float | None
    delay: int | None


@dataclass(frozen=True)
class FidelityScores:
    """How well one clip keeps its still background.

    Attributes
    ----------
    psnr, ssim : float
        On pixels that no true frame changes; dB and [-1, 1].
    flicker, truth_flicker : float
        There, in the generated and in the true frames.
    share : float
        Of the picture that is still.
    """

    psnr: float
    ssim: float
    flicker: float
    truth_flicker: float
    share: float


@dataclass(frozen=True)
class EyeScores:
    """How the eyes of one clip keep sharp, and blink.

    Attributes
    ----------
    window_ratio, truth_ratio : float
        Gradient energy in the last quarter of the windows over that in the first, for the
        generated and for the true frames.
    blinks, truth_blinks : Blinks
        Counted by the same measure.
    seconds : float
        Length of the clip.
    """

    window_ratio: float
    truth_ratio: float
    blinks: Blinks
    truth_blinks: Blinks
    seconds: float


@dataclass(frozen=True, eq=False)
class ClipScores:
    """Everything measured on one clip; parts that were not asked for are None.

    Attributes
    ----------
    name : str
        The clip's.
    shown, truth_shown : ndarray, shape (K, H, W, 3), uint8
        A few frames for the contact sheet, generated and true.
    sync, fidelity, eyes
        The parts.
    """

    name: str
    shown: NDArray[np.uint8]
    truth_shown: NDArray[np.uint8]
    sync: SyncScores | None
    fidelity: FidelityScores | None
    eyes: EyeScores | None


def generated_frames(
    model: EvalModel,
    clip: EvalClip,
    *,
    audio: EvalClip,
    seed: int,
    audio_guidance_scale: float | None = None,
) -> NDArray[np.uint8]:
    """Let the clip's portrait say what another clip (or the same) says.

    Without an ``audio_guidance_scale`` the model's default holds.

    Returns
    -------
    ndarray, shape (F, H, W, 3), uint8

    Raises
    ------
    ModelError
        The frames do not have the portrait's size.
    SkyReelsError
        From the model.
    """
    scale: dict[str, Any] = {}
    if audio_guidance_scale is not None:
        scale["audio_guidance_scale"] = audio_guidance_scale
    frames = model.generate(
        audio=audio.audio,
        sample_rate=audio.sample_rate,
        seed=seed,
        image=clip.portrait,
        prompt=clip.caption,
        **scale,
    )
    require_size(frames, clip)
    return frames


def require_size(frames: NDArray[np.uint8], clip: EvalClip) -> None:
    """Refuse frames that cannot be compared with a clip's.

    Raises
    ------
    ModelError
        There are none, or they have another height or width.
    """
    if frames.shape[1:] != clip.frames.shape[1:] or not len(frames):
        raise ModelError(
            f"{clip.name}: the model made frames of shape {frames.shape}, expected "
            f"(F, {', '.join(map(str, clip.frames.shape[1:]))}), F >= 1.",
            stage="eval",
        )


def aligned_sync(
    opening: NDArray[np.float32], truth: NDArray[np.float32], *, tolerance: int = 1
) -> float:
    """Correlation of two openings over the frames both have; 0 where there is none."""
    length = min(len(opening), len(truth))
    return sync_at(opening[:length], truth[:length], tolerance=tolerance)


def score_clip(
    model: EvalModel,
    clip: EvalClip,
    other: EvalClip,
    *,
    seed: int,
    parts: Sequence[str],
    has_controls: bool,
) -> ClipScores:
    """Generate one clip, and once more with another's speech, and measure.

    Parameters
    ----------
    model : EvalModel
        Generates.
    clip, other : EvalClip
        The clip, and whose speech the wrong-audio control takes.
    seed : int
        Seed of the noise.
    parts : sequence of str
        Of ``CLIP_SECTIONS``, what to measure.
    has_controls : bool
        Whether the mouth's measure is put to the test, too.

    Raises
    ------
    SkyReelsError
        From the model or the measures.
    """
    frames = generated_frames(model, clip, audio=clip, seed=seed)
    length = min(len(frames), len(clip.frames))
    frames, truth = frames[:length], clip.frames[:length]
    sync = None
    if "sync" in parts:
        wrong = generated_frames(model, clip, audio=other, seed=seed)
        sync = score_sync(frames, wrong, clip, other, has_controls=has_controls)
    shown = spread(length, SHEET_COLUMNS)
    return ClipScores(
        name=clip.name,
        shown=frames[shown],
        truth_shown=truth[shown],
        sync=sync,
        fidelity=score_fidelity(frames, clip) if "fidelity" in parts else None,
        eyes=score_eyes(frames, clip, model) if "eyes" in parts else None,
    )


def score_sync(
    frames: NDArray[np.uint8],
    wrong: NDArray[np.uint8],
    clip: EvalClip,
    other: EvalClip,
    *,
    has_controls: bool,
) -> SyncScores:
    """Measure :class:`SyncScores` of ``frames``; ``wrong`` were driven by the other's speech.

    Raises
    ------
    InvalidArgument
        From the measures.
    """
    length = min(len(frames), len(clip.frames))
    truth = clip.opening_px[:length]
    opening = mouth_opening(frames[:length], clip.mouth_box)
    static = delay = None
    if has_controls:
        still = np.repeat(clip.portrait[None], length, axis=0)
        static = aligned_sync(mouth_opening(still, clip.mouth_box), truth)
        late = np.maximum(np.arange(len(clip.frames)) - PLANTED_DELAY, 0)
        delay = _lag(mouth_opening(clip.frames[late], clip.mouth_box), clip.opening_px)
    return SyncScores(
        opening=opening,
        truth=truth,
        right=aligned_sync(opening, truth),
        lag=_lag(opening, truth),
        wrong=aligned_sync(mouth_opening(wrong, clip.mouth_box), truth),
        estimator=aligned_sync(mouth_opening(clip.frames, clip.mouth_box), clip.opening_px),
        floor=aligned_sync(other.opening_px, truth),
        static=static,
        delay=delay,
    )


def _lag(opening: NDArray[np.float32], truth: NDArray[np.float32]) -> int:
    """Frames by which ``opening`` comes late."""
    lag, _ = best_lag(opening, truth, min(MAX_LAG, max(len(truth) - 2, 0)))
    return int(lag)


def score_fidelity(frames: NDArray[np.uint8], clip: EvalClip) -> FidelityScores | None:
    """Measure :class:`FidelityScores`; None for a clip without a still background."""
    truth = clip.frames[: len(frames)]
    frames = frames[: len(truth)]
    still = still_mask(clip.frames, clip.portrait)
    if still[_EDGE:-_EDGE, _EDGE:-_EDGE].mean() < _LEAST_STILL:
        return None
    return FidelityScores(
        psnr=psnr(frames, truth, still),
        ssim=ssim(frames[::_SSIM_STEP], truth[::_SSIM_STEP], still),
        flicker=flicker(frames, still),
        truth_flicker=flicker(truth, still),
        share=float(still.mean()),
    )


def score_eyes(frames: NDArray[np.uint8], clip: EvalClip, model: EvalModel) -> EyeScores:
    """Measure :class:`EyeScores`."""
    truth = clip.frames[: len(frames)]
    frames = frames[: len(truth)]
    windows = model.windows(len(frames))
    return EyeScores(
        window_ratio=window_sharpness(frames, clip, windows),
        truth_ratio=window_sharpness(truth, clip, windows),
        blinks=count_blinks(eye_openness(frames, clip.eye_boxes), model.fps),
        truth_blinks=count_blinks(eye_openness(truth, clip.eye_boxes), model.fps),
        seconds=len(frames) / model.fps,
    )


def eye_energy(frames: NDArray[np.uint8], clip: EvalClip) -> NDArray[np.float64]:
    """Gradient energy around both eyes, with room for a moving head; shape (F,)."""
    height = len(clip.portrait)
    boxes = np.array(clip.eye_boxes)
    left, top = np.maximum(boxes[:, :2].min(axis=0) - height // 32, 0)
    right, bottom = boxes[:, 2:].max(axis=0) + height // 32
    # Gradients are taken of the part alone: the rest of the picture would cost ten times as much.
    part = frames[:, top:bottom, left:right]
    return gradient_energy(part, (0, 0, part.shape[2], part.shape[1]))


def window_sharpness(
    frames: NDArray[np.uint8], clip: EvalClip, windows: Sequence[tuple[int, int]]
) -> float:
    """Eye sharpness in the last quarter of the windows over that in the first; 1.0 is even."""
    energy = eye_energy(frames, clip)
    early, late = [], []
    for start, end in windows:
        stop = min(end, len(frames))
        quarter = (stop - start) // 4
        if stop - start >= _LEAST_WINDOW:
            early.append(energy[start : start + quarter])
            late.append(energy[stop - quarter : stop])
    if not early:
        return 1.0
    return sharpness(np.concatenate(late), np.concatenate(early))


def sharpness(late: NDArray[np.float64], early: NDArray[np.float64]) -> float:
    """Ratio of gradient energies; 0 where there was nothing to keep."""
    return sharpness_ratio(late, early) if np.median(early) > 0 else 0.0
