"""Audio features per video frame, computed on a fixed grid while the speech arrives.

Grid step ``k`` yields features ``[k * step, (k + 1) * step)``. It is encoded once, alone, from the
samples ``[(k * step - past) * hop, ((k + 1) * step + lookahead) * hop)`` of the stream, which is
zero before its start and after its end. Which samples a feature depends on is therefore fixed: it
does not matter how the audio was cut, or whether it came live or all at once.

Frame ``f`` has ``S`` feature vectors, at the times ``(f + s / S) / fps`` seconds, ``s < S``. Where
that falls on a feature the feature is copied; between two they are mixed linearly.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.types import PartState

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from skyreels_rt.config import AudioFeatureConfig


class FeatureEncoder(Protocol):
    """What encodes one grid step, such as :class:`skyreels_rt.audio.whisper.WhisperFeatures`."""

    def encode(self, segment: NDArray[np.float32]) -> torch.Tensor:
        """Features (step, L, D) in float32 of ``segment`` (context * hop,), a pure function."""
        ...


class FeatureStream:
    """Frame features of one speech stream.

    Pushing only stores samples; grid steps are encoded by the :meth:`read` that first needs them.
    With :meth:`discard` the state of an endless stream stays bounded. Not thread-safe.

    Parameters
    ----------
    encoder : FeatureEncoder
        Shared and stateless; features are computed and kept on its device.
    config : AudioFeatureConfig
        The grid.
    fps : int
        Frames per second of the video.
    features_per_frame : int
        Feature vectors S per frame; with Whisper's 50 Hz and 25 fps, 2 copies every feature.

    Raises
    ------
    InvalidArgument
        ``fps`` or ``features_per_frame`` is not positive.
    """

    def __init__(
        self, encoder: FeatureEncoder, config: AudioFeatureConfig, fps: int, features_per_frame: int
    ) -> None:
        for name, value in (("fps", fps), ("features_per_frame", features_per_frame)):
            if value < 1:
                raise InvalidArgument(name, expected=">= 1", got=value, stage="audio")
        self._encoder = encoder
        self._config = config
        self._fps = fps
        self._per_frame = features_per_frame
        self._num_samples = 0
        self._ended = False
        self._page_size = config.step * config.hop
        self._pages: dict[int, NDArray[np.float32]] = {}  # page j: samples from j * _page_size on
        self._steps: dict[int, torch.Tensor] = {}
        self._first_frame = 0  # frames before it are discarded

    @property
    def num_samples(self) -> int:
        """Samples pushed so far."""
        return self._num_samples

    @property
    def num_ready_frames(self) -> int:
        """How many leading frames have all their features.

        ``sys.maxsize`` after :meth:`end`: silence follows the speech without end.
        """
        if self._ended:
            return sys.maxsize
        grid = self._config
        last_feature = self._num_arrived_steps() * grid.step - 1
        # The frame's last position (f * S + S - 1) * rate / (fps * S) must not exceed it.
        last_tick = last_feature * self._fps * self._per_frame // grid.feature_rate
        return max(0, (last_tick + 1) // self._per_frame)

    @property
    def state_bytes(self) -> int:
        """Bytes of samples and features held."""
        samples = sum(page.nbytes for page in self._pages.values())
        return samples + sum(step.nbytes for step in self._steps.values())

    def required_samples(self, frame: int) -> int:
        """Return how many leading samples must have arrived for ``frame`` to be ready.

        No later sample has any influence on the frame's features.

        Parameters
        ----------
        frame : int
            Frame index; negative ones are frame 0.
        """
        grid = self._config
        ticks = max(frame, 0) * self._per_frame + self._per_frame - 1
        last_feature = -(-ticks * grid.feature_rate // (self._fps * self._per_frame))
        return ((last_feature // grid.step + 1) * grid.step + grid.lookahead) * grid.hop

    def push(self, samples: NDArray[np.float32]) -> None:
        """Append samples to the stream.

        Parameters
        ----------
        samples : ndarray, shape (T,), float32 in [-1, 1]
            Mono samples at ``config.sample_rate``, T >= 0, finite; they are copied.

        Raises
        ------
        InvalidArgument
            Wrong shape or dtype, or :meth:`end` was called.
        """
        if self._ended:
            raise InvalidArgument(
                "push",
                expected="no call after end()",
                got="an ended stream",
                stage="audio",
                hint="Open a new FeatureStream for the next speech.",
            )
        if samples.dtype != np.float32 or samples.ndim != 1:
            raise InvalidArgument(
                "samples",
                expected="float32 of shape (samples,)",
                got=f"{samples.dtype} of shape {samples.shape}",
                stage="audio",
            )
        taken = 0
        while taken < len(samples):
            j, offset = divmod(self._num_samples, self._page_size)
            piece = samples[taken : taken + self._page_size - offset]
            if j >= self._first_page():
                if j not in self._pages:
                    self._pages[j] = np.zeros(self._page_size, np.float32)
                self._pages[j][offset : offset + len(piece)] = piece
            taken += len(piece)
            self._num_samples += len(piece)

    def end(self) -> None:
        """Mark the end of the speech: silence follows and every frame is ready. May be repeated."""
        self._ended = True

    def read(self, first_frame: int, stop_frame: int) -> torch.Tensor:
        """Features of the frames ``[first_frame, stop_frame)``.

        Parameters
        ----------
        first_frame, stop_frame : int
            Frame indices, ``first_frame < stop_frame <= num_ready_frames``. Negative indices stand
            for frame 0.

        Returns
        -------
        Tensor, shape (stop_frame - first_frame, S, L, D), float32, on the encoder's device
            A new tensor.

        Raises
        ------
        InvalidArgument
            The range is empty, not ready yet, or discarded.
        """
        self._check_range(first_frame, stop_frame)
        num_frames = stop_frame - first_frame
        ticks_per_second = self._fps * self._per_frame
        ticks = [
            max(frame, 0) * self._per_frame + s
            for frame in range(first_frame, stop_frame)
            for s in range(self._per_frame)
        ]
        positions = [divmod(tick * self._config.feature_rate, ticks_per_second) for tick in ticks]
        features = self._gather([feature for feature, _ in positions])
        if any(rest for _, rest in positions):
            after = self._gather([feature + (rest > 0) for feature, rest in positions])
            rests = torch.tensor([rest for _, rest in positions], dtype=torch.float32)
            weight = (rests / ticks_per_second).to(features.device)[:, None, None]
            # Plain products: a fused lerp may round differently in a vector loop's tail.
            features = features * (1 - weight) + after * weight
        return features.reshape(num_frames, self._per_frame, *features.shape[1:])

    def discard(self, before_frame: int) -> None:
        """Forget what only frames before ``before_frame`` need; they cannot be read any more.

        Parameters
        ----------
        before_frame : int
            Frame index; a lower one than before changes nothing.
        """
        self._first_frame = max(self._first_frame, before_frame)
        first_step, first_page = self._first_step(), self._first_page()
        self._steps = {k: step for k, step in self._steps.items() if k >= first_step}
        self._pages = {j: page for j, page in self._pages.items() if j >= first_page}

    def rewind(self, frame: int) -> None:
        """Forget the sound from ``frame`` on, as if it had never come; other sound may follow.

        Parameters
        ----------
        frame : int
            Frame index, none that was discarded. Sound up to it that is missing becomes silence.

        Raises
        ------
        InvalidArgument
            ``frame`` was discarded.
        """
        if frame < self._first_frame:
            raise InvalidArgument(
                "frame", expected=f">= {self._first_frame}", got=frame, stage="audio"
            )
        grid = self._config
        position = frame * grid.sample_rate // self._fps
        last, offset = divmod(position, self._page_size)
        self._pages = {j: page for j, page in self._pages.items() if j <= last}
        if last in self._pages:
            self._pages[last][offset:] = 0
        self._num_samples, self._ended = position, False
        known = self._num_arrived_steps()
        self._steps = {k: step for k, step in self._steps.items() if k < known}

    def state(self) -> PartState:
        """Everything :meth:`restore` needs."""
        facts = {
            "num_samples": self._num_samples,
            "ended": self._ended,
            "first_frame": self._first_frame,
        }
        pages = {f"page.{j}": torch.from_numpy(page.copy()) for j, page in self._pages.items()}
        steps = {f"step.{k}": step.clone() for k, step in self._steps.items()}
        return PartState(facts, pages | steps)

    def restore(self, state: PartState) -> None:
        """Go on where :meth:`state` was taken, of a stream made alike."""
        self._num_samples, self._ended = state.facts["num_samples"], state.facts["ended"]
        self._first_frame = state.facts["first_frame"]
        for name, tensor in state.tensors.items():
            kind, _, index = name.partition(".")
            if kind == "page":
                self._pages[int(index)] = tensor.cpu().numpy().copy()
            else:
                self._steps[int(index)] = tensor.clone()

    def _num_arrived_steps(self) -> int:
        """Leading grid steps whose look-ahead has arrived."""
        grid = self._config
        return max(0, (self._num_samples // grid.hop - grid.lookahead) // grid.step)

    def _check_range(self, first_frame: int, stop_frame: int) -> None:
        """Raise unless every frame of the range can be read."""
        got = f"[{first_frame}, {stop_frame})"
        if first_frame >= stop_frame:
            raise InvalidArgument(
                "stop_frame", expected="more than first_frame", got=got, stage="audio"
            )
        if max(first_frame, 0) < self._first_frame:
            raise InvalidArgument(
                "first_frame",
                expected=f">= {self._first_frame}, the first frame not discarded",
                got=got,
                stage="audio",
            )
        if max(stop_frame, 1) > self.num_ready_frames:
            raise InvalidArgument(
                "stop_frame",
                expected=f"<= {self.num_ready_frames}, the frames that are ready",
                got=got,
                stage="audio",
                hint="Push more audio, or call end().",
            )

    def _gather(self, features: list[int]) -> torch.Tensor:
        """Grid features by index, shape (len(features), L, D), encoding what is missing."""
        step = self._config.step
        wanted = sorted({feature // step for feature in features})
        rows = torch.cat([self._encoded(k) for k in wanted])
        row_of = {k: i * step for i, k in enumerate(wanted)}
        index = torch.tensor([row_of[feature // step] + feature % step for feature in features])
        return rows.index_select(0, index.to(rows.device))

    def _encoded(self, k: int) -> torch.Tensor:
        """Features (step, L, D) of grid step ``k``."""
        if k not in self._steps:
            self._steps[k] = self._encoder.encode(self._segment(k))
        return self._steps[k]

    def _segment(self, k: int) -> NDArray[np.float32]:
        """Context of grid step ``k``, zeros outside the stream, shape (context * hop,)."""
        start = (k * self._config.step - self._config.past) * self._config.hop
        segment = np.zeros(self._config.context * self._config.hop, np.float32)
        stop = start + len(segment)
        for j in range(start // self._page_size, -(-stop // self._page_size)):
            page = self._pages.get(j)
            if page is not None:
                offset = j * self._page_size
                first, last = max(start, offset), min(stop, offset + len(page))
                segment[first - start : last - start] = page[first - offset : last - offset]
        return segment

    def _first_step(self) -> int:
        """First grid step that a frame not discarded reads."""
        return self._first_frame * self._config.feature_rate // self._fps // self._config.step

    def _first_page(self) -> int:
        """First page of samples in the context of that step: :meth:`rewind` may ask it again."""
        first_sample = self._first_step() * self._config.step - self._config.past
        return max(first_sample * self._config.hop, 0) // self._page_size
