"""Training of the small VAE: reconstruction of short crops, faces weighted up."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyreels_rt.models.tiny_vae import TinyVAE

EDGE_WEIGHT = 0.5
LATENT_NOISE = 0.05
LATENT_PENALTY = 1e-4


def reconstruction_losses(
    vae: nn.Module, frames: Tensor, weights: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Losses of one batch of crops.

    Parameters
    ----------
    vae : TinyVAE
        In float32; computed under bfloat16 autocast.
    frames : Tensor, shape (B, 3, F, H, W), float32 in [-1, 1]
        ``F = 4 n + 1``.
    weights : Tensor, shape (B, 1, F, H, W), float32
        Weight of each pixel, about 1 in the mean.
    generator : torch.Generator
        On the CPU; draws the noise on the latents, which makes the decoder forgiving.

    Returns
    -------
    dict of str to Tensor
        ``loss``, and ``psnr`` in dB of the unweighted picture.
    """
    assert isinstance(vae, TinyVAE)
    frames, weights = frames.to(vae.device), weights.to(vae.device)
    with torch.autocast(vae.device.type, torch.bfloat16):
        latents = vae.encode(frames)
        noise = torch.randn(latents.shape, generator=generator).to(vae.device)
        spread = latents.detach().float().std()
        decoded = vae.decode(latents + LATENT_NOISE * spread * noise, clamp=False)
    error = decoded.float() - frames
    # A charbonnier distance: close to L1, so edges stay sharp, and smooth where it matters last.
    picture = (weights * (error.square() + 1e-4).sqrt()).mean()
    edges = sum(
        (weights.narrow(axis, 1, error.shape[axis] - 1) * error.diff(dim=axis).abs()).mean()
        for axis in (3, 4)
    )
    square = F.mse_loss(decoded.float().detach().clamp(-1, 1), frames)
    penalty = latents.float().square().mean()
    return {
        "loss": picture + EDGE_WEIGHT * edges + LATENT_PENALTY * penalty,
        "psnr": 10 * torch.log10(4 / square),
    }
