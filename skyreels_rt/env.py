"""The only reader of environment variables in the package.

At most six variables, each with a closed list of values; a value outside it is an error, not a
silent default. (The variables of the *build* are read by ``setup.py`` and listed there.)

============================ ============ =====================================================
``SKYREELS_RT_NATIVE``       auto, off    ``off`` ignores the compiled libraries: every operator
                                          runs its reference implementation.
============================ ============ =====================================================

``TRITON_INTERPRET`` is Triton's own: with 1 its kernels run in its interpreter, for tests.
``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK`` are set by ``torchrun`` for each of its processes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from skyreels_rt.errors import InvalidArgument

VARIABLES: dict[str, tuple[str, ...]] = {"SKYREELS_RT_NATIVE": ("auto", "off")}
"""Every variable with its accepted values; the first is the default."""


def read(name: str) -> str:
    """Value of one of :data:`VARIABLES`, its default where it is not set.

    Raises
    ------
    InvalidArgument
        The variable holds something other than its accepted values.
    """
    accepted = VARIABLES[name]
    value = os.environ.get(name, accepted[0])
    if value not in accepted:
        raise InvalidArgument(
            name, expected=" or ".join(accepted), got=repr(value), hint="Unset it or correct it."
        )
    return value


def native_enabled() -> bool:
    """Whether the compiled libraries may be used (``SKYREELS_RT_NATIVE``)."""
    return read("SKYREELS_RT_NATIVE") == "auto"


@dataclass(frozen=True)
class LaunchedRank:
    """One process among those that ``torchrun`` started.

    Attributes
    ----------
    rank, world_size : int
        Of all processes.
    local_rank : int
        Among those of this machine.
    """

    rank: int
    world_size: int
    local_rank: int


def launched_rank() -> LaunchedRank | None:
    """What ``torchrun`` said about this process; None for a process that it did not start.

    Raises
    ------
    InvalidArgument
        ``RANK`` and its companions are not numbers.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    numbers = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        value = os.environ.get(name, "0")
        if not (value.isascii() and value.isdigit()):
            raise InvalidArgument(
                name,
                expected="a number, as torchrun sets it",
                got=repr(value),
                hint="Use torchrun.",
            )
        numbers[name] = int(value)
    return LaunchedRank(numbers["RANK"], numbers["WORLD_SIZE"], numbers["LOCAL_RANK"])


def triton_interprets() -> bool:
    """Whether Triton was told to interpret its kernels (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def worker_environment() -> dict[str, str]:
    """Environment of worker processes: this one's, without what torchrun set for this process."""
    launched = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
    return {name: value for name, value in os.environ.items() if name not in launched}
