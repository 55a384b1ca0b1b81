"""How much speech must have arrived before a group of BLF windows can start, from shapes alone."""

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
        Seconds of speech from its start that must have arrived; what the resampler holds back
        (:attr:`skyreels_rt.audio.resample.SpeechResampler.delay_s`) not counted.
    """

    first_frame: int
    stop_frame: int
    seconds: Fraction


def group_need(components: Components, settings: JobSettings, emitted: int) -> GroupNeed:
    """The full group that follows ``emitted`` latents; at the end of the speech it waits for less.

    Parameters
    ----------
    components : Components
        The loaded model.
    settings : JobSettings
        Windows and frame rate.
    emitted : int
        Latents before the group, >= 0.
    """
    timeline, adapter = components.timeline, components.transformer.config.audio
    stop = full_group_stop(
        emitted, window=settings.window, overlap=settings.overlap, horizon=settings.horizon
    )
    frames = timeline.num_frames(stop)
    seconds = Fraction(frames, settings.fps)
    if adapter is not None and components.audio_encoder is not None:
        grid = components.audio_features
        features = FeatureStream(
            components.audio_encoder, grid, settings.fps, adapter.features_per_frame
        )
        last = frames - 1 + components.transformer.audio_proj.lookahead_frames()
        seconds = max(seconds, Fraction(features.required_samples(last), grid.sample_rate))
    return GroupNeed(timeline.first_frame(emitted), frames, seconds)
