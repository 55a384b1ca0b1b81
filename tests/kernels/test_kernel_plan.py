"""The kernel plan: what is chosen, what is refused, what is recorded."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from skyreels_rt.errors import InvalidArgument, UnsupportedKernel
from skyreels_rt.kernels import Impl, KernelPlan
from skyreels_rt.runtime.native import native_status

LAYERS = {layer.name: layer for layer in native_status()}
needs_cpp = pytest.mark.skipif(not LAYERS["_C"].active, reason=f"_C: {LAYERS['_C'].detail}")


def operators(plan: KernelPlan) -> dict[str, Impl]:
    return {op: getattr(plan, op) for op, _ in plan.reasons if op != "attention"}


@needs_cpp
def test_auto_takes_the_compiled_operators() -> None:
    plan = KernelPlan.choose("cpu", torch.float32)
    assert plan.qk_norm_rope is Impl.CPP
    assert plan.frames_to_uint8 is Impl.CPP
    assert plan.audio_cross_attention is Impl.CPP


def test_every_operator_is_decided_and_explained() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        plan = KernelPlan.choose(torch.device("cpu"), dtype)
        fields = {field.name for field in dataclasses.fields(plan)}
        assert set(operators(plan)) == fields - {"device", "dtype", "attention", "reasons"}
        assert Impl.AUTO not in operators(plan).values()
        assert all(why for _, why in plan.reasons)


def test_reference_means_everywhere() -> None:
    plan = KernelPlan.choose("cpu", torch.float32, "reference")
    assert set(operators(plan).values()) == {Impl.REFERENCE}


def test_auto_on_an_unsupported_dtype_says_why() -> None:
    plan = KernelPlan.choose("cpu", torch.float16)
    assert plan.qk_norm_rope is Impl.REFERENCE
    assert "float16" in dict(plan.reasons)["qk_norm_rope"]


def test_mapping_pins_some_and_leaves_the_rest() -> None:
    plan = KernelPlan.choose("cpu", torch.float32, {"qk_norm_rope": "reference"})
    auto = KernelPlan.choose("cpu", torch.float32)
    assert plan.qk_norm_rope is Impl.REFERENCE
    assert plan.frames_to_uint8 is auto.frames_to_uint8


def test_a_request_that_cannot_be_met_raises() -> None:
    with pytest.raises(UnsupportedKernel) as caught:
        KernelPlan.choose("cpu", torch.float32, {"frames_to_uint8": Impl.CUDA})
    for word in ("frames_to_uint8", "cuda", "cpu", "reference"):
        assert word in str(caught.value)


@pytest.mark.parametrize("kernels", ["fast", {"warp_drive": Impl.CPP}, {"qk_norm_rope": "fortran"}])
def test_unknown_names(kernels: object) -> None:
    with pytest.raises(InvalidArgument):
        KernelPlan.choose("cpu", torch.float32, kernels)  # type: ignore[arg-type]


def test_plan_is_printable_recordable_and_frozen() -> None:
    plan = KernelPlan.choose("cpu", torch.bfloat16)
    for op, impl in operators(plan).items():
        assert any(op in line and impl.value in line for line in plan.describe().splitlines())
    data = json.loads(json.dumps(plan.to_json()))
    assert data["operators"]["qk_norm_rope"]["impl"] == plan.qk_norm_rope.value
    assert data["dtype"] == "bfloat16"
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.device = "cuda"  # type: ignore[misc]


def test_status_names_every_layer() -> None:
    assert list(LAYERS) == ["_C", "libskyreels_rt_cuda.so", "triton"]
    assert all(layer.detail for layer in LAYERS.values())
