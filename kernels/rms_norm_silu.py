"""RMS norm over the channels of a video's activations, then SiLU, fused.

::

    n = x / max(|x|, 1e-12) * sqrt(C) * gamma               |x|: Euclidean norm over the C channels
    y = n / (1 + exp(-n))                                   with silu, else n

Legend: B batch, C channels, T frames, H W space. Replaces norm, clamp, division, two
multiplications and SiLU before every convolution of the Wan VAE.

Numerics: fp32 throughout (in fp16 the floor is zero and the sum of squares may overflow); one
rounding, at the store. The CPU implementation gives the same bytes for any number of threads and on
any x86 processor; the two memory orders add in different orders.
Layout: contiguous or channels-last (``torch.channels_last_3d``), and the output is alike; anything
else is copied into the nearer of the two first.

============== ======== ======================
implementation device   dtypes
============== ======== ======================
reference      any      fp32, bf16, fp16, fp64
cpp            CPU      fp32, bf16
triton         CUDA     fp32, bf16, fp16
============== ======== ======================

Source: Wan-Video/Wan2.1 ``wan/modules/vae.py`` (``RMS_norm``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.kernels import _checks, _native
from skyreels_rt.kernels._library import define_op
from skyreels_rt.kernels._select import Impl, resolve
from skyreels_rt.kernels.reference import rms_norm_silu as _reference


def rms_norm_silu(
    x: Tensor,
    gamma: Tensor,
    *,
    silu: bool = True,
    out: Tensor | None = None,
    impl: Impl = Impl.AUTO,
) -> Tensor:
    """Normalise activations over their channels and apply SiLU.

    Where a gradient is needed the reference runs, whatever ``impl`` says.

    Parameters
    ----------
    x : Tensor, shape (B, C, T, H, W), fp32|bf16|fp16
        Activations.
    gamma : Tensor, shape (C) or (C, 1, ...), floating
        Gain of each channel.
    silu : bool
        Apply SiLU to the result.
    out : Tensor, shape and dtype of x, optional
        Where the result goes, apart from ``x``; dense in the memory order of ``x`` to be written
        without a copy. Not differentiable.
    impl : Impl
        Implementation, usually ``plan.rms_norm_silu``.

    Returns
    -------
    Tensor, shape (B, C, T, H, W), dtype and memory order of x
        ``out``, or a new tensor.

    Raises
    ------
    InvalidArgument
        A shape, dtype or device outside the above.
    UnsupportedKernel
        The requested implementation cannot run here.
    """
    _checks.require_shape("x", x, (None,) * 5, "(B, C, T, H, W)")
    _checks.require_floating("x", x)
    channels = x.shape[1]
    if channels == 0:
        raise InvalidArgument("x", expected="C >= 1", got=tuple(x.shape))
    if gamma.ndim == 0 or gamma.shape[0] != channels or gamma.numel() != channels:
        raise InvalidArgument(
            "gamma", expected=f"shape (C) or (C, 1, ...), C = {channels}", got=tuple(gamma.shape)
        )
    _checks.require_floating("gamma", gamma)
    _checks.require_device("gamma", gamma, "x", x)
    chosen = resolve("rms_norm_silu", impl, x.device.type, x.dtype)
    gamma = gamma.reshape(channels)
    if out is not None:
        _checks.require_shape("out", out, tuple(x.shape), "(B, C, T, H, W), as x")
        _checks.require_like("out", out, "x", x)
    if chosen == "reference" or _checks.needs_gradient(x, gamma):
        y = _reference.rms_norm_silu(x, gamma, silu=silu)
        return y if out is None else out.copy_(y)
    x = _dense(x)
    if out is not None and _same_order(x, out):
        _op_into(x, gamma, out, silu, chosen)
        return out
    y = _op(x, gamma, silu, chosen)
    return y if out is None else out.copy_(y)


def _channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last_3d)


def _same_order(x: Tensor, out: Tensor) -> bool:
    """Whether ``out`` is dense in the order that an implementation takes for that of ``x``."""
    return _channels_last(out) if _channels_last(x) else out.is_contiguous()


def _dense(x: Tensor) -> Tensor:
    """``x`` itself if its memory order is one of the two, else a copy in the nearer one."""
    if x.is_contiguous() or _channels_last(x):
        return x
    nearer = torch.channels_last_3d if x.stride(1) == 1 else torch.contiguous_format
    return x.contiguous(memory_format=nearer)


def _run(x: Tensor, gamma: Tensor, silu: bool, impl: str) -> Tensor:
    out = torch.empty_like(x)
    _run_into(x, gamma, out, silu, impl)
    return out


def _run_into(x: Tensor, gamma: Tensor, out: Tensor, silu: bool, impl: str) -> None:
    gain = gamma.float().contiguous()
    # Either is right where both hold; rows of channels need no scratch.
    channels_last = _channels_last(x)
    batch, channels, *space = x.shape
    positions = space[0] * space[1] * space[2]
    if impl == "triton":
        from skyreels_rt.kernels.triton import rms_norm_silu as triton

        triton.launch(x, gain, out, (batch, channels, positions), channels_last, silu)
        return
    _native.in_huge_pages(out)
    _native.extension().rms_norm_silu(
        x.data_ptr(), out.data_ptr(), gain.data_ptr(), _native.DTYPE_CODES[x.dtype],
        batch, channels, positions, channels_last, silu, torch.get_num_threads(),
    )  # fmt: skip


def _fake(x: Tensor, gamma: Tensor, silu: bool, impl: str) -> Tensor:  # noqa: ARG001 - the schema's arguments
    return torch.empty_like(x)


_op = define_op(
    "rms_norm_silu(Tensor x, Tensor gamma, bool silu, str impl) -> Tensor", run=_run, fake=_fake
)

_op_into = define_op(
    "rms_norm_silu_into(Tensor x, Tensor gamma, Tensor(a!) out, bool silu, str impl) -> ()",
    run=_run_into,
    fake=lambda *_: None,
)
