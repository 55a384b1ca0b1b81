"""One group of BLF windows on its way from conditions and noise to clean latents."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from skyreels_rt.appearance import Appearance
from skyreels_rt.audio.token_track import TokenTrack
from skyreels_rt.components import Components
from skyreels_rt.diffusion.blf import Group, Window, window_weights
from skyreels_rt.diffusion.block_reuse import OnBlocks
from skyreels_rt.diffusion.denoise import Denoising
from skyreels_rt.diffusion.noise import timeline_noise
from skyreels_rt.diffusion.predictor import WindowPredictor
from skyreels_rt.diffusion.solvers import make_solver
from skyreels_rt.diffusion.window_share import shared_steps
from skyreels_rt.job import JobSettings
from skyreels_rt.runtime.step_cache import StepLog, StepPlan


class GroupRun:
    """A group, its conditions as they were when it was begun, and its latents so far.

    Parameters
    ----------
    components : Components
        The engine's frozen parts.
    settings : JobSettings
        Resolved options.
    group : Group
        Windows, pinned and new latents.
    appearance : Appearance
        Portrait and prompts.
    tokens : TokenTrack or None
        Audio tokens; None for models without an audio adapter.
    channels : Tensor, shape (Cc, group length, h, w)
        Condition channels.
    emitted : Tensor, shape (C, num_pinned, h, w), float32
        Clean latents of ``[group.start, group.emitted)``.
    steps : StepPlan
        Steps that run the transformer's blocks.
    observe : callable, optional
        From a window to what is called after each of its runs of the blocks.
    is_cancelled : callable, optional
        Asked within a step.
    """

    def __init__(
        self,
        components: Components,
        settings: JobSettings,
        group: Group,
        appearance: Appearance,
        tokens: TokenTrack | None,
        *,
        channels: Tensor,
        emitted: Tensor,
        steps: StepPlan,
        observe: Callable[[Window], OnBlocks] | None,
        is_cancelled: Callable[[], bool] | None,
    ) -> None:
        self.group = group
        self._mesh = components.mesh
        heard = silent = None
        if tokens is not None:
            heard = tokens.tokens(group.start, group.stop)
            silent = tokens.silent_tokens(group.start, group.stop)
        self._predictor = WindowPredictor(
            components.transformer,
            group,
            appearance.passes,
            appearance.prompt,
            channels=channels,
            tokens=heard,
            silent_tokens=silent,
            slot=appearance.leading_slot(settings.seed, group, tokens),
            steps=steps if steps.skips else None,
            observe=observe,
            mesh=self._mesh,
            timesteps=settings.schedule.timesteps,
            graphs=components.graphs,
        )
        schedule, shape = settings.schedule, (emitted.shape[0], *emitted.shape[2:])
        noise = timeline_noise(settings.seed, group.start, group.length, shape)
        self.denoising = Denoising(
            group,
            self._predictor,
            schedule,
            make_solver(settings.solver, schedule),
            guidance=[one.weight for one in appearance.passes],
            weights=window_weights(group, settings.overlap, settings.ramp),
            noise=noise.to(components.device),
            pinned=emitted,
            impl=components.plan.blf_step,
            is_cancelled=is_cancelled,
            mesh=self._mesh,
        )
        """Its steps."""

    def note_steps(self, log: StepLog) -> None:
        """Write down which steps each window computed; on a mesh every rank must call it."""
        computed = shared_steps(self.group, self._predictor.computed_steps, self._mesh)
        for window, flags in zip(self.group.windows, computed, strict=True):
            log.add(window.start, window.stop, flags)
