"""What the operators and the transformer allocate: tensors, as torch's allocator reports them."""

import json
import math

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from skyreels_rt.bench.kernel_cases import CASES
from skyreels_rt.config import TransformerConfig
from skyreels_rt.kernels import (
    Impl,
    KernelPlan,
    _native,
    absorbed_audio_attention,
    fold_audio_projections,
)
from skyreels_rt.kernels._select import CANDIDATES
from skyreels_rt.models.transformer import ContextCache, SkyReelsTransformer

SMALL_CHANGE = 4096
"""Bytes for what does not grow with the tokens: flags, weights in fp32, tables of addresses."""

CPP_OPERATORS = {
    op for op, candidates in CANDIDATES.items() if Impl.CPP in {one.impl for one in candidates}
} | {"attention"}

needs_cpp = pytest.mark.skipif(not _native.extension_status()[0], reason="_C is not built")


def peak_bytes(call, folder):
    """Most bytes that ``call`` holds at once beyond what was there, and its result."""
    with torch.inference_mode():
        call()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            result = call()
    path = folder / "trace.json"
    recorded.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    steps = [event for event in events if event.get("name") == "[memory]"]
    held = most = 0
    for step in sorted(steps, key=lambda event: event["ts"]):
        held += step["args"]["Bytes"]
        most = max(most, held)
    return most, result


def nbytes(tensor):
    return tensor.numel() * tensor.element_size()


def new_bytes(result, inputs):
    """Bytes of the tensors in ``result`` that are none of the inputs."""
    flat = result if isinstance(result, tuple | list) else (result,)
    given = {x.data_ptr() for x in inputs if isinstance(x, torch.Tensor)}
    made = {x.data_ptr(): nbytes(x) for x in flat if isinstance(x, torch.Tensor)}
    return sum(size for pointer, size in made.items() if pointer not in given)


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.name == "demo" and case.op in CPP_OPERATORS],
    ids=lambda case: case.op,
)
def test_an_operator_allocates_its_output_only(case, dtype, tmp_path):
    inputs = case.make(dtype)
    most, result = peak_bytes(lambda: case.run(*inputs, impl=Impl.CPP), tmp_path)
    assert most <= new_bytes(result, inputs) + SMALL_CHANGE


def test_the_measure_sees_temporaries(tmp_path):
    case = next(case for case in CASES if case.op == "norm_modulate")
    inputs = case.make(torch.float32)
    most, result = peak_bytes(lambda: case.run(*inputs, impl=Impl.REFERENCE), tmp_path)
    assert most > 1.5 * new_bytes(result, inputs)


@needs_cpp
def test_the_absorbed_attention_also_holds_logits_and_probabilities(tmp_path):
    """The exception: torch's products stand on both sides of the softmax (here N M / D = 1/8)."""
    heads, tokens, frames, patches, width = 3, 8, 9, 256, 192
    x = torch.randn(1, frames * patches, width)
    keys, values = torch.randn(2, 1, frames, tokens, width)
    weights = torch.randn(2, width, width)
    fold = fold_audio_projections(weights[0], None, keys, values, weights[1], num_heads=heads)
    most, out = peak_bytes(
        lambda: absorbed_audio_attention(x, fold, None, x, impl=Impl.CPP), tmp_path
    )
    between = 2 * frames * patches * heads * tokens * 4
    assert most <= nbytes(out) + between + SMALL_CHANGE


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_transformer_peaks_lower_than_in_plain_torch(dtype, tmp_path):
    """At the width of Wan2.1-1.3B: the GELU needs no second copy of the widest activations."""
    config = TransformerConfig(
        in_channels=16, dim=1536, ffn_dim=8960, num_heads=12, num_layers=2, freq_dim=256,
        text_dim=64, text_length=8, audio=None,
    )  # fmt: skip
    peaks = {}
    for kernels in ("auto", "reference"):
        with torch.device("meta"):
            model = SkyReelsTransformer(config, KernelPlan.choose("cpu", dtype, kernels))
        model = model.to_empty(device="cpu").to_compute_dtype(dtype).requires_grad_(False)
        for parameter in model.parameters():
            parameter.fill_(1 / math.sqrt(config.ffn_dim))
        latents, rope = torch.randn(1, 16, 2, 32, 32), model.rope(2, 32, 32)
        context = ContextCache(model.text_context(torch.randn(1, 8, 64)))
        time = torch.tensor([500.0])
        peaks[kernels], _ = peak_bytes(
            lambda: model(latents, time, context, rope),  # noqa: B023 - called at once
            tmp_path,
        )
    assert peaks["auto"] < 0.9 * peaks["reference"]
