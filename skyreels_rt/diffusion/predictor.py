"""Runs the transformer on one BLF window: condition channels, context caches, guidance passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skyreels_rt.diffusion.blf import Group, Window
from skyreels_rt.diffusion.block_reuse import BlockReuse, OnBlocks
from skyreels_rt.diffusion.guidance import GuidancePass
from skyreels_rt.distributed.axis import share_bounds, split_evenly
from skyreels_rt.distributed.mesh import Mesh
from skyreels_rt.distributed.usp import SequenceShard
from skyreels_rt.models.attention import KeysValues
from skyreels_rt.models.audio_adapter import AudioContext, SegmentedAudio
from skyreels_rt.models.transformer import ContextCache, SkyReelsTransformer
from skyreels_rt.runtime.cuda_graphs import Held, StepGraphs, Tensors
from skyreels_rt.runtime.step_cache import StepPlan


@dataclass(frozen=True)
class PromptContext:
    """Keys and values that stay the same for a whole job.

    Attributes
    ----------
    positive, negative : tuple of KeysValues
        Of the prompt, and of the negative prompt for the passes without text.
    image : tuple of KeysValues or None
        Of the portrait, for models with an image branch.
    """

    positive: tuple[KeysValues, ...]
    negative: tuple[KeysValues, ...]
    image: tuple[KeysValues, ...] | None = None


@dataclass(frozen=True)
class LeadingSlot:
    """The portrait as an extra frame 0 of every window (``reference_mode="leading_slot"``).

    Attributes
    ----------
    latents, noise : Tensor, shape (C, 1, h, w), float32
        The portrait's latent, and the fixed noise it is re-noised with.
    channels : Tensor, shape (Cc, 1 + window, h, w)
        Condition channels of the slot and of the latents behind it, the same in every window.
    tokens : tuple of Tensor, shape (1, M, C)
        Audio tokens of the slot, one entry per window of the group.
    silent_tokens : Tensor, shape (1, M, C), or None
        Tokens of the slot in the passes without audio; None for models without an audio adapter.
    """

    latents: Tensor
    noise: Tensor
    channels: Tensor
    tokens: tuple[Tensor, ...]
    silent_tokens: Tensor | None


class WindowPredictor:
    """Velocity of a window of one group; the ``predict`` of :func:`denoise_group`.

    Keys and values of the audio are made at a window's first step and kept for the others.

    Parameters
    ----------
    transformer : SkyReelsTransformer
        The model.
    group : Group
        Windows and their place on the timeline.
    passes : sequence of GuidancePass
        Forward passes of a step and their weights.
    prompt : PromptContext
        Keys and values of prompt and portrait.
    channels : Tensor, shape (Cc, n, h, w)
        Condition channels of the group's latents; Cc may be 0.
    tokens : Tensor, shape (n, M, C), or None
        Audio tokens of the group's latents; None for models without an audio adapter.
    silent_tokens : Tensor, shape (n, M, C), or None
        Tokens of "no audio", for the passes without it.
    slot : LeadingSlot, optional
        The leading slot, if the model uses one.
    steps : StepPlan, optional
        Steps that run the blocks; all by default. What the others reuse is kept per window and
        guidance pass, in this object, so for one group.
    observe : callable, optional
        From a window to what is called after each of its runs of the blocks, for measurements.
    mesh : Mesh, optional
        Ranks that share the passes and the tokens of a window. Every rank of the mesh's ``pass``
        axis calls for the same windows and gets the same velocities.
    timesteps : sequence of float
        Of the run, to have them on the device before its first step.
    graphs : StepGraphs, optional
        Records and replays what all passes of a step do; not beside a mesh, whose ranks talk to
        each other on the way.
    """

    def __init__(  # noqa: PLR0913 - everything that a group's steps share comes in here
        self,
        transformer: SkyReelsTransformer,
        group: Group,
        passes: Sequence[GuidancePass],
        prompt: PromptContext,
        *,
        channels: Tensor,
        tokens: Tensor | None,
        silent_tokens: Tensor | None,
        slot: LeadingSlot | None = None,
        steps: StepPlan | None = None,
        observe: Callable[[Window], OnBlocks] | None = None,
        mesh: Mesh | None = None,
        timesteps: Sequence[float] = (),
        graphs: StepGraphs | None = None,
    ) -> None:
        self._transformer = transformer
        self._group = group
        self._mesh = mesh
        self._num_passes = [len(passes)]
        self._passes = tuple(passes)
        if mesh is not None:
            axis = mesh.axis("guidance")
            self._num_passes = list(split_evenly(len(passes), axis.size))
            self._passes = self._passes[slice(*share_bounds(self._num_passes)[axis.index])]
        self._prompt = prompt
        self._channels = channels
        self._tokens = {True: tokens, False: silent_tokens}
        self._slot = slot
        self._steps = steps
        self._observe = observe
        self._reuse: dict[Window, BlockReuse] = {}
        self._audio: dict[tuple[Window, bool], tuple[AudioContext | SegmentedAudio, ...]] = {}
        # Tables and timesteps come from the host: before the first step, which waits for nothing.
        lengths = {window.length + (slot is not None) for window in group.windows}
        height, width = channels.shape[2:]
        self._rope = {frames: transformer.rope(frames, height, width) for frames in lengths}
        self._shards: dict[int, SequenceShard] = {}
        times = torch.tensor(list(timesteps), dtype=torch.float64).to(transformer.device)
        self._times: dict[float, Tensor] = dict(zip(timesteps, times[:, None], strict=True))
        self._graphs = graphs if mesh is None else None
        self._held: dict[Window, Held] = {}

    def __call__(self, window: Window, latents: Tensor, step: int, timestep: float) -> Tensor:
        """Velocities (P, C, len, h, w) of ``latents`` (C, len, h, w), one per guidance pass."""
        model = self._transformer
        inputs = self._inputs(window, latents, timestep / 1000).unsqueeze(0)
        frames, height, width = inputs.shape[2:]
        shard = self._shard(model.num_tokens(frames, height, width))
        time = self._time(timestep)
        if window not in self._reuse:
            self._reuse[window] = self._new_reuse(window, shard)
        reuse = self._reuse[window]
        reuse.begin(step, inputs, time)
        if self._graphs is None:
            contexts = self._contexts(window, shard)
            velocities = [
                model(
                    inputs, time, context, self._rope[frames],
                    reuse=reuse.reused(index), keep=reuse.kept(index, inputs), shard=shard,
                )
                for index, context in enumerate(contexts)
            ]  # fmt: skip
        else:
            velocities = self._replayed(self._graphs, window, reuse, inputs, time)
        for index in range(len(self._passes)):
            reuse.report(index, inputs, time)
        if self._slot is not None:
            velocities = [velocity[:, :, 1:] for velocity in velocities]
        return self._of_all_passes(velocities, latents)

    def _replayed(
        self, graphs: StepGraphs, window: Window, reuse: BlockReuse, inputs: Tensor, time: Tensor
    ) -> list[Tensor]:
        """Velocities of all passes, from a recording of such a step."""
        model, count = self._transformer, len(self._passes)
        if reuse.kind == "skip":
            residuals = [reuse.reused(index) for index in range(count)]
            fresh = (inputs, time, *(one for one in residuals if one is not None))
            return list(graphs.run("skip", _Skip(model), fresh))
        if window not in self._held:
            rope = self._rope[inputs.shape[2]]
            self._held[window] = Held((tuple(self._contexts(window, None)), rope))
        step = _Compute(model, keeps=reuse.kind == "compute, keep")
        results = graphs.run(reuse.kind, step, (inputs, time), self._held[window])
        for index, residual in enumerate(results[count:]):
            reuse.store(index, residual)
        return list(results[:count])

    def _time(self, timestep: float) -> Tensor:
        """The timestep (1,), float64, on the device."""
        if timestep not in self._times:
            time = torch.tensor([timestep], dtype=torch.float64)
            self._times[timestep] = time.to(self._transformer.device)
        return self._times[timestep]

    def _of_all_passes(self, velocities: list[Tensor], latents: Tensor) -> Tensor:
        """Velocities (P, C, len, h, w) from those of this rank's passes."""
        if self._mesh is None or self._mesh.axis("guidance").size == 1:
            return torch.cat(velocities)
        shape = (self._transformer.config.out_channels, *latents.shape[1:])
        own = latents.new_empty((0, *shape), dtype=self._transformer.dtype)
        own = torch.cat(velocities) if velocities else own
        shapes = [(count, *shape) for count in self._num_passes]
        return torch.cat(self._mesh.axis("guidance").all_gather(own, shapes))

    def _shard(self, num_tokens: int) -> SequenceShard | None:
        """The rank's share of a window's tokens; None for all of them."""
        if self._mesh is None or self._mesh.axis("sequence").size == 1:
            return None
        if num_tokens not in self._shards:
            self._shards[num_tokens] = SequenceShard(self._mesh, num_tokens)
        return self._shards[num_tokens]

    def _new_reuse(self, window: Window, shard: SequenceShard | None) -> BlockReuse:
        return BlockReuse(
            self._transformer,
            self._steps,
            len(self._passes),
            self._observe(window) if self._observe is not None else None,
            shard=shard,
            agree=None if self._mesh is None else self._mesh.axis("pass").from_first,
        )

    def computed_steps(self, window: Window) -> tuple[bool, ...]:
        """For every step a window took so far, whether it ran the blocks."""
        return tuple(self._reuse[window].computed) if window in self._reuse else ()

    def _inputs(self, window: Window, latents: Tensor, sigma: float) -> Tensor:
        """Noisy latents and condition channels of a window, slot in front if there is one."""
        if self._slot is None:
            first = self._group.start
            channels = self._channels[:, window.start - first : window.stop - first]
            return torch.cat([latents, channels])
        noised = (1 - sigma) * self._slot.latents + sigma * self._slot.noise
        frames = torch.cat([noised, latents], dim=1)
        return torch.cat([frames, self._slot.channels[:, : frames.shape[1]]])

    def _contexts(self, window: Window, shard: SequenceShard | None) -> list[ContextCache]:
        return [self._context(window, one, shard) for one in self._passes]

    def _context(
        self, window: Window, guidance_pass: GuidancePass, shard: SequenceShard | None
    ) -> ContextCache:
        prompt = self._prompt.positive if guidance_pass.text else self._prompt.negative
        tokens = self._tokens[guidance_pass.audio]
        if tokens is None:
            return ContextCache(prompt, self._prompt.image)
        key = (window, guidance_pass.audio)
        if key not in self._audio:
            first = self._group.start
            heard = tokens[window.start - first : window.stop - first]
            if self._slot is not None:
                heard = torch.cat([self._slot_tokens(window, guidance_pass), heard])
            self._audio[key] = self._transformer.audio_context(heard.unsqueeze(0), shard)
        return ContextCache(prompt, self._prompt.image, self._audio[key])

    def _slot_tokens(self, window: Window, guidance_pass: GuidancePass) -> Tensor:
        assert self._slot is not None
        if guidance_pass.audio:
            return self._slot.tokens[self._group.windows.index(window)]
        assert self._slot.silent_tokens is not None
        return self._slot.silent_tokens


@dataclass(frozen=True)
class _Compute:
    """A step that runs the blocks: all velocities, and with ``keeps`` what the blocks added."""

    model: SkyReelsTransformer
    keeps: bool

    def __call__(
        self, fresh: Tensors, held: tuple[tuple[ContextCache, ...], tuple[Tensor, Tensor]]
    ) -> Tensors:
        (inputs, time), (contexts, rope), model = fresh, held, self.model
        velocities, residuals = [], []
        for context in contexts:
            residual = None
            if self.keeps:
                shape = (1, model.num_tokens(*inputs.shape[2:]), model.config.dim)
                residual = torch.empty(shape, dtype=model.dtype, device=inputs.device)
                residuals.append(residual)
            velocities.append(model(inputs, time, context, rope, keep=residual))
        return (*velocities, *residuals)


@dataclass(frozen=True)
class _Skip:
    """A step that adds what the blocks added before, one residual a pass."""

    model: SkyReelsTransformer

    def __call__(self, fresh: Tensors, held: tuple[()]) -> Tensors:  # noqa: ARG002 - nothing held
        inputs, time, *residuals = fresh
        nothing = ContextCache(())
        return tuple(self.model(inputs, time, nothing, reuse=residual) for residual in residuals)
