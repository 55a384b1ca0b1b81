"""The groups of a live session in order, and the speech that each waits for."""

from __future__ import annotations

from skyreels_rt.components import Components
from skyreels_rt.group_need import GroupNeed, group_need
from skyreels_rt.job import JobSettings


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
        self._components, self._settings = components, settings

    def first(self) -> GroupNeed:
        """The first group."""
        return group_need(self._components, self._settings, 0)

    def after(self, need: GroupNeed) -> GroupNeed:
        """The group that follows."""
        emitted = self._components.timeline.num_latents(need.stop_frame)
        return group_need(self._components, self._settings, emitted)
