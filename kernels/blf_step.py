"""One denoising step of a group of windows: guidance, BLF fusion and Euler update in one pass.

::

    u_w[n] = sum_p guidance[p] * v[w][p, :, n - start_w]         over the guidance passes
    u[n]   = sum_w weights[w, n - start_w] * u_w[n]              over the windows that cover n
    y[n]   = x[n] + delta * u[n]                                 n >= num_pinned;  y[n] = x[n] below

Legend: C channels, N latent frames of the group, h w space, W windows of n latent frames, P passes.
Replaces the chain combine -> fuse -> EulerSolver.step of :mod:`skyreels_rt.diffusion`, which goes
through memory once for every product and every sum.

Numerics: fp32, every product and every sum rounded on its own, passes in the order given, windows
in timeline order; a sum starts with its first term, not with zero. So every implementation gives
the bytes of that chain, whatever the order in which the windows were produced.
Layout: each h x w plane dense, any other strides, the same for all windows (else they are copied);
the output is contiguous.

============== ======== ======================
implementation device   dtypes of the velocities
============== ======== ======================
reference      any      fp32, bf16, fp16, fp64
cpp            CPU      fp32, bf16
cuda           CUDA     fp32, bf16, fp16
triton         CUDA     fp32, bf16, fp16
============== ======== ======================

Source: BLF is named by SkyReels-Audio (arXiv 2506.00830); the formula is ours
(:mod:`skyreels_rt.diffusion.blf`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.kernels import _checks, _native
from skyreels_rt.kernels._library import define_op
from skyreels_rt.kernels._select import Impl, resolve
from skyreels_rt.kernels.reference import blf_step as _reference

MAX_PASSES = 3
"""Guidance passes of a step, at most (``kMaxPasses`` in ``csrc``)."""


def blf_step(
    latents: Tensor,
    velocities: Sequence[Tensor],
    starts: Sequence[int],
    weights: Tensor,
    guidance: Sequence[float],
    delta: float,
    *,
    num_pinned: int = 0,
    impl: Impl = Impl.AUTO,
) -> Tensor:
    """Combine passes and windows into one velocity and take an Euler step on it.

    Parameters
    ----------
    latents : Tensor, shape (C, N, h, w), fp32
        Latents of the whole group, before the step.
    velocities : sequence of W Tensor, shape (P, C, n, h, w), fp32|bf16|fp16
        Velocity of every window and pass, in timeline order; P is 1 to 3.
    starts : sequence of W int
        First latent of every window, counted from the group's own: ascending from 0 to ``N - n``,
        without a gap between windows.
    weights : Tensor, shape (W, n), fp32
        Fusion weights, normalised (:func:`skyreels_rt.diffusion.blf.window_weights`).
    guidance : sequence of P float
        Factor of each pass.
    delta : float
        ``sigma_next - sigma``.
    num_pinned : int
        Leading latents that are copied, not solved for.
    impl : Impl
        Implementation, usually ``plan.blf_step``.

    Returns
    -------
    Tensor, shape (C, N, h, w), fp32
        Latents after the step, contiguous; ``latents`` is not written to.

    Raises
    ------
    InvalidArgument
        A shape, dtype, device or number outside the above.
    UnsupportedKernel
        The requested implementation cannot run here.
    """
    _checks.require_shape("latents", latents, (None, None, None, None), "(C, N, h, w)")
    channels, length, height, width = latents.shape
    chosen = _check(velocities, starts, weights, guidance, length, impl)
    _checks.require_shape(
        "velocities", velocities[0], (None, channels, None, height, width), "(P, C, n, h, w)"
    )
    _require_fp32("latents", latents, velocities[0])
    _checks.require_device("latents", latents, "velocities", velocities[0])
    if not 0 <= num_pinned <= length:
        raise InvalidArgument("num_pinned", expected=f"0 to N = {length}", got=num_pinned)
    if chosen == "reference" or _checks.needs_gradient(latents, weights, *velocities):
        return _reference.blf_step(
            latents, velocities, starts, weights, guidance, delta, num_pinned=num_pinned
        )
    out: Tensor = _op(
        _dense_planes(latents), _alike(velocities), starts, weights, guidance, delta,
        length, num_pinned, chosen,
    )  # fmt: skip
    return out


def blf_velocity(
    velocities: Sequence[Tensor],
    starts: Sequence[int],
    weights: Tensor,
    guidance: Sequence[float],
    *,
    length: int,
    impl: Impl = Impl.AUTO,
) -> Tensor:
    """Combine passes and windows into one velocity, for solvers other than Euler's.

    Parameters
    ----------
    velocities, starts, weights, guidance
        See :func:`blf_step`.
    length : int
        N.
    impl : Impl
        Implementation, usually ``plan.blf_step``.

    Returns
    -------
    Tensor, shape (C, N, h, w), fp32
        The fused velocity u, contiguous.

    Raises
    ------
    InvalidArgument
        A shape, dtype, device or number outside the above.
    UnsupportedKernel
        The requested implementation cannot run here.
    """
    chosen = _check(velocities, starts, weights, guidance, length, impl)
    if chosen == "reference" or _checks.needs_gradient(weights, *velocities):
        return _reference.blf_velocity(velocities, starts, weights, guidance, length=length)
    out: Tensor = _op(None, _alike(velocities), starts, weights, guidance, 1.0, length, 0, chosen)
    return out


def _check(
    velocities: Sequence[Tensor],
    starts: Sequence[int],
    weights: Tensor,
    guidance: Sequence[float],
    length: int,
    impl: Impl,
) -> str:
    """Name of the implementation, after checking what both functions take."""
    if len(velocities) == 0:
        raise InvalidArgument("velocities", expected="at least one window", got="none")
    first = velocities[0]
    _checks.require_shape("velocities", first, (None, None, None, None, None), "(P, C, n, h, w)")
    _checks.require_floating("velocities", first)
    for velocity in velocities[1:]:
        if velocity.shape != first.shape:
            raise InvalidArgument(
                "velocities", expected=f"one shape, {tuple(first.shape)}", got=tuple(velocity.shape)
            )
        _checks.require_like("velocities", velocity, "velocities[0]", first)
    passes, _, window = first.shape[:3]
    if not 1 <= passes <= MAX_PASSES:
        raise InvalidArgument("velocities", expected=f"1 to {MAX_PASSES} passes", got=passes)
    if len(guidance) != passes:
        raise InvalidArgument("guidance", expected=f"{passes} factors", got=len(guidance))
    _check_starts(starts, len(velocities), window, length)
    _checks.require_shape("weights", weights, (len(velocities), window), "(W, n)")
    _require_fp32("weights", weights, first)
    _checks.require_device("weights", weights, "velocities", first)
    chosen: str = resolve("blf_step", impl, first.device.type, first.dtype)
    return chosen


def _check_starts(starts: Sequence[int], count: int, window: int, length: int) -> None:
    """Raise unless ``count`` windows of ``window`` latents cover ``length`` latents in order."""
    covered = (
        len(starts) == count
        and starts[0] == 0
        and starts[-1] + window == length
        and all(0 < after - before <= window for before, after in pairwise(starts))
    )
    if not covered:
        raise InvalidArgument(
            "starts",
            expected=f"{count} ascending numbers that cover N = {length} by windows of {window}",
            got=list(starts),
        )


def _require_fp32(name: str, x: Tensor, velocity: Tensor) -> None:
    """Raise unless ``x`` is fp32, or fp64 beside fp64 velocities (the oracle)."""
    if x.dtype not in (torch.float32, torch.promote_types(velocity.dtype, torch.float32)):
        raise InvalidArgument(name, expected="float32", got=str(x.dtype))


def _dense_planes(x: Tensor) -> Tensor:
    dense = x.stride(-1) == 1 and x.stride(-2) == x.shape[-1]
    return x if dense else x.contiguous()


def _alike(velocities: Sequence[Tensor]) -> list[Tensor]:
    """Velocities with dense planes and the same strides."""
    dense = [_dense_planes(velocity) for velocity in velocities]
    strides = dense[0].stride()
    if any(velocity.stride() != strides for velocity in dense[1:]):
        dense = [velocity.contiguous() for velocity in dense]
    return dense


_launch = _native.cuda_launcher(
    "blf_step", *[_native.POINTER] * 6, _native.INT, *[_native.INT64] * 12, _native.FLOAT
)


def _run(
    latents: Tensor | None,
    velocities: list[Tensor],
    starts: list[int],
    weights: Tensor,
    guidance: list[float],
    delta: float,
    length: int,
    num_pinned: int,
    impl: str,
) -> Tensor:
    weights = weights.contiguous()
    out = _fake(latents, velocities, starts, weights, guidance, delta, length, num_pinned, impl)
    if out.numel() == 0:
        return out
    if impl == "triton":
        from skyreels_rt.kernels.triton import blf_step as triton

        with torch.cuda.device_of(out):
            triton.blf_step(latents, velocities, starts, weights, guidance, delta, num_pinned, out)
        return out
    first = velocities[0]
    passes, channels, window, height, width = first.shape
    pinned_strides = (0, 0) if latents is None else latents.stride()[:2]
    source = None if latents is None else latents.data_ptr()
    addresses = [velocity.data_ptr() for velocity in velocities]
    sizes = (
        len(velocities), passes, window, channels, length, num_pinned, height * width,
        *pinned_strides, *first.stride()[:3],
    )  # fmt: skip
    dtype = _native.DTYPE_CODES[first.dtype]
    if impl == "cuda":
        pointers = (ctypes.c_void_p * len(addresses))(*addresses)
        numbers = (ctypes.c_int64 * len(starts))(*starts)
        factors = (ctypes.c_float * passes)(*guidance)
        with torch.cuda.device(out.device):
            _launch(
                source, ctypes.addressof(pointers), ctypes.addressof(numbers), weights.data_ptr(),
                ctypes.addressof(factors), out.data_ptr(), dtype, *sizes, delta,
            )  # fmt: skip
    else:
        _native.extension().blf_step(
            source or 0, addresses, starts, weights.data_ptr(), guidance, out.data_ptr(),
            dtype, *sizes[2:], delta, torch.get_num_threads(),
        )  # fmt: skip
    return out


def _fake(
    latents: Tensor | None,  # noqa: ARG001 - the schema's arguments
    velocities: list[Tensor],
    starts: list[int],  # noqa: ARG001
    weights: Tensor,  # noqa: ARG001
    guidance: list[float],  # noqa: ARG001
    delta: float,  # noqa: ARG001
    length: int,
    num_pinned: int,  # noqa: ARG001
    impl: str,  # noqa: ARG001
) -> Tensor:
    _, channels, _, height, width = velocities[0].shape
    return velocities[0].new_empty((channels, length, height, width), dtype=torch.float32)


_op = define_op(
    "blf_step(Tensor? latents, Tensor[] velocities, int[] starts, Tensor weights,"
    " float[] guidance, float delta, int length, int num_pinned, str impl) -> Tensor",
    run=_run,
    fake=_fake,
)
