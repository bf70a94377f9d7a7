"""Student's and Welch's tests against published values, and what must hold for all numbers."""

import math

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from modernllm.core.comparison import compare, compare_family, holm, t_limit, t_tails
from modernllm.core.config import InputError

numbers = st.integers(-1000, 1000).map(lambda x: x / 8)
groups = st.lists(numbers, min_size=2, max_size=6)
pvalues = st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=8)
few = settings(max_examples=25, deadline=None)


@pytest.mark.parametrize(("df", "share", "limit"), [
    (1, 0.05, 12.706), (2, 0.05, 4.303), (5, 0.01, 4.032), (10, 0.10, 1.812), (30, 0.001, 3.646), (120, 0.05, 1.980),
])  # fmt: skip
def test_quantiles_are_those_of_the_printed_tables(df, share, limit):
    assert t_limit(share, df) == pytest.approx(limit, abs=6e-4)
    assert t_tails(t_limit(share, df), df) == pytest.approx(share, rel=1e-9)


@given(st.floats(0, 1e6))
@example(1e-8)
@few
def test_one_and_two_degrees_of_freedom_have_closed_forms(t):
    assert t_tails(t, 1) == pytest.approx(2 / math.pi * math.atan2(1, t), rel=1e-9)
    assert t_tails(t, 2) == pytest.approx(1 - t / math.hypot(math.sqrt(2), t), rel=1e-9, abs=1e-12)


def test_a_known_table():
    a, b = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9], [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2]
    found = compare(a, b)
    errors = [sum((x - sum(v) / len(v)) ** 2 for x in v) / (len(v) - 1) / len(v) for v in (a, b)]
    assert found.df == pytest.approx(sum(errors) ** 2 / (errors[0] ** 2 / 5 + errors[1] ** 2 / 9))
    assert found.difference == pytest.approx(21.0 - 23.3) and (found.n, found.paired) == ((6, 10), False)
    half = t_limit(0.05, found.df) * math.sqrt(sum(errors))
    assert (found.low, found.high) == pytest.approx((-2.3 - half, -2.3 + half))


def test_same_seeds_are_paired_and_others_are_not():
    a, b = {0: 1.0, 1: 2.0, 2: 3.5}, {2: 3.0, 0: 0.5, 1: 1.75}
    assert compare(a, b).paired and compare(a, b).df == 2 and compare(a, b).difference == pytest.approx(1.25 / 3)
    assert not compare(a, {**b, 3: 1.0}).paired and not compare([*a.values()], [*b.values()]).paired


@given(groups, groups)
@few
def test_the_other_way_round_is_the_same_with_the_other_sign(a, b):
    one, other = compare(a, b), compare(b, a)
    assert (one.difference, one.p, one.low) == pytest.approx((-other.difference, other.p, -other.high))
    assert one.n == other.n[::-1]


@given(groups, groups, numbers, st.sampled_from([0.25, 3.0]))
@few
def test_a_shift_changes_nothing_and_a_unit_only_the_scale(a, b, shift, unit):
    one, other = compare(a, b), compare([unit * (x + shift) for x in a], [unit * (x + shift) for x in b])
    assert other.p == pytest.approx(one.p, rel=1e-6, abs=1e-9) and other.low == pytest.approx(unit * one.low, rel=1e-6, abs=1e-6)


@given(st.dictionaries(st.integers(0, 9), st.tuples(numbers, numbers), min_size=2), st.booleans())
@few
def test_zero_is_outside_the_interval_exactly_when_p_is_below_five_per_cent(pairs, by_seed):
    a, b = ({seed: pair[i] for seed, pair in pairs.items()} for i in (0, 1))
    found = compare(a, b) if by_seed else compare([*a.values()], [*b.values()])
    assert found.low <= found.difference <= found.high and found.paired == by_seed
    assume(abs(found.p - 0.05) > 1e-9)
    assert (found.p < 0.05) == (not found.low <= 0 <= found.high)


@given(st.dictionaries(st.integers(0, 9), numbers, min_size=2), numbers)
@few
def test_what_a_seed_does_to_both_cancels(values, shift):
    found = compare({seed: x + shift for seed, x in values.items()}, values)
    assert found.paired and found.p == float(shift == 0)
    assert (found.low, found.high) == pytest.approx((shift, shift), rel=1e-9, abs=1e-9)


def test_single_runs_have_a_difference_and_no_verdict():
    found = compare([1.0], [2.0, 3.0])
    assert (found.difference, found.low, found.high, found.p) == (-1.5, None, None, None)


@pytest.mark.parametrize("bad", [[], [math.nan], [1.0, math.inf]])
def test_what_is_no_number_is_refused(bad):
    with pytest.raises(InputError, match="compare: b is .*; allowed: one finite number or more"):
        compare([1.0, 2.0], bad)


@given(pvalues)
@few
def test_holm_lies_between_the_p_values_and_bonferroni(found):
    adjusted, m = holm(found), sum(p is not None for p in found)
    assert [p is None for p in adjusted] == [p is None for p in found]
    pairs = sorted((p, q) for p, q in zip(found, adjusted) if p is not None)
    assert all(p <= q <= min(1, m * p) or q == pytest.approx(min(1, m * p)) for p, q in pairs)
    assert [q for _, q in pairs] == sorted(q for _, q in pairs)
    if pairs:
        assert pairs[0][1] == pytest.approx(min(1, m * pairs[0][0]))


@given(pvalues, st.randoms())
@few
def test_holm_does_not_care_for_the_order(found, random):
    order = list(range(len(found)))
    random.shuffle(order)
    assert holm([found[i] for i in order]) == [holm(found)[i] for i in order]


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(InputError, match="a p-value is 1.5; allowed: 0 to 1"):
        holm([0.1, 1.5])


def test_a_family_is_corrected_as_one():
    shapes = {"a": (0, 0.1), "b": (1, 0.3), "c": (0.2, 0.2)}
    values = {name: {seed: base + slope * seed**2 for seed in range(3)} for name, (base, slope) in shapes.items()}
    pairs = [(values["a"], values["b"]), (values["a"], values["c"]), ([1.0], [2.0])]
    found = compare_family(pairs)
    assert [comparison for comparison, _ in found] == [compare(a, b) for a, b in pairs]
    assert [p for _, p in found] == holm([comparison.p for comparison, _ in found]) and found[2][1] is None
    assert compare_family([]) == []
