"""TensorRT engines of the exported graphs: one builder for TensorRT 10, 11 and TensorRT-RTX.

Networks are strongly typed: the types are those of the ONNX file, norms in float32. What of this
was run, and what could not be, is in docs/vae.md.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from skyreels_rt.errors import InvalidArgument, MissingDependency, ModelError, OutputError
from skyreels_rt.export.facts import FACTS_KEY, GRAPHS, GraphFacts, GraphName

Library = Literal["tensorrt", "tensorrt-rtx"]
MODULES: dict[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Python module of each library."""

PLAN_SUFFIX, FACTS_SUFFIX = ".plan", ".plan.json"


@dataclass(frozen=True)
class PlanFacts:
    """Facts stored beside an engine file, which has no room for them.

    Attributes
    ----------
    graph : GraphFacts
        Of the ONNX file it was built from.
    library, library_version : str
        Who built it, and can run it.
    built_for : str
        GPU it was built on, or compute capability it was built for.
    """

    graph: GraphFacts
    library: str
    library_version: str
    built_for: str

    def write(self, path: Path) -> None:
        """Write the facts as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> PlanFacts:
        """Read what :meth:`write` wrote.

        Raises
        ------
        ModelError
            No such file, or not one of ours.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            graph = GraphFacts.from_json(json.dumps(found.pop("graph")), path)
            if found["library"] not in MODULES:
                raise ValueError("another library")
            return cls(graph=graph, **found)
        except FileNotFoundError as error:
            raise ModelError(
                f"{path}: no such file.",
                stage="load",
                hint="Make it with `skyreels-rt export vae --format tensorrt`.",
            ) from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{path}: not a file that skyreels-rt wrote.", stage="load") from error


@dataclass(frozen=True)
class BuildOptions:
    """How engines are built.

    Attributes
    ----------
    library : {"tensorrt", "tensorrt-rtx"}
        Who builds.
    compute_capability : (int, int) or None
        GPU generation to build for, which needs no GPU; TensorRT-RTX only. None: the GPU here.
    timing_cache : Path or None
        File of measured kernel times, read if present and written back; not for TensorRT-RTX.
    version_compatible : bool
        Engines that later versions of TensorRT, and its lean runtime, can run.
    workspace_bytes : int or None
        Most scratch memory of the engine; None leaves it to the library.
    """

    library: Library = "tensorrt"
    compute_capability: tuple[int, int] | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    workspace_bytes: int | None = None


def import_library(name: str) -> Any:  # noqa: ANN401 - a module without types
    """The Python module of ``"tensorrt"`` or ``"tensorrt-rtx"``.

    Raises
    ------
    InvalidArgument
        Another name.
    MissingDependency
        It is not installed.
    """
    if name not in MODULES:
        raise InvalidArgument("library", expected=f"one of {', '.join(MODULES)}", got=repr(name))
    try:
        return importlib.import_module(MODULES[name])
    except ImportError as error:
        hints = {
            "tensorrt": "NVIDIA's index has it: https://docs.nvidia.com/deeplearning/tensorrt.",
            "tensorrt-rtx": "pip install tensorrt-rtx",
        }
        raise MissingDependency(
            f"{name} is not installed.", stage="export", hint=hints[name]
        ) from error


def build_engines(
    folder: Path,
    options: BuildOptions | None = None,
    *,
    graphs: tuple[GraphName, ...] = GRAPHS,
    on_progress: Callable[[str], None] | None = None,
) -> list[Path]:
    """Build an engine beside every ONNX file of a folder.

    Parameters
    ----------
    folder : Path
        What :func:`skyreels_rt.export.onnx.export_vae` wrote, of one frame size.
    options : BuildOptions, optional
        How to build.
    graphs : tuple of str
        Which of :data:`skyreels_rt.export.facts.GRAPHS`.
    on_progress : callable, optional
        Called with one line of text for every phase of a build.

    Returns
    -------
    list of Path
        The engine files, ``<graph>.plan``; ``<graph>.plan.json`` holds their facts.

    Raises
    ------
    MissingDependency
        The library or a GPU is missing.
    InvalidArgument
        An option that the library does not have.
    ModelError
        A file is missing, has open dimensions, or the library refuses it.
    OutputError
        A file cannot be written.
    """
    options = options or BuildOptions()
    trt = import_library(options.library)
    built_for = _built_for(options)
    plans = []
    for graph in graphs:
        source = folder / f"{graph}.onnx"
        facts = read_onnx_facts(source)
        if facts.height is None:
            raise ModelError(
                f"{source}: its frame size is open; engines are built for one.",
                stage="export",
                hint="Export with --height and --width instead of --dynamic.",
            )
        engine = _build(trt, source, options, on_progress or (lambda _: None))
        try:
            plan = folder / f"{graph}{PLAN_SUFFIX}"
            plan.write_bytes(engine)
            stored = PlanFacts(facts, options.library, str(trt.__version__), built_for)
            stored.write(folder / f"{graph}{FACTS_SUFFIX}")
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written ({error.strerror}).") from error
        plans.append(plan)
    return plans


def read_onnx_facts(path: Path) -> GraphFacts:
    """Facts in an ONNX file.

    Raises
    ------
    ModelError
        Missing, not ONNX, or not exported by us.
    MissingDependency
        The package ``onnx`` is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependency(
            "onnx is not installed.", stage="export", hint="pip install 'skyreels-rt[export]'"
        ) from error
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's and the file system's errors share no base
        raise ModelError(
            f"{path}: not readable as ONNX ({type(error).__name__}).",
            stage="load",
            hint="Make it with `skyreels-rt export vae --format onnx`.",
        ) from error
    found = {entry.key: entry.value for entry in model.metadata_props}
    return GraphFacts.from_json(found.get(FACTS_KEY), path)


def _built_for(options: BuildOptions) -> str:
    """The GPU to build for, in words."""
    if options.compute_capability is not None:
        if options.library != "tensorrt-rtx":
            raise InvalidArgument(
                "compute_capability", expected="none: TensorRT builds for the GPU it runs on",
                got=options.compute_capability,
            )  # fmt: skip
        return "compute capability {}.{}".format(*options.compute_capability)
    if not torch.cuda.is_available():
        raise MissingDependency(
            "Building an engine needs a CUDA device.",
            stage="export",
            hint="TensorRT-RTX can build for a given compute capability without one.",
        )
    return torch.cuda.get_device_name()


def _build(trt: Any, source: Path, options: BuildOptions, say: Callable[[str], None]) -> bytes:  # noqa: ANN401
    """The serialised engine of one ONNX file."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    # TensorRT 11 types every network strongly and may drop the flag.
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    flags = 0 if strongly_typed is None else 1 << int(strongly_typed)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(source)):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise ModelError(
            f"{source}: {options.library} cannot parse it: {'; '.join(errors)[:500]}",
            stage="export",
        )
    config = builder.create_builder_config()
    config.progress_monitor = _progress_monitor(trt, lambda phase: say(f"{source.name}: {phase}"))
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.compute_capability is not None:
        name = "SM{}{}".format(*options.compute_capability)
        capability = getattr(trt.ComputeCapability, name, None)
        if capability is None:
            raise InvalidArgument(
                "compute_capability", expected=f"one that {options.library} knows", got=name
            )
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability, 0)
    cache = _load_timing_cache(config, options)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ModelError(
            f"{source}: {options.library} could not build an engine of it.",
            stage="export",
            hint="Its own messages above say why.",
        )
    if cache is not None and options.timing_cache is not None:
        options.timing_cache.write_bytes(memoryview(config.get_timing_cache().serialize()))
    return bytes(memoryview(engine))


def _load_timing_cache(config: Any, options: BuildOptions) -> Any:  # noqa: ANN401
    """The timing cache now set in ``config``, or None."""
    if options.timing_cache is None:
        return None
    if options.library == "tensorrt-rtx":
        raise InvalidArgument(
            "timing_cache", expected="none: TensorRT-RTX measures nothing when it builds",
            got=options.timing_cache,
        )  # fmt: skip
    stored = options.timing_cache.read_bytes() if options.timing_cache.exists() else b""
    cache = config.create_timing_cache(stored)
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _progress_monitor(trt: Any, say: Callable[[str], None]) -> Any:  # noqa: ANN401
    """A monitor that names every outermost phase."""

    class Phases(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                say(f"{phase_name} ({num_steps} steps)")

        def step_complete(self, phase_name: str, step: int) -> bool:  # noqa: ARG002
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Phases()
