"""Sequence parallelism: the tokens of a window dealt to ranks (USP, arXiv 2405.07719).

Ranks form a grid, ``ulysses`` x ``ring``. Within self-attention the Ulysses ranks swap tokens for
heads (arXiv 2309.14509): each then holds all tokens of its group for some of the heads. The ring
ranks hand keys and values around (arXiv 2310.01889) and merge what they find by its log-sum-exp, as
FlashAttention merges tiles. The next block is under way while one is attended.

Shares are uneven where numbers do not divide, heads too: nothing is padded, so no padding can be
attended. Legend: B batch, l own tokens, L tokens after the swap, N heads, n own heads, K head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skyreels_rt.distributed.axis import share_bounds, split_evenly
from skyreels_rt.distributed.mesh import Mesh
from skyreels_rt.errors import InvalidMesh
from skyreels_rt.kernels import AttentionBackend, dense_attention
from skyreels_rt.kernels.dense_attention import dense_attention_lse


class SequenceShard:
    """A rank's share of a window's tokens (a :class:`skyreels_rt.models.token_shard.TokenShard`).

    Parameters
    ----------
    mesh : Mesh
        Ranks.
    num_tokens : int
        Tokens of the window.

    Raises
    ------
    InvalidMesh
        There are fewer tokens than ranks, or not equally many for each where ``usp="yunchang"`` was
        asked for.
    """

    def __init__(self, mesh: Mesh, num_tokens: int) -> None:
        self._sequence = mesh.axis("sequence")
        self._ulysses, self._ring = mesh.axis("ulysses"), mesh.axis("ring")
        if num_tokens < self._sequence.size:
            raise InvalidMesh(
                "parallel.ulysses * parallel.ring",
                expected=f"at most the {num_tokens} tokens of a window",
                got=self._sequence.size,
            )
        self._library = mesh.exchange if num_tokens % self._sequence.size == 0 else None
        if self._library is None and mesh.exchange is not None and mesh.exchange.is_required:
            raise InvalidMesh(
                "usp",
                expected=f"tokens that {self._sequence.size} ranks share equally, for yunchang",
                got=f"{num_tokens} tokens of a window",
                suggestions=("usp='torch'",),
            )
        self.num_tokens = num_tokens
        self._sizes = split_evenly(num_tokens, self._sequence.size)
        self.start, self.stop = share_bounds(self._sizes)[self._sequence.index]
        rings = self._ring.size
        self._group_sizes = self._sizes[self._ring.index :: rings]
        self._block_sizes = [sum(self._sizes[index::rings]) for index in range(rings)]

    def attend(
        self, q_BLD: Tensor, k_BLD: Tensor, v_BLD: Tensor, num_heads: int, backend: AttentionBackend
    ) -> Tensor:
        """Attention of the own tokens' queries over the keys of all tokens.

        Parameters
        ----------
        q_BLD, k_BLD, v_BLD : Tensor, shape (B, l, N * K)
            Of the own tokens.
        num_heads : int
            N, at least the number of Ulysses ranks.
        backend : AttentionBackend
            Usually ``plan.attention``.

        Returns
        -------
        Tensor, shape (B, l, N * K)

        Raises
        ------
        PeerFailed
            A rank left, or did not answer in time.
        """
        q, k, v = (x.unflatten(-1, (num_heads, -1)) for x in (q_BLD, k_BLD, v_BLD))
        if self._library is not None and num_heads % self._ulysses.size == 0:
            return self._library.attend(q, k, v, backend).flatten(2)
        qkv = torch.stack((q, k, v))
        q, k, v = self._tokens_to_heads(qkv, num_heads).transpose(2, 3)
        if self._ring.size == 1:
            attended = dense_attention(q, k, v, backend=backend)
        else:
            attended = self._ring_attention(q, k, v, backend)
        return self._heads_to_tokens(attended.transpose(1, 2), num_heads).flatten(2)

    def gather(self, x_BLD: Tensor) -> Tensor:
        """All tokens (B, num_tokens, D), from every rank's own; raises like :meth:`attend`."""
        batch, _, width = x_BLD.shape
        shapes = [(batch, size, width) for size in self._sizes]
        return torch.cat(self._sequence.all_gather(x_BLD, shapes), dim=1)

    def _tokens_to_heads(self, x: Tensor, num_heads: int) -> Tensor:
        """(3, B, l, N, K) -> (3, B, L, n, K), all tokens of the Ulysses group."""
        axis = self._ulysses
        if axis.size == 1:
            return x
        heads = share_bounds(split_evenly(num_heads, axis.size))
        parts = [x[..., first:stop, :].contiguous() for first, stop in heads]
        first, stop = heads[axis.index]
        shapes = [(*x.shape[:2], size, stop - first, x.shape[-1]) for size in self._group_sizes]
        return torch.cat(axis.all_to_all(parts, shapes), dim=2)

    def _heads_to_tokens(self, x: Tensor, num_heads: int) -> Tensor:
        """(B, L, n, K) -> (B, l, N, K)."""
        axis = self._ulysses
        if axis.size == 1:
            return x
        parts = [part.contiguous() for part in x.split(list(self._group_sizes), dim=1)]
        heads = split_evenly(num_heads, axis.size)
        own = self._group_sizes[axis.index]
        shapes = [(x.shape[0], own, count, x.shape[-1]) for count in heads]
        return torch.cat(axis.all_to_all(parts, shapes), dim=2)

    def _ring_attention(self, q: Tensor, k: Tensor, v: Tensor, backend: AttentionBackend) -> Tensor:
        """Attention of (B, n, L, K) over the keys of all ring ranks."""
        axis, sizes = self._ring, self._block_sizes
        after, before = (axis.index + 1) % axis.size, (axis.index - 1) % axis.size
        block = torch.stack((k, v)).contiguous()
        merged = lse = None
        for turn in range(axis.size):
            transfer = None
            if turn < axis.size - 1:
                size = sizes[(axis.index - turn - 1) % axis.size]
                coming = block.new_empty((*block.shape[:3], size, block.shape[-1]))
                transfer = axis.start({after: block}, {before: coming})
            part, part_lse = dense_attention_lse(q, block[0], block[1], backend=backend)
            if merged is None or lse is None:
                merged, lse = part.float(), part_lse
            else:
                merged, lse = merge_attention(merged, lse, part, part_lse)
            if transfer is not None:
                transfer.wait()
                block = coming
        assert merged is not None
        return merged.to(q.dtype)


def merge_attention(
    out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys together, from that over each.

    Parameters
    ----------
    out, other : Tensor, shape (B, N, L, K)
        Attended values.
    lse, other_lse : Tensor, shape (B, N, L), float32
        Log of the sum of the exponentials of the scores.

    Returns
    -------
    tuple of Tensor
        Values, float32, and log-sum-exp of all keys.
    """
    both = torch.logaddexp(lse, other_lse)
    weight, other_weight = (torch.exp(x - both).unsqueeze(-1) for x in (lse, other_lse))
    return out.float() * weight + other.float() * other_weight, both
