"""Reference of :func:`skyreels_rt.kernels.blf_step` and :func:`skyreels_rt.kernels.blf_velocity`.

Every product and every sum is an operation of its own, so that each is rounded: the bytes are part
of the specification.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def blf_step(
    latents_CNhw: Tensor,
    velocities: Sequence[Tensor],
    starts: Sequence[int],
    weights_Wn: Tensor,
    guidance: Sequence[float],
    delta: float,
    *,
    num_pinned: int = 0,
) -> Tensor:
    """``latents + velocity * delta`` behind the pinned latents.

    Parameters
    ----------
    latents_CNhw : Tensor, shape (C, N, h, w), float32 or float64
        Latents before the step.
    velocities, starts, weights_Wn, guidance
        See :func:`blf_velocity`.
    delta : float
        ``sigma_next - sigma``.
    num_pinned : int
        Leading latents that are copied.

    Returns
    -------
    Tensor, shape (C, N, h, w), dtype of the velocity
        A new tensor; differentiable.
    """
    velocity = blf_velocity(velocities, starts, weights_Wn, guidance, length=latents_CNhw.shape[1])
    stepped = latents_CNhw + velocity * delta
    pinned = latents_CNhw[:, :num_pinned].to(stepped.dtype)
    return torch.cat([pinned, stepped[:, num_pinned:]], dim=1)


def blf_velocity(
    velocities: Sequence[Tensor],
    starts: Sequence[int],
    weights_Wn: Tensor,
    guidance: Sequence[float],
    *,
    length: int,
) -> Tensor:
    """Weighted sum over passes, then over windows in timeline order.

    Parameters
    ----------
    velocities : sequence of W Tensor, shape (P, C, n, h, w), floating
        Computed in fp32 (fp64 stays fp64).
    starts : sequence of W int
        First latent of every window, ascending; windows cover all latents.
    weights_Wn : Tensor, shape (W, n)
        Fusion weights.
    guidance : sequence of P float
        Factor of each pass.
    length : int
        N.

    Returns
    -------
    Tensor, shape (C, N, h, w), float32 or float64
        A new tensor; differentiable.
    """
    _, channels, window, height, width = velocities[0].shape
    compute = torch.promote_types(velocities[0].dtype, torch.float32)
    fused = velocities[0].new_empty((channels, length, height, width), dtype=compute)
    filled = 0
    for velocity_PCnhw, start, weight_n in zip(velocities, starts, weights_Wn, strict=True):
        passes = velocity_PCnhw.to(compute)
        combined = passes[0] * guidance[0]
        for factor, velocity_Cnhw in zip(guidance[1:], passes[1:], strict=True):
            combined = combined + velocity_Cnhw * factor
        weighted = combined * weight_n[:, None, None]
        shared = filled - start
        fused[:, start:filled] += weighted[:, :shared]
        # Assigned, not added to zero: 0 + (-0.0) would lose a bit of an uncontested velocity.
        fused[:, filled : start + window] = weighted[:, shared:]
        filled = start + window
    return fused
