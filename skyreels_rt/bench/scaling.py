"""The table of docs/scaling.md: steps over 1 to 64 GPUs by the cost model; nothing is run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from skyreels_rt.config import AudioAdapterConfig, TransformerConfig
from skyreels_rt.distributed.cost_model import (
    H200,
    Hardware,
    StepCost,
    StepShape,
    fastest,
    predict,
)
from skyreels_rt.distributed.parallel import Parallel
from skyreels_rt.errors import InvalidMesh
from skyreels_rt.report import Report, Row

WAN_14B = TransformerConfig(
    dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, image_dim=1280, audio=AudioAdapterConfig()
)
WAN_1_3B = TransformerConfig(audio=AudioAdapterConfig())
"""Wan2.1's sizes with an audio adapter."""

NUM_GPUS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class ScalingCase:
    """A model and what it makes.

    Attributes
    ----------
    name, title : str
        In the rows' names, and for readers.
    config : TransformerConfig
        Sizes of the model.
    shape : StepShape
        Sizes of a step.
    """

    name: str
    title: str
    config: TransformerConfig
    shape: StepShape


CASES = (
    ScalingCase(
        "14b_long",
        "14B, 832 x 480, eight windows of 81 frames together, two guidance passes",
        WAN_14B,
        StepShape(window=21, overlap=5, num_windows=8, num_passes=2, height=60, width=104),
    ),
    ScalingCase(
        "14b_window",
        "14B, 832 x 480, one window of 81 frames, two guidance passes",
        WAN_14B,
        StepShape(window=21, overlap=5, num_windows=1, num_passes=2, height=60, width=104),
    ),
    ScalingCase(
        "14b_live",
        "14B, 512 x 512, one window of 33 frames, one pass (live)",
        WAN_14B,
        StepShape(window=9, overlap=3, num_windows=1, num_passes=1, height=64, width=64),
    ),
    ScalingCase(
        "1b_live",
        "1.3B, 512 x 512, one window of 33 frames, one pass (live)",
        WAN_1_3B,
        StepShape(window=9, overlap=3, num_windows=1, num_passes=1, height=64, width=64),
    ),
)


def predictions(
    case: ScalingCase, hardware: Hardware = H200
) -> Iterator[tuple[int, StepCost | None]]:
    """The fastest mesh of every number of GPUs; None where the step cannot be spread so far."""
    for num_gpus in NUM_GPUS:
        try:
            yield num_gpus, fastest(case.config, case.shape, num_gpus, hardware)[0]
        except InvalidMesh:
            yield num_gpus, None


def scaling_report(command: str, hardware: Hardware = H200) -> Report:
    """Rows ``scaling.*`` of docs/benchmarks.md."""
    rows = []
    for case in CASES:
        for num_gpus, cost in predictions(case, hardware):
            if cost is not None:
                name = f"scaling.{case.name}.{num_gpus}"
                rows.append(Row(f"{name}.seconds", cost.seconds, "s predicted"))
                sent = sum(cost.sent_bytes.values())
                rows.append(Row(f"{name}.sent", sent / 1e6, "MB a rank and step, predicted"))
    return Report(command, hardware.name, 0, {}, rows, {"hardware": vars(hardware)})


def scaling_tables(hardware: Hardware = H200) -> str:
    """The tables of docs/scaling.md, in Markdown."""
    return "\n".join(_table(case, hardware) for case in CASES)


def _table(case: ScalingCase, hardware: Hardware) -> str:
    alone = predict(case.config, case.shape, Parallel(), hardware).seconds
    lines = [
        f"**{case.title}**: predicted, not measured",
        "",
        f"| {hardware.name}s | mesh | step | speed-up | exposed exchange | sent by a rank |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    for num_gpus, cost in predictions(case, hardware):
        if cost is None:
            lines.append(f"| {num_gpus} | none gives every rank something to do | | | | |")
            continue
        sent = sum(cost.sent_bytes.values()) / 1e6
        lines.append(
            f"| {num_gpus} | {str(cost.parallel) or 'one rank'} | {cost.seconds * 1e3:.1f} ms "
            f"| {alone / cost.seconds:.1f} | {cost.exchange_s * 1e3:.2f} ms | {sent:,.1f} MB |"
        )
    return "\n".join([*lines, ""])
