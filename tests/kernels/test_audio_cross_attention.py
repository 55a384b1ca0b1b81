"""audio_cross_attention: each latent frame sees its own audio tokens and no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from skyreels_rt.errors import InvalidArgument, UnsupportedKernel
from skyreels_rt.kernels import Impl, audio_cross_attention
from skyreels_rt.kernels.reference.audio_cross_attention import audio_cross_attention as reference
from skyreels_rt.runtime.native import native_status
from skyreels_rt.testing.faults.audio_cross_attention import FAULTS, MODIFIER_FAULTS
from skyreels_rt.testing.numerics import assert_bitwise_equal, assert_within_budget

LAYERS = {layer.name: layer for layer in native_status()}
needs_cpp = pytest.mark.skipif(not LAYERS["_C"].active, reason=f"_C: {LAYERS['_C'].detail}")
needs_triton = pytest.mark.skipif(not LAYERS["triton"].active, reason="triton is not installed")
# Batch, frames, patches, tokens, heads, head size.
SHAPES = [(1, 5, 64, 8, 3, 64), (2, 3, 7, 32, 2, 16), (1, 1, 1, 1, 1, 2), (2, 0, 1, 4, 2, 8)]


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    batch, frames, patches, tokens, heads, head_dim = shape
    generator = torch.Generator().manual_seed(2)
    width = heads * head_dim
    q = torch.randn(batch, frames * patches, width, generator=generator)
    kv = torch.randn(batch, frames, tokens, 2 * width, generator=generator)
    return q.to(dtype), *(part.to(dtype) for part in kv.split(width, dim=-1))


MODIFIERS = ("ranges", "token_mask", "gate", "norm_weight")


def make_modifiers(
    shape: tuple[int, ...], dtype: torch.dtype, names: tuple[str, ...] = MODIFIERS
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """q, k, v and some of the optional tensors; with ranges the frames' windows overlap."""
    batch, frames, _, tokens, heads, head_dim = shape
    q, k, v = make_inputs(shape, dtype)
    generator = torch.Generator().manual_seed(3)
    total = max(1, frames * tokens)
    first = (torch.arange(frames) - 1).clamp(min=0) * tokens
    count = (torch.full((frames,), 3 * tokens)).minimum(total - first).clamp(max=256)
    options = {
        "ranges": torch.stack([first, count], dim=1).int(),
        "token_mask": torch.rand(batch, frames, tokens, generator=generator) < 0.7,
        "gate": torch.randn(batch, frames, generator=generator),
        "norm_weight": (1 + 0.2 * torch.randn(heads * head_dim, generator=generator)).to(dtype),
    }
    if "ranges" in names:
        k, v = (x.flatten(1, 2) if frames else x.new_zeros(batch, 1, x.shape[-1]) for x in (k, v))
        options["token_mask"] = torch.rand(batch, total, generator=generator) < 0.7
    return (q, k, v), {name: options[name] for name in names}


def of_reference(options: dict[str, Any], dtype: torch.dtype | None = None) -> dict[str, Any]:
    """The same options under the reference's names; floating ones in ``dtype``, if given."""
    names = {"gate": "gate_BF", "norm_weight": "norm_weight_D"}
    return {
        names.get(name, name): x.to(dtype)
        if dtype and isinstance(x, torch.Tensor) and x.is_floating_point()
        else x
        for name, x in options.items()
    }


def assert_matches(
    actual: torch.Tensor, inputs: tuple[torch.Tensor, ...], options: dict[str, Any]
) -> None:
    dtype = inputs[0].dtype
    high = reference(*(x.double() for x in inputs), **of_reference(options, torch.float64))
    low = reference(*inputs, **of_reference(options))
    assert_within_budget(actual, high, low, dtype)


def masked_formulation(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int
) -> torch.Tensor:
    """Attention over all F*M keys with a block mask, written out."""
    frames, tokens = k.shape[1:3]
    patches = q.shape[1] // frames
    qh, kh, vh = (
        x.flatten(1, -2).unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v)
    )
    scores = qh @ kh.transpose(-1, -2) / qh.shape[-1] ** 0.5
    of_query = torch.arange(frames).repeat_interleave(patches)
    of_key = torch.arange(frames).repeat_interleave(tokens)
    scores = scores.masked_fill(of_query[:, None] != of_key, -torch.inf)
    return (scores.softmax(-1) @ vh).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_reference_is_masked_attention(shape: tuple[int, ...]) -> None:
    inputs = make_inputs(shape, torch.float64)
    expected = masked_formulation(*inputs, num_heads=shape[4])
    torch.testing.assert_close(reference(*inputs, num_heads=shape[4]), expected)


def test_a_frame_does_not_hear_the_others() -> None:
    q, k, v = make_inputs((1, 4, 6, 5, 2, 8), torch.float32)
    before = audio_cross_attention(q, k, v, num_heads=2)
    k[:, 2] += 1.0
    v[:, 2] += 1.0
    changed = (audio_cross_attention(q, k, v, num_heads=2) != before).any(-1)[0].view(4, 6)
    assert changed.any(1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_within_budget(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = make_inputs(shape, dtype)
    high = reference(*(x.double() for x in inputs), num_heads=shape[4])
    low = reference(*inputs, num_heads=shape[4])
    actual = audio_cross_attention(*inputs, num_heads=shape[4])
    assert_within_budget(actual, high, low, dtype)


def test_reference_with_everything_is_a_loop_over_frames() -> None:
    shape = (2, 4, 6, 5, 3, 8)
    (q, k, v), options = make_modifiers(shape, torch.float64)
    actual = reference(q, k, v, num_heads=3, **of_reference(options, torch.float64), eps=1e-5)
    normed = F.rms_norm(q, (24,), options["norm_weight"], 1e-5)
    for b in range(2):
        for f, (start, count) in enumerate(options["ranges"].tolist()):
            kept = options["token_mask"][b, start : start + count]
            for head in range(3):
                part = slice(8 * head, 8 * head + 8)
                keys, values = (x[b, start : start + count, part][kept] for x in (k, v))
                scores = normed[b, 6 * f : 6 * f + 6, part] @ keys.T / 8**0.5
                expected = options["gate"][b, f] * scores.softmax(-1) @ values
                torch.testing.assert_close(actual[b, 6 * f : 6 * f + 6, part], expected)


# Forms of the call: no option, each option, the usual pairs, everything.
FORMS = [(), *((name,) for name in MODIFIERS), ("token_mask", "norm_weight"), MODIFIERS]


@needs_cpp
@pytest.mark.parametrize("names", FORMS, ids="+".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpp_within_budget(names: tuple[str, ...], dtype: torch.dtype) -> None:
    # The embedded model's shape, Wan's in short, odd sizes, more than one tile and 256 tokens.
    for shape in [
        (1, 5, 64, 8, 3, 64), (1, 2, 60, 32, 12, 128), (2, 3, 7, 11, 2, 22), (1, 2, 300, 3, 1, 7),
        (1, 2, 9, 100, 2, 40), (1, 1, 1, 1, 1, 2), (2, 0, 1, 4, 2, 8), (1, 3, 0, 4, 2, 8),
        (0, 2, 3, 4, 2, 8),
    ]:  # fmt: skip
        inputs, options = make_modifiers(shape, dtype, names)
        options["num_heads"] = shape[4]
        actual = audio_cross_attention(*inputs, **options, impl=Impl.CPP)
        assert_matches(actual, inputs, options)


@needs_cpp
@pytest.mark.parametrize("names", [(), MODIFIERS], ids=["plain", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpp_takes_views(names: tuple[str, ...], dtype: torch.dtype) -> None:
    inputs, options = make_modifiers((2, 3, 20, 6, 2, 16), dtype, names)
    expected = audio_cross_attention(*inputs, **options, num_heads=2, impl=Impl.CPP)
    fused = torch.cat(inputs[1:], dim=-1)
    for q, k, v in [
        (inputs[0], *fused.chunk(2, dim=-1)),
        tuple(torch.stack([x, x], 1)[:, 0] for x in inputs),
        tuple(x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs),
        tuple(x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in inputs),
    ]:
        out = audio_cross_attention(q, k, v, **options, num_heads=2, impl=Impl.CPP)
        assert_bitwise_equal(out, expected)


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_instruction_sets_and_thread_counts_give_the_same_bytes(dtype: torch.dtype) -> None:
    from skyreels_rt import _C

    shape = (2, 3, 37, 13, 2, 38)
    (q, k, v), options = make_modifiers(shape, dtype)
    extras = [options["ranges"], options["token_mask"], options["gate"]]
    extras.append(options["norm_weight"].float())
    rows = [n for x in (k, v) for n in (x.stride(0), 0, x.stride(1))]
    strides = (*q.stride()[:2], *rows, k.shape[1], 0)
    results = []
    for isa in _C.available_isas():
        for threads in (1, 2, 5):
            out = torch.empty_like(q)
            _C.audio_cross_attention(
                *(x.data_ptr() for x in (q, k, v, out, *extras)), {4: 0, 2: 1}[q.element_size()],
                (2, 3, 37, 39, 2, 38), strides, 1e-6, threads, isa,
            )  # fmt: skip
            results.append(out)
    for out in results:
        assert_bitwise_equal(out, results[0])
    assert_matches(results[0], (q, k, v), {**options, "num_heads": 2})


@needs_cpp
def test_cpp_handles_special_values() -> None:
    q, k, v = make_inputs((1, 2, 5, 4, 1, 8), torch.float32)
    q[0, 1, 3] = float("nan")
    k[0, 1, 2] = 1e18  # one token takes everything
    out = audio_cross_attention(q, k, v, num_heads=1, impl=Impl.CPP)
    assert torch.isnan(out[0, 1]).all()
    assert torch.isfinite(out[0, [0, 2, 3, 4, 5, 6, 7, 8, 9]]).all()
    takes_all = (q[0, 5:] * k[0, 1, 2]).sum(-1) > 0
    assert_bitwise_equal(out[0, 5:][takes_all], v[0, 1, 2].expand(int(takes_all.sum()), -1))


@pytest.mark.parametrize("impl", [Impl.REFERENCE, Impl.AUTO])
def test_a_frame_without_tokens_gets_zeros(impl: Impl) -> None:
    q, k, v = make_inputs((2, 3, 4, 5, 2, 8), torch.float32)
    mask = torch.ones(2, 3, 5, dtype=torch.bool)
    mask[1, 2] = False
    out = audio_cross_attention(q, k, v, num_heads=2, token_mask=mask, impl=impl)
    silent = (out == 0).all(-1)
    assert silent.view(2, 3, 4).all(-1).tolist() == [[False] * 3, [False, False, True]]
    leaf = q.requires_grad_()
    audio_cross_attention(leaf, k, v, num_heads=2, token_mask=mask, impl=impl).sum().backward()
    assert torch.isfinite(leaf.grad).all()


# In the interpreter bf16 casts truncate, so that only a GPU can show bf16 within its budget.
@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="runs on the device instead")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_triton_interpreted_within_budget(dtype: torch.dtype) -> None:
    for shape, names in [
        ((1, 2, 40, 8, 2, 64), ()), ((2, 2, 9, 11, 2, 22), MODIFIERS),
        ((1, 3, 8, 30, 1, 16), MODIFIERS), ((1, 2, 20, 32, 1, 128), ("norm_weight",)),
        ((1, 2, 5, 70, 1, 32), ("token_mask",)), ((0, 2, 3, 4, 2, 16), ()),
    ]:  # fmt: skip
        inputs, options = make_modifiers(shape, dtype, names)
        if names == MODIFIERS:
            options["token_mask"][:, :22] = False  # a frame without tokens
        options["num_heads"] = shape[4]
        actual = audio_cross_attention(*inputs, **options, impl=Impl.TRITON)
        assert_matches(actual, inputs, options)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_rejected(fault: str) -> None:
    inputs = make_inputs(SHAPES[0], torch.bfloat16)
    high = reference(*(x.double() for x in inputs), num_heads=3)
    low = reference(*inputs, num_heads=3)
    faulty = FAULTS[fault](*inputs, num_heads=3)
    with pytest.raises(AssertionError, match="error"):
        assert_within_budget(faulty, high, low, torch.bfloat16)


@pytest.mark.parametrize("fault", MODIFIER_FAULTS)
def test_modifier_faults_are_rejected(fault: str) -> None:
    (q, k, v), options = make_modifiers((1, 5, 64, 8, 3, 64), torch.bfloat16)
    inputs = (q * 3e-3, k, v)  # quiet, so that epsilon matters
    options["num_heads"] = 3
    assert_matches(reference(*inputs, **of_reference(options)), inputs, options)
    with pytest.raises(AssertionError, match="error"):
        assert_matches(MODIFIER_FAULTS[fault](*inputs, of_reference(options)), inputs, options)


@needs_cpp
@pytest.mark.parametrize("names", [(), MODIFIERS], ids=["plain", "all"])
def test_registration(names: tuple[str, ...]) -> None:
    op = torch.ops.skyreels_rt.audio_cross_attention.default
    for dtype in (torch.float32, torch.bfloat16):
        inputs, options = make_modifiers((2, 3, 4, 5, 2, 8), dtype, names)
        rest = [options.get(name) for name in MODIFIERS]
        torch.library.opcheck(op, (*inputs, *rest, 2, 1e-6, "cpp"))
        permuted = (x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in inputs)
        torch.library.opcheck(op, (*permuted, *rest, 2, 1e-6, "cpp"))


@pytest.mark.parametrize("impl", [Impl.AUTO, Impl.REFERENCE])
def test_compiles_whole_with_everything(impl: Impl) -> None:
    inputs, options = make_modifiers((2, 3, 4, 5, 2, 8), torch.float32)
    compiled = torch.compile(audio_cross_attention, fullgraph=True, backend="aot_eager")
    assert_bitwise_equal(
        compiled(*inputs, num_heads=2, **options, impl=impl),
        audio_cross_attention(*inputs, num_heads=2, **options, impl=impl),
    )


def test_gradients_reach_gate_and_norm_weight() -> None:
    inputs, options = make_modifiers((1, 2, 3, 4, 2, 8), torch.float32)
    gate, weight = (options[name].requires_grad_() for name in ("gate", "norm_weight"))
    audio_cross_attention(*inputs, num_heads=2, **options).square().sum().backward()
    assert float(gate.grad.abs().sum()) > 0
    assert float(weight.grad.abs().sum()) > 0


def test_compiles_whole_and_has_gradients() -> None:
    inputs = make_inputs((1, 2, 3, 4, 2, 8), torch.float32)
    compiled = torch.compile(audio_cross_attention, fullgraph=True, backend="aot_eager")
    assert_bitwise_equal(
        compiled(*inputs, num_heads=2), audio_cross_attention(*inputs, num_heads=2)
    )
    leaf = inputs[1].clone().requires_grad_()
    audio_cross_attention(inputs[0], leaf, inputs[2], num_heads=2).sum().backward()
    assert leaf.grad is not None


BAD = {
    "k rank": ((1, 6, 16), (1, 2, 16), 2, r"k: .*\(B, F, M, N\*K\)"),
    "ragged": ((1, 5, 16), (1, 2, 4, 16), 2, "multiple of F"),
    "no tokens": ((1, 6, 16), (1, 2, 0, 16), 2, "M >= 1"),
    "heads": ((1, 6, 16), (1, 2, 4, 16), 3, "num_heads"),
    "width": ((1, 6, 16), (1, 2, 4, 8), 2, "k: "),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_calls(case: str) -> None:
    q_shape, k_shape, heads, words = BAD[case]
    k = torch.zeros(k_shape)
    with pytest.raises(InvalidArgument, match=words):
        audio_cross_attention(torch.zeros(q_shape), k, k, num_heads=heads)


def test_unsupported_request_raises() -> None:
    inputs = make_inputs((1, 2, 3, 4, 2, 8), torch.float32)
    with pytest.raises(UnsupportedKernel, match=r"Supported here: .*reference"):
        audio_cross_attention(*inputs, num_heads=2, impl=Impl.CUDA)


BAD_RANGES = {
    "outside": [(0, 4), (5, 4)],
    "negative": [(-1, 2), (0, 2)],
    "empty": [(0, 0), (0, 2)],
    "overflow": [(2**31 - 1, 2), (0, 2)],
    "too many": [(0, 257), (0, 2)],
}


@pytest.mark.parametrize("impl", [Impl.AUTO, Impl.REFERENCE])
@pytest.mark.parametrize("case", BAD_RANGES)
def test_ranges_out_of_bounds(case: str, impl: Impl) -> None:
    ranges = torch.tensor(BAD_RANGES[case], dtype=torch.int32)
    k = torch.zeros(1, 300 if case == "too many" else 8, 16)
    with pytest.raises(InvalidArgument, match=r"ranges\[[01]\]: .*count"):
        audio_cross_attention(torch.zeros(1, 6, 16), k, k, num_heads=2, ranges=ranges, impl=impl)


BAD_OPTIONS = {
    "k of the other form": (
        {"ranges": torch.zeros(2, 2, dtype=torch.int32)},
        r"k: .*\(B, T, N\*K\)",
    ),
    "mask shape": ({"token_mask": torch.ones(1, 2, 3, dtype=torch.bool)}, "token_mask: "),
    "mask dtype": ({"token_mask": torch.ones(1, 2, 4)}, "token_mask: .*bool"),
    "gate shape": ({"gate": torch.ones(1, 3)}, r"gate: .*\(B, F\)"),
    "gate dtype": ({"gate": torch.ones(1, 2, dtype=torch.bfloat16)}, "gate: .*float32"),
    "weight": ({"norm_weight": torch.ones(8)}, "norm_weight: "),
    "weight dtype": ({"norm_weight": torch.ones(16, dtype=torch.int64)}, "norm_weight: "),
    "weight device": ({"norm_weight": torch.ones(16, device="meta")}, "norm_weight: .*cpu"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(case: str) -> None:
    options, words = BAD_OPTIONS[case]
    k = torch.zeros(1, 2, 4, 16)
    with pytest.raises(InvalidArgument, match=words):
        audio_cross_attention(torch.zeros(1, 6, 16), k, k, num_heads=2, **options)


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        (torch.zeros(2, 3, dtype=torch.int32), r"ranges: .*\(F, 2\)"),
        (torch.ones(2, 2, dtype=torch.int64), "ranges: .*int32 on cpu"),
        (torch.ones(2, 2, dtype=torch.int32, device="meta"), "ranges: .*int32 on cpu"),
        (torch.ones(4, 2, dtype=torch.int32), "multiple of F"),
    ],
)
def test_bad_ranges(ranges: torch.Tensor, words: str) -> None:
    k = torch.zeros(1, 8, 16)
    with pytest.raises(InvalidArgument, match=words):
        audio_cross_attention(torch.zeros(1, 6, 16), k, k, num_heads=2, ranges=ranges)


@needs_triton
@pytest.mark.parametrize("head_dim", [8, 130])
def test_sizes_outside_an_implementation(head_dim: int) -> None:
    inputs = make_inputs((1, 2, 3, 4, 1, head_dim), torch.float16)
    with pytest.raises(UnsupportedKernel, match=f"head sizes 16 to 128, not {head_dim}"):
        audio_cross_attention(*inputs, num_heads=1, impl=Impl.TRITON)
    expected = reference(*inputs, num_heads=1)
    assert_bitwise_equal(audio_cross_attention(*inputs, num_heads=1), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("impl", [Impl.TRITON, Impl.CUDA])
@pytest.mark.parametrize("names", FORMS, ids="+".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_device_within_budget(impl: Impl, names: tuple[str, ...], dtype: torch.dtype) -> None:
    for shape in [
        (1, 3, 1560, 32, 12, 128), (1, 9, 64, 8, 3, 64), (2, 3, 7, 11, 2, 40),
        (1, 2, 300, 3, 1, 32), (1, 2, 9, 200, 2, 96), (2, 3, 33, 60, 2, 128), (2, 0, 1, 4, 2, 64),
    ]:  # fmt: skip
        inputs, options = make_modifiers(shape, dtype, names)
        on_device = {n: x if n == "ranges" else x.cuda() for n, x in options.items()}
        actual = audio_cross_attention(
            *(x.cuda() for x in inputs), **on_device, num_heads=shape[4], impl=impl
        )
        assert_matches(actual.cpu(), inputs, {**options, "num_heads": shape[4]})
