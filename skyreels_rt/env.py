"""The only reader of environment variables in the package.

At most six variables, each with a closed list of values; a value outside it is an error, not a
silent default. (The variables of the *build* are read by ``setup.py`` and listed there.)

============================ ============ =====================================================
``SKYREELS_RT_NATIVE``       auto, off    ``off`` ignores the compiled libraries: every operator
                                          runs its reference implementation.
============================ ============ =====================================================

``TRITON_INTERPRET`` is Triton's own: with 1 its kernels run in its interpreter, for tests.
"""

from __future__ import annotations

import os

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


def triton_interprets() -> bool:
    """Whether Triton was told to interpret its kernels (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def worker_environment() -> dict[str, str]:
    """Environment of worker processes: this one's, without what torchrun set for this process."""
    launched = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
    return {name: value for name, value in os.environ.items() if name not in launched}
