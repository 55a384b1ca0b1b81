"""TensorRT: graphs are legal to TensorRT-RTX; the runner binds what it says (stand-in library)."""

from __future__ import annotations

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from skyreels_rt.errors import InvalidArgument, MissingDependency, ModelError
from skyreels_rt.export.exported_vae import ExportedVAE
from skyreels_rt.export.facts import GRAPHS, model_hash
from skyreels_rt.export.tensorrt import BuildOptions, PlanFacts, build_engines, read_onnx_facts
from skyreels_rt.export.tensorrt_runner import TensorRTRunner
from skyreels_rt.export.verify import verify_stream

pytest.importorskip("onnx", reason="onnx is not installed: nothing is exported")
RTX = BuildOptions(library="tensorrt-rtx", compute_capability=(8, 9))
SIZE = (16, 24)


@pytest.fixture(scope="session")
def rtx():
    return pytest.importorskip(
        "tensorrt_rtx", reason="tensorrt-rtx is not installed: no graph is checked against it"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tensorrt_rtx_builds_all_four_graphs(dtype, exported, rtx, tmp_path):
    folder = shutil.copytree(exported("wan", dtype), tmp_path / "graphs")
    lines = []
    plans = build_engines(folder, RTX, on_progress=lines.append)
    assert [plan.name for plan in plans] == [f"{graph}.plan" for graph in GRAPHS]
    assert all(plan.stat().st_size > 10_000 for plan in plans)
    assert any("decode_steady" in line for line in lines)
    stored = PlanFacts.read(folder / "decode_steady.plan.json")
    assert stored.library_version == rtx.__version__
    assert stored.graph == read_onnx_facts(folder / "decode_steady.onnx")
    assert stored.built_for == "compute capability 8.9"


@pytest.mark.parametrize(
    "kind, dtype",
    [
        ("wan", torch.bfloat16),
        pytest.param("tiny", torch.float32, marks=pytest.mark.slow),
        pytest.param("tiny", torch.float16, marks=pytest.mark.slow),
        pytest.param("tiny", torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_tensorrt_rtx_builds_the_steady_decoder(kind, dtype, exported, rtx, tmp_path):
    graphs = ("decode_steady",)
    folder = shutil.copytree(exported(kind, dtype, graphs=graphs), tmp_path / "graphs")
    assert len(build_engines(folder, RTX, graphs=graphs)) == 1


def test_a_broken_graph_is_refused_with_the_parsers_words(exported, rtx, tmp_path):
    import onnx

    folder = shutil.copytree(exported("wan"), tmp_path / "graphs")
    model = onnx.load(folder / "decode_first.onnx")
    model.graph.node[3].op_type = "NoSuchOperator"
    onnx.save(model, folder / "decode_first.onnx")
    with pytest.raises(ModelError, match=r"cannot parse it: .*Plugin not found"):
        build_engines(folder, RTX, graphs=("decode_first",))


def test_options_that_a_library_lacks_are_refused(exported, rtx, tmp_path):
    folder = shutil.copytree(exported("wan"), tmp_path / "graphs")
    with pytest.raises(InvalidArgument, match="compute_capability"):
        build_engines(folder, BuildOptions("tensorrt-rtx", compute_capability=(9, 0)))
    cached = BuildOptions("tensorrt-rtx", (8, 9), timing_cache=tmp_path / "times")
    with pytest.raises(InvalidArgument, match="timing_cache"):
        build_engines(folder, cached)


def test_open_dimensions_are_refused(exported, rtx):
    folder = exported("tiny", size=None, graphs=("decode_first",))
    with pytest.raises(ModelError, match="frame size is open"):
        build_engines(folder, RTX, graphs=("decode_first",))


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependency, match="tensorrt is not installed"):
        build_engines(tmp_path)
    with pytest.raises(InvalidArgument, match="library"):
        build_engines(tmp_path, BuildOptions(library="openvino"))


class StandInBuild:
    """The calls of TensorRT's builder, which writes the ONNX file's bytes as its engine.

    Without ``STRONGLY_TYPED`` it is as TensorRT 11 may be.
    """

    __version__ = "10.13.2"

    class IProgressMonitor:
        pass

    class Logger:
        ERROR = 2

        def __init__(self, level):
            pass

    BuilderFlag = SimpleNamespace(VERSION_COMPATIBLE="version compatible")
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")

    def __init__(self, strongly_typed=True):
        flags = {"STRONGLY_TYPED": 1} if strongly_typed else {}
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**flags)
        self.calls = []

    def Builder(self, logger):  # noqa: N802 - TensorRT's name
        def create_network(flags):
            self.calls.append(("network", flags))
            return SimpleNamespace(path=None)

        def build(network, config):
            config.progress_monitor.phase_start("Building", None, 3)
            config.progress_monitor.phase_start("Inside", "Building", 9)
            assert config.progress_monitor.step_complete("Building", 0)
            return network.path.read_bytes()

        return SimpleNamespace(
            create_network=create_network,
            create_builder_config=self.config,
            build_serialized_network=build,
        )

    def OnnxParser(self, network, logger):  # noqa: N802
        from pathlib import Path

        def parse(path):
            network.path = Path(path)
            return True

        return SimpleNamespace(parse_from_file=parse)

    def config(self):
        held = {}
        return SimpleNamespace(
            set_flag=lambda flag: self.calls.append(("flag", flag)),
            set_memory_pool_limit=lambda pool, size: self.calls.append((pool, size)),
            create_timing_cache=lambda stored: stored + b"+",
            set_timing_cache=lambda cache, ignore_mismatch: held.update(cache=cache),
            get_timing_cache=lambda: SimpleNamespace(serialize=lambda: held["cache"]),
        )


@pytest.mark.parametrize("strongly_typed", [True, False])
def test_the_builder_asks_for_what_the_options_say(strongly_typed, exported, tmp_path, monkeypatch):
    stand_in = StandInBuild(strongly_typed)
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    folder = shutil.copytree(exported("wan"), tmp_path / "graphs")
    options = BuildOptions(
        timing_cache=tmp_path / "times", version_compatible=True, workspace_bytes=2**20
    )
    lines = []
    build_engines(folder, options, on_progress=lines.append)
    assert stand_in.calls[:3] == [
        ("network", 2 if strongly_typed else 0),
        ("workspace", 2**20),
        ("flag", "version compatible"),
    ]
    assert lines == [f"{graph}.onnx: Building (3 steps)" for graph in GRAPHS]
    assert (tmp_path / "times").read_bytes() == b"++++"
    assert PlanFacts.read(folder / "decode_first.plan.json").built_for == "a GPU"


def test_building_without_a_gpu_is_refused(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", StandInBuild())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingDependency, match="needs a CUDA device"):
        build_engines(exported("wan"))


class StandInRun:
    """The calls of TensorRT's runtime; its engines are ONNX files run by ONNX Runtime."""

    __version__ = "10.13.2"

    class Logger:
        ERROR = 2

        def __init__(self, level):
            pass

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger):
            pass

        def deserialize_cuda_engine(self, blob):
            assert self.engine_host_code_allowed
            return StandInEngine(blob) if blob != b"of another GPU" else None


class StandInEngine:
    def __init__(self, blob):
        import onnxruntime

        self.session = onnxruntime.InferenceSession(blob)
        self.tensors = {v.name: v for v in self.session.get_inputs()}
        self.outputs = {v.name: v for v in self.session.get_outputs()}
        self.names = [*self.tensors, *self.outputs]
        self.num_io_tensors = len(self.names)
        self.addresses = {}

    def get_tensor_name(self, index):
        return self.names[index]

    def create_execution_context(self):
        return self

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return name in self.names

    def execute_async_v3(self, stream):
        binding = self.session.io_binding()
        for bind, side in (
            (binding.bind_input, self.tensors), (binding.bind_output, self.outputs)
        ):  # fmt: skip
            for name, value in side.items():
                bind(name, "cpu", 0, 1, value.shape, self.addresses[name])
        self.session.run_with_iobinding(binding)
        return True


@pytest.fixture
def plans(exported, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: no stand-in engine")
    folder = shutil.copytree(exported("wan"), tmp_path / "plans")
    for graph in GRAPHS:
        facts = read_onnx_facts(folder / f"{graph}.onnx")
        (folder / f"{graph}.onnx").rename(folder / f"{graph}.plan")
        PlanFacts(facts, "tensorrt", "10.13.2", "a GPU").write(folder / f"{graph}.plan.json")
    return folder


def test_the_runner_streams_like_torch(vae_of, plans):
    vae = vae_of("wan")
    runner = TensorRTRunner(plans, vae, model_hash(vae), library=StandInRun)
    parity = verify_stream(vae, ExportedVAE(vae, runner), height=SIZE[0], width=SIZE[1])
    assert all(part.ok for part in parity), parity


def test_caches_are_bound_not_copied(vae_of, plans):
    vae = vae_of("wan")
    runner = TensorRTRunner(plans, vae, model_hash(vae), library=StandInRun)
    engine_vae = ExportedVAE(vae, runner)
    latents = torch.randn(1, 16, 1, 2, 3)
    _, cache = engine_vae.decode_step(latents)
    kept = [one.clone() for one in cache]
    _, following = engine_vae.decode_step(latents, cache)
    addresses = runner._contexts["decode_steady"].addresses
    for index, (read, written) in enumerate(zip(cache, following, strict=True)):
        assert addresses[f"cache_{index:02d}"] == read.data_ptr()
        assert addresses[f"next_cache_{index:02d}"] == written.data_ptr()
    assert all(torch.equal(a, b) for a, b in zip(kept, cache, strict=True))


def test_engines_that_do_not_fit_are_refused(vae_of, plans):
    vae = vae_of("wan")
    other = vae_of("wan", seed=1)
    with pytest.raises(ModelError, match="another model"):
        TensorRTRunner(plans, other, model_hash(other), library=StandInRun)
    (plans / "decode_first.plan").write_bytes(b"of another GPU")
    with pytest.raises(ModelError, match=r"10\.13\.2 for a GPU; .* cannot load it here"):
        TensorRTRunner(plans, vae, model_hash(vae), library=StandInRun)
    shutil.copy(plans / "decode_steady.plan", plans / "decode_first.plan")
    with pytest.raises(ModelError, match="other inputs and outputs"):
        TensorRTRunner(plans, vae, model_hash(vae), library=StandInRun)
    (plans / "encode_first.plan.json").write_text(json.dumps({"library": "tensorrt"}))
    with pytest.raises(ModelError, match="not a file that skyreels-rt wrote"):
        TensorRTRunner(plans, vae, model_hash(vae), library=StandInRun)
    (plans / "encode_first.plan.json").unlink()
    with pytest.raises(ModelError, match="no such file"):
        TensorRTRunner(plans, vae, model_hash(vae), library=StandInRun)
