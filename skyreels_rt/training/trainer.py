"""The one optimisation loop: AdamW or Muon, an average of the weights, checkpoints, progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from skyreels_rt.config import require_positive
from skyreels_rt.errors import InvalidArgument, ModelError, NonFinite
from skyreels_rt.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

Losses = Mapping[str, Tensor]
"""Scalars of one step; ``"loss"`` is the one that is minimised."""


@dataclass(frozen=True)
class Optimisation:
    """How a stage's weights are moved.

    Attributes
    ----------
    num_steps : int
        Steps of the stage.
    learning_rate : float
        After the warm-up, until the decay.
    warmup_steps : int
        Steps of linear growth from zero.
    decay_share : float
        Last share of the steps over which the rate falls to zero, as a half cosine.
    weight_decay : float
        Of matrices; vectors are not decayed.
    betas : tuple of float
        AdamW's.
    max_grad_norm : float
        Longer gradients are shortened to it.
    ema_decay : float
        Of the average of the weights; it grows to this from zero.
    muon : tuple of str
        Matrices whose names start so are moved by Muon (arXiv 2502.16982) at the same rate; all
        other parameters by AdamW.
    """

    num_steps: int
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    decay_share: float = 0.25
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    muon: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_positive(self, "num_steps", "learning_rate", "max_grad_norm")
        if not 0 <= self.decay_share <= 1:
            raise InvalidArgument("decay_share", expected="0 to 1", got=self.decay_share)

    def rate(self, step: int) -> float:
        """Learning rate of step ``step``, counted from 0."""
        decay_steps = max(1, round(self.decay_share * self.num_steps))
        left = (self.num_steps - step) / decay_steps
        fall = 0.5 - 0.5 * math.cos(math.pi * min(1.0, max(0.0, left)))
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps)) * fall


_MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")


class Trainer:
    """Trains a module by an objective, and can be stopped and resumed anywhere.

    Parameters
    ----------
    module : nn.Module
        Its parameters that require gradients are trained, in float32.
    objective : callable
        ``objective(step)`` returns the losses of that step's batch; everything random in it is
        drawn from the step's number.
    config : Optimisation
        Schedule and optimiser.
    checkpoint : Path
        File of the run's state; read if it exists.
    fingerprint : str
        Names the recipe; a checkpoint of another one is refused.

    Attributes
    ----------
    step : int
        Steps done.
    history : list of dict
        Mean losses of every ``log_every`` steps, with the step at their end.
    """

    log_every = 10

    def __init__(
        self,
        module: nn.Module,
        objective: Callable[[int], Losses],
        config: Optimisation,
        *,
        checkpoint: Path,
        fingerprint: str,
    ) -> None:
        self._objective = objective
        self._config = config
        self._path = checkpoint
        self._fingerprint = fingerprint
        self._parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._averages = {n: p.detach().clone() for n, p in self._parameters.items()}
        self._optimisers = _optimisers(self._parameters, config)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self._pending: list[dict[str, float]] = []
        if checkpoint.exists():
            self._restore(load_checkpoint(checkpoint))

    def run(
        self,
        *,
        until: int | None = None,
        checkpoint_every_s: float = 120.0,
        label: str = "train",
        on_checkpoint: Callable[[Trainer], None] | None = None,
    ) -> None:
        """Train up to step ``until`` (the stage's end by default), saving now and then.

        Raises
        ------
        NonFinite
            The loss or a gradient became NaN or infinite; the last checkpoint stays.
        OutputError
            A checkpoint cannot be written.
        """
        stop = self._config.num_steps if until is None else min(until, self._config.num_steps)
        saved = time.monotonic()
        with tqdm(total=stop, initial=self.step, desc=label, unit="step") as bar:
            while self.step < stop:
                losses = self._advance()
                bar.update()
                bar.set_postfix({k: f"{v:.4f}" for k, v in losses.items()}, refresh=False)
                if time.monotonic() - saved > checkpoint_every_s:
                    self.save()
                    if on_checkpoint is not None:
                        on_checkpoint(self)
                    saved = time.monotonic()
        self.save()
        if on_checkpoint is not None:
            on_checkpoint(self)

    def averages(self) -> dict[str, Tensor]:
        """Averaged weights by parameter name; what is shipped."""
        return dict(self._averages)

    def save(self) -> None:
        """Write the checkpoint."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            tensors[f"weights/{name}"] = parameter.detach()
            tensors[f"averages/{name}"] = self._averages[name]
            for moment, value in self._state(parameter).items():
                if moment in _MOMENTS:
                    tensors[f"{moment}/{name}"] = value
        facts = {
            "fingerprint": self._fingerprint,
            "step": self.step,
            "history": self.history,
            "pending": self._pending,
        }
        save_checkpoint(self._path, Checkpoint(tensors, facts))

    def _advance(self) -> dict[str, float]:
        for group in (g for optimiser in self._optimisers for g in optimiser.param_groups):
            group["lr"] = self._config.rate(self.step)
        losses = self._objective(self.step)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self._parameters.values(), self._config.max_grad_norm)
        values = {name: float(value.detach()) for name, value in losses.items()}
        if not math.isfinite(values["loss"]) or not bool(torch.isfinite(norm)):
            raise NonFinite(
                f"Step {self.step}: loss {values['loss']}, gradient norm {float(norm)}.",
                stage="train",
                hint="Lower the learning rate; the last checkpoint is intact.",
            )
        for optimiser in self._optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self._config.ema_decay, self.step / (10 + self.step))
        averages, weights = list(self._averages.values()), list(self._parameters.values())
        torch._foreach_lerp_(averages, [w.detach() for w in weights], 1 - decay)
        self._record(values)
        return values

    def _record(self, values: dict[str, float]) -> None:
        self._pending.append(values)
        if self.step % self.log_every == 0:
            names = sorted({name for row in self._pending for name in row})
            row = {"step": float(self.step)}
            for name in names:
                seen = [entry[name] for entry in self._pending if name in entry]
                row[name] = sum(seen) / len(seen)
            self.history.append(row)
            self._pending.clear()

    def _restore(self, checkpoint: Checkpoint) -> None:
        facts = checkpoint.facts
        if facts.get("fingerprint") != self._fingerprint:
            raise ModelError(
                f"{self._path}: made by another recipe.",
                stage="train",
                hint="Train in an empty folder, or go on with the recipe that made it.",
            )
        weights, averages = checkpoint.part("weights"), checkpoint.part("averages")
        moments = {name: checkpoint.part(name) for name in _MOMENTS}
        self.step = int(facts["step"])
        self.history = list(facts["history"])
        self._pending = list(facts["pending"])
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(weights[name])
                self._averages[name].copy_(averages[name])
                found = {
                    key: held[name].to(parameter.device)
                    for key, held in moments.items()
                    if name in held
                }
                if found:
                    self._state(parameter).update(found, step=torch.tensor(float(self.step)))

    def _state(self, parameter: Tensor) -> dict[str, Any]:
        """What the parameter's optimiser remembers of it."""
        for optimiser in self._optimisers:
            if any(parameter is p for group in optimiser.param_groups for p in group["params"]):
                state: dict[str, Any] = optimiser.state[parameter]
                return state
        return {}


def _optimisers(
    parameters: Mapping[str, nn.Parameter], config: Optimisation
) -> list[torch.optim.Optimizer]:
    """AdamW for all but the matrices that Muon moves; only matrices decay."""
    by_muon = {n for n, p in parameters.items() if p.ndim == 2 and n.startswith(config.muon)}
    others = [p for n, p in parameters.items() if n not in by_muon]
    adamw = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    rate = config.learning_rate
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(adamw, lr=rate, betas=config.betas, foreach=True)
    ]
    if by_muon:
        matrices = [p for n, p in parameters.items() if n in by_muon]
        optimisers.append(
            torch.optim.Muon(
                matrices, lr=rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimisers
