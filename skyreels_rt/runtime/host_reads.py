"""Finds what makes a stretch of device work wait for the host, before it costs anything.

A denoising step on a GPU must not read a number from the device, must not have shapes that depend
on data, and must not bring host numbers over: each of these stalls both sides, and none of them can
be part of a CUDA graph. Inside :class:`RefuseHostReads` the first of them raises and is named; it
looks at operators, not at a driver, so it works without a GPU too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from skyreels_rt.errors import SkyReelsError

_COMPOSITE = "CompositeImplicitAutograd"


class HostRead(SkyReelsError, RuntimeError):
    """An operator would make host and device wait for each other.

    Attributes
    ----------
    operation : str
        The operator, e.g. ``"aten._local_scalar_dense"``.
    """

    code = "host_read"

    def __init__(self, operation: str, why: str) -> None:
        super().__init__(
            f"{operation} {why}.",
            stage="denoise",
            hint="Make it before the loop, or keep it on the device.",
        )
        self.operation = operation


class RefuseHostReads(TorchDispatchMode):
    """Mode in which operators that host and device would wait for raise :class:`HostRead`.

    Not seen is what no operator shows: a foreign library's own calls of the driver.

    Attributes
    ----------
    last : str
        The operator that ran last.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.last = ""

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch has no public type for an operator
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        options = dict(kwargs or {})
        self.last = str(func).removesuffix(".default")
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE):
            # Inference tensors bring such operators here whole; their parts are what tells.
            with self:
                result = func.decompose(*args, **options)
            if result is not NotImplemented:
                return result
        why = _obstacle(func, args, options)
        if why is not None:
            raise HostRead(self.last, why)
        return func(*args, **options)


def _obstacle(func: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> str | None:  # noqa: ANN401
    """Why an operator cannot be part of a step, or None."""
    aten = torch.ops.aten
    if torch.Tag.data_dependent_output in func.tags:
        return "gives the host a number of the device"
    if torch.Tag.dynamic_output_shape in func.tags:
        by_number = func is aten.index.Tensor and not any(map(_is_mask, args[1]))
        sized = options.get("output_size") is not None
        return None if by_number or sized else "has a shape that depends on data"
    if func is aten.lift_fresh.default:
        return "makes a tensor of numbers of the host"
    if func is aten._to_copy.default:
        target = options.get("device")
        if target is not None and _differ(args[0].device, torch.device(target)):
            return f"copies from {args[0].device} to {target}"
    if func is aten.copy_.default and _differ(args[0].device, args[1].device):
        return f"copies from {args[1].device} to {args[0].device}"
    return None


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _differ(a: torch.device, b: torch.device) -> bool:
    """Whether one is the host and the other is not."""
    return (a.type == "cpu") != (b.type == "cpu")
