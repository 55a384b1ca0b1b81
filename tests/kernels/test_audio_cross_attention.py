"""audio_cross_attention: each latent frame sees its own audio tokens and no others."""

from __future__ import annotations

import pytest
import torch

from skyreels_rt.errors import InvalidArgument, UnsupportedKernel
from skyreels_rt.kernels import Impl, audio_cross_attention
from skyreels_rt.kernels.reference.audio_cross_attention import audio_cross_attention as reference
from skyreels_rt.testing.faults.audio_cross_attention import FAULTS
from skyreels_rt.testing.numerics import assert_bitwise_equal, assert_within_budget

# Batch, frames, patches, tokens, heads, head size.
SHAPES = [(1, 5, 64, 8, 3, 64), (2, 3, 7, 32, 2, 16), (1, 1, 1, 1, 1, 2), (2, 0, 1, 4, 2, 8)]


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    batch, frames, patches, tokens, heads, head_dim = shape
    generator = torch.Generator().manual_seed(2)
    width = heads * head_dim
    q = torch.randn(batch, frames * patches, width, generator=generator)
    kv = torch.randn(batch, frames, tokens, 2 * width, generator=generator)
    return q.to(dtype), *(part.to(dtype) for part in kv.split(width, dim=-1))


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


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_rejected(fault: str) -> None:
    inputs = make_inputs(SHAPES[0], torch.bfloat16)
    high = reference(*(x.double() for x in inputs), num_heads=3)
    low = reference(*inputs, num_heads=3)
    faulty = FAULTS[fault](*inputs, num_heads=3)
    with pytest.raises(AssertionError, match="error"):
        assert_within_budget(faulty, high, low, torch.bfloat16)


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
    with pytest.raises(UnsupportedKernel, match="Supported here: reference"):
        audio_cross_attention(*inputs, num_heads=2, impl=Impl.CUDA)
