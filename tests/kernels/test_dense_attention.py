"""Dense attention: the choice of a backend, its self-test, and the path that training takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from skyreels_rt.errors import InvalidArgument, UnsupportedKernel
from skyreels_rt.kernels import AttentionBackend, KernelPlan, dense_attention
from skyreels_rt.kernels.dense_attention import dense_attention_lse, self_test

CPU = torch.device("cpu")
sdpa = F.scaled_dot_product_attention


def raises(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raise RuntimeError("no kernel image is available")


def not_a_number(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = sdpa(q, k, v)
    out[0, 0, 3, 1] = torch.nan
    return out


FAULTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "scale": lambda q, k, v: sdpa(q, k, v, scale=1.1 / q.shape[-1] ** 0.5),
    "causal": lambda q, k, v: sdpa(q, k, v, is_causal=True),
    "last key": lambda q, k, v: sdpa(q, k[..., :-1, :], v[..., :-1, :]),
    "heads swapped": lambda q, k, v: sdpa(q, k.flip(1), v),
    "shape": lambda q, k, v: sdpa(q, k, v).transpose(1, 2),
    "nan": not_a_number,
    "raises": raises,
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_torch_passes_the_self_test(dtype: torch.dtype) -> None:
    assert self_test(sdpa, CPU, dtype) is None


@pytest.mark.parametrize("fault", FAULTS)
def test_the_self_test_rejects(fault: str) -> None:
    complaint = self_test(FAULTS[fault], CPU, torch.bfloat16)
    assert complaint is not None
    assert ("no kernel image" in complaint) == (fault == "raises")


def test_the_plan_names_its_backend() -> None:
    plan = KernelPlan.choose("cpu", torch.bfloat16)
    assert plan.attention is AttentionBackend.SDPA
    assert "sdpa" in next(line for line in plan.describe().splitlines() if " attention" in line)
    assert plan.to_json()["operators"]["attention"]["impl"] == "sdpa"  # type: ignore[index]


def test_requests_that_cannot_be_met() -> None:
    for backend in (AttentionBackend.CUDNN, "flash3"):
        with pytest.raises(UnsupportedKernel, match="runs on cuda"):
            KernelPlan.choose("cpu", torch.bfloat16, {"attention": backend})
    with pytest.raises(InvalidArgument, match="flash2"):
        KernelPlan.choose("cpu", torch.bfloat16, {"attention": "fastest"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_weight_of_the_keys_comes_with_the_values(device: str, dtype: torch.dtype) -> None:
    """Odd lengths, keys unlike queries, and views: what a ring of uneven shares passes in."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 3, 32, generator=draw).to(dtype) for n in (37, 21, 21))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = q.double() @ k.double().transpose(-1, -2) * 32**-0.5
    out, lse = dense_attention_lse(*(x.to(device) for x in (q, k, v)))
    roundings = 8 * torch.finfo(dtype).eps
    exact = scores.softmax(-1) @ v.double()
    assert lse.dtype is torch.float32
    assert lse.shape == (2, 3, 37)
    assert (lse.cpu() - scores.logsumexp(-1)).abs().max() <= roundings
    assert (out.cpu() - exact).abs().max() <= roundings * exact.abs().max()


def test_training_multiplies_the_matrices_out() -> None:
    q, k, v = torch.randn(3, 2, 3, 7, 16, generator=torch.Generator().manual_seed(0))
    plain = dense_attention(q, k, v, backend=AttentionBackend.SDPA)
    trained = dense_attention(q.requires_grad_(), k, v, backend=AttentionBackend.SDPA)
    torch.testing.assert_close(trained, plain)
    trained.sum().backward()
    assert q.grad is not None


@pytest.mark.gpu
@pytest.mark.parametrize("backend", [b for b in AttentionBackend if b is not AttentionBackend.AUTO])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_backends_on_the_device(backend: AttentionBackend, dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    try:
        plan = KernelPlan.choose(device, dtype, {"attention": backend})
    except UnsupportedKernel as error:
        pytest.skip(str(error))

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return dense_attention(q, k, v, backend=plan.attention)

    assert self_test(attention, device, dtype) is None
