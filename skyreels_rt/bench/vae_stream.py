"""Decoding a video on a device: frames a second, against a peer, against its convolutions alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from skyreels_rt.bench.rates import seconds_of, wait_for
from skyreels_rt.bench.step import alternate, median_row
from skyreels_rt.bench.vae import build_models, check_run, require_agreement
from skyreels_rt.config import WanVAEConfig
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models.decoder_stream import DecoderStream
from skyreels_rt.models.wan_vae import WanVAE
from skyreels_rt.report import Report, Row
from skyreels_rt.runtime.cuda_graphs import CudaRecorder, StepGraphs
from skyreels_rt.runtime.peak_memory import peak_bytes

SIZES = ((480, 832), (512, 512))
TARGET_FPS = {(480, 832): 90.0}
NUM_LATENTS = 9
LONG, SHORT = 200, 20
"""Latents of the two videos whose peak memory is compared."""

Side = Callable[[], Tensor]


def measure_decode_streams(
    *,
    device: torch.device,
    peer: str,
    repeats: int,
    command: str,
    dtype: torch.dtype = torch.bfloat16,
    sizes: tuple[tuple[int, int], ...] = SIZES,
    lengths: tuple[int, int] = (SHORT, LONG),
    config: WanVAEConfig | None = None,
    compiles: bool = True,
    on_row: Callable[[Row], None] | None = None,
) -> Report:
    """Time the Wan VAE's streaming decoder on ``device`` against diffusers with the same weights.

    Parameters
    ----------
    device : torch.device
        Where both run.
    peer : str
        ``"diffusers"``.
    repeats : int
        Timed runs per side, at least 5; sides alternate.
    command : str
        Command line recorded in the report.
    dtype : torch.dtype
        Of weights and activations.
    sizes : tuple of (int, int)
        Heights and widths in pixels.
    lengths : (int, int)
        Latents of the two videos whose peak memory is compared.
    config : WanVAEConfig, optional
        Widths; Wan2.1's by default.
    compiles : bool
        Also time the peer under ``torch.compile``.
    on_row : callable, optional
        Called with every finished row.

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
    plan = KernelPlan.choose(device, dtype)
    theirs, ours = build_models(config, plan)
    theirs, ours = theirs.to(device, dtype), ours.to(device, dtype)
    rows: list[Row] = []
    details: dict[str, Any] = {
        "repeats": repeats, "dtype": str(dtype), "config": asdict(config), "latents": NUM_LATENTS
    }  # fmt: skip
    with torch.inference_mode():
        for size in sizes:
            bench = _Size(ours, theirs, size, details)
            for row in (*bench.speed(repeats, compiles=compiles), *bench.memory(lengths)):
                rows.append(row)
                if on_row is not None:
                    on_row(row)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return Report(command, name, torch.get_num_threads(), plan.to_json(), rows, details)


class _Size:
    """Measurements at one frame size."""

    def __init__(
        self,
        ours: WanVAE,
        theirs: Any,  # noqa: ANN401 - diffusers has no types
        size: tuple[int, int],
        details: dict[str, Any],
    ) -> None:
        self.ours, self.theirs, self.size, self.details = ours, theirs, size, details
        self.name = f"vae.stream.{size[0]}x{size[1]}"
        grid = (side // ours.spatial_stride for side in size)
        generator = torch.Generator().manual_seed(1)
        latents = torch.randn(1, ours.latent_channels, NUM_LATENTS, *grid, generator=generator)
        self.latents = latents.to(ours.device, ours.dtype)
        self.raw = ours.raw_latents(self.latents)
        self.streams = {"buffers": DecoderStream(ours)}
        if ours.device.type == "cuda":
            graphs = StepGraphs(CudaRecorder(ours.device), required=True)
            record = partial(graphs.record_in_place, "decode")
            self.streams["graph"] = DecoderStream(ours, record)

    def speed(self, repeats: int, *, compiles: bool) -> list[Row]:
        """Frames a second of every side, and the share of the convolutions."""
        sides: dict[str, Side] = {"values": partial(self.ours.decode, self.latents)}
        for name, stream in self.streams.items():
            sides[name] = partial(self._streamed, stream)
        sides["peer"] = lambda: self.theirs.decode(self.raw).sample
        if compiles and (compiled := self._compiled_peer()) is not None:
            sides["peer_compiled"] = compiled
        expected = sides["peer"]()
        for name, side in sides.items():
            side()  # compiles, records
            difference = require_agreement(f"{self.name}.{name}", side(), expected)
            self.details[f"{self.name}.{name}.difference"] = difference
        seconds = alternate({name: self._timed(side) for name, side in sides.items()}, repeats)
        frames = 1 + (NUM_LATENTS - 1) * self.ours.temporal_stride
        rows = []
        for name, runs in seconds.items():
            fps = [frames / run for run in runs]
            target = None if name.startswith("peer") else TARGET_FPS.get(self.size)
            row = median_row(f"{self.name}.{name}.fps", fps, "frames/s")
            rows.append(Row(row.name, row.value, row.unit, target, "higher", row.min, row.max))
        return [*rows, self._share_of_convolutions(repeats)]

    def memory(self, lengths: tuple[int, int]) -> list[Row]:
        """Peak bytes of a short and of a long video, which should be the same."""
        peaks = [self._peak(count) for count in lengths]
        rows = [
            Row(f"{self.name}.{count}_latents.peak_bytes", float(peak), "bytes")
            for count, peak in zip(lengths, peaks, strict=True)
            if peak is not None
        ]
        short, long = peaks
        if short and long:
            rows.append(Row(f"{self.name}.peak_growth", long / short, "long / short", 1.02))
        return rows

    def _compiled_peer(self) -> Side | None:
        """The peer under ``torch.compile``; None, and a note, where that fails."""
        compiled: Any = torch.compile(self.theirs.decode)
        try:
            compiled(self.raw)
        except Exception as error:  # whatever the compiler raises
            self.details[f"{self.name}.peer_compiled.error"] = str(error)[:500]
            return None

        def decoded() -> Tensor:
            sample: Tensor = compiled(self.raw).sample
            return sample

        return decoded

    def _streamed(self, stream: DecoderStream) -> Tensor:
        stream.restart()
        parts = [stream.step(one).clone() for one in self.latents.split(1, dim=2)]
        return torch.cat(parts, dim=2)

    def _timed(self, side: Side) -> Side:
        """``side`` that returns when its work is done."""

        def run() -> Tensor:
            result = side()
            wait_for(self.ours.device)
            return result

        return run

    def _share_of_convolutions(self, repeats: int) -> Row:
        """Time of a steady step's convolutions alone, as a share of the step's."""
        stream, latents = next(reversed(self.streams.values())), self.latents[:, :, :1]
        plain, calls = self.streams["buffers"], _Convolutions()
        for one in dict.fromkeys((plain, stream)):
            one.restart()
            for _ in range(2):
                one.step(latents)
        with calls:
            plain.step(latents)
        shares = []
        for _ in range(repeats):
            step = seconds_of(lambda: stream.step(latents), 1, self.ours.device)
            shares.append(seconds_of(calls.run, 1, self.ours.device) / step)
        self.details[f"{self.name}.convolutions"] = len(calls.made)
        row = median_row(f"{self.name}.convolution_share", shares, "of a steady step")
        return Row(row.name, row.value, row.unit, None, "higher", row.min, row.max)

    def _peak(self, count: int) -> int | None:
        """Bytes that decoding ``count`` latents, none kept, needs at its worst moment."""
        device, latents = self.ours.device, self.latents[:, :, :1]

        def run() -> None:
            stream = DecoderStream(self.ours)
            for _ in range(count):
                stream.step(latents)

        if device.type != "cuda":
            return peak_bytes(run)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before


class _Convolutions(TorchDispatchMode):
    """Keeps every convolution that runs under it, with its arguments, to run it again."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[Callable[[], object]] = []

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's types
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if "conv" in func.overloadpacket.__name__:
            self.made.append(partial(func, *args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))

    def run(self) -> None:
        """Run them all."""
        for call in self.made:
            call()
