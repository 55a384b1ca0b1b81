"""Decoded frames to bytes: float [-1, 1], planes first, to uint8 RGB, channels last, in one pass.

::

    y[f, h, w, c] = round_half_even(clamp((x[c, f, h, w] + 1) * 127.5, 0, 255)),   NaN -> 0

Legend: C = 3 channels, F frames, H W space. Replaces add, multiply, clamp, round, cast and permute.

Numerics: fp32 arithmetic with one rounding per operation, as the reference; every implementation
gives the same bytes. Infinities clamp. NaN becomes 0: checking for it is the session's duty.
Layout: each H x W plane dense, any channel and frame strides; the output is contiguous.

============== ======== ======================
implementation device   dtypes
============== ======== ======================
reference      any      fp32, bf16, fp16, fp64
cpp            CPU      fp32, bf16
cuda           CUDA     fp32, bf16, fp16
triton         CUDA     fp32, bf16, fp16
============== ======== ======================
"""

from __future__ import annotations

import torch
from torch import Tensor

from skyreels_rt.kernels import _checks, _native
from skyreels_rt.kernels._library import define_op
from skyreels_rt.kernels._select import Impl, resolve
from skyreels_rt.kernels.reference import frames_to_uint8 as _reference


def frames_to_uint8(frames: Tensor, *, impl: Impl = Impl.AUTO) -> Tensor:
    """Convert float frames to uint8 RGB.

    Parameters
    ----------
    frames : Tensor, shape (3, F, H, W), fp32|bf16|fp16
        Frames in [-1, 1].
    impl : Impl
        Implementation, usually ``plan.frames_to_uint8``.

    Returns
    -------
    Tensor, shape (F, H, W, 3), uint8
        On the device of ``frames``, contiguous.

    Raises
    ------
    InvalidArgument
        ``frames`` has another shape or is not floating.
    UnsupportedKernel
        The requested implementation cannot run here.
    """
    _checks.require_shape("frames", frames, (3, None, None, None), "(3, F, H, W)")
    _checks.require_floating("frames", frames)
    chosen = resolve("frames_to_uint8", impl, frames.device.type, frames.dtype)
    if chosen == "reference":
        return _reference.frames_to_uint8(frames)
    if frames.stride(3) != 1 or frames.stride(2) != frames.shape[3]:
        frames = frames.contiguous()
    out: Tensor = _op(frames, chosen)
    return out


_launch = _native.cuda_launcher(
    "frames_to_uint8", *[_native.POINTER] * 2, _native.INT, *[_native.INT64] * 4
)


def _run(frames: Tensor, impl: str) -> Tensor:
    _, num_frames, height, width = frames.shape
    out = frames.new_empty((num_frames, height, width, 3), dtype=torch.uint8)
    if impl == "triton":
        from skyreels_rt.kernels.triton import frames_to_uint8 as triton

        triton.launch(frames, out)
        return out
    sizes = (num_frames, height * width, frames.stride(0), frames.stride(1))
    source, target = frames.data_ptr(), out.data_ptr()
    dtype = _native.DTYPE_CODES[frames.dtype]
    if impl == "cuda":
        with torch.cuda.device(frames.device):
            _launch(source, target, dtype, *sizes)
    else:
        convert = _native.extension().frames_to_uint8
        convert(source, target, dtype, *sizes, torch.get_num_threads())
    return out


def _fake(frames: Tensor, impl: str) -> Tensor:  # noqa: ARG001 - the schema's argument
    _, num_frames, height, width = frames.shape
    return frames.new_empty((num_frames, height, width, 3), dtype=torch.uint8)


_op = define_op("frames_to_uint8(Tensor frames, str impl) -> Tensor", run=_run, fake=_fake)
