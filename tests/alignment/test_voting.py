"Votes over final numbers, pass@k against its definition, gating."

from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernllm.alignment.voting import (
    Vote,
    best_of_n,
    choose_threshold,
    final_number,
    gated,
    majority_vote,
    pass_at_k,
    weighted_vote,
)
from modernllm.core.config import InputError

numbers = st.lists(st.one_of(st.none(), st.integers(0, 4).map(Fraction)), min_size=1, max_size=12)


@pytest.mark.parametrize("solution, number", [
    ("3 + 4 = 7\n#### 7", 7), ("#### 1,000.50", Fraction(2001, 2)), ("#### -3", -3), ("the answer is 12.", 12),
    ("#### 5\nand 6 more", 5), ("none", None), ("", None), ("#### ,", None), ("1/3", Fraction(1, 3)),
])
def test_final_numbers(solution, number):
    assert final_number(solution) == number


@given(numbers)
def test_the_majority_has_the_most_votes(given):
    found, real = majority_vote(given), [number for number in given if number is not None]
    if not real:
        assert found == Vote(None, 0.0, None)
        return
    assert given.count(found.answer) == max(map(given.count, real)) and given[found.candidate] == found.answer
    assert found.confidence == pytest.approx(given.count(found.answer) / len(given))
    assert found.answer not in given[: found.candidate]


@given(numbers, st.data())
def test_weights_decide(given, data):
    scores = data.draw(st.lists(st.floats(0, 1), min_size=len(given), max_size=len(given)))
    for vote in (weighted_vote, best_of_n):
        found = vote(given, scores)
        assert 0 <= found.confidence <= 1 and (found.answer is None) == all(number is None for number in given)
    assert weighted_vote(given, [0.5] * len(given))[::2] == majority_vote(given)[::2]


def test_ties_go_to_the_first():
    tied = [Fraction(2), Fraction(1), Fraction(1), Fraction(2), None]
    assert majority_vote(tied) == Vote(2, 0.4, 0)
    assert best_of_n(tied, [0.5, 0.5, 0.1, 0.5, 0.9]) == Vote(2, 0.5, 0)
    assert weighted_vote([Fraction(1), Fraction(2)], [0.0, 0.0]) == Vote(1, 0.0, 0)


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_choices_with_a_right_answer(n):
    for c in range(n + 1):
        for k in range(1, n + 1):
            choices = list(combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_gating_draws_until_it_is_sure():
    stream = [Fraction(n) for n in (1, 2, 3, 3, 3, 3, 3, 3)]
    draw = lambda first, size: stream[first : first + size]
    settings = {"size": 2, "budget": 7}
    assert gated(draw, majority_vote, threshold=0.0, **settings) == (majority_vote(stream[:2]), stream[:2])
    assert gated(draw, majority_vote, threshold=0.5, **settings)[1] == stream[:2]
    assert gated(draw, majority_vote, threshold=0.6, **settings)[1] == stream[:6]
    assert gated(draw, majority_vote, threshold=1.0, **settings) == (majority_vote(stream[:7]), stream[:7])


def test_the_threshold_is_the_cheapest_of_the_best():
    easy, hard = [Fraction(1)] * 8, [Fraction(n) for n in (0, 1, 1, 1, 1, 1, 1, 1)]
    problems = [(easy, Fraction(1)), (hard, Fraction(1))]
    chosen, table = choose_threshold(problems, majority_vote, size=2, budget=8, most=8)
    assert 0.5 < chosen <= 0.75 and table.accuracy.max() == 1.0
    assert table.set_index("threshold").candidates[chosen] == 3.0  # 2 for the easy one, 4 for the hard one
    assert choose_threshold(problems, majority_vote, size=2, budget=8, most=2)[0] == 0.0


@pytest.mark.parametrize("call, named", [
    (lambda: majority_vote([]), "0 candidates"),
    (lambda: weighted_vote([], []), "0 candidates"),
    (lambda: best_of_n([], []), "0 candidates"),
    (lambda: weighted_vote([Fraction(1)], []), "scores: 0 for 1 candidates"),
    (lambda: best_of_n([Fraction(1)], [1.5]), "one in \\[0, 1\\]"),
    (lambda: best_of_n([Fraction(1)], [float("nan")]), "one in \\[0, 1\\]"),
    (lambda: pass_at_k(0, 0, 1), "k: 1"), (lambda: pass_at_k(4, 2, 0), "k: 0"), (lambda: pass_at_k(4, 2, 5), "k: 5"),
    (lambda: pass_at_k(4, 5, 1), "c: 5"), (lambda: pass_at_k(4, -1, 1), "c: -1"),
    (lambda: gated(None, majority_vote, threshold=1.1, size=1, budget=2), "threshold: 1.1"),
    (lambda: gated(None, majority_vote, threshold=-0.1, size=1, budget=2), "threshold: -0.1"),
    (lambda: gated(None, majority_vote, threshold=float("nan"), size=1, budget=2), "threshold: nan"),
    (lambda: gated(None, majority_vote, threshold=0.5, size=0, budget=2), "size: 0"),
    (lambda: gated(None, majority_vote, threshold=0.5, size=3, budget=2), "size: 3"),
    (lambda: choose_threshold([], majority_vote, size=1, budget=1, most=1), "problems"),
    (lambda: choose_threshold([([1], 1)], majority_vote, size=1, budget=2, most=2), "as many candidates as the budget"),
    (lambda: choose_threshold([([1, 1], 1)], majority_vote, size=2, budget=2, most=1), "most: 1"),
    (lambda: choose_threshold([([1, 1], 1)], majority_vote, size=2, budget=2, most=2, thresholds=[2]), "threshold: 2"),
])
def test_refused(call, named):
    with pytest.raises(InputError, match=named) as caught:
        call()
    assert "\n" not in str(caught.value)
