"""3 x 3 convolution of video frames with the frames before them in a tensor of their own.

::

    y[f, i, j] = bias + residual[f, i, j]
                 + sum over t, u, v of weight[t, u, v] frames[f + t, i + u - 1, j + v - 1]
    frames = past, then x; zero outside the picture and, without past, before x

Legend: B batch, C input and D output channels, F frames, H W space, taps 1 or 3. Replaces the
concatenation with the cached frames, the copy for doubled rows and columns (nearest neighbour), the
convolution, and the addition of the residual.

Algorithm: Winograd's minimal filtering F(4 x 4, 3 x 3) in space and a plain sum in time: a quarter
of the multiplications (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016,
section 4.3). The weight at the 36 points, four times its bytes, is made anew in each call: kept, it
would be most of a model's memory.
Numerics: fp32; the transforms make errors several times those of a direct fp32 convolution
(:data:`MAX_ERROR`). The same bytes for any number of threads and on any processor.
Layout: channels-last; other orders are copied into it.

============== ======== ======
implementation device   dtypes
============== ======== ======
reference      any      any
cpp            CPU      fp32
============== ======== ======

``cpp`` takes channels in multiples of 16; for others the reference runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.kernels import _checks, _native
from skyreels_rt.kernels._library import define_op
from skyreels_rt.kernels._select import Impl, resolve
from skyreels_rt.kernels.reference import causal_conv3d as _reference

MAX_ERROR = 4e-5
"""Largest error of an output, relative to the largest output, at Wan2.1's widths."""

_CHANNEL_MULTIPLE, _PANEL, _POINTS = 16, 48, 36


def causal_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    past: Tensor | None = None,
    residual: Tensor | None = None,
    doubled: bool = False,
    impl: Impl = Impl.AUTO,
) -> Tensor:
    """Convolve frames behind the frames before them.

    Where a gradient is needed the reference runs, whatever ``impl`` says.

    Parameters
    ----------
    x : Tensor, shape (B, C, F, H, W)
        New frames.
    weight : Tensor, shape (D, C, taps, 3, 3)
        Kernel, taps 1 or 3.
    bias : Tensor, shape (D,), or None
        Bias.
    past : Tensor, shape (B, C, taps - 1, H, W), or None
        Frames before ``x``; None: zeros.
    residual : Tensor, shape of the result, or None
        Added to the result.
    doubled : bool
        Double rows and columns first, each pixel repeated.
    impl : Impl
        Implementation, usually ``plan.causal_conv3d``.

    Returns
    -------
    Tensor, shape (B, D, F, H, W), or (B, D, F, 2 H, 2 W) where doubled
        A new tensor, from ``cpp`` in channels-last order.

    Raises
    ------
    InvalidArgument
        A shape, dtype or device outside the above.
    UnsupportedKernel
        The requested implementation cannot run here.
    """
    _check(x, weight, bias, past, residual, doubled)
    chosen = resolve("causal_conv3d", impl, x.device.type, x.dtype)
    fits = all(channels % _CHANNEL_MULTIPLE == 0 for channels in weight.shape[:2])
    given = [one for one in (x, weight, bias, past, residual) if one is not None]
    if chosen == "reference" or not fits or _checks.needs_gradient(*given):
        return _reference.causal_conv3d(
            x, weight, bias, past=past, residual=residual, doubled=doubled
        )
    out: Tensor = _op(
        _dense(x), _packable(weight), bias, _dense(past), _dense(residual), doubled, chosen
    )
    return out


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    residual: Tensor | None,
    doubled: bool,
) -> None:
    """Raise where the arguments do not fit."""
    _checks.require_shape("x", x, (None,) * 5, "(B, C, F, H, W)")
    _checks.require_floating("x", x)
    batch, channels, frames, height, width = x.shape
    if frames == 0:
        raise InvalidArgument("x", expected="F >= 1", got=tuple(x.shape))
    if weight.ndim != 5 or weight.shape[1] != channels or weight.shape[3:] != (3, 3):
        raise InvalidArgument(
            "weight", expected=f"shape (D, {channels}, taps, 3, 3)", got=tuple(weight.shape)
        )
    out_channels, _, taps = weight.shape[:3]
    if taps not in (1, 3):
        raise InvalidArgument("weight", expected="1 or 3 taps", got=taps)
    factor = 2 if doubled else 1
    out_shape = (batch, out_channels, frames, height * factor, width * factor)
    shapes = {
        "bias": (bias, (out_channels,)),
        "past": (past, (batch, channels, taps - 1, height, width)),
        "residual": (residual, out_shape),
    }
    for name, (one, shape) in shapes.items():
        if one is not None and tuple(one.shape) != shape:
            raise InvalidArgument(name, expected=f"shape {shape}", got=tuple(one.shape))
    named = {"weight": weight, "bias": bias, "past": past, "residual": residual}
    for name, one in named.items():
        if one is None:
            continue
        _checks.require_device(name, one, "x", x)
        if one.dtype != x.dtype:
            raise InvalidArgument(name, expected=f"dtype {x.dtype}", got=one.dtype)


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous(memory_format=torch.channels_last_3d)


def _packable(weight: Tensor) -> Tensor:
    """``weight`` itself if its rows of three follow each other, else a copy."""
    return weight if weight.stride(3) == 3 * weight.stride(4) else weight.contiguous()


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    residual: Tensor | None,
    doubled: bool,
    impl: str,
) -> Tensor:
    out = _fake(x, weight, bias, past, residual, doubled, impl)
    bias = None if bias is None else bias.contiguous()
    batch, channels, frames = x.shape[:3]
    out_channels, _, taps = weight.shape[:3]
    native, threads = _native.extension(), torch.get_num_threads()
    packed = x.new_empty(_POINTS * -(-out_channels // _PANEL) * _PANEL * taps * channels)
    *strides, _, pixel = weight.stride()
    native.pack_conv_weight(
        weight.data_ptr(), packed.data_ptr(), out_channels, channels, taps, (*strides, pixel),
        threads,
    )  # fmt: skip

    def address(one: Tensor | None) -> int:
        return 0 if one is None else one.data_ptr()

    _native.in_huge_pages(out)
    native.causal_conv3d(
        address(past), address(x), address(packed), address(bias), address(residual), address(out),
        batch, channels, out_channels, frames, *out.shape[3:], taps, doubled, threads,
    )  # fmt: skip
    return out


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,  # noqa: ARG001 - the schema's arguments, as below
    past: Tensor | None,  # noqa: ARG001
    residual: Tensor | None,  # noqa: ARG001
    doubled: bool,
    impl: str,  # noqa: ARG001
) -> Tensor:
    batch, _, frames, height, width = x.shape
    factor = 2 if doubled else 1
    out = x.new_empty((batch, frames, height * factor, width * factor, weight.shape[0]))
    return out.permute(0, 4, 1, 2, 3)


_op = define_op(
    "causal_conv3d(Tensor x, Tensor weight, Tensor? bias, Tensor? past, Tensor? residual, "
    "bool doubled, str impl) -> Tensor",
    run=_run,
    fake=_fake,
)
