"""A VAE whose steps are computed by an exported graph instead of torch modules."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.export.facts import (
    GraphFacts,
    GraphName,
    model_hash,
    output_shapes,
    step_inputs,
    without_weights,
)
from skyreels_rt.models.vae import CacheShape, VAECache, VideoVAE

VAERunner = Literal["torch", "onnx", "tensorrt"]
"""Who computes the VAE."""

RUNNERS: tuple[VAERunner, ...] = ("torch", "onnx", "tensorrt")


class StepRunner(Protocol):
    """Runs the four graphs of one exported VAE."""

    name: str
    facts: GraphFacts
    """Of any of the graphs: all have the same type and sizes."""

    def run(self, graph: GraphName, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        """Compute ``graph`` of ``inputs`` into ``outputs``, all dense and on one device."""


class ExportedVAE(VideoVAE):
    """A video VAE computed by exported graphs.

    It takes and gives what the VAE it was exported from does; caches are tensors of the same
    shapes. A step's outputs are new tensors and its inputs are left alone, so sessions can share
    it, rewind and be written down. Nothing is copied between steps: torch's allocator hands a
    step's caches the memory of the step before the last.

    Parameters
    ----------
    original : WanVAE or TinyVAE
        What was exported; its weights are not kept.
    runner : StepRunner
        Who computes.
    """

    def __init__(self, original: VideoVAE, runner: StepRunner) -> None:
        twin = without_weights(original)
        super().__init__(twin.latent_channels, twin.config.latents_mean, twin.config.latents_std)
        self.to(original.device)
        # Bound methods, so that the twin is no module of this one.
        self._encoder_shapes = twin.encoder_cache_shapes
        self._decoder_shapes = twin.decoder_cache_shapes
        self._num_bytes = original.num_bytes
        self._runner = runner

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the graphs."""
        return self._runner.facts.torch_dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights that were exported."""
        return self._num_bytes

    @property
    def runner(self) -> str:
        """Who computes, and what."""
        facts = self._runner.facts
        return f"{self._runner.name} {facts.model_hash} {facts.dtype} {facts.height} {facts.width}"

    def encoder_cache_shapes(self, height: int, width: int) -> tuple[CacheShape, ...]:
        """Shapes of the encoder's caches for frames of ``height`` x ``width`` pixels."""
        return self._encoder_shapes(height, width)

    def decoder_cache_shapes(self, height: int, width: int) -> tuple[CacheShape, ...]:
        """Shapes of the decoder's caches for frames of ``height`` x ``width`` pixels."""
        return self._decoder_shapes(height, width)

    def _encode(self, frames: Tensor, cache: list[Tensor] | None) -> tuple[Tensor, VAECache]:
        height, width = frames.shape[-2:]
        return self._run(
            "encode_first" if cache is None else "encode_steady", frames, cache, height, width
        )

    def _decode(
        self, latents: Tensor, cache: list[Tensor] | None, clamp: bool
    ) -> tuple[Tensor, VAECache]:
        if not clamp:
            raise InvalidArgument(
                "clamp", expected="True", got=clamp, hint="Exported graphs clamp; use torch's VAE."
            )
        height, width = (side * self.spatial_stride for side in latents.shape[-2:])
        return self._run(
            "decode_first" if cache is None else "decode_steady", latents, cache, height, width
        )

    def _run(
        self, graph: GraphName, first: Tensor, cache: list[Tensor] | None, height: int, width: int
    ) -> tuple[Tensor, VAECache]:
        """The result and the caches of one step."""
        facts = self._runner.facts
        if facts.height is not None and (facts.height, facts.width) != (height, width):
            raise InvalidArgument(
                "size",
                expected=f"{facts.height} x {facts.width}, for which the VAE was exported",
                got=f"{height} x {width}",
                hint="Export it for this size, or as ONNX with --dynamic.",
            )
        if first.shape[0] != 1:
            raise InvalidArgument(
                "batch", expected="1, for which the VAE was exported", got=first.shape[0]
            )
        inputs = {
            name: one.to(self.device, self.dtype).contiguous()
            for name, one in step_inputs(graph, first, cache).items()
        }
        outputs = {
            name: torch.empty(shape, dtype=self.dtype, device=self.device)
            for name, shape in output_shapes(graph, self, height, width).items()
        }
        self._runner.run(graph, inputs, outputs)
        result, *following = outputs.values()
        return result, tuple(following)


def load_exported_vae(original: VideoVAE, kind: str, folder: str | Path | None) -> VideoVAE:
    """The VAE that ``kind`` computes.

    Parameters
    ----------
    original : VideoVAE
        The model's VAE; returned as it is where ``kind`` is ``"torch"``.
    kind : {"torch", "onnx", "tensorrt"}
        Who computes.
    folder : str, Path or None
        Where ``skyreels-rt export vae`` wrote the graphs.

    Raises
    ------
    InvalidArgument
        Another ``kind``, or no folder where one is needed.
    ModelError
        A file is missing, unreadable, or of another model.
    MissingDependency
        The package that runs the graphs is not installed.
    """
    if kind not in RUNNERS:
        raise InvalidArgument("vae", expected=f"one of {', '.join(RUNNERS)}", got=repr(kind))
    if kind == "torch":
        if folder is not None:
            raise InvalidArgument(
                "vae_folder", expected='vae="onnx" or "tensorrt" beside it', got=str(folder)
            )
        return original
    if folder is None:
        raise InvalidArgument(
            "vae_folder",
            expected=f"a folder of exported graphs for vae={kind!r}",
            got="none",
            hint=f"Make one with `skyreels-rt export vae MODEL -o FOLDER --format {kind}`.",
        )
    if kind == "tensorrt" and original.device.type != "cuda":
        raise InvalidArgument(
            "device", expected="cuda for vae='tensorrt'", got=original.device.type,
            hint="vae='onnx' runs on the CPU.",
        )  # fmt: skip
    expected_hash = model_hash(original)
    runner: StepRunner
    if kind == "onnx":
        from skyreels_rt.export.onnx_runner import OnnxRunner

        runner = OnnxRunner(Path(folder), original, expected_hash)
    else:
        from skyreels_rt.export.tensorrt_runner import TensorRTRunner

        runner = TensorRTRunner(Path(folder), original, expected_hash)
    return ExportedVAE(original, runner)
