"""Softmax attention of all queries over all keys: other people's kernels behind one name.

::

    out = softmax(q k^T / sqrt(K)) v          per sample and head

Legend: B batch, N heads, L queries, S keys, K head size. Nothing here is our own arithmetic: known
dense kernels are at the machine's limit. What is ours is the choice, made once in the
:class:`~skyreels_rt.kernels.KernelPlan`, and a numerical self-test before a backend is trusted: a
wheel built for another device, or a library that changed, must not reach a video.

=========== ======== ======================= ============================================
backend     device   dtypes                  what it is
=========== ======== ======================= ============================================
sdpa        any      any                     torch's own choice
cudnn       CUDA     bf16, fp16              torch SDPA with cuDNN first
flash4      CUDA     bf16, fp16              FlashAttention-4 (``flash_attn.cute``)
flash3      CUDA     bf16, fp16              FlashAttention-3 (``flash_attn_interface``)
flash2      CUDA     bf16, fp16              FlashAttention-2 (``flash_attn``)
=========== ======== ======================= ============================================
"""

from __future__ import annotations

import enum
import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from skyreels_rt.errors import UnsupportedKernel


class AttentionBackend(enum.Enum):
    """Who computes dense attention."""

    AUTO = "auto"
    SDPA = "sdpa"
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
_TEST_TOLERANCE = 4.0  # roundings of the output's type, of its largest value


def dense_attention(q: Tensor, k: Tensor, v: Tensor, *, backend: AttentionBackend) -> Tensor:
    """Attend every query to every key; differentiable.

    On the CPU, training multiplies the matrices out: in bfloat16 the backward pass of torch's own
    kernel was measured 2.5 times slower (576 tokens, head size 56).

    Parameters
    ----------
    q : Tensor, shape (B, N, L, K)
        Queries.
    k, v : Tensor, shape (B, N, S, K), dtype of q
        Keys and values.
    backend : AttentionBackend
        Usually ``plan.attention``; never AUTO.

    Returns
    -------
    Tensor, shape (B, N, L, K)
        Attended values.
    """
    if q.device.type == "cpu":
        if q.requires_grad:
            scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
            attended: Tensor = scores.softmax(-1).to(v.dtype) @ v
            return attended
        return F.scaled_dot_product_attention(q, k, v)
    return _backend_function(backend)(q, k, v)


def dense_attention_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attend every query to every key, and say how much the keys weigh: for merging key sets.

    Runs torch's own kernels, which return the log-sum-exp they have anyway. Not differentiable.

    Parameters
    ----------
    q : Tensor, shape (B, N, L, K)
        Queries.
    k, v : Tensor, shape (B, N, S, K), dtype of q
        Keys and values.

    Returns
    -------
    out : Tensor, shape (B, N, L, K)
        Attended values.
    lse : Tensor, shape (B, N, L), float32
        ``log(sum(exp(q k^T / sqrt(K))))`` over the keys.
    """
    aten = torch.ops.aten
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    elif q.dtype in (torch.bfloat16, torch.float16):
        out, lse = aten._scaled_dot_product_flash_attention(q, k, v)[:2]
    else:
        out, lse = aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
    return out, lse[..., : q.shape[2]].float()


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
    wanted = _PREFERENCE if request is AttentionBackend.AUTO else (request,)
    obstacles = {backend: _obstacle(backend, device, dtype) for backend in wanted}
    for backend, obstacle in obstacles.items():
        if obstacle is None:
            why = "passed its self-test"
            return backend, why if request is AttentionBackend.AUTO else f"requested, {why}"
    if request is AttentionBackend.AUTO:
        whys = [f"{backend.value}: {obstacle}" for backend, obstacle in obstacles.items()]
        return AttentionBackend.SDPA, "; ".join(whys) if device.type == "cuda" else "on the CPU"
    raise UnsupportedKernel(
        f"attention: backend {request.value!r} cannot run for {dtype} on {device}: "
        f"{obstacles[request]}.",
        stage="kernels",
        hint="Supported everywhere: sdpa.",
    )


def _obstacle(backend: AttentionBackend, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why ``backend`` cannot be used, or None."""
    if device.type != "cuda":
        return f"runs on cuda, not on {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"takes bfloat16 and float16, not {dtype}"
    module = _MODULES.get(backend)
    if module is not None and not _importable(module):
        return f"{module} is not installed"
    return self_test(_backend_function(backend), device, dtype)


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
        bfloat16 or float16: the limit counts roundings of the output.

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
        limit = _TEST_TOLERANCE * torch.finfo(dtype).eps * float(exact.abs().max())
        difference = float((out - exact).abs().max())
        if not difference <= limit:
            return f"self-test is off by {difference:.2g}, allowed {limit:.2g}"
    return None
