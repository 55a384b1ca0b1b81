"""Dense attention: the choice of a backend, its self-test, and the path that training takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from skyreels_rt.errors import InvalidArgument, UnsupportedKernel
from skyreels_rt.kernels import AttentionBackend, KernelPlan, dense_attention
from skyreels_rt.kernels.dense_attention import choose_attention, dense_attention_lse, self_test
from skyreels_rt.kernels.reference.dense_attention import dense_attention as reference
from skyreels_rt.runtime.native import native_status
from skyreels_rt.testing.faults.dense_attention import FAULTS as CPP_FAULTS
from skyreels_rt.testing.numerics import assert_bitwise_equal, assert_within_budget

CPU = torch.device("cpu")
GPU_BACKENDS = [
    b for b in AttentionBackend if b not in (AttentionBackend.AUTO, AttentionBackend.CPP)
]
LAYERS = {layer.name: layer for layer in native_status()}
needs_cpp = pytest.mark.skipif(not LAYERS["_C"].active, reason=f"_C: {LAYERS['_C'].detail}")
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


# Batch, heads, queries, keys, head size: the embedded model's, Wan's in short, odd tails in every
# size, one of everything, nothing to do.
SHAPES = [
    (1, 3, 300, 300, 64), (2, 2, 130, 257, 128), (2, 1, 53, 131, 33), (1, 2, 49, 129, 57),
    (1, 2, 7, 1, 1), (1, 1, 1, 3, 2), (1, 1, 50, 40, 256), (0, 2, 5, 6, 8), (1, 2, 0, 6, 8),
]  # fmt: skip


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens before heads in memory, as the model's; maxima that grow along the keys."""
    batch, heads, queries, keys, size = shape
    draw = torch.Generator().manual_seed(4)
    q, k, v = (
        torch.randn(batch, count, heads, size, generator=draw).transpose(1, 2)
        for count in (queries, keys, keys)
    )
    k = k * torch.linspace(0.5, 2.0, keys)[:, None]
    return q.to(dtype), k.to(dtype), v.to(dtype)


def assert_matches(actual: Tensor, q: Tensor, k: Tensor, v: Tensor) -> None:
    high, low = reference(q.double(), k.double(), v.double()), reference(q, k, v)
    assert_within_budget(actual, high, low, q.dtype)


def cpp(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return dense_attention(q, k, v, backend=AttentionBackend.CPP)


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_is_torchs_attention(shape: tuple[int, ...]) -> None:
    inputs = make_inputs(shape, torch.float64)
    torch.testing.assert_close(reference(*inputs), sdpa(*inputs))


@needs_cpp
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpp_within_budget(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = make_inputs(shape, dtype)
    kept = [x.clone() for x in inputs]
    assert_matches(cpp(*inputs), *inputs)
    for x, before in zip(inputs, kept, strict=True):
        assert_bitwise_equal(x, before)


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpp_takes_views_and_any_place_in_a_batch(dtype: torch.dtype) -> None:
    inputs = make_inputs((2, 3, 70, 150, 34), dtype)
    expected = cpp(*inputs)
    fused = torch.cat([x[..., :70, :] for x in inputs], dim=-1)
    halves = cpp(*(x[:, :, :70] for x in inputs))
    assert_bitwise_equal(cpp(*fused.chunk(3, dim=-1)), halves)
    for views in [
        [x.contiguous() for x in inputs],
        [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in inputs],
        [x.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3) for x in inputs],
    ]:
        assert_bitwise_equal(cpp(*views), expected)
    assert_bitwise_equal(cpp(*(x[1:] for x in inputs)), expected[1:])
    assert_bitwise_equal(cpp(inputs[0][:, :, 11:], *inputs[1:]), expected[:, :, 11:])


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_instruction_sets_and_thread_counts_give_the_same_bytes(dtype: torch.dtype) -> None:
    from skyreels_rt import _C

    q, k, v = make_inputs((1, 2, 101, 141, 35), dtype)
    results = []
    for isa in _C.available_isas():
        for threads in (1, 2, 5):
            out, (largest, total) = torch.empty_like(q), torch.empty(2, 1, 2, 101)
            _C.dense_attention(
                *(x.data_ptr() for x in (q, k, v, out, largest, total)),
                {4: 0, 2: 1}[q.element_size()], (1, 2, 101, 141, 35),
                [x.stride()[:3] for x in (q, k, v, out)], threads, isa,
            )  # fmt: skip
            results.append((out, largest, total))
    for result in results:
        for x, expected in zip(result, results[0], strict=True):
            assert_bitwise_equal(x, expected)
    assert_matches(results[0][0], q, k, v)


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpp_handles_special_values(dtype: torch.dtype) -> None:
    q, k, v = make_inputs((1, 1, 60, 140, 16), dtype)
    far = q.clone()
    far[0, 0, :, 0] = 3e4  # scores beyond what exp could take unshifted, and weights of zero
    assert_matches(cpp(far, k, v), far, k, v)
    assert torch.equal(cpp(torch.zeros_like(q), k, torch.ones_like(v)), torch.ones_like(q))
    q[0, 0, 3, 2] = torch.nan
    assert cpp(q, k, v).isnan().any(-1).nonzero().tolist() == [[0, 0, 3]]
    v[0, 0, 139, 5] = torch.nan
    q[0, 0, 3, 2] = 0.0
    assert cpp(q, k, v).isnan().any(-2).nonzero().tolist() == [[0, 0, 5]]


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fault", CPP_FAULTS)
def test_budget_rejects_a_planted_fault(fault: str, dtype: torch.dtype) -> None:
    inputs = make_inputs((2, 2, 100, 301, 64), dtype)
    assert_matches(cpp(*inputs), *inputs)
    with pytest.raises(AssertionError, match=r"error|close"):
        assert_matches(CPP_FAULTS[fault](*inputs), *inputs)


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    inputs = make_inputs((2, 2, 5, 7, 6), dtype)
    ops = torch.ops.skyreels_rt
    torch.library.opcheck(ops.dense_attention.default, (*inputs, "cpp"))
    torch.library.opcheck(ops.dense_attention_with_sums.default, (*inputs, "cpp"))


@needs_cpp
def test_torch_compile_takes_it_whole() -> None:
    inputs = make_inputs((1, 2, 20, 30, 16), torch.float32)
    compiled = torch.compile(lambda q, k, v: cpp(q, k, v) + 1.0, fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), cpp(*inputs) + 1.0)


@needs_cpp
def test_where_cpp_does_not_fit_torch_runs() -> None:
    wide = make_inputs((1, 1, 3, 4, 257), torch.float32)
    assert_bitwise_equal(cpp(*wide), sdpa(*wide))
    q, k, v = make_inputs((1, 1, 3, 0, 8), torch.float32)
    assert cpp(q, k, v).shape == q.shape
    half = make_inputs((1, 1, 3, 4, 8), torch.float16)
    with pytest.raises(UnsupportedKernel, match="float32 and bfloat16"):
        cpp(*half)


@pytest.mark.parametrize("backend", [AttentionBackend.SDPA, AttentionBackend.CPP])
def test_bad_calls_are_refused(backend: AttentionBackend) -> None:
    q, k, v = make_inputs((1, 2, 3, 4, 8), torch.float32)
    bad = {
        "q: expected shape": (q[0], k, v),
        "q: expected K >= 1": (q[..., :0], k[..., :0], v[..., :0]),
        "q: expected float32": (q.int(), k, v),
        "k: expected shape": (q, k[..., :7], v),
        "v: expected shape": (q, k, v[:, :, 1:]),
        "k: expected torch.float32": (q, k.double(), v),
        "v: expected torch.float32 on cpu": (q, k, v.to("meta")),
    }
    for words, inputs in bad.items():
        for call in (dense_attention, dense_attention_lse):
            with pytest.raises(InvalidArgument, match=words):
                call(*inputs, backend=backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_torch_passes_the_self_test(dtype: torch.dtype) -> None:
    assert self_test(sdpa, CPU, dtype) is None


@pytest.mark.parametrize("fault", FAULTS)
def test_the_self_test_rejects(fault: str) -> None:
    complaint = self_test(FAULTS[fault], CPU, torch.bfloat16)
    assert complaint is not None
    assert ("no kernel image" in complaint) == (fault == "raises")


def test_the_plan_names_its_backend() -> None:
    for plan in (KernelPlan.choose("cpu", dtype) for dtype in (torch.float32, torch.float16)):
        name = plan.attention.value
        assert name in next(line for line in plan.describe().splitlines() if " attention" in line)
        assert plan.to_json()["operators"]["attention"]["impl"] == name  # type: ignore[index]
    assert name == "sdpa"
    reference_plan = KernelPlan.choose("cpu", torch.float32, "reference")
    assert reference_plan.attention is AttentionBackend.SDPA


@needs_cpp
def test_auto_takes_cpp_where_it_was_measured_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    from skyreels_rt.kernels import _native

    def chosen(dtype: torch.dtype) -> tuple[AttentionBackend, str]:
        return choose_attention(AttentionBackend.AUTO, CPU, dtype)

    monkeypatch.setattr(_native, "cpu_has_amx", lambda: False)
    module = _native.extension()
    if module.isa() != "plain":
        for dtype in (torch.float32, torch.bfloat16):
            assert chosen(dtype) == (AttentionBackend.CPP, "passed its self-test")
    monkeypatch.setattr(module, "isa", lambda: "plain")
    assert chosen(torch.float32)[0] is AttentionBackend.SDPA
    monkeypatch.setattr(module, "isa", lambda: "avx512")
    monkeypatch.setattr(_native, "cpu_has_amx", lambda: True)
    assert "AMX" in chosen(torch.bfloat16)[1]
    assert choose_attention(AttentionBackend.CPP, CPU, torch.bfloat16)[0] is AttentionBackend.CPP


def test_requests_that_cannot_be_met() -> None:
    with pytest.raises(UnsupportedKernel, match="takes float32 and bfloat16"):
        KernelPlan.choose("cpu", torch.float16, {"attention": "cpp"})
    for backend in (AttentionBackend.CUDNN, "flash3"):
        with pytest.raises(UnsupportedKernel, match="runs on cuda"):
            KernelPlan.choose("cpu", torch.bfloat16, {"attention": backend})
    with pytest.raises(InvalidArgument, match="flash2"):
        KernelPlan.choose("cpu", torch.bfloat16, {"attention": "fastest"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("device", "backend"),
    [
        ("cpu", AttentionBackend.SDPA),
        pytest.param("cpu", AttentionBackend.CPP, marks=needs_cpp),
        pytest.param("cuda", AttentionBackend.SDPA, marks=pytest.mark.gpu),
    ],
)
def test_the_weight_of_the_keys_comes_with_the_values(
    device: str, backend: AttentionBackend, dtype: torch.dtype
) -> None:
    """Odd lengths, keys unlike queries, and views: what a ring of uneven shares passes in."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 3, 32, generator=draw).to(dtype) for n in (37, 21, 21))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = q.double() @ k.double().transpose(-1, -2) * 32**-0.5
    out, lse = dense_attention_lse(*(x.to(device) for x in (q, k, v)), backend=backend)
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
@pytest.mark.parametrize("backend", GPU_BACKENDS)
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
