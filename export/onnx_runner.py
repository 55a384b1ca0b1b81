"""Exported graphs in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skyreels_rt.errors import MissingDependency, ModelError
from skyreels_rt.export.facts import FACTS_KEY, GRAPHS, GraphFacts, GraphName
from skyreels_rt.models.vae import VideoVAE

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ONNX_TYPES = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16}
"""Numbers of ``TensorProto.DataType``."""


class OnnxRunner:
    """The four graphs of a folder in ONNX Runtime, reading and writing torch's memory.

    Runs where the original VAE is. The CPU provider computes bfloat16 graphs only as far as it has
    kernels for them; on CUDA it was written to the documentation and not run.

    Parameters
    ----------
    folder : Path
        What :func:`skyreels_rt.export.onnx.export_vae` wrote.
    original : VideoVAE
        The model's own VAE.
    expected_hash : str
        Its hash; files of another model are refused.

    Raises
    ------
    MissingDependency
        ``onnxruntime`` is not installed, or without support for the device.
    ModelError
        A file is missing, unreadable, or of another model.
    """

    name = "onnx"

    def __init__(self, folder: Path, original: VideoVAE, expected_hash: str) -> None:
        self._device = original.device
        self._sessions: dict[GraphName, Any] = {}
        facts = []
        for graph in GRAPHS:
            path = folder / f"{graph}.onnx"
            session = _open(path, self._device.type)
            found = session.get_modelmeta().custom_metadata_map.get(FACTS_KEY)
            facts.append(GraphFacts.from_json(found, path))
            facts[-1].require(graph, original, expected_hash, path)
            self._sessions[graph] = session
        self.facts = one_kind(facts, folder)

    def run(self, graph: GraphName, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        """Compute ``graph`` of ``inputs`` into ``outputs``, all dense and on the VAE's device."""
        session = self._sessions[graph]
        binding = session.io_binding()
        for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, one in tensors.items():
                bind(
                    name,
                    self._device.type,
                    self._device.index or 0,
                    _ONNX_TYPES[one.dtype],
                    tuple(one.shape),
                    one.data_ptr(),
                )
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()


def one_kind(facts: list[GraphFacts], folder: Path) -> GraphFacts:
    """The facts that the graphs of ``folder`` share.

    Raises
    ------
    ModelError
        They differ in type or size.
    """
    if len({(one.dtype, one.height, one.width) for one in facts}) != 1:
        raise ModelError(
            f"{folder}: graphs of different types or sizes.",
            stage="load",
            hint="Export all four together.",
        )
    return facts[0]


def _open(path: Path, device_type: str) -> Any:  # noqa: ANN401 - onnxruntime has no types
    """An ONNX Runtime session."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency(
            "onnxruntime is not installed.", stage="load", hint="pip install 'skyreels-rt[onnx]'"
        ) from error
    provider = _PROVIDERS.get(device_type)
    if provider not in onnxruntime.get_available_providers():
        raise MissingDependency(
            f"This onnxruntime cannot run on {device_type}.",
            stage="load",
            hint="Install onnxruntime-gpu for CUDA, or use vae='torch'.",
        )
    if not path.is_file():
        raise ModelError(
            f"{path}: no such file.", stage="load", hint="Make it with `skyreels-rt export vae`."
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only: fusions that do not apply are no news
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # its own errors share no base
        raise ModelError(
            f"{path}: ONNX Runtime cannot open it ({type(error).__name__}: {str(error)[:200]}).",
            stage="load",
        ) from error
