"""What a denoising step should take on so many GPUs, predicted from sizes; links may be measured.

Seconds of a step on the busiest rank, with S tokens of a window, width d, F the feed-forward's, L
blocks, and tokens dealt to p = ulysses x ring ranks::

    step       windows x passes x (compute + exposed exchange) + window and guidance exchange
    linear     S/p (12 d^2 + 4 d F) L, with an audio adapter 16 d^2: projections and feed-forward
    attention  4 S^2 d L / p, where heads divide; else by the largest share of them
    contexts   4 S/p d (text + image + audio tokens) L; their keys and values are made once a job
    pointwise  S/p d L times POINTWISE_BYTES of memory traffic
    exchange   :func:`sent_bytes` over the slowest link of the axis

What Ulysses sends is exposed; what a ring sends hides behind the attention of the block at hand.
Each exchange also costs a latency. Loading, encoders and the VAE are not in it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, replace

from skyreels_rt.config import TransformerConfig
from skyreels_rt.distributed.axis import split_evenly
from skyreels_rt.distributed.links import Links
from skyreels_rt.distributed.parallel import Parallel
from skyreels_rt.distributed.traffic import (
    AttentionShape,
    guidance_bytes,
    ring_bytes,
    sequence_bytes,
    ulysses_bytes,
    window_bytes,
)
from skyreels_rt.errors import InvalidArgument, InvalidMesh
from skyreels_rt.runtime.memory import IMAGE_TOKENS

POINTWISE_BYTES = 63
"""Bytes a block moves per element of the hidden state, one fused kernel per pattern, bfloat16."""


@dataclass(frozen=True)
class Hardware:
    """A GPU and its links.

    Attributes
    ----------
    name : str
        Of the GPU.
    flops : float
        Peak of its matrix units per second, in the type of the run.
    linear_share, attention_share : float
        Of that, what matrix products and attention reach.
    memory_bandwidth : float
        Bytes a second.
    link_bandwidth : float
        Bytes a second that a GPU sends to others of its machine.
    node_bandwidth : float
        Bytes a second that it sends to another machine.
    node_size : int
        GPUs of a machine.
    latency_s : float
        Seconds an exchange takes at least.
    """

    name: str
    flops: float
    linear_share: float
    attention_share: float
    memory_bandwidth: float
    link_bandwidth: float
    node_bandwidth: float
    node_size: int
    latency_s: float

    def over(self, links: Links) -> Hardware:
        """The same GPUs with links as they were measured, inside a machine and between them.

        Of the two bandwidths the smaller one counts, and what is exchanged between other ranks than
        those that were measured is taken to be as fast.
        """
        slower = min(links.point_to_point, links.all_to_all)
        return replace(
            self, link_bandwidth=slower, node_bandwidth=slower, latency_s=links.latency_s
        )


H200 = Hardware(
    name="H200",
    flops=788e12,
    linear_share=0.85,
    attention_share=0.80,
    memory_bandwidth=4.3e12,
    link_bandwidth=370e9,
    node_bandwidth=50e9,
    node_size=8,
    latency_s=20e-6,
)
"""Given, not measured by this project: 788 TFLOP/s bf16 and 4.3 TB/s by the authors of its plan on
one H200; the shares, 370 GB/s (of NVLink's nominal 450) and the latency are assumptions; 50 GB/s is
the nominal rate of one 400 Gbit/s adapter per GPU."""


@dataclass(frozen=True)
class StepShape:
    """Sizes of a denoising step.

    Attributes
    ----------
    window, overlap : int
        Latent frames of a BLF window, and those shared by consecutive ones.
    num_windows : int
        Windows that are denoised together; 1 for the lowest latency.
    num_passes : int
        Guidance passes, 1 to 3.
    height, width : int
        Of the latents.
    itemsize : int
        Bytes of an element: 2 for bfloat16.

    Raises
    ------
    InvalidArgument
        A number is less than 1, or the overlap is not less than the window.
    """

    window: int
    overlap: int
    num_windows: int
    num_passes: int
    height: int
    width: int
    itemsize: int = 2

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < (name != "overlap"):
                raise InvalidArgument(f"shape.{name}", expected="a positive number", got=value)
        if self.overlap >= self.window:
            raise InvalidArgument("shape.overlap", expected="less than a window", got=self.overlap)

    def num_tokens(self, config: TransformerConfig) -> int:
        """Tokens of a window."""
        _, patch, _ = config.patch_size
        return self.window * (self.height // patch) * (self.width // patch)


@dataclass(frozen=True)
class StepCost:
    """What a step is predicted to take on the busiest rank.

    Attributes
    ----------
    parallel : Parallel
        The mesh.
    compute_s : float
        Seconds of arithmetic and memory traffic.
    exchange_s : float
        Seconds of exchanges that nothing hides.
    sent_bytes : dict of str to int
        Bytes that the rank sends, by axis.
    """

    parallel: Parallel
    compute_s: float
    exchange_s: float
    sent_bytes: dict[str, int]

    @property
    def seconds(self) -> float:
        """Of the step."""
        return self.compute_s + self.exchange_s


def predict(
    config: TransformerConfig, shape: StepShape, parallel: Parallel, hardware: Hardware = H200
) -> StepCost:
    """What a step of ``shape`` takes over ``parallel``.

    Parameters
    ----------
    config : TransformerConfig
        Sizes of the model.
    shape : StepShape
        Sizes of the step.
    parallel : Parallel
        The mesh; one that leaves ranks idle is predicted like any other.
    hardware : Hardware
        GPUs and links.
    """
    compute, attention = _pass_seconds(config, shape, parallel, hardware)
    sent = sent_bytes(config, shape, parallel)
    link = {name: _bandwidth(name, parallel, hardware) for name in sent}
    runs = _runs(shape, parallel)
    exchange = sum(
        sent[name] / link[name] for name in ("window", "guidance", "sequence", "ulysses")
    )
    exchange += max(0.0, sent["ring"] / link["ring"] - runs * attention)
    exchange += hardware.latency_s * _num_exchanges(config, shape, parallel)
    return StepCost(parallel, runs * compute, exchange, sent)


def sent_bytes(config: TransformerConfig, shape: StepShape, parallel: Parallel) -> dict[str, int]:
    """Bytes of a step by axis, each of the rank that sends most there.

    The formulas are those of :mod:`skyreels_rt.distributed.traffic`, which the counters of real
    exchanges are tested against.
    """
    runs = _runs(shape, parallel)
    tokens, windows = shape.num_tokens(config), _windows(shape)
    attention = AttentionShape(tokens, config.num_heads, config.head_dim, shape.itemsize)
    latent = config.out_channels * shape.height * shape.width * shape.itemsize
    token = config.out_channels * math.prod(config.patch_size) * shape.itemsize
    places = list(itertools.product(range(parallel.ulysses), range(parallel.ring)))
    in_blocks = runs * config.num_layers
    return {
        "window": max(
            window_bytes(windows, parallel, place, shape.num_passes * latent)
            for place in range(parallel.window)
        ),
        "guidance": math.ceil(shape.num_windows / parallel.window)
        * guidance_bytes(shape.num_passes, parallel, 0, shape.window * latent),
        "ulysses": in_blocks * max(ulysses_bytes(attention, parallel, *at) for at in places),
        "ring": in_blocks * max(ring_bytes(attention, parallel, *at) for at in places),
        "sequence": runs * sequence_bytes(tokens, parallel, 0, token),
    }


def fastest(
    config: TransformerConfig, shape: StepShape, num_gpus: int, hardware: Hardware = H200
) -> list[StepCost]:
    """Every mesh of ``num_gpus`` that gives each rank something to do, fastest first.

    Raises
    ------
    InvalidMesh
        There is none: too many ranks for the windows, passes, heads and tokens.
    """
    sizes = [size for size in range(1, num_gpus + 1) if num_gpus % size == 0]
    found = [
        Parallel(*axes)
        for axes in itertools.product(sizes, [size for size in sizes if size <= 3], sizes, sizes)
        if math.prod(axes) == num_gpus
    ]
    costs = [
        predict(config, shape, parallel, hardware)
        for parallel in found
        if parallel.window <= shape.num_windows
        and parallel.guidance <= shape.num_passes
        and parallel.ulysses <= config.num_heads
        and parallel.sequence <= shape.num_tokens(config)
    ]
    if not costs:
        raise InvalidMesh(
            "num_gpus", expected="a number that the windows, passes and heads allow", got=num_gpus
        )
    return sorted(costs, key=lambda cost: (cost.seconds, sum(cost.sent_bytes.values())))


def predicted_meshes(
    config: TransformerConfig, shape: StepShape, hardware: Hardware = H200
) -> Iterator[str]:
    """Lines for a description: the fastest meshes of 2, 4 and 8 GPUs, where there are any."""
    alone = predict(config, shape, Parallel(), hardware).seconds
    for num_gpus in (2, 4, 8):
        with suppress(InvalidMesh):
            best = fastest(config, shape, num_gpus, hardware)[0]
            gain = f"x{alone / best.seconds:.1f} predicted, not measured"
            yield f"{f'{num_gpus} {hardware.name}':12} {best.parallel}, {gain}"


def _pass_seconds(
    config: TransformerConfig, shape: StepShape, parallel: Parallel, hardware: Hardware
) -> tuple[float, float]:
    """Seconds of one pass over one window on the busiest rank, and those of self-attention."""
    num_tokens, dim, layers = shape.num_tokens(config), config.dim, config.num_layers
    own = math.ceil(num_tokens / parallel.sequence)
    width_factor = 12 if config.audio is None else 16
    linear = own * (width_factor * dim**2 + 4 * dim * config.ffn_dim) * layers
    heads = max(split_evenly(config.num_heads, parallel.ulysses)) / config.num_heads
    attention = 4 * num_tokens * math.ceil(num_tokens / parallel.ring) * dim * heads * layers
    contexts = config.text_length + (IMAGE_TOKENS if config.image_dim is not None else 0)
    contexts += config.audio.num_tokens if config.audio is not None else 0
    crossed = 4 * own * dim * contexts * layers
    attended = attention / (hardware.flops * hardware.attention_share)
    seconds = linear / (hardware.flops * hardware.linear_share)
    seconds += crossed / (hardware.flops * hardware.attention_share)
    seconds += POINTWISE_BYTES * own * dim * layers / hardware.memory_bandwidth
    return seconds + attended, attended


def _windows(shape: StepShape) -> list[tuple[int, int]]:
    """First and last (exclusive) latent of every window."""
    hop = shape.window - shape.overlap
    return [(index * hop, index * hop + shape.window) for index in range(shape.num_windows)]


def _runs(shape: StepShape, parallel: Parallel) -> int:
    """Passes over a window that the busiest rank computes in a step."""
    windows = math.ceil(shape.num_windows / parallel.window)
    return windows * math.ceil(shape.num_passes / parallel.guidance)


def _num_exchanges(config: TransformerConfig, shape: StepShape, parallel: Parallel) -> int:
    """Sets of transfers of a step that a rank waits for."""
    runs, windows = _runs(shape, parallel), math.ceil(shape.num_windows / parallel.window)
    in_blocks = 2 * (parallel.ulysses > 1) + (parallel.ring - 1)
    in_passes = in_blocks * config.num_layers + (parallel.sequence > 1)
    return runs * in_passes + windows * (parallel.guidance > 1) + (parallel.window > 1)


def _bandwidth(axis: str, parallel: Parallel, hardware: Hardware) -> float:
    """Bytes a second over an axis: of the machine's links, if a machine holds all its ranks."""
    sizes = list(astuple(parallel))
    last = {"window": 0, "guidance": 1, "ulysses": 2, "ring": 3, "sequence": 2}[axis]
    is_inside = math.prod(sizes[last:]) <= hardware.node_size
    return hardware.link_bandwidth if is_inside else hardware.node_bandwidth
