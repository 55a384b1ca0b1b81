"""The compiled libraries: loaded on first use, checked by a version handshake, absence explained.

``_C`` is the pybind11 module of the CPU operators, ``libskyreels_rt_cuda.so`` the CUDA library
(plain C, see ``csrc/include/skyreels_rt/cuda_api.h``). Neither needs the other.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import skyreels_rt
from skyreels_rt import env
from skyreels_rt.errors import MissingDependency, SkyReelsError

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

ABI_VERSION = 2
"""Version of the native interface this package speaks (``kAbiVersion`` in ``csrc``)."""

CUDA_LIBRARY = "libskyreels_rt_cuda.so"
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Element types as the native functions take them (``DType`` in ``csrc``)."""

POINTER, INT, INT64, FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
"""C types of the launchers' arguments."""

_ALWAYS_MAPPED = 32 * 2**20  # glibc's largest threshold of mmap
_SWITCHED_OFF = "switched off by SKYREELS_RT_NATIVE=off"


class NativeCallFailed(SkyReelsError, RuntimeError):
    """A CUDA launcher returned an error code."""

    code = "native_call_failed"


@cache
def _load_extension() -> tuple[ModuleType | None, str]:
    """Import ``_C``: the module or None, and where it is or why not."""
    if not env.native_enabled():
        return None, _SWITCHED_OFF
    try:
        module = importlib.import_module("skyreels_rt._C")
    except ImportError as error:
        return None, f"not built, or not loadable ({error})"
    if module.ABI_VERSION != ABI_VERSION:
        return None, f"built for interface {module.ABI_VERSION}, this package speaks {ABI_VERSION}"
    return module, str(module.__file__)


@cache
def _load_cuda() -> tuple[ctypes.CDLL | None, str]:
    """Open the CUDA library: the handle or None, and where it is or why not."""
    if not env.native_enabled():
        return None, _SWITCHED_OFF
    folders = [Path(folder) for folder in skyreels_rt.__path__]
    path = next((f / CUDA_LIBRARY for f in folders if (f / CUDA_LIBRARY).is_file()), None)
    if path is None:
        return None, "not built (no nvcc at build time, or SKYREELS_RT_CUDA=off)"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"not loadable ({error})"
    library.skyreels_rt_cuda_abi_version.restype = ctypes.c_int
    version = library.skyreels_rt_cuda_abi_version()
    if version != ABI_VERSION:
        return None, f"built for interface {version}, this package speaks {ABI_VERSION}"
    library.skyreels_rt_cuda_error_string.argtypes = [ctypes.c_int]
    library.skyreels_rt_cuda_error_string.restype = ctypes.c_char_p
    return library, str(path)


@cache
def _find_triton() -> tuple[bool, str]:
    """Whether Triton is installed (it is not imported), and where or why not."""
    spec = importlib.util.find_spec("triton")
    return (False, "not installed") if spec is None else (True, str(spec.origin))


@cache
def triton_interprets() -> bool:
    """Whether Triton runs its kernels in its interpreter (its own variable TRITON_INTERPRET)."""
    return env.triton_interprets() and _find_triton()[0]


def cpu_has_amx() -> bool:
    """Whether this CPU multiplies bf16 matrices in its tile registers (AMX)."""
    return cpu_has("amx_bf16")


def cpu_has(instructions: str) -> bool:
    """Whether this CPU has a set of instructions, by torch's name; False where torch cannot say."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get(instructions))


def extension_status() -> tuple[bool, str]:
    """Whether ``_C`` is in use, and where it is or why not."""
    module, detail = _load_extension()
    return module is not None, detail


def cuda_status() -> tuple[bool, str]:
    """Whether the CUDA library is loaded, and where it is or why not."""
    library, detail = _load_cuda()
    return library is not None, detail


def triton_status() -> tuple[bool, str]:
    """Whether Triton is installed, and where it is or why not."""
    return _find_triton()


def extension() -> ModuleType:
    """Return the module ``_C``.

    Raises
    ------
    MissingDependency
        It is not available; the message says why.
    """
    module, detail = _load_extension()
    if module is None:
        raise MissingDependency(f"skyreels_rt._C: {detail}.", hint="See `skyreels-rt doctor`.")
    return module


def in_huge_pages(out: Tensor) -> Tensor:
    """``out`` itself, fresh memory of the CPU, after asking for huge pages if it is large.

    Above 32 MiB glibc maps every allocation anew, so that each call would pay for zeroing its
    output in small pages: 13 ms for 53 MB, where attending it takes 7 (docs/measured-facts.md).
    """
    size = out.numel() * out.element_size()
    if size > _ALWAYS_MAPPED:
        extension().prefer_huge_pages(out.data_ptr(), size)
    return out


def segment_table(table: Tensor) -> tuple[int, int, int, int]:
    """Turn a (B or 1, S, D) tensor into the tuple that the native functions take for it."""
    across, along, _ = table.stride()
    batch, segments, _ = table.shape
    return table.data_ptr(), segments, across if batch > 1 else 0, along


def cuda_launcher(op: str, *argtypes: type) -> Callable[..., None]:
    """Launcher of a CUDA operator on the current stream of the current device.

    Parameters
    ----------
    op : str
        ``skyreels_rt_cuda_<op>`` is called.
    argtypes : ctypes types
        Of its arguments before the last, the stream; :data:`POINTER` stands for an address.

    Returns
    -------
    callable
        Takes those arguments; raises MissingDependency where the library is not available and
        NativeCallFailed where the launch fails.
    """

    def launch(*arguments: float | None) -> None:
        function = _cuda_function(op, argtypes)
        error = function(*arguments, torch.cuda.current_stream().cuda_stream)
        if error:
            text = _cuda_library().skyreels_rt_cuda_error_string(error).decode()
            raise NativeCallFailed(f"{op}: CUDA error {error}: {text}.", stage="kernels")

    return launch


@cache
def _cuda_function(op: str, argtypes: tuple[type, ...]) -> Callable[..., int]:
    """The library's function with its C signature."""
    function: Any = getattr(_cuda_library(), f"skyreels_rt_cuda_{op}")
    function.argtypes = [*argtypes, POINTER]
    function.restype = ctypes.c_int
    launcher: Callable[..., int] = function
    return launcher


def _cuda_library() -> ctypes.CDLL:
    library, detail = _load_cuda()
    if library is None:
        raise MissingDependency(f"{CUDA_LIBRARY}: {detail}.", hint="See `skyreels-rt doctor`.")
    return library
