"""Encoding and decoding a clip against a peer: same weights, alternating runs, one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from skyreels_rt.bench.step import MIN_REPEATS, alternate, median_row
from skyreels_rt.config import WanVAEConfig
from skyreels_rt.errors import InvalidArgument, MissingDependency, ModelError
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models.wan_vae import WanVAE
from skyreels_rt.report import Report, Row
from skyreels_rt.runtime.peak_memory import peak_bytes

AGREEMENT = 1e-4
"""Largest difference to the peer, relative to its largest output, that still is the same model."""

HALF_AGREEMENT = 32
"""The same in 16 bits: machine epsilons that the mean difference may be of the mean output."""

TARGETS = {"encode": 0.8, "decode": 0.6}
"""Most of the peer's time that each should take."""


@dataclass(frozen=True)
class ClipShape:
    """A clip to time.

    Attributes
    ----------
    height, width, num_frames : int
        Of the clip.
    """

    height: int
    width: int
    num_frames: int

    @property
    def name(self) -> str:
        """Part of the rows' names."""
        return f"{self.height}x{self.width}x{self.num_frames}"


SHAPES = (ClipShape(64, 64, 17), ClipShape(128, 128, 9))
FULL_SHAPES = (ClipShape(256, 256, 33),)


def measure_vae(
    *,
    peer: str,
    repeats: int,
    command: str,
    on_row: Callable[[Row], None] | None = None,
    shapes: tuple[ClipShape, ...] = SHAPES,
    config: WanVAEConfig | None = None,
) -> Report:
    """Time the Wan VAE in float32 on the CPU against ``peer`` with the same random weights.

    Parameters
    ----------
    peer : str
        ``"diffusers"``.
    repeats : int
        Timed runs per side, at least 5; sides alternate.
    command : str
        Command line recorded in the report.
    on_row : callable, optional
        Called with every finished row.
    shapes : tuple of ClipShape
        What to time.
    config : WanVAEConfig, optional
        Widths; Wan2.1's by default.

    Raises
    ------
    InvalidArgument
        Unknown peer or too few repeats.
    MissingDependency
        The peer is not installed.
    ModelError
        The two do not agree, so their times cannot be compared.
    """
    check_run(peer, repeats)
    config = config or WanVAEConfig()
    rows: list[Row] = []
    details: dict[str, Any] = {"repeats": repeats, "peer": peer, "config": asdict(config)}
    theirs, ours = build_models(config, KernelPlan.choose("cpu", torch.float32))
    with torch.inference_mode():
        for shape in shapes:
            for row in _measure_clip(shape, theirs, ours, repeats, details):
                rows.append(row)
                if on_row is not None:
                    on_row(row)
    plan = KernelPlan.choose("cpu", torch.float32)
    return Report(
        command=command,
        device="cpu",
        threads=torch.get_num_threads(),
        kernel_plan=plan.to_json(),
        rows=rows,
        details=details,
    )


def check_run(peer: str, repeats: int) -> None:
    """Raise InvalidArgument for an unknown peer or too few repeats."""
    if peer != "diffusers":
        raise InvalidArgument("peer", expected='"diffusers"', got=repr(peer))
    if repeats < MIN_REPEATS:
        raise InvalidArgument("repeats", expected=f"at least {MIN_REPEATS}", got=repeats)


def build_models(config: WanVAEConfig, plan: KernelPlan) -> tuple[Any, WanVAE]:
    """The peer's model and ours, with the same random weights, in float32 on the CPU.

    Raises
    ------
    MissingDependency
        The peer is not installed.
    """
    try:
        from diffusers import AutoencoderKLWan
    except ImportError as error:
        raise MissingDependency(
            "diffusers is not installed.", stage="bench", hint="pip install diffusers"
        ) from error
    ours = WanVAE(config, plan).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, weight in ours.named_parameters():
        if name.endswith("gamma"):
            weight.uniform_(0.5, 1.5, generator=generator)
        else:
            std = 0.1 if name.endswith("bias") else weight[0].numel() ** -0.5
            weight.normal_(std=std, generator=generator)
    theirs: Any = AutoencoderKLWan(
        base_dim=config.base_dim,
        z_dim=config.z_dim,
        dim_mult=list(config.dim_mult),
        num_res_blocks=config.num_res_blocks,
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    ours.channels_last_weights()
    return theirs.requires_grad_(False), ours


def _measure_clip(
    shape: ClipShape,
    theirs: Any,  # noqa: ANN401 - diffusers has no types
    ours: WanVAE,
    repeats: int,
    details: dict[str, Any],
) -> list[Row]:
    """Rows of one clip."""
    generator = torch.Generator().manual_seed(1)
    size = (1, 3, shape.num_frames, shape.height, shape.width)
    frames = torch.rand(size, generator=generator) * 2 - 1
    stride = ours.spatial_stride
    num_latents = (shape.num_frames - 1) // ours.temporal_stride + 1
    grid = (shape.height // stride, shape.width // stride)
    latents = torch.randn((1, ours.latent_channels, num_latents, *grid), generator=generator)
    raw = latents * ours.latents_std + ours.latents_mean

    def peer_encoded() -> Tensor:
        moments: Tensor = theirs.encode(frames).latent_dist.mode()
        return moments

    def encoded() -> Tensor:
        return ours.encode(frames) * ours.latents_std + ours.latents_mean

    sides: dict[str, dict[str, Callable[[], Tensor]]] = {
        "encode": {
            "peer": peer_encoded,
            "ours": encoded,
        },
        "decode": {
            "peer": lambda: theirs.decode(raw).sample,
            "ours": partial(ours.decode, latents),
        },
    }
    rows = []
    for part, both in sides.items():
        name = f"vae.{part}.{shape.name}"
        # Also warms both up.
        details[f"{name}.difference"] = require_agreement(name, both["ours"](), both["peer"]())
        seconds = alternate(both, repeats)
        ratios = [a / b for a, b in zip(seconds["ours"], seconds["peer"], strict=True)]
        rows += [
            median_row(f"{name}.seconds", seconds["ours"], "s"),
            median_row(f"{name}.peer_seconds", seconds["peer"], "s"),
            median_row(f"{name}.ratio", ratios, "ours / peer", TARGETS[part]),
        ]
        memory = [
            (peak_bytes(both["ours"]), peak_bytes(both["peer"])) for _ in range(MIN_REPEATS // 2)
        ]
        if part == "decode" and all(a is not None and b for a, b in memory):
            shares = [a / b for a, b in memory if a is not None and b]
            rows.append(median_row(f"{name}.peak_memory_ratio", shares, "ours / peer", 1.0))
            details[f"{name}.peak_bytes"] = memory
    return rows


def require_agreement(name: str, actual: Tensor, expected: Tensor) -> float:
    """Relative difference of our output to the peer's.

    Raises
    ------
    ModelError
        It is larger than two orders of summation explain.
    """
    error, scale = (actual - expected).float().abs(), expected.float().abs()
    if actual.dtype is torch.float32:
        difference, limit = float(error.max() / scale.max()), AGREEMENT
    else:
        difference = float(error.mean() / scale.mean())
        limit = HALF_AGREEMENT * torch.finfo(actual.dtype).eps
    if not difference <= limit:
        raise ModelError(
            f"{name}: differs from the peer by {difference:.2g} of its output, not {limit:.2g}.",
            stage="bench",
            hint="The two are not the same model; their times cannot be compared.",
        )
    return difference
