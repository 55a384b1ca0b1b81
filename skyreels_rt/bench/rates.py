"""What a device can do at most, measured: bytes copied and bf16 operations multiplied a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skyreels_rt.report import Row

_COPY_BYTES = 2**30
_MATRIX_SIDE = 8192
_CALLS = 10


@dataclass(frozen=True)
class Rates:
    """Measured ceilings of a device.

    Attributes
    ----------
    copy : float
        Bytes read plus bytes written a second, copying 1 GiB.
    matmul : float
        Operations a second of an 8192 x 8192 x 8192 product in bfloat16.
    """

    copy: float
    matmul: float

    def share(self, flops: float | None, moved: int, seconds: float) -> float:
        """Share of the ceiling: of products if ``flops`` are given, else of ``moved`` bytes."""
        ceiling, work = (self.copy, float(moved)) if flops is None else (self.matmul, flops)
        return work / seconds / ceiling

    def rows(self) -> list[Row]:
        """The ceilings themselves."""
        return [
            Row("kernels.rate.copy", self.copy / 1e12, "TB/s", better="higher"),
            Row("kernels.rate.matmul", self.matmul / 1e12, "TFLOP/s", better="higher"),
        ]


def measure_rates(
    device: torch.device, *, copy_bytes: int = _COPY_BYTES, side: int = _MATRIX_SIDE
) -> Rates:
    """Time a copy and a product on ``device``, the best of three."""
    source = torch.zeros(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = torch.randn(2, side, side, device=device).to(torch.bfloat16)
    product = torch.empty_like(a)

    def rate(work: float, call: Callable[[], object]) -> float:
        call()
        return max(work * _CALLS / seconds_of(call, _CALLS, device) for _ in range(3))

    return Rates(
        copy=rate(2.0 * copy_bytes, lambda: target.copy_(source)),
        matmul=rate(2.0 * side**3, lambda: torch.mm(a, b, out=product)),
    )


def seconds_of(call: Callable[[], object], count: int, device: torch.device) -> float:
    """Seconds that ``count`` calls take on ``device``, to the end of the last."""
    wait_for(device)
    start = time.perf_counter()
    for _ in range(count):
        call()
    wait_for(device)
    return time.perf_counter() - start


def wait_for(device: torch.device) -> None:
    """Return when ``device`` has no work left."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def on_device(values: Any, device: torch.device) -> Any:  # noqa: ANN401 - any nest
    """``values`` with every tensor in them on ``device``, strides kept."""
    if isinstance(values, Tensor):
        return values.to(device)
    if isinstance(values, tuple | list):
        return type(values)(on_device(value, device) for value in values)
    return values


def num_bytes(values: Any) -> int:  # noqa: ANN401 - any nest
    """Bytes of all tensors in ``values``: what is read or written at least."""
    if isinstance(values, Tensor):
        return values.numel() * values.element_size()
    if isinstance(values, tuple | list):
        return sum(num_bytes(value) for value in values)
    return 0
