"""Which device and number type "auto" means."""

import pytest
import torch

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.runtime import device as device_module
from skyreels_rt.runtime.device import multiplies_bfloat16, resolve_device, resolve_dtype

CPU = torch.device("cpu")


def test_auto_keeps_stored_bfloat16_only_where_it_is_fast():
    expected = torch.bfloat16 if multiplies_bfloat16(CPU) else torch.float32
    assert resolve_dtype("auto", CPU, stored=torch.bfloat16) == expected
    for stored in (None, torch.float32, torch.float16):
        assert resolve_dtype("auto", CPU, stored=stored) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16


@pytest.mark.parametrize("instructions", ["amx_bf16", "avx512_bf16", "avx2"])
def test_the_cpu_is_asked_what_it_can(monkeypatch, instructions):
    monkeypatch.setattr(
        device_module.torch.cpu, "get_capabilities", lambda: {instructions: True}, raising=False
    )
    assert multiplies_bfloat16(CPU) == (instructions != "avx2")
    monkeypatch.delattr(device_module.torch.cpu, "get_capabilities")
    assert not multiplies_bfloat16(CPU)


def test_a_type_that_is_asked_for_is_taken():
    assert resolve_dtype("float32", CPU, stored=torch.bfloat16) == torch.float32
    assert resolve_dtype(torch.float16, CPU) == torch.float16
    for wrong in ("int8", torch.int32, "Auto"):
        with pytest.raises(InvalidArgument, match="dtype"):
            resolve_dtype(wrong, CPU)


def test_devices_are_named():
    assert resolve_device("cpu") == CPU
    for wrong in ("tpu", "meta", "cuda:256", "cuda:999", torch.device("cuda:999")):
        with pytest.raises(InvalidArgument, match="device"):
            resolve_device(wrong)
