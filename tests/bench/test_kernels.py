"""The kernel benchmark runs every operator and says which targets are met."""

import pytest
import torch

from skyreels_rt.bench.kernel_cases import CASES
from skyreels_rt.bench.kernels import measure_kernels
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
