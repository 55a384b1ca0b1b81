"""The compiled module itself: bad arguments, threads, forks, concurrency."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from skyreels_rt.kernels import Impl, frames_to_uint8
from skyreels_rt.kernels._native import ABI_VERSION
from skyreels_rt.kernels.reference.frames_to_uint8 import frames_to_uint8 as reference
from skyreels_rt.runtime.native import native_status
from skyreels_rt.testing.numerics import assert_bitwise_equal

ROOT = Path(__file__).parents[2]
LAYERS = {layer.name: layer for layer in native_status()}
needs_cpp = pytest.mark.skipif(not LAYERS["_C"].active, reason=f"_C: {LAYERS['_C'].detail}")


def test_interface_version_is_the_same_in_python_and_cpp() -> None:
    header = (ROOT / "csrc/include/skyreels_rt/types.h").read_text()
    assert re.search(r"kAbiVersion = (\d+);", header)[1] == str(ABI_VERSION)


@needs_cpp
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"src": 0}, "null"),
        ({"dtype": 2}, "dtype"),
        ({"num_frames": -1}, ">= 0"),
        ({"num_threads": 0}, "num_threads"),
        ({"isa": "mmx"}, "mmx"),
    ],
)
def test_bad_arguments_raise_and_never_crash(change: dict[str, object], words: str) -> None:
    from skyreels_rt import _C

    source, target = torch.zeros(3, 1, 4, 4), torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    arguments = {
        "src": source.data_ptr(), "dst": target.data_ptr(), "dtype": 0, "num_frames": 1,
        "plane": 16, "stride_channel": 16, "stride_frame": 16, "num_threads": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match=words):
        _C.frames_to_uint8(**(arguments | change))


@needs_cpp
def test_python_threads_may_call_at_the_same_time() -> None:
    frames = [torch.rand(3, 4, 90, 70) * 2 - 1 for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda x: frames_to_uint8(x, impl=Impl.CPP), frames * 4))
    for out, source in zip(outputs, frames * 4, strict=True):
        assert_bitwise_equal(out, reference(source))


@needs_cpp
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_works_in_a_forked_child() -> None:
    from skyreels_rt import _C

    frames = torch.rand(3, 4, 90, 70) * 2 - 1
    expected = frames_to_uint8(frames, impl=Impl.CPP)  # the pool now exists in the parent
    out = torch.zeros_like(expected)
    child = os.fork()
    if child == 0:
        _C.frames_to_uint8(
            frames.data_ptr(), out.data_ptr(), 0, 4, 90 * 70, frames.stride(0), frames.stride(1), 2
        )
        os._exit(0 if out.numpy().tobytes() == expected.numpy().tobytes() else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["ASAN", "TSAN", "UBSAN"])
def test_cpp_tests_under_sanitizers(tmp_path: Path, sanitizer: str) -> None:
    cmake = shutil.which("cmake")
    if cmake is None or shutil.which("c++") is None:
        pytest.skip("no cmake or no C++ compiler")
    options = ("PYTHON=OFF", "TESTS=ON", "WERROR=ON", f"{sanitizer}=ON")
    configure = [cmake, "-S", ROOT, "-B", tmp_path, *(f"-DSKYREELS_RT_{o}" for o in options)]
    subprocess.run(configure, check=True, capture_output=True)
    subprocess.run([cmake, "--build", tmp_path, "-j"], check=True, capture_output=True)
    subprocess.run([tmp_path / "srt_test_core"], check=True, timeout=300)
