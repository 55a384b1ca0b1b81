"""A VAE as four ONNX graphs: the first step and the steady step, each way, caches in and out.

There is no control flow in them: what differs between the first step and the others is which graph
runs. Every graph has a batch of one and either one frame size or named dimensions
(``latent_height``, ``latent_width``; others are multiples of these). Norms compute in float32 in
every type: in float16 their floor would be zero and all-zero latents would give NaN.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from skyreels_rt.errors import InvalidArgument, MissingDependency, OutputError
from skyreels_rt.export.facts import (
    FACTS_KEY,
    FORMAT,
    GRAPHS,
    GraphFacts,
    GraphName,
    model_hash,
    output_names,
    plain_copy,
    step_inputs,
)
from skyreels_rt.models.vae import VideoVAE
from skyreels_rt.report import versions

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

MIN_OPSET, DEFAULT_OPSET, BFLOAT16_OPSET, MAX_OPSET = 18, 20, 22, 23
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EXTERNAL_ABOVE = 2**31 - 2**24
"""Bytes of weights from which they go into a file beside the graph; protobuf ends at 2 GiB."""

_TRACED_CELLS = (4, 6)  # rows and columns of latents a dynamic graph is traced with
_MAX_CELLS = 512


def export_vae(
    vae: VideoVAE,
    folder: Path,
    *,
    size: tuple[int, int] | None,
    dtype: torch.dtype = torch.float32,
    opset: int | None = None,
    graphs: tuple[GraphName, ...] = GRAPHS,
    external_above: int = EXTERNAL_ABOVE,
    on_graph: Callable[[GraphName], None] | None = None,
) -> list[Path]:
    """Write a VAE's steps as ONNX files.

    Parameters
    ----------
    vae : WanVAE or TinyVAE
        The model, on any device, in any type.
    folder : Path
        Target, made if absent. Files are named ``decode_steady.onnx`` and so on; files of these
        names are replaced.
    size : (int, int) or None
        Height and width of the frames in pixels, multiples of 8; None leaves them open.
    dtype : torch.dtype
        Type of weights, inputs and outputs: float32, bfloat16 or float16.
    opset : int, optional
        18 to 23, from 22 for bfloat16; by default 20, or 22 for bfloat16.
    graphs : tuple of str
        Which of :data:`GRAPHS`.
    external_above : int
        Weights of more bytes than this go into ``<name>.onnx.data``.
    on_graph : callable, optional
        Called with a graph's name before it is made.

    Returns
    -------
    list of Path
        The ONNX files.

    Raises
    ------
    InvalidArgument
        A model, size, type or opset that cannot be exported.
    MissingDependency
        The packages ``onnx`` and ``onnxscript`` are not installed.
    OutputError
        A file cannot be written.
    """
    least = BFLOAT16_OPSET if dtype == torch.bfloat16 else MIN_OPSET
    opset = max(least, DEFAULT_OPSET) if opset is None else opset
    _check(size, dtype, opset, least)
    _require_packages()
    expected_hash = model_hash(vae)
    plain = plain_copy(vae, dtype).to("cpu")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}).") from error
    files = []
    for graph in graphs:
        if on_graph is not None:
            on_graph(graph)
        program, num_caches = _trace(plain, graph, size, opset)
        facts = GraphFacts(
            format=FORMAT,
            graph=graph,
            model=type(vae).__name__,
            model_hash=expected_hash,
            dtype=str(dtype).removeprefix("torch."),
            height=size[0] if size else None,
            width=size[1] if size else None,
            opset=opset,
            num_caches=num_caches,
            versions=tuple(f"{name}=={version}" for name, version in versions().items()),
        )
        program.model.metadata_props[FACTS_KEY] = facts.to_json()
        files.append(_save(program, folder / f"{graph}.onnx", external_above))
    return files


class _Step(nn.Module):
    """One graph of a VAE: its step with a flat list of tensors in and out."""

    def __init__(self, vae: VideoVAE, graph: GraphName) -> None:
        super().__init__()
        self.step = vae.encode_step if graph.startswith("encode") else vae.decode_step
        self.vae = vae  # so that the weights are found

    def forward(self, first: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        result, following = self.step(first, cache or None)
        # Each a tensor of its own: an output that is also another's input would lose its name.
        return (result, *(one.clone() for one in following))


def _trace(
    vae: VideoVAE, graph: GraphName, size: tuple[int, int] | None, opset: int
) -> tuple[ONNXProgram, int]:
    """The graph, and how many caches it hands on."""
    stride = vae.spatial_stride
    rows, columns = (size[0] // stride, size[1] // stride) if size else _TRACED_CELLS
    first, cache = _example(vae, graph, rows, columns)
    inputs = step_inputs(graph, first, cache)
    encodes = graph.startswith("encode")
    shapes = vae.encoder_cache_shapes if encodes else vae.decoder_cache_shapes
    num_caches = len(shapes(rows * stride, columns * stride))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Step(vae, graph),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=output_names(graph, num_caches),
            opset_version=opset,
            dynamo=True,
            verbose=False,
            dynamic_shapes=None if size else _dynamic(inputs, rows, columns),
        )
    assert program is not None
    return program, num_caches


def _example(
    vae: VideoVAE, graph: GraphName, rows: int, columns: int
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """Inputs to trace with."""
    height, width = rows * vae.spatial_stride, columns * vae.spatial_stride
    is_first = graph.endswith("first")
    if graph.startswith("encode"):
        shapes = vae.encoder_cache_shapes(height, width)
        first = torch.zeros(1, 3, 1 if is_first else vae.temporal_stride, height, width)
    else:
        shapes = vae.decoder_cache_shapes(height, width)
        first = torch.zeros(1, vae.latent_channels, 1, rows, columns)
    cache = None if is_first else tuple(torch.zeros(1, *s, dtype=vae.dtype) for s in shapes)
    return first.to(vae.dtype), cache


def _dynamic(
    inputs: dict[str, Tensor], rows: int, columns: int
) -> tuple[dict[int, Any] | tuple[dict[int, Any], ...], ...]:
    """Rows and columns of every input as multiples of the latents' named sizes."""
    height = torch.export.Dim("latent_height", min=2, max=_MAX_CELLS)
    width = torch.export.Dim("latent_width", min=2, max=_MAX_CELLS)

    def sizes(x: Tensor) -> dict[int, Any]:
        at = ((3, height, x.shape[3] // rows), (4, width, x.shape[4] // columns))
        return {dim: named if times == 1 else times * named for dim, named, times in at}

    first, *cache = inputs.values()
    return (sizes(first), tuple(map(sizes, cache))) if cache else (sizes(first),)


def _save(program: ONNXProgram, path: Path, external_above: int) -> Path:
    """Write the graph, its weights inside or beside it."""
    weights = program.model.graph.initializers.values()
    num_bytes = sum(w.const_value.nbytes for w in weights if w.const_value is not None)
    beside = path.with_name(path.name + ".data")
    try:
        beside.unlink(missing_ok=True)
        program.save(path, external_data=num_bytes > external_above)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}).") from error
    return path


def _check(size: tuple[int, int] | None, dtype: torch.dtype, opset: int, least: int) -> None:
    """Raise where an argument is out of range."""
    stride = VideoVAE.spatial_stride
    if size is not None and any(side < stride or side % stride for side in size):
        raise InvalidArgument("size", expected=f"multiples of {stride}", got=size)
    if dtype not in DTYPES:
        raise InvalidArgument("dtype", expected="float32, bfloat16 or float16", got=dtype)
    if not least <= opset <= MAX_OPSET:
        raise InvalidArgument("opset", expected=f"{least} to {MAX_OPSET}", got=opset)


def _require_packages() -> None:
    """Raise where what writes ONNX is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingDependency(
            f"Exporting needs the package {error.name}.",
            stage="export",
            hint="pip install 'skyreels-rt[export]'",
        ) from error
