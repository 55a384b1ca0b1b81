"""The kernel benchmark runs every operator and says which targets are met."""

import pytest
import torch

from skyreels_rt.bench.kernel_cases import CASES, GPU_CASES
from skyreels_rt.bench.kernels import measure_kernels
from skyreels_rt.bench.rates import Rates, measure_rates, num_bytes, on_device
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.kernels import Impl


@pytest.mark.parametrize("case", [c for c in CASES if c.name == "demo"], ids=lambda c: c.op)
def test_every_case_runs_in_both_forms(case):
    for dtype in (torch.float32, torch.bfloat16):
        inputs = case.make(dtype)
        with torch.inference_mode():
            case.reference(*inputs)
            case.run(*inputs, impl=Impl.AUTO)


def test_rows_of_a_run():
    case = next(c for c in CASES if c.op == "norm_modulate")
    report = measure_kernels(
        repeats=5, command="test", with_compile=False, cases=[case], dtypes=[torch.float32]
    )
    seconds, ratio = report.rows
    assert seconds.name == "kernels.norm_modulate.demo.float32.seconds"
    assert ratio.min <= ratio.value <= ratio.max
    assert ratio.ok == (ratio.value >= ratio.target)
    with pytest.raises(InvalidArgument, match="repeats"):
        measure_kernels(repeats=2, command="test")


def test_a_share_of_the_ceiling_is_of_bytes_or_of_products():
    rates = Rates(copy=100.0, matmul=1000.0)
    assert rates.share(None, moved=50, seconds=1.0) == 0.5
    assert rates.share(250.0, moved=50, seconds=0.5) == 0.5
    attention = next(c for c in GPU_CASES if c.op == "attention" and c.name == "14b-text")
    assert attention.flops == 4 * 40 * 32760 * 512 * 128
    assert all(case.flops is None for case in GPU_CASES if case.op != "attention")


def test_bytes_are_those_of_all_tensors_of_a_call():
    values = (torch.zeros(4), [torch.zeros(2, dtype=torch.bfloat16)], 7, None)
    assert num_bytes(values) == 20
    moved = on_device(values, torch.device("meta"))
    assert moved[0].device.type == moved[1][0].device.type == "meta"
    assert moved[2:] == (7, None)


def test_ceilings_are_measured():
    rates = measure_rates(torch.device("cpu"), copy_bytes=2**20, side=64)
    assert rates.copy > 0
    assert [row.name for row in rates.rows()] == ["kernels.rate.copy", "kernels.rate.matmul"]


@pytest.mark.gpu
def test_rows_on_a_gpu():
    case = next(c for c in GPU_CASES if c.op == "norm_modulate")
    device = torch.device("cuda")
    report = measure_kernels(
        repeats=5, command="test", device=device, with_compile=False, cases=[case]
    )
    rows = {row.name: row.value for row in report.rows}
    assert 0 < rows["kernels.norm_modulate.14b.bfloat16.share"] < 1.2
