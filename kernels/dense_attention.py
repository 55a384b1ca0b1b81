"""Softmax attention of all queries over all keys: one name, many backends.

::

    out = softmax(q k^T / sqrt(K)) v          per sample and head

Legend: B batch, N heads, L queries, S keys, K head size. On GPUs nothing is our own arithmetic:
known dense kernels are at the machine's limit there. torch's CPU kernel is not
(docs/measured-facts.md), so ``cpp`` is ours. The choice is made once, in the
:class:`~skyreels_rt.kernels.KernelPlan`, and a backend must pass a numerical self-test before it is
trusted: a wheel built for another device, or a library that changed, must not reach a video.

=========== ======== ======================= ============================================
backend     device   dtypes                  what it is
=========== ======== ======================= ============================================
sdpa        any      any                     torch's own choice
cpp         CPU      fp32, bf16              ours
cudnn       CUDA     bf16, fp16              torch SDPA with cuDNN first
flash4      CUDA     bf16, fp16              FlashAttention-4 (``flash_attn.cute``)
flash3      CUDA     bf16, fp16              FlashAttention-3 (``flash_attn_interface``)
flash2      CUDA     bf16, fp16              FlashAttention-2 (``flash_attn``)
=========== ======== ======================= ============================================

``cpp`` meets blocks of 128 keys and carries maxima and sums along (online softmax, Milakov and
Gimelshein, arXiv 1805.02867; in blocks, Dao et al., arXiv 2205.14135).
Numerics: sums in fp32; in bf16 the weights are rounded to bf16 before they meet the values. The
same bytes for any number of threads, any place in a batch and on any processor, but that products
of bf16 take subnormal numbers for zero where the processor has AVX-512 BF16. Heads of up to
:data:`MAX_HEAD_SIZE` channels; for wider ones, and where there are no keys, torch's choice runs.
"""

from __future__ import annotations

import enum
import importlib
import importlib.util
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from skyreels_rt.errors import InvalidArgument, UnsupportedKernel
from skyreels_rt.kernels import _checks, _native
from skyreels_rt.kernels._library import define_op
from skyreels_rt.kernels.reference.dense_attention import dense_attention as _reference


class AttentionBackend(enum.Enum):
    """Who computes dense attention."""

    AUTO = "auto"
    SDPA = "sdpa"
    CPP = "cpp"
    CUDNN = "cudnn"
    FLASH4 = "flash4"
    FLASH3 = "flash3"
    FLASH2 = "flash2"


_MODULES = {
    AttentionBackend.FLASH4: "flash_attn.cute",
    AttentionBackend.FLASH3: "flash_attn_interface",
    AttentionBackend.FLASH2: "flash_attn",
}
_PREFERENCE = (
    AttentionBackend.CUDNN,
    AttentionBackend.FLASH3,
    AttentionBackend.FLASH4,
    AttentionBackend.FLASH2,
)
"""On a GPU, best first: cuDNN is in every torch build and was on a par with FlashAttention-3 on
Hopper (docs/measured-facts.md)."""

_CUDNN_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
# Shapes of the self-test: B, N, L, S, K; lengths that fill no tile.
_TEST_SHAPES = ((1, 2, 77, 130, 64), (2, 1, 65, 33, 128))
# Roundings of the output's type, of its largest value; in float32 it is the sums that round.
_TEST_TOLERANCE = {torch.float32: 16.0, torch.bfloat16: 4.0, torch.float16: 4.0}

MAX_HEAD_SIZE = 256
"""Widest head that ``cpp`` takes."""

_CPP_DTYPES = (torch.float32, torch.bfloat16)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, *, backend: AttentionBackend) -> Tensor:
    """Attend every query to every key; differentiable.

    On the CPU, training multiplies the matrices out: in bfloat16 the backward pass of torch's own
    kernel was measured 2.5 times slower (576 tokens, head size 56).

    Parameters
    ----------
    q : Tensor, shape (B, N, L, K), floating
        Queries.
    k, v : Tensor, shape (B, N, S, K), dtype of q
        Keys and values.
    backend : AttentionBackend
        Usually ``plan.attention``; never AUTO.

    Returns
    -------
    Tensor, shape (B, N, L, K)
        Attended values.

    Raises
    ------
    InvalidArgument
        A shape, dtype or device outside the above.
    UnsupportedKernel
        ``cpp`` on another device than the CPU, or in another type than fp32 and bf16.
    """
    _check(q, k, v)
    if q.device.type == "cpu" and _checks.needs_gradient(q, k, v):
        return _reference(q, k, v)
    if backend is AttentionBackend.CPP:
        _require_cpp(q)
        if _fits(q, k):
            attended: Tensor = _op(_dense(q), _dense(k), _dense(v), "cpp")
            return attended
        return F.scaled_dot_product_attention(q, k, v)
    if q.device.type == "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    return _backend_function(backend)(q, k, v)


def dense_attention_lse(
    q: Tensor, k: Tensor, v: Tensor, *, backend: AttentionBackend = AttentionBackend.SDPA
) -> tuple[Tensor, Tensor]:
    """Attend every query to every key, and say how much the keys weigh: for merging key sets.

    Runs ``cpp`` where that is the backend, else torch's own kernels; both return what they have
    anyway. Not differentiable.

    Parameters
    ----------
    q : Tensor, shape (B, N, L, K), floating
        Queries.
    k, v : Tensor, shape (B, N, S, K), dtype of q
        Keys and values.
    backend : AttentionBackend
        Usually ``plan.attention``.

    Returns
    -------
    out : Tensor, shape (B, N, L, K)
        Attended values.
    lse : Tensor, shape (B, N, L), float32
        ``log(sum(exp(q k^T / sqrt(K))))`` over the keys.

    Raises
    ------
    InvalidArgument, UnsupportedKernel
        As :func:`dense_attention`.
    """
    _check(q, k, v)
    if backend is AttentionBackend.CPP:
        _require_cpp(q)
        if _fits(q, k):
            out, largest, total = _op_with_sums(_dense(q), _dense(k), _dense(v), "cpp")
            return out, (total.log2_().add_(largest)).mul_(math.log(2.0))
    aten = torch.ops.aten
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    elif q.dtype in (torch.bfloat16, torch.float16):
        out, lse = aten._scaled_dot_product_flash_attention(q, k, v)[:2]
    else:
        out, lse = aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
    return out, lse[..., : q.shape[2]].float()


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise where the arguments do not fit."""
    _checks.require_shape("q", q, (None,) * 4, "(B, N, L, K)")
    _checks.require_floating("q", q)
    batch, heads, _, size = q.shape
    if size == 0:
        raise InvalidArgument("q", expected="K >= 1", got=tuple(q.shape))
    _checks.require_shape("k", k, (batch, heads, None, size), "(B, N, S, K)")
    _checks.require_shape("v", v, k.shape, "of k")
    _checks.require_like("k", k, "q", q)
    _checks.require_like("v", v, "q", q)


def _require_cpp(q: Tensor) -> None:
    """Raise unless ``cpp`` takes tensors of this kind."""
    if q.device.type != "cpu" or q.dtype not in _CPP_DTYPES:
        raise UnsupportedKernel(
            f"attention: backend 'cpp' takes float32 and bfloat16 on cpu, got {q.dtype} on "
            f"{q.device}.",
            stage="kernels",
            hint="Use the backend of a KernelPlan of this device and dtype.",
        )


def _fits(q: Tensor, k: Tensor) -> bool:
    return q.shape[3] <= MAX_HEAD_SIZE and k.shape[2] > 0


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


@cache
def _backend_function(backend: AttentionBackend) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if backend is AttentionBackend.SDPA:
        return F.scaled_dot_product_attention
    if backend is AttentionBackend.CUDNN:
        return _cudnn
    function: Any = importlib.import_module(_MODULES[backend]).flash_attn_func

    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # FlashAttention wants tokens before heads, and some versions also return the log-sum-exp.
        result = function(*(x.transpose(1, 2) for x in (q, k, v)))
        out: Tensor = result[0] if isinstance(result, tuple) else result
        return out.transpose(1, 2)

    return flash


def _cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(_CUDNN_ORDER, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v)


def choose_attention(
    request: AttentionBackend, device: torch.device, dtype: torch.dtype
) -> tuple[AttentionBackend, str]:
    """Backend that meets a request and passes its self-test, and one clause that says why.

    Raises
    ------
    UnsupportedKernel
        An explicit request that cannot be met, or fails the self-test.
    """
    if request is AttentionBackend.SDPA:
        return request, "requested"
    on_gpu = device.type == "cuda"
    preference = _PREFERENCE if on_gpu else (AttentionBackend.CPP,)
    wanted = preference if request is AttentionBackend.AUTO else (request,)
    obstacles = {backend: _obstacle(backend, device, dtype) for backend in wanted}
    if request is AttentionBackend.AUTO and not on_gpu and (slower := _slower(dtype)):
        obstacles[AttentionBackend.CPP] = slower
    for backend, obstacle in obstacles.items():
        if obstacle is None:
            why = "passed its self-test"
            return backend, why if request is AttentionBackend.AUTO else f"requested, {why}"
    if request is AttentionBackend.AUTO:
        whys = [f"{backend.value}: {obstacle}" for backend, obstacle in obstacles.items()]
        return AttentionBackend.SDPA, "; ".join(whys)
    raise UnsupportedKernel(
        f"attention: backend {request.value!r} cannot run for {dtype} on {device}: "
        f"{obstacles[request]}.",
        stage="kernels",
        hint="Supported everywhere: sdpa.",
    )


def _slower(dtype: torch.dtype) -> str | None:
    """Why torch's attention is faster than ``cpp`` on this CPU, or None where it is not."""
    if dtype is torch.bfloat16 and _native.cpu_has_amx():
        return "torch's matrix products use this CPU's AMX"
    if _native.extension_status()[0] and _native.extension().isa() == "plain":
        return "this CPU has no vectors that cpp is built for"
    return None


def _obstacle(backend: AttentionBackend, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why ``backend`` cannot be used, or None."""
    if backend is AttentionBackend.CPP:
        return _cpp_obstacle(device.type, dtype)
    if device.type != "cuda":
        return f"runs on cuda, not on {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"takes bfloat16 and float16, not {dtype}"
    module = _MODULES.get(backend)
    if module is not None and not _importable(module):
        return f"{module} is not installed"
    return self_test(_backend_function(backend), device, dtype)


@cache
def _cpp_obstacle(device_type: str, dtype: torch.dtype) -> str | None:
    """Why ``cpp`` cannot be used, or None."""
    if device_type != "cpu":
        return f"runs on cpu, not on {device_type}"
    if dtype not in _CPP_DTYPES:
        return f"takes float32 and bfloat16, not {dtype}"
    active, detail = _native.extension_status()
    if not active:
        return f"_C {detail}"

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return dense_attention(q, k, v, backend=AttentionBackend.CPP)

    return self_test(attention, torch.device("cpu"), dtype)


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def self_test(
    attention: Callable[[Tensor, Tensor, Tensor], Tensor], device: torch.device, dtype: torch.dtype
) -> str | None:
    """What is wrong with an implementation of attention on small random inputs, or None.

    Parameters
    ----------
    attention : callable
        ``(q, k, v) -> out`` in the shapes of :func:`dense_attention`.
    device : torch.device
        Where to test.
    dtype : torch.dtype
        float32, bfloat16 or float16: the limit counts roundings of the output.

    Returns
    -------
    str or None
        One clause: the exception it raised, or how far its output is from the fp64 result.
    """
    generator = torch.Generator().manual_seed(0)
    for batch, heads, length, keys, size in _TEST_SHAPES:
        q, k, v = (
            torch.randn(batch, heads, count, size, generator=generator).to(dtype)
            for count in (length, keys, keys)
        )
        scores = q.double() @ k.double().transpose(-1, -2) * size**-0.5
        exact = scores.softmax(-1) @ v.double()
        try:
            with torch.no_grad():
                out = attention(q.to(device), k.to(device), v.to(device)).double().cpu()
        except Exception as error:  # whatever a foreign library raises
            return f"self-test raised {type(error).__name__}: {error}"
        if out.shape != exact.shape:
            return f"self-test gave shape {tuple(out.shape)} for {tuple(exact.shape)}"
        limit = _TEST_TOLERANCE[dtype] * torch.finfo(dtype).eps * float(exact.abs().max())
        difference = float((out - exact).abs().max())
        if not difference <= limit:
            return f"self-test is off by {difference:.2g}, allowed {limit:.2g}"
    return None


def _run(q: Tensor, k: Tensor, v: Tensor, impl: str) -> Tensor:
    out = _fake(q, k, v, impl)
    _launch(q, k, v, out, None, None)
    return out


def _run_with_sums(q: Tensor, k: Tensor, v: Tensor, impl: str) -> tuple[Tensor, Tensor, Tensor]:
    out, largest, total = _fake_with_sums(q, k, v, impl)
    _launch(q, k, v, out, largest, total)
    return out, largest, total


def _launch(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, largest: Tensor | None, total: Tensor | None
) -> None:
    _native.in_huge_pages(out)
    addresses = (0 if x is None else x.data_ptr() for x in (q, k, v, out, largest, total))
    _native.extension().dense_attention(
        *addresses,
        _native.DTYPE_CODES[q.dtype],
        (*q.shape[:3], k.shape[2], q.shape[3]),
        [x.stride()[:3] for x in (q, k, v, out)],
        torch.get_num_threads(),
    )


def _fake(q: Tensor, k: Tensor, v: Tensor, impl: str) -> Tensor:  # noqa: ARG001 - the schema's
    """Heads of a token lie side by side, so that joining them is a view."""
    batch, heads, length, size = q.shape
    return q.new_empty((batch, length, heads, size)).transpose(1, 2)


def _fake_with_sums(q: Tensor, k: Tensor, v: Tensor, impl: str) -> tuple[Tensor, Tensor, Tensor]:
    largest, total = (q.new_empty(q.shape[:3], dtype=torch.float32) for _ in range(2))
    return _fake(q, k, v, impl), largest, total


_op = define_op(
    "dense_attention(Tensor q, Tensor k, Tensor v, str impl) -> Tensor", run=_run, fake=_fake
)
_op_with_sums = define_op(
    "dense_attention_with_sums(Tensor q, Tensor k, Tensor v, str impl) -> (Tensor, Tensor, Tensor)",
    run=_run_with_sums,
    fake=_fake_with_sums,
)
