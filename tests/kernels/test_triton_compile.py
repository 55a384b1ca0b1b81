"""Every Triton kernel becomes code for sm_80 and sm_90, without a GPU: no spills, wide loads."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys

import pytest

import skyreels_rt.kernels.triton as triton_ops

pytest.importorskip("triton", reason="Triton is not installed")
OPS = [m.name for m in pkgutil.iter_modules(triton_ops.__path__) if not m.name.startswith("_")]


@pytest.mark.parametrize("op", OPS)
def test_kernels_compile_without_spills(op: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "skyreels_rt.testing.cubins", op],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    cubins = [json.loads(line) for line in done.stdout.splitlines()]
    needs_e4m3 = "quantize" in op  # sm_80 has no conversions to it
    assert {cubin["arch"] for cubin in cubins} == ({90} if needs_e4m3 else {80, 90})
    spilled = [cubin for cubin in cubins if cubin["spilled_bytes"]]
    assert not spilled, spilled
    assert all(cubin["vector_loads"] for cubin in cubins), cubins
