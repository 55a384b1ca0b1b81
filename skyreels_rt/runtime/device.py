"""Which device and number type a model runs on."""

from __future__ import annotations

import os

import torch

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.kernels._native import cpu_has

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(device: str | torch.device) -> torch.device:
    """The device named; ``"auto"`` is CUDA where there is one, else the CPU.

    Raises
    ------
    InvalidArgument
        Not a device name, or a device this machine does not have.
    """
    if isinstance(device, str) and device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidArgument(
            "device", expected='"auto", "cpu" or "cuda[:n]"', got=device
        ) from error
    if resolved.type not in ("cpu", "cuda"):
        raise InvalidArgument("device", expected='"auto", "cpu" or "cuda[:n]"', got=device)
    # torch keeps an index in eight bits: "cuda:256" would be "cuda:0".
    _, _, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    asked = int(number) if number.isdecimal() else (resolved.index or 0)
    if resolved.type == "cuda" and not 0 <= asked < torch.cuda.device_count():
        raise InvalidArgument(
            "device",
            expected=f"one of {torch.cuda.device_count()} CUDA devices",
            got=device,
            hint='Use device="cpu", or see "skyreels-rt doctor".',
        )
    index: int | None = resolved.index  # torch's stubs leave the None out
    if resolved.type == "cuda" and index is None:
        # The current device is a setting of each thread; a model lives on one for good.
        return torch.device("cuda", torch.cuda.current_device())
    return resolved


def device_memory(device: torch.device) -> int | None:
    """Bytes of memory of a device, taken or not; None where it cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 matrices faster than float32 ones.

    CUDA does; so does a CPU with AMX or AVX-512 BF16 (docs/measured-facts.md).
    """
    return device.type == "cuda" or cpu_has("amx_bf16") or cpu_has("avx512_bf16")


def resolve_dtype(
    dtype: str | torch.dtype, device: torch.device, *, stored: torch.dtype | None = None
) -> torch.dtype:
    """The type named; ``"auto"`` is bfloat16 on CUDA, and float32 on the CPU.

    On a CPU that multiplies bfloat16 faster, ``"auto"`` takes weights ``stored`` in bfloat16 as
    they are.

    Raises
    ------
    InvalidArgument
        Not one of float32, bfloat16 and float16.
    """
    if isinstance(dtype, str) and dtype == "auto":
        wants_bfloat16 = device.type == "cuda" or stored == torch.bfloat16
        return torch.bfloat16 if wants_bfloat16 and multiplies_bfloat16(device) else torch.float32
    if isinstance(dtype, torch.dtype):
        if dtype in DTYPES.values():
            return dtype
    elif isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    raise InvalidArgument("dtype", expected=f'"auto" or one of {sorted(DTYPES)}', got=dtype)
