"""Intervals and McNemar's test against closed forms."""

import math

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from modernllm.core.config import InputError
from modernllm.evaluation.intervals import bootstrap, mcnemar, wilson


@for_all(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_its_formula(case):
    k, n = case
    z, p = 1.959963984540054, k / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = wilson(k, n)
    assert low == pytest.approx((middle - half) / (1 + z * z / n), abs=1e-9)
    assert high == pytest.approx((middle + half) / (1 + z * z / n), abs=1e-9)


def test_mcnemar_is_the_binomial_sum():
    only_a, only_b, p = mcnemar([True] * 9 + [False], [False] * 9 + [True])
    assert (only_a, only_b) == (9, 1) and p == pytest.approx(2 * (1 + 10) / 2**10)


def test_bootstrap_covers_and_repeats():
    values = [k / 100 for k in range(100)]
    low, high = bootstrap(values)
    half = 1.96 * math.sqrt(sum((v - 0.495) ** 2 for v in values) / 100) / 10
    assert low == pytest.approx(0.495 - half, abs=0.005) and high == pytest.approx(0.495 + half, abs=0.005)
    assert bootstrap(values) == (low, high) != bootstrap(values, seed=1)


@pytest.mark.parametrize("function, given", [
    (wilson, (3, 2)), (wilson, (0, 0)), (bootstrap, ([1.0],)), (bootstrap, ([1, math.nan],)), (mcnemar, ([True], [])),
])
def test_bad_input(function, given):
    with pytest.raises(InputError, match=function.__name__):
        function(*given)
