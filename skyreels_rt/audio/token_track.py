"""Audio tokens along the timeline: speech in, tokens per latent frame out."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyreels_rt.audio.features import FeatureEncoder, FeatureStream
from skyreels_rt.audio.resample import SpeechResampler
from skyreels_rt.config import AudioFeatureConfig
from skyreels_rt.models.audio_adapter import Packer
from skyreels_rt.types import PartState, Timeline


class TokenTrack:
    """Tokens of every latent frame, from speech that arrives in pieces of any size.

    Tokens of a latent are packed once and kept until :meth:`discard`, so that overlapping windows
    and groups see the same bytes.

    Parameters
    ----------
    packer : Packer
        Packer of the transformer.
    encoder : FeatureEncoder
        Audio encoder.
    features : AudioFeatureConfig
        Its grid.
    timeline : Timeline
        Conversion between frames and latents.
    fps : int
        Frames per second of the video.
    """

    def __init__(
        self,
        packer: Packer,
        encoder: FeatureEncoder,
        features: AudioFeatureConfig,
        timeline: Timeline,
        fps: int,
    ) -> None:
        self._packer = packer
        self._timeline = timeline
        self._resampler: SpeechResampler | None = None
        self._features = FeatureStream(encoder, features, fps, packer.config.features_per_frame)
        self._tokens: list[Tensor] = []
        self._first = 0  # latent index of _tokens[0]

    def push(self, block: NDArray[np.float32], sample_rate: int) -> None:
        """Add speech (S, channels), float32; the rate is the same in every call.

        Raises
        ------
        InvalidArgument
            The resampler refuses rate or samples; nothing was taken.
        """
        resampler = self._resampler or SpeechResampler(sample_rate, block.shape[1])
        samples = resampler.push(block)
        self._resampler = resampler
        self._features.push(samples)

    def end(self) -> None:
        """Say that no more speech comes; silence follows it."""
        if self._resampler is not None:
            self._features.push(self._resampler.finish())
        self._features.end()

    @property
    def num_ready_frames(self) -> int:
        """Frames whose tokens' audio has arrived, look-ahead included."""
        return max(0, self._features.num_ready_frames - self._packer.lookahead_frames())

    def tokens(self, start: int, stop: int) -> Tensor:
        """Tokens (stop - start, M, C) of the latents ``[start, stop)``, none of them discarded."""
        held = self._first + len(self._tokens)
        if held < stop:
            packed = self._packer.pack(self._features.read, held, stop, self._timeline)
            self._tokens.extend(packed.unbind(0))
        return torch.stack(self._tokens[start - self._first : stop - self._first])

    def silent_tokens(self, start: int, stop: int) -> Tensor:
        """Tokens of "no audio": features of zeros, as in training's condition dropout.

        They depend on a latent's number of frames alone, so one latent of each kind is packed.
        """
        usual = self._packer.pack(self._zeros, 1, 2, self._timeline)
        silent = usual.expand(stop - start, -1, -1)
        if start > 0:
            return silent
        first = self._packer.pack(self._zeros, 0, 1, self._timeline)
        return torch.cat([first, silent[1:]])

    def leading_tokens(self, latent: int) -> Tensor:
        """Tokens (1, M, C) of a one-frame slot in front of latent ``latent``."""
        return self._packer.pack_leading(self._features.read, self._timeline.first_frame(latent))

    def silent_leading_tokens(self) -> Tensor:
        """Tokens (1, M, C) of a one-frame slot without audio."""
        return self._packer.pack_leading(self._zeros, 0)

    def clip_tokens(self, first_frame: int, num_latents: int) -> Tensor:
        """Tokens (num_latents, M, C) of a clip that starts at ``first_frame``, and is not kept.

        Its first latent stands for one frame, wherever on the timeline it lies.
        """

        def read(first: int, stop: int) -> Tensor:
            return self._features.read(first_frame + first, first_frame + stop)

        clip = Timeline(self._timeline.temporal_stride)
        return self._packer.pack(read, 0, num_latents, clip)

    def discard_frames(self, before: int) -> None:
        """Forget what only clips from frame ``before`` on do not need."""
        self._features.discard(before - self._packer.lookahead_frames())

    def discard(self, before: int) -> None:
        """Forget what only latents before ``before`` need."""
        del self._tokens[: max(0, before - self._first)]
        self._first = max(self._first, before)
        reach = self._packer.lookahead_frames()
        self._features.discard(self._timeline.first_frame(before) - reach)

    def rewind(self, latent: int) -> None:
        """Forget the sound from ``latent`` on, as if it had never come; other sound may follow.

        Tokens of earlier latents stay as they are. Raises like :meth:`FeatureStream.rewind`.
        """
        del self._tokens[max(0, latent - self._first) :]
        self._resampler = None
        self._features.rewind(self._timeline.first_frame(latent))

    def state(self) -> PartState:
        """Everything :meth:`restore` needs."""
        tokens = {str(i): token.clone() for i, token in enumerate(self._tokens)}
        own = PartState({"first": self._first, "count": len(tokens)}, tokens)
        resampler = None if self._resampler is None else self._resampler.state()
        return own.joined(resampler=resampler, features=self._features.state())

    def restore(self, state: PartState) -> None:
        """Go on where :meth:`state` was taken, of a track made alike."""
        self._first = state.facts["first"]
        self._tokens = [state.tensors[str(i)].clone() for i in range(state.facts["count"])]
        if state.facts["resampler"] is not None:
            self._resampler = SpeechResampler.restored(state.part("resampler"))
        self._features.restore(state.part("features"))

    def _zeros(self, first: int, stop: int) -> Tensor:
        config = self._packer.config
        shape = (config.features_per_frame, config.feature_layers, config.feature_dim)
        return torch.zeros(stop - first, *shape, device=self._packer.device)
