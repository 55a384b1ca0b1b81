"""BLF: overlapping windows on the global latent timeline, denoised together and fused every step.

A *group* is a run of windows that go through the denoise loop together. Its latents before
``emitted`` were shown already and stay pinned; the rest is new. With ``hop = window - overlap``:

    timeline   0 ............. emitted ..................... stop
    window 0          [-- overlap --|-- hop --]
    window 1                  [---- overlap --|-- hop --]        (horizon = 2)

Every window predicts from the same latents; the velocities are averaged with weights that sum to 1
at each latent, so the result has no direction and does not depend on the order of the windows. The
paper names the method and gives no formula; windows, ramps and groups are ours (nearest shipped
relatives: StableAvatar's one-directional ramps, Sonic's and HunyuanVideo-Avatar's sum and counter).
All positions are latent frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skyreels_rt.config import Ramp
from skyreels_rt.errors import InvalidArgument


@dataclass(frozen=True)
class Window:
    """Latent frames ``[start, stop)`` of the timeline that the model sees at once."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """Number of latent frames."""
        return self.stop - self.start


@dataclass(frozen=True)
class Group:
    """Windows that are denoised and emitted together.

    Attributes
    ----------
    start, emitted, stop : int
        Latents ``[start, emitted)`` are pinned (already emitted), ``[emitted, stop)`` are new.
    windows : tuple of Window
        In timeline order; the first starts at ``start``, the last stops at ``stop``, each starts at
        or before the end of the one before.
    """

    start: int
    emitted: int
    stop: int
    windows: tuple[Window, ...]

    @property
    def length(self) -> int:
        """Latent frames of the group, pinned and new."""
        return self.stop - self.start

    @property
    def num_pinned(self) -> int:
        """Latent frames that were emitted before."""
        return self.emitted - self.start

    @property
    def num_new(self) -> int:
        """Latent frames that the group will emit."""
        return self.stop - self.emitted


def num_kept_latents(window: int, overlap: int) -> int:
    """Count the emitted latents that a stream must keep; no later group reaches back further.

    A full group reaches back ``overlap`` latents; the final one, when it adds a single latent,
    reaches back ``window - 1`` of them to fill its window.
    """
    return max(overlap, window - 1)


def full_group_stop(emitted: int, *, window: int, overlap: int, horizon: int) -> int:
    """Where the group after ``emitted`` latents stops if it is full; see :func:`plan_group`."""
    hop = window - overlap
    return emitted + horizon * hop if emitted else window + (horizon - 1) * hop


def plan_group(
    emitted: int, available: int, ended: bool, *, window: int, overlap: int, horizon: int
) -> Group | None:
    """Next group of a stream, or None while there is nothing to do.

    The first group covers ``window + (horizon - 1) * hop`` latents, a later one starts ``overlap``
    latents back and adds ``horizon * hop``. The final group takes what is left: its last window is
    shifted back to stop at the end, and a group shorter than a window reaches further back instead.
    The sequence of groups depends on the final number of latents only, not on how they arrived.

    Parameters
    ----------
    emitted : int
        Latents emitted so far, >= 0.
    available : int
        Latents whose conditions are ready, >= ``emitted``.
    ended : bool
        Whether ``available`` is final.
    window, overlap, horizon : int
        Latents a window, latents shared by consecutive windows (``0 <= overlap < window``) and
        windows a group (>= 1; any large number for all at once).

    Returns
    -------
    Group or None
        None while ``available`` does not cover a full group, and at the end when all is emitted.

    Raises
    ------
    InvalidArgument
        A number is out of its range.
    """
    _check_plan(emitted, available, window, overlap, horizon)
    hop = window - overlap
    start = max(0, emitted - overlap)
    full = full_group_stop(emitted, window=window, overlap=overlap, horizon=horizon)
    if available < full and (not ended or available == emitted):
        return None
    stop = min(full, available)
    if stop - start <= window:
        start = max(0, stop - window)
        return Group(start, emitted, stop, (Window(start, stop),))
    starts = [*range(start, stop - window, hop), stop - window]
    windows = tuple(Window(first, first + window) for first in starts)
    return Group(start, emitted, stop, windows)


def window_weights(group: Group, overlap: int, ramp: Ramp = "linear") -> Tensor:
    """Fusion weights of every window of ``group``, normalised over all windows at each latent.

    Before normalisation a window weighs 1, and with the linear ramp ``(j + 1) / (overlap + 1)`` for
    the j-th latent counted from either border, where that is less. Borders of the group itself
    have no ramp. The group's pinned latents are covered too; their weights have no effect.

    Parameters
    ----------
    group : Group
        Result of :func:`plan_group`.
    overlap : int
        Length of the ramps in latents, >= 0.
    ramp : {"linear", "uniform"}
        Uniform gives every window that covers a latent the same weight.

    Returns
    -------
    Tensor, shape (windows, window length), float32
        Aligned with ``group.windows``. At each latent they sum to 1 up to float32 rounding; where
        one window covers it, the weight is exactly 1.

    Raises
    ------
    InvalidArgument
        ``ramp`` is unknown.
    """
    if ramp not in ("linear", "uniform"):
        raise InvalidArgument("ramp", expected="'linear' or 'uniform'", got=repr(ramp))
    # In units of 1 / (overlap + 1) the ramps are integers, so their sums have no order.
    total = torch.zeros(group.length, dtype=torch.int64)
    numerators = []
    for window in group.windows:
        numerator = torch.full((window.length,), overlap + 1, dtype=torch.int64)
        if ramp == "linear":
            position = torch.arange(1, window.length + 1)
            if window.start > group.start:
                numerator = torch.minimum(numerator, position)
            if window.stop < group.stop:
                numerator = torch.minimum(numerator, position.flip(0))
        total[window.start - group.start : window.stop - group.start] += numerator
        numerators.append(numerator)
    totals = [
        total[window.start - group.start : window.stop - group.start] for window in group.windows
    ]
    return (torch.stack(numerators).double() / torch.stack(totals).double()).float()


def _check_plan(emitted: int, available: int, window: int, overlap: int, horizon: int) -> None:
    """Raise unless the numbers describe a stream and its windows."""
    if window < 1:
        raise InvalidArgument("window", expected="latents >= 1", got=window)
    if not 0 <= overlap < window:
        raise InvalidArgument("overlap", expected=f"0 <= overlap < window={window}", got=overlap)
    if horizon < 1:
        raise InvalidArgument("horizon", expected="windows >= 1", got=horizon)
    if emitted < 0:
        raise InvalidArgument("emitted", expected="latents >= 0", got=emitted)
    if available < emitted:
        raise InvalidArgument("available", expected=f"latents >= emitted={emitted}", got=available)
