"""Which compiled layers are active on this machine, and why the others are not."""

from __future__ import annotations

from dataclasses import dataclass

from skyreels_rt.kernels import _native


@dataclass(frozen=True)
class LayerStatus:
    """State of one optional layer.

    Attributes
    ----------
    name : str
        ``"_C"``, ``"libskyreels_rt_cuda.so"`` or ``"triton"``.
    active : bool
        Whether kernel plans may use it.
    detail : str
        Where it is, or why it is not in use.
    """

    name: str
    active: bool
    detail: str


def native_status() -> tuple[LayerStatus, ...]:
    """State of every optional layer; absence is a result, never an error.

    Raises
    ------
    InvalidArgument
        ``SKYREELS_RT_NATIVE`` holds an unknown value.
    """
    return (
        LayerStatus("_C", *_native.extension_status()),
        LayerStatus(_native.CUDA_LIBRARY, *_native.cuda_status()),
        LayerStatus("triton", *_native.triton_status()),
    )
