"""The whole evaluation: which sections there are, how large they are, and running them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from skyreels_rt.errors import Cancelled, InvalidArgument, SkyReelsError
from skyreels_rt.evaluation.clip_scores import (
    CLIP_SECTIONS,
    ClipScores,
    score_clip,
)
from skyreels_rt.evaluation.clip_sections import clip_sections
from skyreels_rt.evaluation.clips import EvalClip, EvalModel
from skyreels_rt.evaluation.conditions import (
    Voice,
    edit_section,
    guidance_section,
    text_section,
    voices_section,
)
from skyreels_rt.evaluation.long_run import TITLE as LONG_TITLE
from skyreels_rt.evaluation.long_run import long_section
from skyreels_rt.evaluation.page import Section

SECTIONS = (*CLIP_SECTIONS, "long", "guidance", "edit", "text", "voices")

CONTROL_CLIPS = 8
"""Clips on which the mouth's measure is tested with a still and a late video, at most."""

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SuiteSize:
    """How much is generated; the defaults are the full evaluation.

    Attributes
    ----------
    clips : int
        Clips of "sync", "fidelity" and "eyes"; at least 2, for the wrong-audio control.
    guidance_clips, edit_clips, text_clips : int
        Clips of these sections.
    identities : int
        Portraits whose mean distance is the unit of identity drift.
    long_seconds : float
        Least length of the long video.
    long_windows : int
        Least number of its windows.
    """

    clips: int = 48
    guidance_clips: int = 12
    edit_clips: int = 12
    text_clips: int = 48
    identities: int = 24
    long_seconds: float = 60.0
    long_windows: int = 40

    @classmethod
    def quick(cls) -> SuiteSize:
        """A look at every section in a fraction of the time; its figures scatter more."""
        return cls(
            clips=8, guidance_clips=4, edit_clips=4, text_clips=8, identities=8,
            long_seconds=20.0, long_windows=0,
        )  # fmt: skip

    def limited(self, clips: int) -> SuiteSize:
        """The same with ``clips`` clips, and no more than those in any section."""
        return replace(
            self,
            clips=clips,
            guidance_clips=min(self.guidance_clips, clips),
            edit_clips=min(self.edit_clips, clips),
            text_clips=min(self.text_clips, clips),
            identities=min(self.identities, clips),
        )


def check_sections(names: Sequence[str]) -> tuple[str, ...]:
    """The named sections in the order they run; all for none.

    Raises
    ------
    InvalidArgument
        An unknown name.
    """
    for name in names:
        if name not in SECTIONS:
            raise InvalidArgument("only", expected=f"of {', '.join(SECTIONS)}", got=repr(name))
    return tuple(name for name in SECTIONS if not names or name in names)


def evaluate(
    model: EvalModel,
    clips: Sequence[EvalClip],
    *,
    size: SuiteSize | None = None,
    only: Sequence[str] = (),
    voices: Sequence[Voice] = (),
    sync_target: float = 0.93,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> list[Section]:
    """Generate videos of held-out clips and measure them.

    Parameters
    ----------
    model : EvalModel
        What is evaluated.
    clips : sequence of EvalClip
        Truth, never seen in training; items may be drawn on demand, and again.
    size : SuiteSize, optional
        How much is generated; clips that are not there are not missed.
    only : sequence of str
        Names of ``SECTIONS``; all by default.
    voices : sequence of Voice
        Recordings for the section "voices".
    sync_target : float
        Bar of the mean correlation.
    seed : int
        Seed of the first clip's noise; later clips count on.
    on_progress : callable, optional
        Called with (section, videos done, videos planned).

    Returns
    -------
    list of Section
        In the order of ``SECTIONS``. One that cannot run says why.

    Raises
    ------
    InvalidArgument
        An unknown section, or fewer than two clips.
    Cancelled
        The model's run was cancelled.
    """
    names = check_sections(only)
    size = (size or SuiteSize()).limited(min((size or SuiteSize()).clips, len(clips)))
    if size.clips < 2:
        raise InvalidArgument("clips", expected="at least 2", got=size.clips)
    run = _Run(model, clips, size, sync_target, seed, on_progress or (lambda *_: None))
    sections: list[Section] = []
    parts = [name for name in names if name in CLIP_SECTIONS]
    if parts:
        sections += run.clip_parts(parts)
    for name in names:
        if name not in CLIP_SECTIONS:
            sections.append(run.section(name, voices))
    return sections


_TITLES = {
    "sync": "Does the mouth follow the voice?",
    "fidelity": "Does the background stay?",
    "eyes": "Do the eyes stay sharp, and blink?",
    "long": LONG_TITLE,
    "guidance": "Does audio guidance help?",
    "edit": "Audio + video",
    "text": "Audio + text",
    "voices": "Real voices",
}


@dataclass
class _Run:
    """One evaluation under way; what the clips' sections found serves later ones."""

    model: EvalModel
    clips: Sequence[EvalClip]
    size: SuiteSize
    sync_target: float
    seed: int
    on_progress: OnProgress

    def __post_init__(self) -> None:
        self._known: dict[str, float] = {}

    def clip_parts(self, parts: Sequence[str]) -> list[Section]:
        """Sections that look at the same generated clips."""
        try:
            return self._measured_clips(parts)
        except Cancelled:
            raise
        except SkyReelsError as error:
            return [Section(name, _TITLES[name], skipped=str(error)) for name in parts]

    def _measured_clips(self, parts: Sequence[str]) -> list[Section]:
        scores: list[ClipScores] = []
        count = self.size.clips
        step = self._stepper("clips", count)
        for index in range(count):
            clip, other = self.clips[index], self.clips[(index + 1) % count]
            scores.append(
                score_clip(
                    self.model,
                    clip,
                    other,
                    seed=self.seed + index,
                    parts=parts,
                    has_controls=index < CONTROL_CLIPS,
                )
            )
            step()
        self._known = {s.name: s.sync.right for s in scores if s.sync is not None}
        return list(clip_sections(scores, parts, sync_target=self.sync_target))

    def section(self, name: str, voices: Sequence[Voice]) -> Section:
        """One of the other sections; an error of the model becomes its reason."""
        try:
            return self._measured(name, voices)
        except Cancelled:
            raise
        except SkyReelsError as error:
            return Section(name, _TITLES[name], skipped=str(error))

    def _measured(self, name: str, voices: Sequence[Voice]) -> Section:
        model, clips, size, seed = self.model, self.clips, self.size, self.seed
        if name == "long":
            step = self._stepper(name, 1)
            section = long_section(
                model,
                clips,
                seconds=size.long_seconds,
                windows=size.long_windows,
                num_identities=size.identities,
                seed=seed,
            )
            step()
            return section
        if name == "guidance":
            return guidance_section(
                model,
                clips[: size.guidance_clips],
                seed=seed,
                known=self._known,
                on_step=self._stepper(name, size.guidance_clips),
            )
        if name == "edit":
            chosen, step = clips[: size.edit_clips], self._stepper(name, size.edit_clips)
            return edit_section(model, chosen, seed=seed, on_step=step)
        if name == "text":
            chosen, step = clips[: size.text_clips], self._stepper(name, size.text_clips)
            return text_section(model, chosen, seed=seed, on_step=step)
        step = self._stepper(name, len(voices))
        return voices_section(model, clips, voices, seed=seed, on_step=step)

    def _stepper(self, name: str, total: int) -> Callable[[], None]:
        """Reports one more video done at every call."""
        done = 0
        self.on_progress(name, 0, total)

        def step() -> None:
            nonlocal done
            done += 1
            self.on_progress(name, done, total)

        return step
