"""The speech as it came, held until the frames it belongs to are delivered."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from skyreels_rt.errors import InvalidArgument, NonFinite
from skyreels_rt.types import PartState


class SpeechTail:
    """Samples of a stream by video frame; drops what was taken.

    Parameters
    ----------
    fps : int
        Frames per second of the video.
    """

    def __init__(self, fps: int) -> None:
        self._fps = fps
        self.sample_rate: int | None = None
        """Samples per second; None before the first push."""
        self.num_samples = 0
        """Samples pushed so far."""
        self._blocks: list[NDArray[np.float32]] = []
        self._first_sample = 0

    def push(self, block: NDArray[np.float32], sample_rate: int) -> None:
        """Add samples (S, channels) that passed :meth:`require_fit`."""
        self.sample_rate = sample_rate
        self._blocks.append(block.copy())
        self.num_samples += len(block)

    def require_fit(self, block: NDArray[np.float32], sample_rate: int) -> None:
        """Raise unless the samples can follow the ones held.

        Raises
        ------
        InvalidArgument
            The rate is no positive integer, or rate or channels changed.
        """
        is_integer = isinstance(sample_rate, int | np.integer) and not isinstance(sample_rate, bool)
        if not is_integer or sample_rate <= 0:
            raise InvalidArgument("sample_rate", expected="a positive integer", got=sample_rate)
        if self.sample_rate not in (None, sample_rate):
            raise InvalidArgument("sample_rate", expected=str(self.sample_rate), got=sample_rate)
        if self._blocks and block.shape[1] != self._blocks[0].shape[1]:
            raise InvalidArgument(
                "pcm", expected=f"{self._blocks[0].shape[1]} channels", got=block.shape[1]
            )

    @property
    def channels(self) -> int | None:
        """Channels of the samples; None before the first push."""
        return self._blocks[0].shape[1] if self._blocks else None

    @property
    def num_frames(self) -> int:
        """Frames that cover the speech; the last may be covered in part."""
        return -(-self.num_samples * self._fps // self.sample_rate) if self.sample_rate else 0

    @property
    def num_whole_frames(self) -> int:
        """Frames whose sound has arrived in full."""
        return self.num_samples * self._fps // self.sample_rate if self.sample_rate else 0

    def rewind(self) -> None:
        """Forget everything that was not taken, as if it had never come."""
        self._blocks = [self._blocks[0][:0]] if self._blocks else []
        self.num_samples = self._first_sample

    def state(self) -> PartState:
        """Everything :meth:`restore` needs."""
        facts = {
            "sample_rate": self.sample_rate,
            "num_samples": self.num_samples,
            "first_sample": self._first_sample,
        }
        held = {"held": torch.from_numpy(np.concatenate(self._blocks))} if self._blocks else {}
        return PartState(facts, held)

    def restore(self, state: PartState) -> None:
        """Go on where :meth:`state` was taken."""
        self.sample_rate, self.num_samples = state.facts["sample_rate"], state.facts["num_samples"]
        self._first_sample = state.facts["first_sample"]
        self._blocks = [held.cpu().numpy().copy() for held in state.tensors.values()]

    def take(self, stop_frame: int) -> NDArray[np.float32]:
        """Remove and return the samples (S, channels) up to the end of frame ``stop_frame - 1``."""
        assert self.sample_rate is not None
        stop = min(stop_frame * self.sample_rate // self._fps, self.num_samples)
        held = np.concatenate(self._blocks) if len(self._blocks) > 1 else self._blocks[0]
        count = stop - self._first_sample
        self._blocks = [held[count:]]
        self._first_sample = stop
        return held[:count].copy()


def checked_pcm(pcm: NDArray[np.float32]) -> NDArray[np.float32]:
    """Samples as (S, channels), after checking them."""
    if not isinstance(pcm, np.ndarray) or pcm.dtype != np.float32 or pcm.ndim not in (1, 2):
        kind = f"{pcm.dtype} {pcm.shape}" if isinstance(pcm, np.ndarray) else type(pcm).__name__
        raise InvalidArgument(
            "pcm",
            expected="a float32 array (S,) or (S, channels)",
            got=kind,
            hint="Divide 16-bit samples by 32768.",
        )
    if not np.isfinite(pcm).all():
        raise NonFinite("pcm: holds NaN or infinity.", stage="audio")
    return pcm[:, None] if pcm.ndim == 1 else pcm
