"""How many bytes a rank sends, from shapes alone; the mesh's counters say the same.

Legend: L tokens of a window, N heads, K head size, C channels, P guidance passes, w window latents.
All numbers are of one rank, which is why most functions take a rank's place on its axes.

========= =================== ==========================================================
axis      when                bytes
========= =================== ==========================================================
window    each step           velocities of all passes of the latents that its windows
                              share with another rank's: P C h w a latent
window    end of a group      its new latents in float32, to the others
guidance  each step, window   velocities of its own passes, to the others
ulysses   each block, pass    4 all-to-alls of its tokens: q, k, v, and the result
ring      each block, pass    (ring - 1) blocks of keys and values
sequence  each pass           its tokens' part of the velocity, to the others
world     each latent         activations between two stages of the VAE's decoder; frames
========= =================== ==========================================================

Steps that reuse an earlier residual send nothing on the axes ``ulysses`` and ``ring``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from skyreels_rt.distributed.axis import split_evenly
from skyreels_rt.distributed.parallel import Parallel


@dataclass(frozen=True)
class AttentionShape:
    """Self-attention of one window in one block.

    Attributes
    ----------
    num_tokens, num_heads, head_dim : int
        L, N and K.
    itemsize : int
        Bytes of a number.
    """

    num_tokens: int
    num_heads: int
    head_dim: int
    itemsize: int


def ulysses_bytes(shape: AttentionShape, parallel: Parallel, ulysses: int, ring: int) -> int:
    """Sent in one block and pass by the rank at ``ulysses``, ``ring``.

    ``(3 l (N - n) + (T - l) n) K``: queries, keys and values of its l tokens for the heads that it
    has not, and the result of its n heads for the tokens of its Ulysses group, T, that it has not.
    Where all divides, four times ``l N K (u - 1) / u``.
    """
    tokens = _grid(shape.num_tokens, parallel)
    own, group = tokens[ulysses][ring], sum(row[ring] for row in tokens)
    heads = split_evenly(shape.num_heads, parallel.ulysses)[ulysses]
    numbers = 3 * own * (shape.num_heads - heads) + (group - own) * heads
    return numbers * shape.head_dim * shape.itemsize


def ring_bytes(shape: AttentionShape, parallel: Parallel, ulysses: int, ring: int) -> int:
    """Sent in one block and pass by the rank at ``ulysses``, ``ring``.

    ``2 n K`` times the tokens of all blocks but one: a rank hands on its own block and all that
    come to it, but for the last.
    """
    tokens = _grid(shape.num_tokens, parallel)
    blocks = [sum(row[index] for row in tokens) for index in range(parallel.ring)]
    heads = split_evenly(shape.num_heads, parallel.ulysses)[ulysses]
    kept = blocks[(ring + 1) % parallel.ring]
    return 2 * heads * shape.head_dim * (sum(blocks) - kept) * shape.itemsize


def sequence_bytes(num_tokens: int, parallel: Parallel, place: int, token_bytes: int) -> int:
    """Sent in one pass: ``token_bytes`` of output for each own token, to all other ranks."""
    own = split_evenly(num_tokens, parallel.sequence)[place]
    return (parallel.sequence - 1) * own * token_bytes


def guidance_bytes(num_passes: int, parallel: Parallel, place: int, velocity_bytes: int) -> int:
    """Sent for one window and step: ``velocity_bytes`` for each own pass, to all other ranks."""
    own = split_evenly(num_passes, parallel.guidance)[place]
    return (parallel.guidance - 1) * own * velocity_bytes


def window_bytes(
    windows: Sequence[tuple[int, int]], parallel: Parallel, place: int, latent_bytes: int
) -> int:
    """Sent in one step: ``latent_bytes`` for each latent shared with another rank's windows.

    Parameters
    ----------
    windows : sequence of (int, int)
        First and last (exclusive) latent of every window of the group, in order.
    parallel : Parallel
        Sizes of the axes.
    place : int
        Of the rank on the window axis.
    latent_bytes : int
        Velocities of one latent: ``P C h w`` times the bytes of a number.
    """
    owned = _owned(windows, parallel)
    shared = 0
    for other, theirs in enumerate(owned):
        if other != place and theirs:
            first, stop = theirs[0][0], theirs[-1][1]
            shared += sum(max(0, min(b, stop) - max(a, first)) for a, b in owned[place])
    return shared * latent_bytes


def group_end_bytes(
    windows: Sequence[tuple[int, int]],
    parallel: Parallel,
    place: int,
    latent_bytes: int,
    *,
    num_pinned: int = 0,
) -> int:
    """Sent at the end of a group: ``latent_bytes`` for each new latent, to all other ranks.

    A latent that two ranks hold is sent by the later one. Parameters as in :func:`window_bytes`,
    and the latents of the group that were emitted before it.
    """
    owned, emitted = _owned(windows, parallel), windows[0][0] + num_pinned
    stop = windows[-1][1]
    starts = [max(emitted, own[0][0]) if own else stop for own in owned]
    starts[0] = emitted
    return (parallel.window - 1) * ([*starts, stop][place + 1] - starts[place]) * latent_bytes


def _owned(
    windows: Sequence[tuple[int, int]], parallel: Parallel
) -> list[Sequence[tuple[int, int]]]:
    """The windows of every rank on the window axis."""
    counts = split_evenly(len(windows), parallel.window)
    return [windows[sum(counts[:i]) : sum(counts[: i + 1])] for i in range(parallel.window)]


def _grid(num_tokens: int, parallel: Parallel) -> list[list[int]]:
    """Tokens of each rank, by place on the Ulysses axis, then on the ring."""
    sizes = split_evenly(num_tokens, parallel.sequence)
    rings = parallel.ring
    return [list(sizes[row * rings : (row + 1) * rings]) for row in range(parallel.ulysses)]
