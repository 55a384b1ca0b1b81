"""Compiles every Triton kernel for GPUs that are not here, and reads what came out.

Run as ``python -m skyreels_rt.testing.cubins [op ...]`` in a process without TRITON_INTERPRET: it
prints one JSON object a kernel, configuration and architecture. Triton brings its own assembler, so
neither a GPU nor a CUDA toolkit is needed.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ARCHITECTURES = (80, 90)


@dataclass(frozen=True)
class Cubin:
    """One compiled kernel.

    Attributes
    ----------
    op, kernel : str
        Operator and kernel function.
    constants : str
        Its compile-time constants and number of warps.
    signature : str
        Types of its arguments.
    arch : int
        80 for sm_80.
    registers : int
        Per thread.
    spilled_bytes : int
        Of local memory per thread.
    vector_loads : int
        Instructions that load 8 bytes or more at once.
    """

    op: str
    kernel: str
    constants: str
    signature: str
    arch: int
    registers: int
    spilled_bytes: int
    vector_loads: int


def compile_all(ops: list[str] | None = None) -> Iterator[Cubin]:
    """Compile the kernels that the Triton modules list in ``AOT``, one at a time."""
    import skyreels_rt.kernels.triton as package

    names = [m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")]
    for op in names:
        if ops and op not in ops:
            continue
        module = importlib.import_module(f"skyreels_rt.kernels.triton.{op}")
        for kernel, signature, constants, num_warps in module.AOT:
            for arch in ARCHITECTURES:
                if arch < getattr(module, "MIN_CAPABILITY", 0):
                    continue
                yield _compile(op, kernel, signature, constants, num_warps, arch)


def _compile(
    op: str,
    kernel: Any,  # noqa: ANN401 - Triton carries no types
    signature: dict[str, str],
    constants: dict[str, Any],
    num_warps: int,
    arch: int,
) -> Cubin:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {**signature, **dict.fromkeys(constants, "constexpr")}
    # Tensors of torch begin at multiples of 16 bytes; sizes and strides of the models are multiples
    # of 16. Triton looks at both when a kernel is first called.
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if types.get(name, "").startswith(("*", "i32", "i64"))
    }
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=attributes)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", arch, 32), options={"num_warps": num_warps}
    )
    registers, spilled = _resources(compiled.asm["cubin"])
    return Cubin(
        op=op,
        kernel=kernel.__name__,
        constants=json.dumps({**constants, "num_warps": num_warps}, default=str),
        signature=" ".join(signature.values()),
        arch=arch,
        registers=registers,
        spilled_bytes=spilled,
        vector_loads=len(re.findall(r"ld\.global\S*\.v[24]\.|cp\.async", compiled.asm["ptx"])),
    )


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory per thread."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text))
    return int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"])


def main() -> None:
    """Print one JSON object a line."""
    for cubin in compile_all(sys.argv[1:]):
        sys.stdout.write(json.dumps(asdict(cubin)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
