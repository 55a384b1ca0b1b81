"""The core of a live session, checked and read now, opened when somebody wants to stop it, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from skyreels_rt.components import Components
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.job import JobSettings, settings_of
from skyreels_rt.live.snapshot import unpack_snapshot
from skyreels_rt.options import LiveOptions, resolve_settings
from skyreels_rt.runtime.turns import Turns
from skyreels_rt.scene import load_scene
from skyreels_rt.session import Session

CoreOpener: TypeAlias = Callable[[Callable[[], bool]], Session]
"""Opens a session that asks the callable whether it shall stop."""

_BESIDE_A_SNAPSHOT = frozenset({"max_ahead_s", "on_full", "idle", "video", "edit_mask"})


def core_opener(
    components: Components, options: LiveOptions, turns: Turns | None = None
) -> tuple[JobSettings, CoreOpener]:
    """Resolved options of a live session, and what opens its core.

    Takes and raises what :meth:`Engine.open_session` does; ``turns`` are shared by the sessions of
    an engine.
    """
    settings = resolve_settings(components, options, LiveOptions)
    portrait, source = load_scene(components, settings, options)

    def open_core(is_cancelled: Callable[[], bool]) -> Session:
        return Session(
            components,
            settings,
            portrait=portrait,
            source=source,
            is_cancelled=is_cancelled,
            turns=turns,
        )

    return settings, open_core


def core_restorer(
    components: Components,
    snapshot: bytes | str | Path,
    options: LiveOptions,
    turns: Turns | None = None,
) -> tuple[JobSettings, CoreOpener]:
    """The same for a session that goes on; takes and raises what ``restore_session`` does."""
    foreign = sorted(set(options) - _BESIDE_A_SNAPSHOT)
    if foreign:
        raise InvalidArgument(
            foreign[0],
            expected="an option of the audio's queue, or the source video",
            got="one of the snapshot's",
        )
    state = unpack_snapshot(components, snapshot)
    settings = settings_of(state)
    source = None
    if options.get("video") is not None or options.get("edit_mask") is not None:
        _, source = load_scene(components, settings, options)

    def open_core(is_cancelled: Callable[[], bool]) -> Session:
        return Session.restored(
            components, state, source=source, is_cancelled=is_cancelled, turns=turns
        )

    return settings, open_core
