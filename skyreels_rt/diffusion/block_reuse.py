"""What one BLF window of one group keeps of the blocks, and when it runs them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.kernels import teacache_gate
from skyreels_rt.models.token_shard import TokenShard
from skyreels_rt.models.transformer import SkyReelsTransformer
from skyreels_rt.runtime.step_cache import ChangeGate, StepPlan

OnBlocks = Callable[[int, int, Tensor, Tensor], None]
"""``on_blocks(step, guidance pass, modulated input, residual)``, (1, L, D) each, the latter to be
read at once: the next step overwrites it."""


class BlockReuse:
    """Residuals of the block stack, one per guidance pass, and the decision which step reuses them.

    A decision holds for all passes of a window. With a plan it was made before the run. With a gate
    it follows from the first block's modulated input, in which the passes do not differ yet; the
    host reads it, since it is the host that launches the blocks or does not.

    Parameters
    ----------
    transformer : SkyReelsTransformer
        The model.
    plan : StepPlan or None
        Steps that run the blocks; None is all of them.
    num_passes : int
        Guidance passes of a step.
    on_blocks : callable, optional
        Called after every run of the blocks; see :data:`OnBlocks`.
    shard : TokenShard, optional
        Tokens that this rank computes: the residuals are of those.
    agree : callable, optional
        Makes a decision that was taken on the picture that of all ranks of the window.

    Attributes
    ----------
    computed : list of bool
        For every step so far, whether it ran the blocks.
    """

    def __init__(
        self,
        transformer: SkyReelsTransformer,
        plan: StepPlan | None,
        num_passes: int,
        on_blocks: OnBlocks | None = None,
        *,
        shard: TokenShard | None = None,
        agree: Callable[[bool], bool] | None = None,
    ) -> None:
        self.computed: list[bool] = []
        self._transformer = transformer
        self._plan = plan
        self._residuals: list[Tensor | None] = [None] * num_passes
        self._on_blocks = on_blocks
        self._shard = shard
        self._agree = agree
        self._keeps = on_blocks is not None
        self._previous: Tensor | None = None
        self._accumulated: Tensor | None = None

    def begin(self, step: int, inputs: Tensor, timestep: Tensor) -> None:
        """Decide about a step.

        Parameters
        ----------
        step : int
            Its index; steps come in order.
        inputs : Tensor, shape (1, in_channels, F, H, W)
            Of the transformer.
        timestep : Tensor, shape (1,)
            ``1000 * sigma``.

        Raises
        ------
        InvalidArgument
            The plan has no such step, or the one before did not come.
        """
        plan = self._plan
        if plan is None:
            self.computed.append(True)
            return
        if step != len(self.computed) or step >= len(plan.computed):
            raise InvalidArgument(
                "step",
                expected=f"step {len(self.computed)} of {len(plan.computed)} planned ones",
                got=step,
            )
        is_computed = plan.computed[step]
        if plan.gate is not None:
            is_computed = not self._may_skip(plan.gate, is_computed, inputs, timestep)
        self.computed.append(is_computed)
        self._keeps = is_computed and (plan.keeps_residual(step) or self._on_blocks is not None)

    @property
    def kind(self) -> str:
        """What the step at hand is: ``"skip"``, ``"compute"``, or ``"compute, keep"``."""
        if not self.computed[-1]:
            return "skip"
        return "compute, keep" if self._keeps else "compute"

    def reused(self, index: int) -> Tensor | None:
        """Residual to add in place of running the blocks, (1, L, D), or None to run them."""
        return None if self.computed[-1] else self._residuals[index]

    def kept(self, index: int, inputs: Tensor) -> Tensor | None:
        """Where this step's residual goes, (1, L, D), or None where no later step needs it."""
        if not self._keeps:
            return None
        residual = self._residuals[index]
        if residual is None:
            model = self._transformer
            shard, count = self._shard, model.num_tokens(*inputs.shape[2:])
            count = count if shard is None else shard.stop - shard.start
            residual = torch.empty(
                (1, count, model.config.dim), dtype=model.dtype, device=model.device
            )
            self._residuals[index] = residual
        return residual

    def store(self, index: int, residual: Tensor) -> None:
        """Take a residual that was kept elsewhere, (1, L, D)."""
        self._residuals[index] = residual

    def report(self, index: int, inputs: Tensor, timestep: Tensor) -> None:
        """Show a pass that has run to ``on_blocks``, if there is one."""
        residual = self._residuals[index]
        if self._on_blocks is not None and self.computed[-1] and residual is not None:
            signal = self._transformer.modulated_input(inputs, timestep)
            self._on_blocks(len(self.computed) - 1, index, signal, residual)

    def _may_skip(self, gate: ChangeGate, forced: bool, inputs: Tensor, timestep: Tensor) -> bool:
        """TeaCache's rule on the first block's modulated input; one host read."""
        model = self._transformer
        signal = model.modulated_input(inputs, timestep)
        if self._accumulated is None:
            self._accumulated = torch.zeros(1, dtype=torch.float32, device=signal.device)
        previous = signal if self._previous is None else self._previous
        skip = teacache_gate(
            signal, previous, self._accumulated, gate.coefficients, gate.threshold, forced,
            impl=model.plan.teacache_gate,
        )  # fmt: skip
        self._previous = signal
        return bool(skip) if self._agree is None else self._agree(bool(skip))
