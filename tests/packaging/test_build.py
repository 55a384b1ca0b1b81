"""What a build produces, and how it behaves without tools; the long matrix is marked slow."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from skyreels_rt.kernels import _native

ROOT = Path(__file__).parents[2]
SOURCES = (
    "CMakeLists.txt", "MANIFEST.in", "LICENSE", "NOTICE", "README.md", "pyproject.toml",
    "setup.py", "csrc", "kernels", "export", "skyreels_rt",
)  # fmt: skip
PURE = {"SKYREELS_RT_BUILD_EXT": "off", "SKYREELS_RT_CUDA": "off"}
needs_compiler = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("c++")), reason="no cmake or no C++ compiler"
)


def copy_sources(target: Path) -> Path:
    """A clean copy of what the repository tracks for the build."""
    skip = shutil.ignore_patterns("*.so", "__pycache__", "build", "*.egg-info")
    target.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=skip)
        else:
            shutil.copy2(ROOT / name, target)
    return target


def build(source: Path, out: Path, kind: str = "wheel", **environment: str) -> tuple[Path, str]:
    """The wheel or sdist built from ``source`` without isolation, and the build's output."""
    done = run_build(source, out, kind, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (artefact,) = out.iterdir()
    return artefact, done.stdout + done.stderr


def run_build(
    source: Path, out: Path, kind: str = "wheel", **environment: str
) -> subprocess.CompletedProcess[str]:
    hook = f"import os; from setuptools import build_meta as b; b.build_{kind}({str(out)!r})"
    out.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", hook],
        cwd=source,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_pure_wheel_holds_one_top_level_package(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    wheel, _ = build(copy_sources(tmp_path / "src"), tmp_path / "out", **PURE)
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        (top_level,) = (n for n in archive.namelist() if n.endswith("top_level.txt"))
        assert archive.read(top_level).decode().split() == ["skyreels_rt"]
    names = names_in(wheel)
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"skyreels_rt"}
    assert {"skyreels_rt/py.typed", "skyreels_rt/_C.pyi"} <= names
    for folder, package in (("kernels", "kernels"), ("export", "export"), ("skyreels_rt", "")):
        for file in (ROOT / folder).rglob("*.py"):
            inside = "/".join(p for p in ("skyreels_rt", package) if p)
            assert f"{inside}/{file.relative_to(ROOT / folder).as_posix()}" in names


def test_setup_stays_thin() -> None:
    assert len((ROOT / "setup.py").read_text().splitlines()) < 120


@pytest.mark.parametrize("variable", ["SKYREELS_RT_BUILD_EXT", "SKYREELS_RT_CUDA"])
def test_a_misspelt_switch_is_an_error(variable: str, tmp_path: Path) -> None:
    done = run_build(ROOT, tmp_path, "sdist", **{variable: "yes"})
    assert done.returncode != 0
    assert f"{variable}: expected auto, on or off, got 'yes'." in done.stderr


@pytest.mark.slow
@needs_compiler
def test_wheel_from_sdist_is_complete(tmp_path: Path) -> None:
    sdist, _ = build(copy_sources(tmp_path / "src"), tmp_path / "sdist", "sdist", **PURE)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    packed = {p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()}
    for folder in ("csrc", "kernels", "export"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and file.suffix in (".py", ".h", ".cpp", ".cu"):
                assert file.relative_to(ROOT).as_posix() in packed
    assert {"CMakeLists.txt", "LICENSE", "NOTICE", "README.md"} <= packed
    wheel, _ = build(source, tmp_path / "wheel", SKYREELS_RT_BUILD_EXT="on")
    assert any(re.fullmatch(r"skyreels_rt/_C\..*\.(so|pyd)", name) for name in names_in(wheel))


def path_without_compilers(folder: Path) -> str:
    """A PATH with the shell's basics but no compiler, cmake or nvcc."""
    folder.mkdir()
    for tool in ("sh", "env", "uname", "ls", "cp", "rm"):
        if found := shutil.which(tool):
            (folder / tool).symlink_to(found)
    return str(folder)


@pytest.mark.slow
def test_without_a_compiler(tmp_path: Path) -> None:
    source = copy_sources(tmp_path / "src")
    bare = {"PATH": path_without_compilers(tmp_path / "bin"), "CXX": "", "CUDACXX": ""}
    wheel, output = build(source, tmp_path / "auto", **bare)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "a C++ compiler not found, building without _C." in output
    done = run_build(source, tmp_path / "on", SKYREELS_RT_BUILD_EXT="on", **bare)
    assert done.returncode != 0
    assert "SKYREELS_RT_BUILD_EXT=on, but a C++ compiler was not found." in done.stderr


@pytest.mark.slow
@needs_compiler
def test_a_failing_cuda_compile_does_not_block_the_cpu_module(tmp_path: Path) -> None:
    source = copy_sources(tmp_path / "src")
    broken = tmp_path / "nvcc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    wheel, _ = build(source, tmp_path / "auto", CUDACXX=str(broken))
    names = names_in(wheel)
    assert any(name.startswith("skyreels_rt/_C.") and name.endswith(".so") for name in names)
    assert "skyreels_rt/libskyreels_rt_cuda.so" not in names
    done = run_build(source, tmp_path / "on", CUDACXX=str(broken), SKYREELS_RT_CUDA="on")
    assert done.returncode != 0


@pytest.mark.slow
@pytest.mark.skipif(
    not any(shutil.which(p) for p in ("nvcc", "/usr/local/cuda/bin/nvcc")), reason="no nvcc"
)
def test_cuda_library_exports_the_c_interface_and_nothing_else(tmp_path: Path) -> None:
    environment = {"SKYREELS_RT_CUDA": "on", "SKYREELS_RT_BUILD_EXT": "off"}
    wheel, _ = build(copy_sources(tmp_path / "src"), tmp_path / "out", **environment)
    with zipfile.ZipFile(wheel) as archive:
        library = archive.extract("skyreels_rt/libskyreels_rt_cuda.so", tmp_path)
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True
    )
    exported = {line.split()[-1] for line in listed.stdout.splitlines()}
    header = (ROOT / "csrc/include/skyreels_rt/cuda_api.h").read_text()
    assert exported == set(re.findall(r"skyreels_rt_cuda_\w+(?=\()", header))


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_other_pythons(version: str, tmp_path: Path) -> None:
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    pythons = sorted(versions.glob(f"{version}*/bin/python"))
    if not pythons:
        pytest.skip(f"no Python {version} under pyenv")
    environment = tmp_path / "env"
    subprocess.run([pythons[-1], "-m", "venv", environment], check=True)
    python = environment / "bin/python"
    # Isolated, so that the build requirements themselves are tested; torch is nowhere.
    source = copy_sources(tmp_path / "src")
    command = [python, "-m", "pip", "install", "--no-deps", "-q", source]
    subprocess.run(command, check=True, env=os.environ | {"SKYREELS_RT_CUDA": "off"})
    code = "import skyreels_rt, skyreels_rt.config, skyreels_rt._C as c; print(c.ABI_VERSION)"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert int(done.stdout) == _native.ABI_VERSION
