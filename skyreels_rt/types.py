"""The nouns that cross module borders, and the one place where frames and latents convert.

Legend used all over the package: B batch, F frames (pixels or latents), H W space, C channels,
L tokens, S context tokens, D width, N heads, K head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True)
class Timeline:
    """Conversion between pixel frames and latent frames.

    A causal VAE turns one frame into the first latent and ``temporal_stride`` frames into each
    later one. With ``primed`` the decoder has already seen the portrait's latent (whose frame is
    dropped), so every latent of the timeline stands for ``temporal_stride`` frames.

    Parameters
    ----------
    temporal_stride : int
        Frames per latent after the first, 4 for the Wan family.
    primed : bool
        True for the ``"leading_slot"`` reference mode.
    """

    temporal_stride: int = 4
    primed: bool = False

    def num_latents(self, num_frames: int) -> int:
        """Latent frames that cover ``num_frames`` frames (0 for 0)."""
        if num_frames <= 0:
            return 0
        if self.primed:
            return -(-num_frames // self.temporal_stride)
        return 1 + -(-(num_frames - 1) // self.temporal_stride)

    def num_frames(self, num_latents: int) -> int:
        """Frames that ``num_latents`` latents decode to (0 for 0)."""
        return self.first_frame(num_latents)

    def first_frame(self, latent_index: int) -> int:
        """Index of the first frame of latent ``latent_index``."""
        if latent_index <= 0:
            return 0
        offset = 0 if self.primed else self.temporal_stride - 1
        return latent_index * self.temporal_stride - offset


@dataclass(frozen=True)
class PartState:
    """What one part of a session remembers, in a form that a file can hold.

    Attributes
    ----------
    facts : dict
        Numbers, strings and lists of them: JSON.
    tensors : dict of str to Tensor
        Arrays, copied.
    """

    facts: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, name: str) -> PartState:
        """Return the state that :meth:`joined` was given under ``name``."""
        inside = f"{name}."
        tensors = {
            key.removeprefix(inside): tensor
            for key, tensor in self.tensors.items()
            if key.startswith(inside)
        }
        return PartState(self.facts[name], tensors)

    def joined(self, **parts: PartState | None) -> PartState:
        """Add the states of other parts, each under its name; a part without state is None."""
        facts, tensors = dict(self.facts), dict(self.tensors)
        for name, state in parts.items():
            facts[name] = None if state is None else state.facts
            if state is not None:
                tensors.update({f"{name}.{key}": value for key, value in state.tensors.items()})
        return PartState(facts, tensors)


@dataclass(frozen=True)
class FrameChunk:
    """A run of finished frames with the sound that belongs to them.

    Attributes
    ----------
    frames : ndarray, shape (F, H, W, 3), uint8
        RGB frames.
    audio : ndarray, shape (samples, channels), float32 in [-1, 1]
        Sound of exactly these frames at ``sample_rate``; shorter at the very end of the speech.
    sample_rate : int
        Sample rate of ``audio`` in Hz.
    pts : Fraction
        Presentation time of the first frame in seconds, exact.
    index : int
        Global index of the first frame.
    """

    frames: NDArray[np.uint8]
    audio: NDArray[np.float32]
    sample_rate: int
    pts: Fraction
    index: int


@dataclass(frozen=True)
class Progress:
    """State of a running job, given to ``on_progress``.

    Attributes
    ----------
    stage : str
        ``"denoise"`` or ``"decode"``.
    done : int
        Finished units of the current stage: steps of the group at hand, or frames of the job.
    total : int or None
        Planned units of that stage; None while the length of the job is not known.
    frames : int
        Frames delivered so far.
    """

    stage: str
    done: int
    total: int | None
    frames: int


@dataclass(frozen=True)
class LoadProgress:
    """State of a model that is being loaded.

    Attributes
    ----------
    component : str
        Part at hand, such as ``"transformer"``.
    done, total : int
        Bytes of the files of all parts, read so far and in all.
    """

    component: str
    done: int
    total: int


LoadCallback = Callable[[LoadProgress], None]
ProgressCallback = Callable[[Progress], None]
