"""The project's own limits: imports one way, small files, a frozen surface, nothing unsafe."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "skyreels_rt": "skyreels_rt",
    "kernels": "skyreels_rt.kernels",
    "export": "skyreels_rt.export",
}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 600, 100

# A module imports its own room and rooms of a lower rank, but for the pairs in SIDEWAYS.
RANKS = [
    {"__main__"},
    {"cli"},
    {"cli_convert", "cli_data", "cli_live", "cli_parallel", "cli_vae", "cli_weights"},
    {"terminal", "held_out", "serve", "worker"},
    {"bench", "doctor", "training", "calibration", "conversion"},
    {"data"},
    {"evaluation"},
    {"streaming"},
    {"engine"},
    {"worker_engine"},
    {"worker_session", "opening"},
    {"pretrained", "scene", "estimate", "video_maker"},
    {"options", "offline", "export"},
    {"live", "progress", "report"},
    {"session", "continuation", "testing"},
    {"group_run"},
    {"appearance", "group_need", "latent_decoder", "model_folder"},
    {"components", "job", "quantization"},
    {"conditioning", "diffusion", "audio"},
    {"distributed"},
    {"media"},
    {"models"},
    {"weights"},
    {"runtime"},
    {"kernels"},
    {"types", "errors", "env", "config", "continuation_config", "presets"},
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
SIDEWAYS = {
    ("config", "errors"), ("env", "errors"),
    ("config", "continuation_config"), ("presets", "config"), ("presets", "errors"),
    ("presets", "continuation_config"), ("continuation_config", "errors"),
    ("bench", "training"),  # the corpus of the data pipeline is drawn
    ("pretrained", "testing"),  # "tiny-random" is a model like any other, loaded lazily
    ("testing", "kernels"),
}  # fmt: skip


def python_files():
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 40
    return files


def module_name(path):
    relative = path.relative_to(ROOT)
    parts = [FOLDERS[relative.parts[0]], *relative.with_suffix("").parts[1:]]
    return ".".join(parts).removesuffix(".__init__")


def room(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported_modules(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            yield node.module


def violations(module, tree):
    own = room(module)
    for target in imported_modules(tree):
        if not target.startswith("skyreels_rt."):
            continue
        other = room(target)
        if other == own or (own, other) in SIDEWAYS or own == "__init__":
            continue
        if RANK[other] <= RANK[own]:
            yield f"{module} imports {target}"


def test_imports_run_one_way():
    found = [
        line
        for path in python_files()
        for line in violations(module_name(path), ast.parse(path.read_text()))
    ]
    assert found == []


def test_import_check_rejects_a_planted_upward_import():
    planted = ast.parse("from skyreels_rt.session import Session")
    assert list(violations("skyreels_rt.models.rope", planted))


@pytest.mark.parametrize("pattern", ["**/*.py", "csrc/**/*.cpp", "csrc/**/*.h", "csrc/**/*.cu"])
def test_files_are_short(pattern):
    roots = ("skyreels_rt", "kernels", "export", "tests", "examples", "benchmarks", "csrc")
    files = [
        path
        for path in ROOT.glob(pattern)
        if path.relative_to(ROOT).parts[0] in roots or path.parent == ROOT
    ]
    long = {
        str(path): n for path in files if (n := len(path.read_text().splitlines())) > MAX_FILE_LINES
    }
    assert files
    assert long == {}


def test_functions_are_short():
    long = {}
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    long[f"{path.name}:{node.name}"] = length
    assert long == {}


def public_nodes(tree):
    """Public classes, functions and methods, outermost first."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("_") or is_overload(node):
                continue
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public_nodes(node)


def is_overload(node):
    """Whether a function only tells types; the one behind it has the docstring."""
    return any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list)


def test_every_public_name_is_documented_and_typed():
    bare = []
    for path in python_files():
        tree = ast.parse(path.read_text())
        if ast.get_docstring(tree) is None:
            bare.append(module_name(path))
        for node in public_nodes(tree):
            where = f"{module_name(path)}.{node.name}"
            if ast.get_docstring(node) is None:
                bare.append(f"{where}: docstring")
            if isinstance(node, ast.ClassDef):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            untyped = [
                a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")
            ]
            if untyped or node.returns is None:
                bare.append(f"{where}: annotations")
    assert bare == []


FORBIDDEN_IMPORTS = {
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve",
    "multiprocessing", "urllib", "http", "ftplib", "requests", "socket", "builtins",
}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_METHODS = {("torch", "load"), ("os", "system"), ("os", "popen"), ("os", "fork")}


def unsafe(tree):
    """What in a module could run foreign code, open a pickle or reach the network."""
    for target in imported_modules(tree):
        if target.split(".")[0] in FORBIDDEN_IMPORTS:
            yield f"import {target}"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            pairs = {(node.module, alias.name) for alias in node.names}
            yield from (f"from {a} import {b}" for a, b in pairs & FORBIDDEN_METHODS)
        if isinstance(node, ast.Import):
            yield from (f"{a.name} as {a.asname}" for a in node.names
                        if a.asname and a.name in ("torch", "os"))  # fmt: skip
        if isinstance(node, ast.Call):
            yield from unsafe_call(node)


def unsafe_call(node):
    if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
        yield f"{node.func.id}()"
    if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
        owner, method = node.func.value.id, node.func.attr
        is_launch = owner == "os" and method.startswith(("exec", "spawn", "posix_spawn"))
        if (owner, method) in FORBIDDEN_METHODS or is_launch:
            yield f"{owner}.{method}()"
    name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    named = [str(a.value) for a in node.args[:1] if isinstance(a, ast.Constant)]
    if name == "import_module" and named and named[0].split(".")[0] in FORBIDDEN_IMPORTS:
        yield f"import_module({named[0]!r})"
    for keyword in node.keywords:
        is_true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
        if keyword.arg in ("shell", "allow_pickle", "trust_remote_code") and is_true:
            yield f"{keyword.arg}=True"


UNPICKLER = "skyreels_rt.conversion.unpickle"


def test_nothing_unsafe_in_the_package():
    found = [
        f"{module_name(path)}: {what}"
        for path in python_files()
        if module_name(path) != UNPICKLER
        for what in unsafe(ast.parse(path.read_text()))
    ]
    assert found == []


def test_pickles_are_read_in_one_process_and_as_tensors_alone():
    """The converter's child may call torch.load, with weights_only; nothing else imports it."""
    files = {module_name(path): ast.parse(path.read_text()) for path in python_files()}
    assert set(unsafe(files[UNPICKLER])) == {"torch.load()"}
    for node in ast.walk(files[UNPICKLER]):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert "weights_only=True" in ast.unparse(node)
    importers = [name for name, tree in files.items() if UNPICKLER in imported_modules(tree)]
    assert importers == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from pickle import loads", "torch.load(f)", "eval(s)", "exec(s)",
        "subprocess.run(s, shell=True)", "np.load(f, allow_pickle=True)", "os.system(s)",
        "from torch import load", "import torch as t", "import_module('pickle')", "import _pickle",
        "importlib.import_module('joblib')", "os.execv(p, a)", "import builtins",
    ],
)  # fmt: skip
def test_safety_check_rejects(line):
    assert list(unsafe(ast.parse(line)))


def test_environment_is_read_in_one_place():
    readers = [
        module_name(path)
        for path in python_files()
        if re.search(r"\bos\.(environ|getenv)\b", path.read_text())
    ]
    assert readers in ([], ["skyreels_rt.env"])


def test_top_level_holds_only_what_is_planned():
    import subprocess

    done = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("not a git checkout: the root may hold build output")
    names = {Path(line).parts[0] for line in done.stdout.splitlines()}
    assert names <= {
        "csrc", "kernels", "skyreels_rt", "export", "tests", "benchmarks", "docs", "examples",
        "scripts", ".ci", "setup.py", "CMakeLists.txt", "pyproject.toml", "requirements-dev.txt",
        "README.md", "DESIGN.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "NOTICE",
        "Makefile", "MANIFEST.in", ".gitignore", ".clang-format",
    }  # fmt: skip


def test_no_rooms_without_a_name():
    banned = {"utils", "common", "helpers", "misc", "util"}
    assert [path for path in python_files() if path.stem in banned] == []
