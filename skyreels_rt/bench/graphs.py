"""Denoising steps on a GPU with and without step graphs and step caches, at published sizes.

The weights are random: times depend on shapes alone. Steps of three kinds come in turn (one that
keeps its residuals, one that skips, one that only computes), each as it is and replayed, so that
noise hits both alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from skyreels_rt.bench.rates import seconds_of
from skyreels_rt.bench.scaling import CASES, ScalingCase
from skyreels_rt.bench.step import MIN_REPEATS, median_row
from skyreels_rt.diffusion.blf import Group, Window
from skyreels_rt.diffusion.guidance import guidance_passes
from skyreels_rt.diffusion.predictor import PromptContext, WindowPredictor
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models.transformer import SkyReelsTransformer
from skyreels_rt.report import Report, Row
from skyreels_rt.runtime.cuda_graphs import CudaRecorder, Recorder, StepGraphs
from skyreels_rt.runtime.memory import IMAGE_TOKENS
from skyreels_rt.runtime.step_cache import StepPlan

GRAPH_CASES = tuple(case for case in CASES if case.shape.num_windows == 1)
KINDS = ("keep", "skip", "compute")
"""Of the steps of a cycle, whose flags are computed, skipped, computed."""

_CYCLE = (True, False, True)
_WARM_CYCLES = 2


def measure_graphs(
    *,
    command: str,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    repeats: int = 10,
    cases: Sequence[ScalingCase] = GRAPH_CASES,
    recorder: Callable[[torch.device], Recorder] = CudaRecorder,
    on_row: Callable[[Row], None] | None = None,
) -> Report:
    """Time a window's steps, eager and replayed.

    Parameters
    ----------
    command : str
        Command line recorded in the report.
    device : torch.device
        A CUDA device.
    dtype : torch.dtype
        Of weights and tokens.
    repeats : int
        Timed steps of each kind and side, at least 5.
    cases : sequence of ScalingCase
        Models and shapes of one window.
    recorder : callable
        From a device to what records.
    on_row : callable, optional
        Called with every finished row.

    Raises
    ------
    InvalidArgument
        No CUDA device, or too few repeats.
    GraphCaptureFailed
        A step cannot be recorded.
    """
    if device.type != "cuda" and recorder is CudaRecorder:
        raise InvalidArgument("device", expected="a CUDA device", got=device)
    if repeats < MIN_REPEATS:
        raise InvalidArgument("repeats", expected=f"at least {MIN_REPEATS}", got=repeats)
    plan = KernelPlan.choose(device, dtype)
    rows: list[Row] = []
    for case in cases:
        graphs = StepGraphs(recorder(device), required=True)
        for row in _measure_case(case, plan, device, dtype, graphs, repeats):
            rows.append(row)
            if on_row is not None:
                on_row(row)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    threads = torch.get_num_threads()
    details = {"repeats": repeats, "cases": {case.name: case.title for case in cases}}
    return Report(command, name, threads, plan.to_json(), rows, details)


@torch.inference_mode()
def _measure_case(
    case: ScalingCase,
    plan: KernelPlan,
    device: torch.device,
    dtype: torch.dtype,
    graphs: StepGraphs,
    repeats: int,
) -> list[Row]:
    model = _random_model(case, plan, device, dtype)
    shape, config = case.shape, case.config
    flags = _CYCLE * (repeats + _WARM_CYCLES)
    timesteps = [1000.0 * (1 - step / len(flags)) for step in range(len(flags))]
    window = Window(0, shape.window)
    group = Group(0, 0, shape.window, (window,))
    passes = guidance_passes("text_first", 1.0, float(shape.num_passes), has_text=True,
                             has_audio=config.audio is not None)  # fmt: skip
    positive, negative = (
        model.text_context(_draw(device, 1, config.text_length, config.text_dim)) for _ in range(2)
    )
    sight = None
    if config.image_dim is not None:
        sight = model.image_context(_draw(device, 1, IMAGE_TOKENS, config.image_dim))
    prompt = PromptContext(positive, negative, sight)
    channels = _draw(device, config.in_channels - config.out_channels, shape.window, shape.height,
                     shape.width)  # fmt: skip
    assert config.audio is not None
    tokens = _draw(device, shape.window, config.audio.num_tokens, config.audio.token_dim)
    sides = {
        side: WindowPredictor(
            model, group, passes, prompt, channels=channels, tokens=tokens,
            silent_tokens=torch.zeros_like(tokens), steps=StepPlan(flags), timesteps=timesteps,
            graphs=used,
        )
        for side, used in (("eager", None), ("graph", graphs))
    }  # fmt: skip
    latents = _draw(device, config.out_channels, shape.window, shape.height, shape.width)
    seconds: dict[tuple[str, str], list[float]] = {
        (kind, side): [] for kind in KINDS for side in sides
    }
    for step, timestep in enumerate(timesteps):
        for side in list(sides)[:: 1 if step % 2 else -1]:
            took = seconds_of(partial(sides[side], window, latents, step, timestep), 1, device)
            if step >= _WARM_CYCLES * len(_CYCLE):
                seconds[KINDS[step % len(_CYCLE)], side].append(took)
    return _rows(case.name, seconds, graphs)


def _rows(name: str, seconds: dict[tuple[str, str], list[float]], graphs: StepGraphs) -> list[Row]:
    rows = [Row(f"graphs.{name}.buffers", graphs.num_bytes / 2**20, "MiB")]
    for kind in KINDS:
        eager, graph = seconds[kind, "eager"], seconds[kind, "graph"]
        ratios = [a / b for a, b in zip(eager, graph, strict=True)]
        rows += [
            median_row(f"graphs.{name}.{kind}.eager_seconds", eager, "s"),
            median_row(f"graphs.{name}.{kind}.graph_seconds", graph, "s"),
            median_row(f"graphs.{name}.{kind}.ratio", ratios, "eager / graph"),
        ]
    return rows


def _random_model(
    case: ScalingCase, plan: KernelPlan, device: torch.device, dtype: torch.dtype
) -> SkyReelsTransformer:
    """The model with small random weights, made where it runs."""
    with torch.device("meta"):
        model = SkyReelsTransformer(case.config, plan).eval()
    model.to_compute_dtype(dtype)
    model = model.to_empty(device=device)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    return model


def _draw(device: torch.device, *shape: int) -> torch.Tensor:
    return torch.randn(shape, device=device)
