"""Whose code moves tokens between the ranks of sequence parallelism: ours, or yunchang's.

yunchang (feifeibear/long-context-attention, arXiv 2405.07719) is what xfuser's USP runs on: Ulysses
as one collective a tensor, and a ring over FlashAttention's kernels. It is taken where its package
is installed, its kernels exist and every rank finds its results right; :mod:`.usp` everywhere else.
It deals equal shares alone, so windows and heads that do not divide stay with ours.

The self-test is no formality: on a CPU yunchang's ring has only ``torch_math``, which returns zeros
for the log-sum-exp, and is wrong by a quarter of the values' size.

Legend: B batch, l own tokens, N heads, K head size.
"""

from __future__ import annotations

import enum
import importlib.util
from typing import Final

import torch
from torch import Tensor

from skyreels_rt.distributed.axis import Axis, peer_failures, split_evenly
from skyreels_rt.distributed.fit import require_even_heads
from skyreels_rt.distributed.mesh import Mesh, TokenExchange
from skyreels_rt.errors import InvalidArgument, MissingDependency, UnsupportedKernel
from skyreels_rt.kernels import AttentionBackend, dense_attention

TEST_TOKENS: Final = 25
"""Tokens of a rank in the self-test, which fill no tile; two heads of 64 for each Ulysses rank."""

_ROUNDINGS = 4.0  # of the output's type, of its largest value
_LEAST_TOLERANCE = 1e-5  # of the same: the promise of all ranks in float32
_RING_KERNELS = {
    ("cuda", True): ("fa3", "fa", "torch_flash"),
    ("cuda", False): ("torch_efficient",),
    ("cpu", True): ("torch_math",),
    ("cpu", False): ("torch_math",),
}
"""Names of yunchang's that give a log-sum-exp, best first: by device, and whether 16 bits wide."""


class USPLibrary(enum.Enum):
    """Who exchanges tokens."""

    AUTO = "auto"
    TORCH = "torch"
    YUNCHANG = "yunchang"


class Yunchang:
    """Self-attention over the tokens of all ranks by yunchang.

    A :class:`.mesh.TokenExchange`.

    Parameters
    ----------
    ulysses, ring : Axis
        Ranks.
    kernel : str or None
        yunchang's name of the kernel of a ring's turn; None without a ring.
    is_required : bool
        Whether shapes that it cannot deal out are refused.
    """

    def __init__(self, ulysses: Axis, ring: Axis, kernel: str | None, *, is_required: bool) -> None:
        from yunchang.comm.all_to_all import SeqAllToAll4D
        from yunchang.kernels import AttnType
        from yunchang.ring import ring_flash_attn_func

        self.is_required = is_required
        self._ulysses, self._ring = ulysses, ring
        self._kernel = None if kernel is None else AttnType.from_string(kernel)
        self._swap = SeqAllToAll4D.apply
        self._go_around = ring_flash_attn_func

    def attend(self, q: Tensor, k: Tensor, v: Tensor, backend: AttentionBackend) -> Tensor:
        """Attention of the own tokens' queries over the keys of all, (B, l, N, K) each.

        ``backend`` attends where there is no ring. Equal shares of tokens and heads everywhere.

        Raises
        ------
        PeerFailed
            A rank left, or did not answer in time.
        """
        if self._ulysses.size > 1:
            q, k, v = (self._exchanged(x, 2, 1) for x in (q, k, v))
        if self._ring.size > 1:
            attended = self._ring_attention(q, k, v)
        else:
            heads = (x.transpose(1, 2) for x in (q, k, v))
            attended = dense_attention(*heads, backend=backend).transpose(1, 2)
        return self._exchanged(attended, 1, 2) if self._ulysses.size > 1 else attended

    def _exchanged(self, x: Tensor, scatter: int, gather: int) -> Tensor:
        """All-to-all over the Ulysses ranks: one dimension is dealt out, another comes together."""
        axis = self._ulysses
        axis.sent_bytes += x.numel() * x.element_size() * (axis.size - 1) // axis.size
        with peer_failures(axis.name):
            out: Tensor = self._swap(axis.group, x.contiguous(), scatter, gather)
        return out

    def _ring_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        axis = self._ring
        axis.sent_bytes += 2 * k.numel() * k.element_size() * (axis.size - 1)
        with peer_failures(axis.name):
            out: Tensor = self._go_around(
                q.contiguous(), k, v, causal=False, group=axis.group, attn_type=self._kernel
            )
        return out


def use_library(request: USPLibrary, mesh: Mesh, dtype: torch.dtype, num_heads: int) -> None:
    """Set who exchanges the tokens of ``mesh``; every rank must ask for the same.

    Parameters
    ----------
    request : USPLibrary
        AUTO takes yunchang on CUDA if all ranks found it right, and ours else.
    mesh : Mesh
        Its ``exchange`` and ``exchange_note`` are set.
    dtype : torch.dtype
        Of the tokens.
    num_heads : int
        Of the model.

    Raises
    ------
    InvalidArgument
        yunchang was asked for, and no ranks share tokens.
    InvalidMesh
        yunchang was asked for, and the heads do not divide.
    MissingDependency
        yunchang was asked for, and is not installed on every rank.
    UnsupportedKernel
        yunchang was asked for, and did not pass its self-test.
    PeerFailed
        A rank left.
    """
    mesh.exchange, mesh.exchange_note = None, "requested"
    if request is USPLibrary.TORCH:
        return
    is_required = request is USPLibrary.YUNCHANG
    if mesh.axis("sequence").size == 1:
        mesh.exchange_note = "no ranks share tokens"
        if is_required:
            raise InvalidArgument("usp", expected="ulysses or ring ranks", got=str(mesh.parallel))
        return
    if is_required:
        require_even_heads(mesh.parallel, num_heads)
    elif mesh.device.type != "cuda":
        mesh.exchange_note = "on the CPU"
        return
    if mesh.any(importlib.util.find_spec("yunchang") is None):
        mesh.exchange_note = "yunchang is not installed on every rank"
        if is_required:
            raise MissingDependency(
                "usp='yunchang' needs yunchang on every rank.",
                stage="mesh",
                hint="pip install 'skyreels-rt[usp]', or usp='torch'.",
            )
        return
    mesh.exchange, mesh.exchange_note = _tested(mesh, dtype, is_required=is_required)
    if is_required and mesh.exchange is None:
        raise UnsupportedKernel(
            f"usp: yunchang cannot be used for {dtype} on {mesh.device}: {mesh.exchange_note}.",
            stage="mesh",
            hint="usp='torch' is right everywhere.",
        )


def _tested(mesh: Mesh, dtype: torch.dtype, *, is_required: bool) -> tuple[Yunchang | None, str]:
    """The first of yunchang's kernels that all ranks find right, and what they found."""
    ulysses, ring = mesh.axis("ulysses"), mesh.axis("ring")
    names: tuple[str | None, ...] = (None,)
    if ring.size > 1:
        names = _RING_KERNELS[mesh.device.type, dtype.itemsize == 2]
    notes = []
    for name in names:
        what = "Ulysses" if name is None else f"ring by {name}"
        obstacle = _missing(name)
        if not mesh.any(obstacle is not None):
            library = Yunchang(ulysses, ring, name, is_required=is_required)
            obstacle = self_test(library, mesh, dtype)
            if not mesh.any(obstacle is not None):
                return library, f"{what} passed its self-test"
        notes.append(f"{what}: {obstacle or 'another rank found it wrong'}")
    return None, "; ".join(notes)


def _missing(kernel: str | None) -> str | None:
    """Why a kernel of yunchang's cannot be called at all, or None."""
    from yunchang import globals as found

    flags = {"fa3": found.HAS_FLASH_ATTN_HOPPER, "fa": found.HAS_FLASH_ATTN}
    is_there = kernel is None or flags.get(kernel, True)
    return None if is_there else "FlashAttention is not installed"


def self_test(library: TokenExchange, mesh: Mesh, dtype: torch.dtype) -> str | None:
    """What is wrong with a library's attention over the ranks of ``mesh``, or None.

    Every rank must ask. Each draws all tokens, attends in float64 to what it should get, and
    compares.

    Returns
    -------
    str or None
        One clause: the exception it raised, or how far its output is from the fp64 result.
    """
    sequence, heads = mesh.axis("sequence"), 2 * mesh.axis("ulysses").size
    sizes = split_evenly(TEST_TOKENS * sequence.size, sequence.size)
    shape = (2, sum(sizes), heads, 64)
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(shape, generator=draw).to(dtype) for _ in range(3))
    own = slice(sequence.index * TEST_TOKENS, (sequence.index + 1) * TEST_TOKENS)
    exact = dense_attention(
        *(x.double().transpose(1, 2) for x in (q[:, own], k, v)), backend=AttentionBackend.SDPA
    ).transpose(1, 2)
    q, k, v = (x[:, own].to(mesh.device) for x in (q, k, v))
    try:
        with torch.no_grad():
            out = library.attend(q, k, v, AttentionBackend.SDPA).double().cpu()
    except Exception as error:  # whatever a foreign library raises
        return f"self-test raised {type(error).__name__}: {error}"
    if out.shape != exact.shape:
        return f"self-test gave shape {tuple(out.shape)} for {tuple(exact.shape)}"
    roundings = max(_ROUNDINGS * torch.finfo(dtype).eps, _LEAST_TOLERANCE)
    limit, difference = roundings * float(exact.abs().max()), float((out - exact).abs().max())
    if not difference <= limit:
        return f"self-test is off by {difference:.2g}, allowed {limit:.2g}"
    return None
