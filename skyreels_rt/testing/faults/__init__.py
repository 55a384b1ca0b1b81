"""Planted faults: small, plausible mistakes that an error budget must reject.

Each is a working operator with one thing wrong. A test runs every fault and asserts that
:func:`skyreels_rt.testing.numerics.assert_within_budget` refuses its output: a budget that accepts
one of them proves nothing about the real implementation.
"""
