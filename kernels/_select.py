"""Which implementation of each operator runs: a table, and the plan an engine is built with.

The choice is made once, for a device and a dtype, and kept in a frozen :class:`KernelPlan` that can
be printed and recorded. No process-wide setting chooses: models pass ``impl=plan.<operator>`` with
each call. An explicit request that cannot be met raises; only :attr:`Impl.AUTO` chooses.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar

import torch

from skyreels_rt.errors import InvalidArgument, UnsupportedKernel
from skyreels_rt.kernels import _native
from skyreels_rt.kernels.dense_attention import AttentionBackend, choose_attention


class Impl(enum.Enum):
    """An implementation of an operator."""

    AUTO = "auto"
    REFERENCE = "reference"
    CPP = "cpp"
    TRITON = "triton"
    CUDA = "cuda"


@dataclass(frozen=True)
class Candidate:
    """One implementation and what it can run.

    Attributes
    ----------
    impl : Impl
        The implementation.
    device_type : str
        ``torch.device.type`` it runs on.
    dtypes : tuple of torch.dtype
        Element types it takes.
    """

    impl: Impl
    device_type: str
    dtypes: tuple[torch.dtype, ...]


MIN_CAPABILITY = (8, 0)
"""Oldest CUDA architecture the library is built for."""

_FLOAT = (torch.float32, torch.bfloat16)
_FLOAT_OR_HALF = (torch.float32, torch.bfloat16, torch.float16)

CANDIDATES: dict[str, tuple[Candidate, ...]] = {
    "frames_to_uint8": (
        Candidate(Impl.CUDA, "cuda", _FLOAT_OR_HALF),
        Candidate(Impl.TRITON, "cuda", _FLOAT_OR_HALF),
        Candidate(Impl.CPP, "cpu", _FLOAT),
    ),
    "qk_norm_rope": (
        Candidate(Impl.TRITON, "cuda", _FLOAT_OR_HALF),
        Candidate(Impl.CPP, "cpu", _FLOAT),
    ),
    "norm_modulate": (
        Candidate(Impl.TRITON, "cuda", _FLOAT_OR_HALF),
        Candidate(Impl.CPP, "cpu", _FLOAT),
    ),
    "gate_residual_norm_modulate": (
        Candidate(Impl.TRITON, "cuda", _FLOAT_OR_HALF),
        Candidate(Impl.CPP, "cpu", _FLOAT),
    ),
    "quantize_rows": (Candidate(Impl.TRITON, "cuda", _FLOAT_OR_HALF),),
    "norm_modulate_quantize": (Candidate(Impl.TRITON, "cuda", _FLOAT_OR_HALF),),
    "gate_residual_norm_modulate_quantize": (Candidate(Impl.TRITON, "cuda", _FLOAT_OR_HALF),),
    "rms_norm_silu": (
        Candidate(Impl.TRITON, "cuda", _FLOAT_OR_HALF),
        Candidate(Impl.CPP, "cpu", _FLOAT),
    ),
    "causal_conv3d": (Candidate(Impl.CPP, "cpu", (torch.float32,)),),
    "audio_cross_attention": (
        Candidate(Impl.TRITON, "cuda", _FLOAT_OR_HALF),  # tensor cores; the CUDA one has none
        Candidate(Impl.CUDA, "cuda", _FLOAT_OR_HALF),
        Candidate(Impl.CPP, "cpu", _FLOAT),
    ),
    "absorbed_audio_attention": (
        Candidate(Impl.TRITON, "cuda", _FLOAT_OR_HALF),
        Candidate(Impl.CPP, "cpu", _FLOAT),
    ),
    "blf_step": (
        Candidate(Impl.CUDA, "cuda", _FLOAT_OR_HALF),
        Candidate(Impl.TRITON, "cuda", _FLOAT_OR_HALF),
        Candidate(Impl.CPP, "cpu", _FLOAT),
    ),
    "teacache_gate": (
        Candidate(Impl.CUDA, "cuda", _FLOAT_OR_HALF),
        Candidate(Impl.TRITON, "cuda", _FLOAT_OR_HALF),
        Candidate(Impl.CPP, "cpu", _FLOAT),
    ),
    "residual_store": (
        Candidate(Impl.CUDA, "cuda", _FLOAT_OR_HALF),
        Candidate(Impl.TRITON, "cuda", _FLOAT_OR_HALF),
        Candidate(Impl.CPP, "cpu", _FLOAT),
    ),
    "residual_apply": (
        Candidate(Impl.CUDA, "cuda", _FLOAT_OR_HALF),
        Candidate(Impl.TRITON, "cuda", _FLOAT_OR_HALF),
        Candidate(Impl.CPP, "cpu", _FLOAT),
    ),
}
"""Beside the reference, which runs everywhere; the first that can run is AUTO's choice."""

OUTRUN_BY_AMX = ("audio_cross_attention",)
"""Operators that AUTO leaves to the reference for bf16 on a CPU with AMX, which torch's matrix
products use and ours do not: 0.65 of eager torch's speed was measured at Wan2.1-1.3B's shape with
32 tokens a frame. (At the embedded models' 8 tokens it was 2.1, but they fold the projections.)"""

_LAYERS: dict[Impl, tuple[str, Callable[[], tuple[bool, str]]]] = {
    Impl.CPP: ("_C", _native.extension_status),
    Impl.CUDA: (_native.CUDA_LIBRARY, _native.cuda_status),
    Impl.TRITON: ("triton", _native.triton_status),
}


def obstacle(candidate: Candidate, device_type: str, dtype: torch.dtype) -> str | None:
    """Why ``candidate`` cannot run for this device and dtype, or None if it can.

    Triton kernels also run on CPU tensors inside Triton's interpreter, which is for tests: AUTO
    never chooses that.
    """
    interpreted = candidate.impl is Impl.TRITON and _native.triton_interprets()
    if candidate.device_type != device_type and not (interpreted and device_type == "cpu"):
        return f"runs on {candidate.device_type}, not on {device_type}"
    if dtype not in candidate.dtypes:
        return f"takes {', '.join(map(_name, candidate.dtypes))}, not {_name(dtype)}"
    layer, status = _LAYERS[candidate.impl]
    active, detail = status()
    if not active:
        return f"{layer} {detail}"
    return _capability_obstacle() if candidate.impl is Impl.CUDA else None


def _capability_obstacle() -> str | None:
    """Why the current CUDA device cannot run the library's code, or None."""
    if not torch.cuda.is_available():
        return "no CUDA device is usable"
    capability = torch.cuda.get_device_capability()
    if capability >= MIN_CAPABILITY:
        return None
    return f"needs compute capability {MIN_CAPABILITY}, the device has {capability}"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def resolve(op: str, impl: Impl, device_type: str, dtype: torch.dtype) -> str:
    """Turn a request into the name of the implementation that will run.

    A name, not an :class:`Impl`: it goes into operator calls, and ``torch.compile`` takes it for a
    constant.

    Parameters
    ----------
    op : str
        Operator, a key of :data:`CANDIDATES`.
    impl : Impl
        The request; AUTO takes the first candidate that can run.
    device_type : str
        ``tensor.device.type``.
    dtype : torch.dtype
        Element type of the operator's main tensor.

    Raises
    ------
    UnsupportedKernel
        An explicit request that cannot be met here.
    """
    return _decide(op, impl, device_type, dtype)[0].value


@cache  # the answer depends on the arguments and on what is installed, never on earlier calls
def _decide(op: str, impl: Impl, device_type: str, dtype: torch.dtype) -> tuple[Impl, str]:
    """Find the implementation that meets a request, and one clause that says why."""
    if impl is Impl.REFERENCE:
        return impl, "requested"
    obstacles = {c.impl: obstacle(c, device_type, dtype) for c in CANDIDATES[op]}
    runnable = [candidate for candidate, why in obstacles.items() if why is None]
    if impl is Impl.AUTO:
        on_cpu = device_type == "cpu" and dtype is torch.bfloat16
        if on_cpu and op in OUTRUN_BY_AMX and _native.cpu_has_amx():
            return Impl.REFERENCE, "torch's matrix products use this CPU's AMX"
        at_home = [c.impl for c in CANDIDATES[op] if c.device_type == device_type]
        fitting = [candidate for candidate in runnable if candidate in at_home]
        if fitting:
            return fitting[0], "fastest that can run"
        whys = [f"{c.value}: {why}" for c, why in obstacles.items()]
        return Impl.REFERENCE, "; ".join(whys) or "the only implementation"
    if impl in runnable:
        return impl, "requested"
    supported = ", ".join(i.value for i in [*runnable, Impl.REFERENCE])
    raise UnsupportedKernel(
        f"{op}: implementation {impl.value!r} cannot run for {_name(dtype)} on {device_type}: "
        f"{obstacles.get(impl) or 'there is none'}.",
        stage="kernels",
        hint=f"Supported here: {supported}.",
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class KernelPlan:
    """The implementation of every operator, for one device and dtype.

    Attributes
    ----------
    device, dtype : str
        What the plan was made for, e.g. ``"cpu"`` and ``"bfloat16"``.
    frames_to_uint8, qk_norm_rope, ... : Impl
        The chosen implementation of each operator of :data:`CANDIDATES`, never AUTO.
    attention : AttentionBackend
        Who computes dense attention, see :mod:`skyreels_rt.kernels.dense_attention`.
    reasons : tuple of (str, str)
        Operator and why its implementation was chosen.
    """

    device: str
    dtype: str
    frames_to_uint8: Impl
    qk_norm_rope: Impl
    norm_modulate: Impl
    gate_residual_norm_modulate: Impl
    quantize_rows: Impl
    norm_modulate_quantize: Impl
    gate_residual_norm_modulate_quantize: Impl
    rms_norm_silu: Impl
    causal_conv3d: Impl
    audio_cross_attention: Impl
    absorbed_audio_attention: Impl
    blf_step: Impl
    teacache_gate: Impl
    residual_store: Impl
    residual_apply: Impl
    attention: AttentionBackend = AttentionBackend.SDPA
    reasons: tuple[tuple[str, str], ...] = ()

    @classmethod
    def choose(
        cls,
        device: torch.device | str,
        dtype: torch.dtype,
        kernels: Literal["auto", "reference"]
        | Mapping[str, Impl | AttentionBackend | str] = "auto",
    ) -> KernelPlan:
        """Choose the implementation of every operator.

        Parameters
        ----------
        device : torch.device or str
            Where the model runs.
        dtype : torch.dtype
            Element type it computes in.
        kernels : {"auto", "reference"} or mapping
            ``"auto"`` takes the fastest that can run, ``"reference"`` plain torch everywhere; a
            mapping from operator (or ``"attention"``) to implementation pins those and leaves the
            rest to ``"auto"``. ``{"absorbed_audio_attention": "reference"}`` also makes models keep
            the projections apart.

        Raises
        ------
        InvalidArgument
            ``kernels`` names an unknown operator or implementation.
        UnsupportedKernel
            A pinned implementation cannot run here.
        """
        requests, wanted_attention = _requests(kernels)
        where = torch.device(device)
        decided = {op: _decide(op, requests[op], where.type, dtype) for op in CANDIDATES}
        attention, why_attention = choose_attention(wanted_attention, where, dtype)
        return cls(
            device=where.type,
            dtype=_name(dtype),
            attention=attention,
            reasons=(
                *((op, why) for op, (_, why) in decided.items()), ("attention", why_attention)
            ),
            **{op: impl for op, (impl, _) in decided.items()},
        )  # fmt: skip

    @property
    def is_plain(self) -> bool:
        """Whether every operator is its reference: the model then is plain torch throughout."""
        plain = all(getattr(self, op) is Impl.REFERENCE for op in CANDIDATES)
        return plain and self.attention is not AttentionBackend.CPP

    def describe(self) -> str:
        """Return the plan as lines of text, one operator each."""
        lines = [f"kernels for {self.dtype} on {self.device}"]
        for op, why in self.reasons:
            lines.append(f"  {op:<24} {getattr(self, op).value:<10} {why}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, object]:
        """Return the plan as JSON data, for reports."""
        operators = {
            op: {"impl": getattr(self, op).value, "reason": why} for op, why in self.reasons
        }
        return {"device": self.device, "dtype": self.dtype, "operators": operators}


def _requests(
    kernels: str | Mapping[str, Impl | AttentionBackend | str],
) -> tuple[dict[str, Impl], AttentionBackend]:
    """One request per operator, and the one for attention."""
    if isinstance(kernels, str) and kernels in ("auto", "reference"):
        attention = AttentionBackend.AUTO if kernels == "auto" else AttentionBackend.SDPA
        return dict.fromkeys(CANDIDATES, Impl(kernels)), attention
    if not isinstance(kernels, Mapping):
        raise InvalidArgument(
            "kernels", expected="'auto', 'reference' or a mapping", got=repr(kernels)
        )
    requests, attention = dict.fromkeys(CANDIDATES, Impl.AUTO), AttentionBackend.AUTO
    for op, wanted in kernels.items():
        if op == "attention":
            attention = _member(AttentionBackend, op, wanted)
        elif op in CANDIDATES:
            requests[op] = _member(Impl, op, wanted)
        else:
            raise InvalidArgument(
                "kernels", expected=f"keys among {[*CANDIDATES, 'attention']}", got=op
            )
    return requests, attention


_Choice = TypeVar("_Choice", bound=enum.Enum)


def _member(kind: type[_Choice], op: str, wanted: enum.Enum | str) -> _Choice:
    try:
        return kind(wanted)
    except ValueError:
        raise InvalidArgument(
            f"kernels[{op!r}]", expected=f"one of {[choice.value for choice in kind]}", got=wanted
        ) from None
