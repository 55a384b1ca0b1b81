"""How much speech must have arrived before a frame can be made, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from skyreels_rt.audio.features import FeatureStream
from skyreels_rt.components import Components
from skyreels_rt.diffusion.blf import full_group_stop
from skyreels_rt.job import JobSettings


@dataclass(frozen=True)
class GroupNeed:
    """One group of BLF windows and the speech it waits for.

    Attributes
    ----------
    first_frame, stop_frame : int
        Frames that come out of it.
    seconds : Fraction
        Seconds of speech from its start that must have arrived; the resampler's delay (below 3 ms)
        not counted.
    """

    first_frame: int
    stop_frame: int
    seconds: Fraction


class AudioNeeds:
    """The groups of a session and what each waits for, in order and without end.

    Groups at the end of the speech wait for less, and groups after an interruption differ; see
    :class:`skyreels_rt.streaming.statistics.LiveStatistics` for how those are counted.

    Parameters
    ----------
    components : Components
        The loaded model.
    settings : JobSettings
        Settings of the session.
    """

    def __init__(self, components: Components, settings: JobSettings) -> None:
        self._settings = settings
        self._timeline = components.timeline
        self._lookahead = 0
        self._features: FeatureStream | None = None
        adapter = components.transformer.config.audio
        if adapter is not None and components.audio_encoder is not None:
            self._lookahead = components.transformer.audio_proj.lookahead_frames()
            grid = components.audio_features
            self._rate = grid.sample_rate
            self._features = FeatureStream(
                components.audio_encoder, grid, settings.fps, adapter.features_per_frame
            )

    def first(self) -> GroupNeed:
        """The first group."""
        return self._need(0)

    def after(self, need: GroupNeed) -> GroupNeed:
        """The group that follows."""
        return self._need(self._timeline.num_latents(need.stop_frame))

    def _need(self, emitted: int) -> GroupNeed:
        given = self._settings
        stop = full_group_stop(
            emitted, window=given.window, overlap=given.overlap, horizon=given.horizon
        )
        frames = self._timeline.num_frames(stop)
        seconds = Fraction(frames, given.fps)
        if self._features is not None:
            samples = self._features.required_samples(frames + self._lookahead - 1)
            seconds = max(seconds, Fraction(samples, self._rate))
        return GroupNeed(self._timeline.first_frame(emitted), frames, seconds)
