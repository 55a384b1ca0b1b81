"""Window-parallel BLF: the windows of a group dealt to ranks, of which only overlaps travel.

Each rank predicts a run of neighbouring windows. Where they overlap the windows of other ranks,
both sides send each other what their windows say about the shared latents, and both fuse the same
velocities in the same order; so both hold the same bytes of those latents, which are those of a
single rank. Nothing else is exchanged in a step. With ``overlap <= window / 2`` each border between
two ranks sees ``overlap`` latents' velocities go either way::

    rank 0   [--- window 0 ---]
                      [--- window 1 ---]
    rank 1                    <------> [--- window 2 ---]   sent right: window 1's part, left: 2's
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from skyreels_rt.diffusion.blf import Group, Window
from skyreels_rt.distributed.axis import Axis, cut, share_bounds, split_evenly
from skyreels_rt.distributed.mesh import Mesh

ALONE = Axis("window", (0,), 0, None)
"""The axis of a single rank."""


class WindowShare:
    """What one rank does of a group.

    Parameters
    ----------
    group : Group
        The whole group.
    axis : Axis
        Ranks that the windows are dealt to.

    Attributes
    ----------
    own : range
        Windows that this rank predicts, as indices into ``group.windows``; may be empty.
    seen : range
        Those and the windows that overlap them.
    part : Group
        The windows ``seen`` as a group of their own. Its latents outside ``span`` have no meaning.
    span : Window
        Latents that this rank solves for: those of its own windows.
    """

    def __init__(self, group: Group, axis: Axis = ALONE) -> None:
        self.group = group
        self._axis = axis
        bounds = share_bounds(split_evenly(len(group.windows), axis.size))
        self._owns = [range(*pair) for pair in bounds]
        self._spans = [_span(group, own) for own in self._owns]
        self.own, self.span = self._owns[axis.index], self._spans[axis.index]
        near = [k for k, window in enumerate(group.windows) if _shared(window, self.span)]
        self.seen = range(near[0], near[-1] + 1) if near else range(0)
        windows = group.windows[self.seen.start : self.seen.stop]
        start, stop = (windows[0].start, windows[-1].stop) if windows else (group.stop, group.stop)
        emitted = min(max(group.emitted, start), stop)
        self.part = Group(start, emitted, stop, windows)

    @property
    def is_whole(self) -> bool:
        """Whether this rank does it all."""
        return self._axis.size == 1

    def of_part(self, x: Tensor) -> Tensor:
        """Latents (C, n, h, w) of the part, of those ``x`` that begin with the group's first."""
        first = self.group.start
        return x[:, self.part.start - first : self.part.stop - first]

    def exchange(self, velocities: Mapping[int, Tensor]) -> list[Tensor]:
        """Velocities of all windows ``seen``.

        Parameters
        ----------
        velocities : mapping from int to Tensor
            Of the windows ``own``, shape (P, C, n, h, w) each.

        Returns
        -------
        list of Tensor, shape (P, C, n, h, w) each
            Those of other ranks are zero outside ``span``.

        Raises
        ------
        PeerFailed
            A rank left, or did not answer in time.
        """
        if not self.own or self.is_whole:
            return [velocities[index] for index in self.own]
        model = velocities[self.own[0]]
        seen = {k: velocities.get(k, model) for k in self.seen}
        for index in seen.keys() - velocities.keys():
            seen[index] = torch.zeros_like(model)
        sends, receives, slots = {}, {}, {}
        for peer, (windows, span) in enumerate(zip(self._owns, self._spans, strict=True)):
            if peer == self._axis.index:
                continue
            going = [_slice(velocities[k], self.group.windows[k], span) for k in self.own]
            sends[peer] = torch.cat([part.flatten() for part in going])
            coming = [
                _slice(seen[k], self.group.windows[k], self.span) for k in windows if k in seen
            ]
            slots[peer] = coming
            receives[peer] = model.new_empty(sum(part.numel() for part in coming))
        self._axis.exchange(sends, receives)
        for peer, parts in slots.items():
            for part, data in zip(
                parts, cut(receives[peer], [p.shape for p in parts]), strict=True
            ):
                part.copy_(data)
        return list(seen.values())

    def gather(self, latents: Tensor) -> Tensor:
        """New latents of the whole group, on every rank.

        Parameters
        ----------
        latents : Tensor, shape (C, part length, h, w)
            Solved latents of the part.

        Returns
        -------
        Tensor, shape (C, num_new, h, w)

        Raises
        ------
        PeerFailed
            A rank left, or did not answer in time.
        """
        starts = [max(span.start, self.group.emitted) for span in self._spans] + [self.group.stop]
        starts[0] = self.group.emitted
        ends = [min(starts[i + 1 :]) for i in range(self._axis.size)]
        first, stop = starts[self._axis.index], ends[self._axis.index]
        new = latents[:, first - self.part.start : stop - self.part.start]
        if self.is_whole:
            return new
        channels, _, height, width = latents.shape
        shapes = [(channels, b - a, height, width) for a, b in zip(starts, ends, strict=False)]
        return torch.cat(self._axis.all_gather(new, shapes), dim=1)


def shared_steps(
    group: Group, computed: Callable[[Window], tuple[bool, ...]], mesh: Mesh | None
) -> list[tuple[bool, ...]]:
    """Which steps each window of a group computed, on every rank.

    Parameters
    ----------
    group : Group
        The whole group.
    computed : callable
        One flag a step, for a window that this rank predicted.
    mesh : Mesh or None
        Ranks that the windows were dealt to.
    """
    if mesh is None:
        return [computed(window) for window in group.windows]
    axis = mesh.axis("window")
    counts = split_evenly(len(group.windows), axis.size)
    own = group.windows[slice(*share_bounds(counts)[axis.index])]
    flags = [computed(window) for window in own]
    num_steps = mesh.largest(len(flags[0]) if flags else 0)
    box = torch.tensor(flags, dtype=torch.uint8, device=axis.device).view(len(own), num_steps)
    every = torch.cat(axis.all_gather(box, [(count, num_steps) for count in counts]))
    return [tuple(map(bool, row)) for row in every.tolist()]


def _span(group: Group, own: range) -> Window:
    """Latents of a run of windows; none for an idle rank."""
    if not own:
        return Window(group.stop, group.stop)
    return Window(group.windows[own[0]].start, group.windows[own[-1]].stop)


def _shared(window: Window, span: Window) -> int:
    """Latents that lie in both."""
    return max(0, min(window.stop, span.stop) - max(window.start, span.start))


def _slice(velocity: Tensor, window: Window, span: Window) -> Tensor:
    """The part of a window's velocities (P, C, n, h, w) that lies in ``span``."""
    first = max(window.start, span.start) - window.start
    return velocity[:, :, first : first + _shared(window, span)]
