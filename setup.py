"""Package map and native build. Metadata lives in pyproject.toml.

Read by this build only: SKYREELS_RT_BUILD_EXT=auto|on|off (the C++ module _C),
SKYREELS_RT_CUDA=auto|on|off (the CUDA library), SKYREELS_RT_CUDA_ARCHS, SKYREELS_RT_WERROR=0|1.
The build asks for compilers, never for a device, and never for torch.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
PACKAGE_DIR = {
    "skyreels_rt": "skyreels_rt",
    "skyreels_rt.kernels": "kernels",
    "skyreels_rt.export": "export",
}
CUDA_LIBRARY = "libskyreels_rt_cuda.so"


def packages() -> Iterator[str]:
    """Every package of the map, found by its ``__init__.py``."""
    for name, folder in PACKAGE_DIR.items():
        for init in sorted((ROOT / folder).rglob("__init__.py")):
            yield ".".join((name, *init.parent.relative_to(ROOT / folder).parts))


def tool(*names: str | None) -> str | None:
    """First of the programs ``names`` on PATH or beside this Python, or None."""
    path = os.pathsep.join((os.environ.get("PATH", ""), str(Path(sys.executable).parent)))
    return next(filter(None, (shutil.which(name, path=path) for name in names if name)), None)


def find_nvcc() -> str | None:
    """Path of nvcc, or None."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    return tool(os.environ.get("CUDACXX"), "nvcc", *(f"{home}/bin/nvcc" for home in homes if home))


def missing_tool(cuda: bool) -> str | None:
    """What a native build lacks here, or None."""
    if not tool(os.environ.get("CXX"), "c++", "g++", "clang++"):
        return "a C++ compiler"
    if not tool("cmake"):
        return "cmake"
    if cuda:
        return None if find_nvcc() else "nvcc"
    return None if importlib.util.find_spec("pybind11") else "pybind11"


def extensions() -> Iterator[Extension]:
    """Native targets to build; a tool that is missing is an error only under ``on``."""
    for variable, target in (("SKYREELS_RT_BUILD_EXT", "_C"), ("SKYREELS_RT_CUDA", CUDA_LIBRARY)):
        wanted = os.environ.get(variable, "auto")
        if wanted not in ("auto", "on", "off"):
            sys.exit(f"{variable}: expected auto, on or off, got {wanted!r}.")
        missing = None if wanted == "off" else missing_tool(target == CUDA_LIBRARY)
        if wanted == "on" and missing:
            sys.exit(f"{variable}=on, but {missing} was not found.")
        if missing:
            print(f"skyreels-rt: {missing} not found, building without {target}.", file=sys.stderr)
        elif wanted != "off":
            name = target.removeprefix("lib").removesuffix(".so")
            yield Extension(f"skyreels_rt.{name}", sources=[], optional=wanted == "auto")


class CMakeBuild(build_ext):
    """Build each extension with CMake, in a tree of its own so that one cannot block another."""

    def get_ext_filename(self, fullname: str) -> str:
        folder, _, name = fullname.replace(".", os.sep).rpartition(os.sep)
        if name == "skyreels_rt_cuda":
            return str(Path(folder, CUDA_LIBRARY))
        return super().get_ext_filename(fullname)

    def build_extension(self, ext: Extension) -> None:
        target = ext.name.rpartition(".")[2]
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        tree = Path(self.build_temp).resolve() / target
        options = {
            "SKYREELS_RT_OUTPUT_DIR": output,
            "SKYREELS_RT_WERROR": os.environ.get("SKYREELS_RT_WERROR", "0"),
        }
        if target == "skyreels_rt_cuda":
            options |= {"SKYREELS_RT_PYTHON": "OFF", "SKYREELS_RT_CUDA": "ON"}
            options["CMAKE_CUDA_COMPILER"] = find_nvcc()
            if archs := os.environ.get("SKYREELS_RT_CUDA_ARCHS"):
                options["SKYREELS_RT_CUDA_ARCHS"] = archs
        else:
            options["pybind11_DIR"] = importlib.import_module("pybind11").get_cmake_dir()
            options["Python_EXECUTABLE"] = sys.executable
        cmake, ninja = tool("cmake"), tool("ninja")
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        defines = [f"-D{name}={value}" for name, value in options.items()]
        shutil.rmtree(tree, ignore_errors=True)  # isolated builds leave stale tool paths behind
        try:
            subprocess.run([cmake, "-S", ROOT, "-B", tree, *generator, *defines], check=True)
            jobs = f"-j{os.cpu_count() or 1}"
            subprocess.run([cmake, "--build", tree, "--target", target, jobs], check=True)
        except subprocess.CalledProcessError as error:
            # Setuptools turns this into a warning where the extension is optional ("auto").
            raise CompileError(f"building {target} failed: {error}") from error


setup(
    packages=list(packages()),
    package_dir=PACKAGE_DIR,
    package_data={"skyreels_rt": ["py.typed", "_C.pyi", "assets/**", "*/*.json", "serve/page/*"]},
    ext_modules=list(extensions()),
    cmdclass={"build_ext": CMakeBuild},
)
