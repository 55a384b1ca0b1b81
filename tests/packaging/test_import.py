"""What importing the package does and, above all, does not do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "torch.distributed", "transformers", "triton", "av", "soxr", "soundfile", "numpy")


def run_python(code: str, cwd: Path, **environment: str) -> str:
    """Output of ``code`` in a fresh interpreter, away from the repository."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_cold_import_is_light(tmp_path: Path) -> None:
    code = f"import sys, skyreels_rt; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert run_python(code, tmp_path) == "[]"


def test_kernels_bring_torch_and_nothing_else_heavy(tmp_path: Path) -> None:
    # Triton itself is not in the list: torch's compiler imports it where it is installed.
    heavy = ("transformers", "av", "soxr", "soundfile", "diffusers", "skyreels_rt.kernels.triton")
    code = f"import sys, skyreels_rt.kernels; print([m for m in {heavy!r} if m in sys.modules])"
    assert run_python(code, tmp_path) == "[]"


def test_import_without_torch(tmp_path: Path) -> None:
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("torch is blocked")
sys.meta_path.insert(0, Block())
import skyreels_rt, skyreels_rt.errors, skyreels_rt.types, skyreels_rt.config, skyreels_rt.env
try:
    import skyreels_rt.kernels
except ImportError as error:
    print(error)
"""
    assert "torch is blocked" in run_python(code, tmp_path)


def test_export_refuses_to_be_imported_by_its_bare_name(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
try:
    import export
except ImportError as error:
    print(error)
"""
    assert "skyreels_rt.export" in run_python(code, tmp_path)


def test_kernels_by_its_bare_name_is_empty_and_harmless(tmp_path: Path) -> None:
    """transformers imports anything called `kernels`; it must live with ours in the way."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import kernels, transformers
print([name for name in vars(kernels) if not name.startswith("__")])
try:
    import kernels.reference
except ImportError:
    print("no second copy")
from transformers.utils import is_kernels_available
print(is_kernels_available())
from skyreels_rt.kernels import qk_norm_rope
"""
    assert run_python(code, tmp_path).splitlines() == ["[]", "no second copy", "False"]


def test_plan_without_the_compiled_libraries(tmp_path: Path) -> None:
    code = """
import torch
from skyreels_rt.kernels import Impl, KernelPlan, frames_to_uint8
from skyreels_rt.errors import UnsupportedKernel
from skyreels_rt.runtime.native import native_status
plan = KernelPlan.choose("cpu", torch.float32)
print(plan.qk_norm_rope.value, plan.frames_to_uint8.value)
print([layer.active for layer in native_status()[:2]], native_status()[0].detail)
print(tuple(frames_to_uint8(torch.zeros(3, 1, 2, 2)).shape))
try:
    frames_to_uint8(torch.zeros(3, 1, 2, 2), impl=Impl.CPP)
except UnsupportedKernel as error:
    print(error)
"""
    lines = run_python(code, tmp_path, SKYREELS_RT_NATIVE="off").splitlines()
    assert lines[0] == "reference reference"
    assert lines[1].startswith("[False, False]")
    assert "SKYREELS_RT_NATIVE" in lines[1]
    assert lines[2] == "(1, 2, 2, 3)"
    assert "SKYREELS_RT_NATIVE" in lines[3]


def test_a_misspelt_variable_value_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from skyreels_rt import env
    from skyreels_rt.errors import InvalidArgument

    monkeypatch.setenv("SKYREELS_RT_NATIVE", "of")
    with pytest.raises(InvalidArgument, match="auto or off"):
        env.native_enabled()
    assert len(env.VARIABLES) <= 6


def test_the_engine_runs_on_arrays_without_media_libraries(tmp_path: Path) -> None:
    """What reads and writes files is loaded when a file is read or written."""
    code = """
import sys
sys.modules.update(dict.fromkeys(("av", "soxr", "soundfile", "typer")))  # as if absent
import numpy as np, skyreels_rt as rt
engine = rt.Engine.from_pretrained("tiny-random", device="cpu")
video = engine.generate(
    np.zeros(8000, np.float32), sample_rate=16000, image=np.zeros((128, 128, 3), np.uint8),
    num_steps=1, on_progress=lambda _: None,
)
print(video.frames.shape)
"""
    assert run_python(code, tmp_path).startswith("(")
