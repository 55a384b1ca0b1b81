"""The hybrid curriculum as data: which tasks, how long windows, how hard sound, in which order.

After the paper's training recipe (SkyReels-Audio, arXiv 2506.00830): image-to-video,
text-to-video, video editing and continuation are mixed, from short to long and from easy to hard.
The shares are ours, and so are the crops: a mouth fills a fifteenth of a picture, so lessons of
crops show more mouths for the same work. So is the interlude: whole pictures from captions, two
latents long, because colours need no time.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from skyreels_rt.errors import InvalidArgument


@dataclass(frozen=True)
class Mix:
    """Shares of the tasks in a batch; they need not add up to 1.

    Attributes
    ----------
    image_to_video : float
        Portrait and speech.
    text_to_video : float
        Caption and speech.
    edit : float
        A video whose mouth or face is blank, a portrait, speech.
    continuation : float
        Portrait, speech, and the first latents as they were shown.
    """

    image_to_video: float = 0.45
    text_to_video: float = 0.15
    edit: float = 0.15
    continuation: float = 0.25


@dataclass(frozen=True)
class Lesson:
    """A stretch of the training.

    Attributes
    ----------
    name : str
        For logs.
    until : float
        Share of all steps at which it ends.
    window : int
        Latent frames of a sample.
    batch_size : int
        Samples of a step.
    max_difficulty : float
        Hardest sound, 0 (clean) to 1.
    mix : Mix
        Tasks.
    crop : int, optional
        Side of the square of patches that is cut out of a sample, in latent cells; the whole
        picture without it.
    """

    name: str
    until: float
    window: int
    batch_size: int
    max_difficulty: float = 1.0
    mix: Mix = Mix()
    crop: int | None = None


@dataclass(frozen=True)
class Dropout:
    """Chances that a condition is left out, so that guidance has a model without it.

    Attributes
    ----------
    audio, text, image : float
        Of each alone. Text is never dropped from text-to-video while a portrait is missing, except
        together with everything (``everything``).
    everything : float
        Of all three at once.
    """

    audio: float = 0.1
    text: float = 0.4
    image: float = 0.03
    everything: float = 0.02


@dataclass(frozen=True)
class Curriculum:
    """Lessons in order; the last one ends at 1.

    Attributes
    ----------
    lessons : tuple of Lesson
        At least one, with growing ``until``.
    interlude : Lesson, optional
        Takes every ``interlude_every``-th step, from the beginning to the end.
    interlude_every : int
        At least 2.
    dropout : Dropout
        Of conditions.
    """

    lessons: tuple[Lesson, ...]
    interlude: Lesson | None = None
    interlude_every: int = 5
    dropout: Dropout = Dropout()

    def __post_init__(self) -> None:
        ends = [lesson.until for lesson in self.lessons]
        if not ends or ends[-1] != 1.0 or any(a >= b for a, b in itertools.pairwise(ends)):
            raise InvalidArgument("lessons", expected="growing ends, the last 1.0", got=ends)

    def lesson(self, step: int, num_steps: int) -> Lesson:
        """Lesson of step ``step`` of ``num_steps``."""
        if self.interlude is not None and step % self.interlude_every == self.interlude_every - 1:
            return self.interlude
        return next(lesson for lesson in self.lessons if step < lesson.until * num_steps)

    def without_order(self) -> Curriculum:
        """The last lesson alone: what an ablation of the curriculum trains."""
        return replace(self, lessons=(self.lessons[-1],))


PORTRAIT_CURRICULUM = Curriculum(
    lessons=(
        Lesson("mouths, clean", 0.12, window=5, batch_size=8, max_difficulty=0.35,
               mix=Mix(0.8, 0.0, 0.1, 0.1), crop=16),
        Lesson("mouths and eyes", 0.58, window=7, batch_size=6, max_difficulty=0.7,
               mix=Mix(0.65, 0.0, 0.15, 0.2), crop=20),
        Lesson("faces", 0.87, window=9, batch_size=3, mix=Mix(0.5, 0.1, 0.15, 0.25), crop=24),
        Lesson("pictures", 1.0, window=9, batch_size=2),
    ),
    interlude=Lesson("looks", 1.0, window=2, batch_size=6, mix=Mix(0.0, 1.0, 0.0, 0.0)),
)  # fmt: skip
"""Curriculum of the embedded model."""
