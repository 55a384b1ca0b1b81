"""TensorRT engines as the steps of a VAE, on the current CUDA stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skyreels_rt.errors import ModelError
from skyreels_rt.export.facts import GRAPHS, GraphName, input_names, output_names
from skyreels_rt.export.onnx_runner import one_kind
from skyreels_rt.export.tensorrt import FACTS_SUFFIX, PLAN_SUFFIX, PlanFacts, import_library
from skyreels_rt.models.vae import VideoVAE


class TensorRTRunner:
    """The four engines of a folder.

    Inputs and outputs are bound by address, so no cache is copied: a step's new caches are what the
    next step reads. Work is queued on torch's current stream; one stream at a time may use a
    runner. Engine files are trusted code: load only what you built.

    Written to the interfaces of TensorRT 10, 11 and TensorRT-RTX. Its logic is tested with a
    stand-in for the library; no engine has been run (docs/vae.md).

    Parameters
    ----------
    folder : Path
        What :func:`skyreels_rt.export.tensorrt.build_engines` wrote.
    original : VideoVAE
        The model's own VAE.
    expected_hash : str
        Its hash; files of another model are refused.
    library : module, optional
        Stands in for the library that the files name.

    Raises
    ------
    MissingDependency
        The library that built the engines is not installed.
    ModelError
        A file is missing, of another model, or cannot be run by this library or GPU.
    """

    name = "tensorrt"

    def __init__(
        self,
        folder: Path,
        original: VideoVAE,
        expected_hash: str,
        library: Any = None,  # noqa: ANN401
    ) -> None:
        self._device = original.device
        self._contexts: dict[GraphName, Any] = {}
        facts = []
        for graph in GRAPHS:
            stored = PlanFacts.read(folder / f"{graph}{FACTS_SUFFIX}")
            plan = folder / f"{graph}{PLAN_SUFFIX}"
            stored.graph.require(graph, original, expected_hash, plan)
            facts.append(stored.graph)
            trt = library or import_library(stored.library)
            self._contexts[graph] = _load(trt, plan, stored, graph)
        self.facts = one_kind(facts, folder)

    def run(self, graph: GraphName, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        """Queue ``graph`` of ``inputs`` into ``outputs``, all dense and on the VAE's device."""
        context = self._contexts[graph]
        for name, one in (inputs | outputs).items():
            if not context.set_tensor_address(name, one.data_ptr()):
                raise ModelError(f"{graph}: the engine refuses {name}.", stage="decode")
        on_gpu = self._device.type == "cuda"
        stream = torch.cuda.current_stream(self._device).cuda_stream if on_gpu else 0
        if not context.execute_async_v3(stream):
            raise ModelError(f"{graph}: the engine could not be run.", stage="decode")


def _load(trt: Any, plan: Path, stored: PlanFacts, graph: GraphName) -> Any:  # noqa: ANN401
    """An execution context of the engine in ``plan``."""
    try:
        blob = plan.read_bytes()
    except OSError as error:
        raise ModelError(f"{plan}: cannot be read ({error.strerror}).", stage="load") from error
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    if hasattr(runtime, "engine_host_code_allowed"):
        runtime.engine_host_code_allowed = True  # version-compatible engines carry some
    engine = runtime.deserialize_cuda_engine(blob)
    if engine is None:
        raise ModelError(
            f"{plan}: built by {stored.library} {stored.library_version} for {stored.built_for}; "
            f"{trt.__version__} cannot load it here.",
            stage="load",
            hint="Build it again on this machine.",
        )
    count = stored.graph.num_caches
    expected = {*input_names(graph, count), *output_names(graph, count)}
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    if names != expected:
        raise ModelError(
            f"{plan}: has other inputs and outputs than {graph}: {sorted(names ^ expected)[:4]}.",
            stage="load",
        )
    return engine.create_execution_context()
