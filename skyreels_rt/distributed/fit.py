"""Which meshes fit the ranks, the model and the job, and the nearest that do."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import astuple

from skyreels_rt.distributed.parallel import Parallel
from skyreels_rt.errors import InvalidMesh

MAX_SUGGESTIONS = 3


def require_world(parallel: Parallel, world_size: int, *, num_heads: int | None = None) -> None:
    """Raise unless the axes use every rank there is.

    Parameters
    ----------
    parallel : Parallel
        What was asked for.
    world_size : int
        Ranks that were started.
    num_heads : int, optional
        Of the model, so that no suggestion is refused later.

    Raises
    ------
    InvalidMesh
        The product is another number; with the nearest meshes of ``world_size`` ranks.
    """
    if parallel.world_size == world_size:
        return
    expected = f"axes whose product is the {world_size} ranks that were started"
    if world_size == 1:
        expected = f"one rank, or {parallel.world_size} processes (torchrun --nproc-per-node)"
    raise InvalidMesh(
        "parallel",
        expected=expected,
        got=f"{str(parallel) or 'no axis'} ({parallel.world_size} ranks)",
        suggestions=nearest(parallel, world_size, lambda p: _has_heads(p, num_heads)),
    )


def require_heads(parallel: Parallel, num_heads: int) -> None:
    """Raise unless every Ulysses rank has a head; they may have unequal numbers of them.

    Raises
    ------
    InvalidMesh
        With the nearest meshes of as many ranks.
    """
    if not _has_heads(parallel, num_heads):
        raise InvalidMesh(
            "parallel.ulysses",
            expected=f"at most the model's {num_heads} heads",
            got=parallel.ulysses,
            suggestions=nearest(parallel, parallel.world_size, lambda p: _has_heads(p, num_heads)),
        )


def require_even_heads(parallel: Parallel, num_heads: int) -> None:
    """Raise unless every Ulysses rank has as many heads as the others, for callers who insist.

    Uneven heads give the same result; the ranks with fewer wait for those with more.

    Raises
    ------
    InvalidMesh
        With the nearest meshes of as many ranks.
    """
    if num_heads % parallel.ulysses:
        raise InvalidMesh(
            "parallel.ulysses",
            expected=f"a divisor of the model's {num_heads} heads",
            got=parallel.ulysses,
            suggestions=nearest(
                parallel, parallel.world_size, lambda p: num_heads % p.ulysses == 0
            ),
        )


def require_job(parallel: Parallel, *, horizon: int, num_passes: int, num_heads: int) -> None:
    """Raise unless every rank has something to do in a full group of windows.

    Parameters
    ----------
    parallel : Parallel
        The mesh's axes.
    horizon : int
        BLF windows that are denoised together.
    num_passes : int
        Guidance passes of a step.
    num_heads : int
        Of the model.

    Raises
    ------
    InvalidMesh
        More window ranks than windows, or more guidance ranks than passes; with the nearest meshes
        of as many ranks.
    """

    def fits(other: Parallel) -> bool:
        usable = other.window <= horizon and other.guidance <= num_passes
        return usable and _has_heads(other, num_heads)

    if fits(parallel):
        return
    is_window = parallel.window > horizon
    raise InvalidMesh(
        "parallel.window" if is_window else "parallel.guidance",
        expected=(
            f"at most the {horizon} windows that are denoised together (horizon)"
            if is_window
            else f"at most the {num_passes} guidance passes of a step"
        ),
        got=parallel.window if is_window else parallel.guidance,
        suggestions=nearest(parallel, parallel.world_size, fits),
    )


def nearest(
    parallel: Parallel, world_size: int, fits: Callable[[Parallel], bool]
) -> tuple[str, ...]:
    """The meshes of ``world_size`` ranks that fit and are most like ``parallel``, best first.

    Like means few axes of another size; among those, axes early in the list (which send less) are
    the larger ones.
    """
    axes = [size for size in range(1, world_size + 1) if world_size % size == 0]
    found = [
        Parallel(*sizes)
        for sizes in itertools.product(axes, [s for s in axes if s <= 3], axes, axes)
        if math.prod(sizes) == world_size
    ]

    def distance(other: Parallel) -> tuple[int, ...]:
        changed = sum(a != b for a, b in zip(astuple(parallel), astuple(other), strict=True))
        return (changed, -other.window, -other.guidance, -other.ulysses)

    ranked = sorted((other for other in found if fits(other)), key=distance)
    return tuple(str(other) or "no axis" for other in ranked[:MAX_SUGGESTIONS])


def _has_heads(parallel: Parallel, num_heads: int | None) -> bool:
    return num_heads is None or parallel.ulysses <= num_heads
