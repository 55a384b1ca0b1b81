"""Small seeded VAEs and their exported folders, made once."""

from __future__ import annotations

import logging

import pytest
import torch

from skyreels_rt.config import TinyVAEConfig, WanVAEConfig
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models.tiny_vae import TinyVAE
from skyreels_rt.models.wan_vae import WanVAE

WAN = WanVAEConfig(base_dim=8, num_res_blocks=1)
TINY = TinyVAEConfig(
    z_dim=8, encoder_dims=(8, 12, 16, 20), decoder_dims=(20, 16, 12, 8), num_blocks=(1, 1, 1)
)
SIZE = (16, 24)


def build(kind: str, seed: int = 0) -> WanVAE | TinyVAE:
    """A VAE whose random weights keep activations near unit size."""
    plan = KernelPlan.choose("cpu", torch.float32)
    vae = (WanVAE(WAN, plan) if kind == "wan" else TinyVAE(TINY)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in vae.named_parameters():
        if "gamma" in name:
            parameter.uniform_(0.5, 1.5, generator=generator)
        else:
            std = 0.1 if name.endswith("bias") else parameter[0].numel() ** -0.5
            parameter.normal_(std=std, generator=generator)
    return vae


@pytest.fixture
def vae_of():
    return build


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Folder of a small VAE's graphs, exported on first use."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: nothing is exported")
    from skyreels_rt.export.facts import GRAPHS
    from skyreels_rt.export.onnx import export_vae

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    made = {}

    def folder(kind: str, dtype: torch.dtype = torch.float32, size=SIZE, graphs=GRAPHS):
        key = (kind, dtype, size, graphs)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("export")
            export_vae(build(kind), made[key], size=size, dtype=dtype, graphs=graphs)
        return made[key]

    return folder
