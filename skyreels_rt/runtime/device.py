"""Which device and number type a model runs on."""

from __future__ import annotations

import torch

from skyreels_rt.errors import InvalidArgument

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
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
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


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The type named; ``"auto"`` is bfloat16 on CUDA and float32 on the CPU.

    Raises
    ------
    InvalidArgument
        Not one of float32, bfloat16 and float16.
    """
    if isinstance(dtype, str) and dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if isinstance(dtype, torch.dtype):
        if dtype in DTYPES.values():
            return dtype
    elif isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    raise InvalidArgument("dtype", expected=f'"auto" or one of {sorted(DTYPES)}', got=dtype)
