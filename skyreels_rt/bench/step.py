"""One transformer step against a peer: same weights and inputs, alternating runs, one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skyreels_rt.errors import InvalidArgument, MissingDependency, ModelError
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models.transformer import ContextCache, SkyReelsTransformer
from skyreels_rt.report import Report, Row
from skyreels_rt.testing.tiny import randomise
from skyreels_rt.weights.diffusers_layout import transformer_config_from_diffusers
from skyreels_rt.weights.key_maps import diffusers_wan_key

MIN_REPEATS = 5
AGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest difference to the peer, relative to its largest output, that still is the same model."""


@dataclass(frozen=True)
class StepShape:
    """A model and window to time.

    Attributes
    ----------
    name : str
        Part of the row's name.
    sizes : dict
        Arguments of diffusers' ``WanTransformer3DModel``.
    latents : tuple of int
        Frames, rows and columns of the window.
    text_length : int
        Prompt tokens.
    target : float
        Most of the peer's time that a step should take.
    """

    name: str
    sizes: dict[str, Any]
    latents: tuple[int, int, int]
    text_length: int
    target: float


SHAPES = (
    StepShape(
        "tiny",
        {
            "num_attention_heads": 3, "attention_head_dim": 32, "in_channels": 36,
            "ffn_dim": 256, "num_layers": 3, "text_dim": 64, "freq_dim": 64,
        },
        (21, 16, 16),
        64,
        target=0.75,
    ),
    StepShape(
        "demo",  # the embedded models' sizes, without audio
        {
            "num_attention_heads": 3, "attention_head_dim": 64, "in_channels": 36,
            "ffn_dim": 448, "num_layers": 6, "text_dim": 64, "freq_dim": 128,
        },
        (9, 32, 32),
        144,
        target=0.75,
    ),
    StepShape(
        "wan-1.3b-width-4-layers",
        {
            "num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16,
            "ffn_dim": 8960, "num_layers": 4, "text_dim": 4096, "freq_dim": 256,
        },
        (5, 32, 32),
        512,
        target=0.95,
    ),
)  # fmt: skip


def measure_steps(
    *,
    peer: str,
    repeats: int,
    command: str,
    on_row: Callable[[Row], None] | None = None,
    shapes: tuple[StepShape, ...] = SHAPES,
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16),
) -> Report:
    """Time a denoising step on the CPU against ``peer``.

    A step is one forward pass. Ours reuses the prompt's keys and values, which do not change over
    the steps; the rows ``first_step`` include their computation, as the peer's every step does.

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
    shapes : tuple of StepShape
        What to time.
    dtypes : tuple of torch.dtype
        Types to time each in.

    Raises
    ------
    InvalidArgument
        Unknown peer or too few repeats.
    MissingDependency
        The peer is not installed.
    """
    if peer != "diffusers":
        raise InvalidArgument("peer", expected='"diffusers"', got=repr(peer))
    if repeats < MIN_REPEATS:
        raise InvalidArgument("repeats", expected=f"at least {MIN_REPEATS}", got=repeats)
    rows: list[Row] = []
    details: dict[str, Any] = {"repeats": repeats, "peer": peer, "shapes": {}}
    for shape in shapes:
        details["shapes"][shape.name] = {
            "sizes": shape.sizes, "latents": shape.latents, "text_length": shape.text_length
        }  # fmt: skip
        for dtype in dtypes:
            for row in _measure_shape(shape, dtype, repeats, details):
                rows.append(row)
                if on_row is not None:
                    on_row(row)
    return Report(
        command=command,
        device="cpu",
        threads=torch.get_num_threads(),
        kernel_plan={
            str(dtype).removeprefix("torch."): KernelPlan.choose("cpu", dtype).to_json()
            for dtype in dtypes
        },
        rows=rows,
        details=details,
    )


def _measure_shape(
    shape: StepShape, dtype: torch.dtype, repeats: int, details: dict[str, Any]
) -> list[Row]:
    """Rows of one shape and dtype."""
    theirs, ours = _models(shape, dtype)
    generator = torch.Generator().manual_seed(1)
    channels = shape.sizes["in_channels"]
    latents = torch.randn(1, channels, *shape.latents, generator=generator).to(dtype)
    prompt = torch.randn(1, shape.text_length, shape.sizes["text_dim"], generator=generator)
    prompt, timestep = prompt.to(dtype), torch.tensor([500.0])
    name = f"step.{shape.name}.{str(dtype).removeprefix('torch.')}"
    with torch.inference_mode():
        context = ContextCache(ours.text_context(prompt))
        rope = ours.rope(*shape.latents)
        sides: dict[str, Callable[[], Tensor]] = {
            "peer": lambda: theirs(latents, timestep, prompt, return_dict=False)[0],
            "ours": lambda: ours(latents, timestep, context, rope),
            "first": lambda: ours(latents, timestep, ContextCache(ours.text_context(prompt))),
        }
        details[f"{name}.difference"] = _require_agreement(name, sides, dtype)
        seconds = alternate(sides, repeats)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["peer"], strict=True)]
    first = [a / b for a, b in zip(seconds["first"], seconds["peer"], strict=True)]
    return [
        median_row(f"{name}.seconds", seconds["ours"], "s"),
        median_row(f"{name}.peer_seconds", seconds["peer"], "s"),
        median_row(f"{name}.ratio", ratios, "ours / peer", shape.target),
        median_row(f"{name}.first_step_ratio", first, "ours / peer"),
    ]


def _models(shape: StepShape, dtype: torch.dtype) -> tuple[nn.Module, SkyReelsTransformer]:
    """The peer's model and ours with the same random weights."""
    try:
        from diffusers import WanTransformer3DModel
    except ImportError as error:
        raise MissingDependency(
            "diffusers is not installed.", stage="bench", hint="pip install diffusers"
        ) from error
    theirs: Any = WanTransformer3DModel(**shape.sizes).eval()
    randomise(theirs, seed=0)
    config = transformer_config_from_diffusers(dict(theirs.config), where=shape.name)
    ours = SkyReelsTransformer(config, KernelPlan.choose("cpu", dtype)).eval()
    ours.load_state_dict(
        {diffusers_wan_key(name): value for name, value in theirs.state_dict().items()}
    )
    return theirs.to(dtype), ours.to_compute_dtype(dtype)


def _require_agreement(
    name: str, sides: dict[str, Callable[[], Tensor]], dtype: torch.dtype
) -> float:
    """Largest relative difference of our output to the peer's; also warms both up."""
    expected, actual = sides["peer"]().float(), sides["ours"]().float()
    sides["first"]()
    difference = float((actual - expected).abs().max() / expected.abs().max())
    if not difference <= AGREEMENT[dtype]:
        raise ModelError(
            f"{name}: differs from the peer by {difference:.2g} of its largest output.",
            stage="bench",
            hint="The two are not the same model; their times cannot be compared.",
        )
    return difference


def alternate(sides: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each side's runs, sides taking turns so that noise hits all alike.

    Parameters
    ----------
    sides : dict of callable
        What to run, by side.
    repeats : int
        Runs of each.

    Returns
    -------
    dict of list of float
    """
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(repeats):
        order = list(sides) if repeat % 2 else list(sides)[::-1]
        for side in order:
            start = time.perf_counter()
            sides[side]()
            seconds[side].append(time.perf_counter() - start)
    return seconds


def median_row(name: str, values: list[float], unit: str, target: float | None = None) -> Row:
    """A row of the median of ``values`` with its spread."""
    return Row(name, statistics.median(values), unit, target, min=min(values), max=max(values))
