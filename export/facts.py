"""What an exported file says of itself, and the four graphs that a VAE becomes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from skyreels_rt.config import config_from_dict
from skyreels_rt.errors import InvalidArgument, ModelError
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models.tiny_vae import TinyVAE
from skyreels_rt.models.vae import VideoVAE
from skyreels_rt.models.wan_vae import WanVAE

FORMAT = 1
"""Version of the files' layout; a file of another version is refused."""

FACTS_KEY = "skyreels_rt"
"""Key of the facts among an ONNX file's metadata."""

GraphName = Literal["encode_first", "encode_steady", "decode_first", "decode_steady"]
GRAPHS: tuple[GraphName, ...] = ("encode_first", "encode_steady", "decode_first", "decode_steady")
"""The first step and every later one, each way; file names without their suffix."""

EXPORTABLE = (WanVAE, TinyVAE)


@dataclass(frozen=True)
class GraphFacts:
    """Facts stored with an exported graph.

    Attributes
    ----------
    format : int
        :data:`FORMAT`.
    graph : str
        One of :data:`GRAPHS`.
    model : str
        Class of the VAE.
    model_hash : str
        :func:`model_hash` of the VAE.
    dtype : str
        Of weights, inputs and outputs: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    height, width : int or None
        Frame size in pixels; None where the graph takes any multiple of 8.
    opset : int
        ONNX opset.
    num_caches : int
        Cache tensors a step hands on.
    versions : tuple of str
        Packages that made the file, as ``name==version``.
    """

    format: int
    graph: str
    model: str
    model_hash: str
    dtype: str
    height: int | None
    width: int | None
    opset: int
    num_caches: int
    versions: tuple[str, ...]

    def to_json(self) -> str:
        """The facts as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | None, where: Path) -> GraphFacts:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        ModelError
            No facts, or those of another format.
        """
        try:
            found: dict[str, Any] = json.loads(text or "null")
            if found["format"] != FORMAT:
                raise ModelError(
                    f"{where}: format {found['format']}, expected {FORMAT}.",
                    stage="load",
                    hint="Export the VAE again.",
                )
            return config_from_dict(cls, found, where=str(where))
        except (ValueError, TypeError, KeyError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(
                f"{where}: not a file that skyreels-rt exported.",
                stage="load",
                hint="Make it with `skyreels-rt export vae`.",
            ) from error

    def require(self, graph: GraphName, vae: VideoVAE, expected_hash: str, where: Path) -> None:
        """Raise unless these are the facts of ``graph`` of ``vae``.

        Raises
        ------
        ModelError
            The file is of another graph or another model.
        """
        if self.graph != graph:
            raise ModelError(f"{where}: holds {self.graph}, expected {graph}.", stage="load")
        if self.model != type(vae).__name__ or self.model_hash != expected_hash:
            raise ModelError(
                f"{where}: exported from another model ({self.model}, {self.model_hash[:12]}; "
                f"this one is {type(vae).__name__}, {expected_hash[:12]}).",
                stage="load",
                hint="Export this model's VAE with `skyreels-rt export vae`.",
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch names it."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found


def model_hash(vae: VideoVAE) -> str:
    """SHA-256 of a VAE's sizes and of every weight, rounded to bfloat16.

    Rounded, so that a model has one hash whether it is loaded in float32 or in bfloat16.

    Raises
    ------
    InvalidArgument
        Not a VAE of :data:`EXPORTABLE`.
    """
    config = require_exportable(vae).config
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    for name, weight in vae.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        rounded = weight.detach().to("cpu", torch.bfloat16).contiguous()
        digest.update(rounded.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def require_exportable(vae: VideoVAE) -> WanVAE | TinyVAE:
    """``vae`` itself.

    Raises
    ------
    InvalidArgument
        Not a VAE of :data:`EXPORTABLE`.
    """
    if isinstance(vae, EXPORTABLE):
        return vae
    raise InvalidArgument(
        "vae",
        expected=f"one of {', '.join(kind.__name__ for kind in EXPORTABLE)}",
        got=type(vae).__name__,
    )


def without_weights(vae: VideoVAE) -> WanVAE | TinyVAE:
    """A VAE of the same sizes on the meta device, of torch's own operators alone."""
    given = require_exportable(vae)
    plan = KernelPlan.choose("cpu", torch.float32, "reference")
    with torch.device("meta"):
        return WanVAE(given.config, plan) if isinstance(given, WanVAE) else TinyVAE(given.config)


def plain_copy(vae: VideoVAE, dtype: torch.dtype) -> WanVAE | TinyVAE:
    """``vae`` in ``dtype`` on its device, of torch's own operators alone."""
    plain = without_weights(vae)
    weights = {name: weight.to(dtype) for name, weight in vae.state_dict().items()}
    plain.load_state_dict(weights, assign=True)
    plain.to(vae.device)
    return plain.eval().requires_grad_(False)


def step_inputs(
    graph: GraphName, first: Tensor, cache: Sequence[Tensor] | None
) -> dict[str, Tensor]:
    """A step's inputs by their names."""
    given = (first, *(cache or ()))
    return dict(zip(input_names(graph, len(given) - 1), given, strict=True))


def input_names(graph: GraphName, num_caches: int) -> list[str]:
    """Names of a step's inputs: ``frames`` or ``latents``, then ``cache_00`` and so on."""
    main = "frames" if graph.startswith("encode") else "latents"
    steady = graph.endswith("steady")
    return [main, *(f"cache_{i:02d}" for i in range(num_caches if steady else 0))]


def output_names(graph: GraphName, num_caches: int) -> list[str]:
    """Names of a step's outputs: ``latents`` or ``frames``, then ``next_cache_00`` and so on."""
    main = "latents" if graph.startswith("encode") else "frames"
    return [main, *(f"next_cache_{i:02d}" for i in range(num_caches))]


def output_shapes(
    graph: GraphName, vae: VideoVAE, height: int, width: int
) -> Mapping[str, tuple[int, ...]]:
    """Shape of every output of a step at ``height`` x ``width`` pixels, by name, in order."""
    stride = vae.spatial_stride
    if graph.startswith("encode"):
        caches = vae.encoder_cache_shapes(height, width)
        main: tuple[int, ...] = (1, vae.latent_channels, 1, height // stride, width // stride)
    else:
        caches = vae.decoder_cache_shapes(height, width)
        frames = 1 if graph == "decode_first" else vae.temporal_stride
        main = (1, 3, frames, height, width)
    shapes = [main, *((1, *shape) for shape in caches)]
    return dict(zip(output_names(graph, len(caches)), shapes, strict=True))
