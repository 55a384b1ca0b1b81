"""One job: speech goes in, finished frames with their sound come out.

A session owns every piece of mutable state (audio tail, feature grid, condition track, emitted
latents, decoder cache, frame counter). What it reads from the engine is frozen, so sessions cannot
disturb each other. Its state has constant size: only the tail that later groups need is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyreels_rt.appearance import Appearance, color_match
from skyreels_rt.audio.speech_tail import SpeechTail, checked_pcm
from skyreels_rt.components import Components
from skyreels_rt.conditioning.condition_track import ConditionTrack
from skyreels_rt.conditioning.source_video import SourceTrack
from skyreels_rt.diffusion.blf import (
    Group,
    Window,
    full_group_stop,
    num_kept_latents,
    plan_group,
)
from skyreels_rt.diffusion.block_reuse import OnBlocks
from skyreels_rt.distributed.fit import require_job
from skyreels_rt.errors import Cancelled, InvalidArgument, MediaError, SkyReelsError
from skyreels_rt.group_need import group_need
from skyreels_rt.group_run import GroupRun
from skyreels_rt.job import JobSettings, settings_facts, settings_of
from skyreels_rt.latent_decoder import LatentDecoder
from skyreels_rt.runtime.lanes import Lane
from skyreels_rt.runtime.step_cache import StepLog, StepRun
from skyreels_rt.runtime.timing import StageClock
from skyreels_rt.runtime.turns import Turns
from skyreels_rt.types import FrameChunk, PartState, Progress, ProgressCallback


class Session:
    """Audio in, frames out.

    While the device decodes a latent on a lane beside the denoising, the next group's steps go on.
    What that group gives counts only when all chunks before it were delivered, so that nothing a
    caller can see depends on it.

    Parameters
    ----------
    components : Components
        The engine's frozen parts.
    settings : JobSettings
        Resolved options.
    portrait : ndarray, shape (H, W, 3), uint8, or None
        Portrait, already cropped to the output's shape.
    source : SourceTrack, optional
        Source video and edit mask; closed by :meth:`close`.
    expected_frames : int, optional
        Frames the speech will need, where that is known in advance; for progress only.
    on_progress : callable, optional
        Called with a :class:`Progress` after every step and every delivered chunk; what it raises
        comes out of :meth:`frames`, which can go on afterwards.
    observe : callable, optional
        From a BLF window to what is called after each of its runs of the transformer's blocks; for
        calibration.
    is_cancelled : callable, optional
        Asked between steps and between decoded latents; True raises :class:`Cancelled`.
    turns : Turns, optional
        Shared by the sessions of an engine, which compute one at a time.
    lane : Lane, optional
        Where the VAE decodes; the device's by default.

    Raises
    ------
    InvalidArgument
        The model needs a portrait and got none, cannot take a source video, or the step cache
        does not fit the run: a mask of another length, a model without calibration.
    """

    def __init__(
        self,
        components: Components,
        settings: JobSettings,
        *,
        portrait: NDArray[np.uint8] | None = None,
        source: SourceTrack | None = None,
        expected_frames: int | None = None,
        on_progress: ProgressCallback | None = None,
        is_cancelled: Callable[[], bool] | None = None,
        observe: Callable[[Window], OnBlocks] | None = None,
        turns: Turns | None = None,
        lane: Lane | None = None,
    ) -> None:
        self.clock = StageClock()
        self._parts = components
        self.settings = settings
        """Resolved options; the prompt may change on the way."""
        self._expected_frames = expected_frames
        self._on_progress = on_progress
        mesh = components.mesh  # ranks stop together or not at all
        self._is_cancelled = is_cancelled if mesh is None else mesh.agreed(is_cancelled)
        self._observe = observe
        self._turns = turns if turns is not None else Turns()
        self._steps = components.step_plan(settings.teacache, settings.schedule.timesteps)
        self._step_log = StepLog()
        self._timeline = components.timeline
        self._appearance = self._encoded(settings, portrait)
        references_every_frame = components.generation.reference_mode == "all_frames"
        self._track = ConditionTrack(
            components.transformer.config,
            components.vae,
            self._timeline,
            height=settings.height,
            width=settings.width,
            reference_latents=self._appearance.portrait_latents if references_every_frame else None,
            source=source,
            references_every_frame=references_every_frame,
        )
        self._color = color_match(components, settings, portrait)
        self.speech = SpeechTail(settings.fps)
        """The speech whose frames were not delivered."""
        self._tokens = components.token_track(self._timeline, settings.fps)
        self._ended = self._closed = False
        self._planned = 0  # latents denoised so far: the next group adds to them
        self._decoded = 0  # latents delivered as frames so far
        rows, columns = (
            size // components.vae.spatial_stride for size in (settings.height, settings.width)
        )
        channels = components.transformer.config.out_channels
        self._kept = torch.zeros(channels, 0, rows, columns, device=components.device)
        self._first_kept = 0  # latent index of _kept[:, 0]; _kept reaches up to _planned
        self._run: GroupRun | None = None  # the group behind _planned, if it was begun
        self._ahead_failed = False  # it was, too early, and did not get far
        self._decoder = LatentDecoder(
            components,
            settings.height,
            settings.width,
            lambda: self._appearance.portrait_latents,
            lane,
        )
        self._frame_index = 0
        self.group_need = group_need(components, settings, 0)
        """The group at hand, if it is a full one, and the speech that it waits for."""

    # ---------------------------------------------------------------------------------- audio in

    def push_audio(self, pcm: NDArray[np.float32], sample_rate: int) -> None:
        """Add speech of any length; what follows the end of a source video is dropped.

        Parameters
        ----------
        pcm : ndarray, shape (S,) or (S, channels), float32 in [-1, 1]
            Samples that follow the ones pushed before.
        sample_rate : int
            Samples per second; the same in every call.

        Raises
        ------
        InvalidArgument
            The session is closed, its audio was ended, ``pcm`` has another dtype or shape, or rate
            or channels changed. Nothing was taken.
        NonFinite
            The samples hold NaN or infinity. Nothing was taken.
        """
        self._require_open("push_audio")
        if self._ended:
            raise InvalidArgument(
                "push_audio", expected="audio that was not ended", got="ended audio"
            )
        block = checked_pcm(pcm)
        if self.is_finished:
            return
        self.speech.require_fit(block, sample_rate)
        if self._tokens is not None:
            with self.clock.measure("audio"):
                self._tokens.push(block, sample_rate)
        self.speech.push(block, sample_rate)

    def end_audio(self) -> None:
        """Say that no more speech comes; silence follows for as long as the last frames need it.

        Saying it again does nothing.

        Raises
        ------
        InvalidArgument
            The session is closed.
        MediaError
            No audio was pushed.
        """
        self._require_open("end_audio")
        if self._ended:
            return
        if self.speech.num_samples == 0:
            raise MediaError("audio: no samples came before its end.", stage="audio")
        self._ended = True
        if self._tokens is not None:
            with self.clock.measure("audio"):
                self._tokens.end()

    # -------------------------------------------------------------------------------- frames out

    def frames(self) -> Iterator[FrameChunk]:
        """Frames that the audio pushed so far allows, one chunk per latent.

        The iterator may be dropped at any chunk: the next one goes on where it stopped.

        Raises
        ------
        InvalidArgument
            The session is closed.
        Cancelled
            ``is_cancelled`` said so; between steps or decoded latents.
        NonFinite
            NaN or infinity appeared; no frame that holds it is delivered.
        """
        while (chunk := self.next_chunk()) is not None:
            # Reported once delivered: a callback that raises must not swallow the chunk.
            yield chunk
            self._report("decode", self._frame_index, self.num_frames or self._expected_frames)

    def next_chunk(self) -> FrameChunk | None:
        """Frames of the next latent, or None while the audio pushed so far allows none.

        Raises the same as :meth:`frames`.
        """
        while True:
            self._require_open("frames")
            if self._decoded == self._planned:
                if not self._denoise():
                    return None
                continue
            if self._is_cancelled is not None and self._is_cancelled():
                raise Cancelled("The job was cancelled.", stage="decode")
            with self._turns.hold(self._is_cancelled), self.clock.measure("decode"):
                self._decoder.begin(self._kept[:, self._decoded - self._first_kept :])
            while not self._decoder.is_done and self._denoise_ahead():
                pass
            chunk = self._take_decoded()
            if chunk is not None:
                return chunk

    # ------------------------------------------------------------------------- changes on the way

    def set_prompt(self, prompt: str) -> None:
        """Show something else from the next group on.

        Parameters
        ----------
        prompt : str
            Replaces the prompt; an empty one switches text guidance off.

        Raises
        ------
        InvalidArgument
            The session is closed.
        """
        self._require_open("set_prompt")
        settings = replace(self.settings, prompt=prompt.strip())
        # Both or neither: waiting for the turn may be cancelled.
        self._appearance = self._encoded(settings, self._appearance.portrait)
        self.settings, self._run = settings, None

    def set_portrait(self, portrait: NDArray[np.uint8]) -> None:
        """Show someone else from the next group on.

        Parameters
        ----------
        portrait : ndarray, shape (H, W, 3), uint8
            In the output's shape.

        Raises
        ------
        InvalidArgument
            The session is closed.
        """
        self._require_open("set_portrait")
        self._appearance, self._run = self._encoded(self.settings, portrait), None
        self._color = color_match(self._parts, self.settings, portrait)
        if self._parts.generation.reference_mode == "all_frames":
            self._track.set_reference(self._appearance.portrait_latents)

    def rewind(self) -> None:
        """Forget all speech and all latents behind the last delivered frame.

        Other speech may follow at once, also after :meth:`end_audio`. What was delivered stays what
        the next frames continue; a source video goes on behind it. A finished session stays
        finished.

        Raises
        ------
        InvalidArgument
            The session is closed.
        """
        self._require_open("rewind")
        if self.is_finished:
            return
        self.speech.rewind()
        if self._tokens is not None:
            self._tokens.rewind(self._decoded)
        self._kept = self._kept[:, : self._decoded - self._first_kept].clone()
        self._decoder.go_back()
        self._planned, self._ended, self._run = self._decoded, False, None

    # ------------------------------------------------------------------------------------ its state

    def state(self) -> PartState:
        """Everything :meth:`restored` needs, of constant size.

        Raises
        ------
        InvalidArgument
            The session is closed.
        """
        self._require_open("state")
        facts = {
            "settings": settings_facts(self.settings),
            "ended": self._ended,
            "planned": self._planned,
            "decoded": self._decoded,
            "first_kept": self._first_kept,
            "frame_index": self._frame_index,
        }
        tensors = {"kept": self._kept.clone()}
        if self._appearance.portrait is not None:
            tensors["portrait"] = torch.from_numpy(self._appearance.portrait.copy())
        tensors.update(self._decoder.tensors())
        tokens = None if self._tokens is None else self._tokens.state()
        return PartState(facts, tensors).joined(
            speech=self.speech.state(),
            tokens=tokens,
            source=self._track.state(),
            color=self._color.state(),
        )

    @classmethod
    def restored(
        cls,
        components: Components,
        state: PartState,
        *,
        source: SourceTrack | None = None,
        is_cancelled: Callable[[], bool] | None = None,
        turns: Turns | None = None,
    ) -> Session:
        """Session of the same model that goes on where :meth:`state` was taken, bit for bit.

        Raises
        ------
        InvalidArgument
            The session edited a source video, and ``source`` is none or another.
        """
        facts, tensors = state.facts, state.tensors
        if (facts["source"] is None) != (source is None):
            raise InvalidArgument(
                "video",
                expected="none" if facts["source"] is None else "the source video of the snapshot",
                got="none" if source is None else "one",
            )
        portrait = tensors.get("portrait")
        session = cls(
            components,
            settings_of(state),
            portrait=None if portrait is None else portrait.cpu().numpy(),
            source=source,
            is_cancelled=is_cancelled,
            turns=turns,
        )
        session._ended = facts["ended"]
        session._planned, session._decoded = facts["planned"], facts["decoded"]
        session._first_kept, session._frame_index = facts["first_kept"], facts["frame_index"]
        if source is not None:
            session._track.restore(state.part("source"))
        session._kept = tensors["kept"].to(components.device)
        session._decoder.restore(tensors, session._decoded)
        session.speech.restore(state.part("speech"))
        session._color.restore(state.part("color"))
        if session._tokens is not None:
            session._tokens.restore(state.part("tokens"))
        return session

    def close(self) -> None:
        """Close the source video and free tensors; every later call but this one raises."""
        self._track.close()
        self._closed, self._run = True, None
        self._kept = self._kept[:, :0].clone()
        self._decoder.forget()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_frames(self) -> int | None:
        """Frames of the whole job; None while neither speech nor source video has ended."""
        ends = [self.speech.num_frames] if self._ended else []
        if self._track.num_source_frames is not None:
            ends.append(self._track.num_source_frames)
        return min(ends, default=None)

    @property
    def audio_ended(self) -> bool:
        """Whether :meth:`end_audio` was called."""
        return self._ended

    @property
    def latency_s(self) -> Fraction:
        """Seconds of speech that the first group needs."""
        return self._needed_s(0)

    @property
    def missing_s(self) -> Fraction:
        """Seconds of speech that the next group still needs; what a resampler holds not counted."""
        pushed = Fraction(self.speech.num_samples, self.speech.sample_rate or 1)
        return max(Fraction(0), self._needed_s(self._planned) - pushed)

    @property
    def num_frames_done(self) -> int:
        """Frames delivered so far."""
        return self._frame_index

    @property
    def steps(self) -> tuple[StepRun, ...]:
        """Which steps the windows denoised so far computed, and which they skipped."""
        return tuple(self._step_log.runs)

    @property
    def is_finished(self) -> bool:
        """Whether every frame of the job was delivered."""
        return self.num_frames == self._frame_index

    # ---------------------------------------------------------------------------------- internals

    def _require_open(self, call: str) -> None:
        if self._closed:
            raise InvalidArgument(call, expected="an open session", got="a closed one")

    def _needed_s(self, planned: int) -> Fraction:
        """Seconds of speech after which the group behind ``planned`` latents can start."""
        return group_need(self._parts, self.settings, planned).seconds

    def _encoded(self, settings: JobSettings, portrait: NDArray[np.uint8] | None) -> Appearance:
        with self._turns.hold(self._is_cancelled), self.clock.measure("condition"):
            looks = Appearance.encoded(self._parts, settings, portrait)
        if self._parts.mesh is not None:
            require_job(
                self._parts.mesh.parallel,
                horizon=settings.horizon,
                num_passes=len(looks.passes),
                num_heads=self._parts.transformer.config.num_heads,
            )
        return looks

    @torch.inference_mode()
    def _next_group(self) -> Group | None:
        """The next group whose conditions are all there, or None."""
        settings = self.settings
        shape = {
            "window": settings.window,
            "overlap": settings.overlap,
            "horizon": settings.horizon,
        }
        available, is_final = self._available(full_group_stop(self._planned, **shape))
        # After a rewind the speech is shorter than what was emitted, by its look-ahead.
        return plan_group(self._planned, max(self._planned, available), is_final, **shape)

    def _available(self, reach: int) -> tuple[int, bool]:
        """Latents, at most ``reach``, whose audio and source are there; whether no more will be."""
        heard = self._timeline.num_latents(self.speech.num_frames)
        if not self._ended:
            heard = self._num_heard()
        with self.clock.measure("condition"):
            covered = self._track.prepare(min(heard, reach))
        source_ended = self._track.num_source_frames is not None and covered < heard
        return covered, source_ended or (self._ended and covered == heard)

    def _num_heard(self) -> int:
        """Latents whose audio has arrived, look-ahead included, while more may come."""
        ready = self.speech.num_whole_frames
        if self._tokens is not None:
            ready = min(ready, self._tokens.num_ready_frames)
        heard = self._timeline.num_latents(ready)
        return heard if self._timeline.first_frame(heard) <= ready else heard - 1

    def _denoise(self) -> bool:
        """Do one step of the next group, or keep what all gave; False while none can begin."""
        run = self._run
        if run is None:
            group = self._next_group()
            if group is None:
                return False
            run = self._begun(group)
        if run.denoising.is_done:
            self._finish(run)
            return True
        with self._turns.hold(self._is_cancelled):
            self._run = None  # a step that fails has spoilt its group
            with self.clock.measure("denoise"), torch.inference_mode():
                run.denoising.step()
            self._run = run
        self._report("denoise", run.denoising.num_done, run.denoising.num_steps)
        return True

    def _denoise_ahead(self) -> bool:
        """Do one step of the next group while this one is decoded; False if there is none to do."""
        if self._ahead_failed or (self._run is not None and self._run.denoising.is_done):
            return False
        try:
            return self._denoise()
        except Cancelled:
            raise
        except SkyReelsError:  # comes again when the group is due, behind the chunks before it
            self._ahead_failed = True
            return False

    @torch.inference_mode()
    def _begun(self, group: Group) -> GroupRun:
        """A group with its conditions, before its first step."""
        first = self._first_kept
        emitted = self._kept[:, group.start - first : group.emitted - first]
        with self.clock.measure("condition"):
            channels = self._track.channels(group.start, group.stop, emitted)
        with self.clock.measure("audio"):
            return GroupRun(
                self._parts,
                self.settings,
                group,
                self._appearance,
                self._tokens,
                channels=channels,
                emitted=emitted,
                steps=self._steps,
                observe=self._observe,
                is_cancelled=self._is_cancelled,
            )

    @torch.inference_mode()
    def _finish(self, run: GroupRun) -> None:
        """Keep the latents of a denoised group: they are decoded next."""
        group, self._run, self._ahead_failed = run.group, None, False
        latents = run.denoising.latents()
        self.group_need = group_need(self._parts, self.settings, group.emitted)
        run.note_steps(self._step_log)
        self._keep(group, latents)

    def _keep(self, group: Group, latents: Tensor) -> None:
        """Remember the new latents and what a group behind any of them may reach back to."""
        tail = num_kept_latents(self.settings.window, self.settings.overlap)
        oldest = max(0, group.emitted - tail)
        self._kept = torch.cat([self._kept[:, oldest - self._first_kept :], latents], dim=1)
        self._first_kept, self._planned = oldest, group.stop
        self._track.discard(oldest)
        if self._tokens is not None:
            self._tokens.discard(oldest)

    def _take_decoded(self) -> FrameChunk | None:
        """Frames of the latent at hand, or None when they lie past the end of the job."""
        with self.clock.measure("decode"):
            frames = self._decoder.take()
            self._decoded += 1
        if self.num_frames is not None:
            frames = frames[: max(0, self.num_frames - self._frame_index)]
        if len(frames) == 0:
            return None
        with self.clock.measure("composite"):
            frames = self._track.composite(self._color(frames))
        first, self._frame_index = self._frame_index, self._frame_index + len(frames)
        return FrameChunk(
            frames=frames,
            audio=self.speech.take(self._frame_index),
            sample_rate=self.speech.sample_rate or 0,
            pts=Fraction(first, self.settings.fps),
            index=first,
        )

    def _report(self, stage: str, done: int, total: int | None) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(stage, done, total, self._frame_index))
