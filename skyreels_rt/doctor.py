"""What is installed here, which native layers are active, and why others are not."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from skyreels_rt.conditioning.face import face_available, face_status
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.report import versions
from skyreels_rt.runtime.device import resolve_device, resolve_dtype
from skyreels_rt.runtime.native import native_status


@dataclass(frozen=True)
class Check:
    """One line of the doctor's answer.

    Attributes
    ----------
    name : str
        What was looked at.
    state : {"ok", "absent"}
        ``"absent"`` never stops the engine; the detail says what it costs.
    detail : str
        Version, place, or the reason why it is not active.
    """

    name: str
    state: Literal["ok", "absent"]
    detail: str


def examine() -> tuple[list[Check], KernelPlan]:
    """Look at this installation; changes nothing."""
    checks = [
        Check("python", "ok", platform.python_version()),
        Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        Check(
            "cuda device",
            "ok" if torch.cuda.is_available() else "absent",
            ", ".join(
                torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
            )
            or "none found; everything runs on the CPU",
        ),
    ]
    for layer in native_status():
        checks.append(Check(layer.name, "ok" if layer.active else "absent", layer.detail))
    checks.append(Check("[face] extra", "ok" if face_available() else "absent", face_status()))
    device = resolve_device("auto")
    return checks, KernelPlan.choose(device, resolve_dtype("auto", device))


def examine_json() -> dict[str, Any]:
    """The same as JSON data."""
    checks, plan = examine()
    return {
        "schema": 1,
        "checks": [asdict(check) for check in checks],
        "versions": versions(),
        "kernel_plan": plan.to_json(),
    }
