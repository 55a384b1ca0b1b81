"""Shape of a mouth over a clip: what speech asks for and what the renderer draws."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class MouthShape:
    """Shape of the mouth over a clip; every array has shape (F,), floating, in [0, 1].

    Attributes
    ----------
    opening : ndarray
        Height between the lips: 0 is closed, 1 a wide open mouth.
    width : ndarray
        0 is narrow, 0.45 at rest, 1 spread.
    rounding : ndarray
        0 is flat, 1 a protruded round mouth as in "oo".
    teeth : ndarray
        How much of the teeth shows in an open mouth.
    tongue : ndarray
        How high the tongue lies in an open mouth.
    """

    opening: NDArray[np.floating]
    width: NDArray[np.floating]
    rounding: NDArray[np.floating]
    teeth: NDArray[np.floating]
    tongue: NDArray[np.floating]

    @property
    def num_frames(self) -> int:
        """Number of frames F."""
        return len(self.opening)

    def cut(self, start: int, stop: int) -> MouthShape:
        """Keep frames ``start .. stop - 1``."""
        return MouthShape(*(getattr(self, field.name)[start:stop] for field in fields(self)))

    @classmethod
    def closed(cls, num_frames: int) -> MouthShape:
        """Make a mouth at rest.

        Parameters
        ----------
        num_frames : int, >= 1
            Length of the clip.

        Returns
        -------
        MouthShape
            Closed, of medium width.
        """
        zero = np.zeros(num_frames, np.float32)
        return cls(zero, zero + np.float32(0.45), zero, zero, zero)
