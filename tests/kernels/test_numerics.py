"""The measuring tools themselves."""

from __future__ import annotations

import pytest
import torch

from skyreels_rt.testing.faults.corruptions import truncated
from skyreels_rt.testing.numerics import assert_bitwise_equal, assert_within_budget


def make_budget_case() -> tuple[torch.Tensor, torch.Tensor]:
    high = torch.randn(64, 128, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return high, high.to(torch.bfloat16)


def test_budget_accepts_one_rounding() -> None:
    high, low = make_budget_case()
    assert_within_budget(low, high, low, torch.bfloat16)


def test_each_part_of_the_budget_can_fail() -> None:
    high, low = make_budget_case()
    outlier = low.clone()
    outlier[3, 5] += 4.0
    with pytest.raises(AssertionError, match=r"max error .*largest error at \(3, 5\)"):
        assert_within_budget(outlier, high, low, torch.bfloat16)
    with pytest.raises(AssertionError, match="mean error"):
        assert_within_budget(truncated(low, high), high, low, torch.bfloat16)
    biased = (high * 1.001).to(torch.bfloat16)
    with pytest.raises(AssertionError, match="gain error"):
        assert_within_budget(biased, high, low, torch.bfloat16)


def test_budget_rejects_nan_shape_and_dtype() -> None:
    high, low = make_budget_case()
    broken = low.clone()
    broken[1, 2] = torch.nan
    with pytest.raises(AssertionError, match=r"not finite, first at \(1, 2\)"):
        assert_within_budget(broken, high, low, torch.bfloat16)
    with pytest.raises(AssertionError, match="shape"):
        assert_within_budget(low[:2], high, low, torch.bfloat16)
    with pytest.raises(AssertionError, match="float32"):
        assert_within_budget(low.float(), high, low, torch.bfloat16)
    with pytest.raises(AssertionError):
        assert_within_budget(high.float() * 1.0001, high, high.float(), torch.float32)


def test_bitwise_reports_the_first_difference() -> None:
    expected = torch.arange(12.0).view(3, 4)
    actual = expected.clone()
    actual[1, 2] = -6.0
    actual[2, 3] = 0.0
    with pytest.raises(AssertionError, match=r"2 of 12 .*\(1, 2\): got -6.0 \(c0c00000\)"):
        assert_bitwise_equal(actual, expected)
    assert_bitwise_equal(expected.clone(), expected)


def test_bitwise_sees_zero_signs_and_equal_nans() -> None:
    nan = torch.tensor([torch.nan, 1.0], dtype=torch.bfloat16)
    assert_bitwise_equal(nan.clone(), nan)
    assert_bitwise_equal(torch.empty(0, 3), torch.empty(0, 3))
    with pytest.raises(AssertionError, match="1 of 1"):
        assert_bitwise_equal(torch.tensor([-0.0]), torch.tensor([0.0]))
    with pytest.raises(AssertionError, match="shape"):
        assert_bitwise_equal(torch.zeros(2), torch.zeros(3))
