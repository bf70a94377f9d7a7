"""Reading the number of a solution."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernllm.evaluation.answers import is_flexibly_right, is_marked_right, last_number, marked_answer


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "${}", "{:,}", "so it is {} apples.", "12 + 3 = {:,}", "#### {}"]))
def test_every_whole_number_is_read(number, form):
    if "$" in form and number < 0:
        form = "-$" + form[1:].replace("{}", "{:d}")
        assert last_number(form.format(-number)) == number
        return
    assert last_number(form.format(number)) == number


@given(st.integers(0, 10**9), st.integers(0, 99))
def test_money_is_exact(whole, cents):
    assert last_number(f"It costs ${whole:,}.{cents:02}.") == Fraction(100 * whole + cents, 100)


@given(st.text())
def test_any_text_is_read_without_error(text):
    assert last_number(text) is None or isinstance(last_number(text), Fraction)
    assert marked_answer(text) is None or "," not in marked_answer(text)


@pytest.mark.parametrize("solution, own, flexible", [
    ("#### 1000", True, True), ("#### 1,000", True, True), ("#### $1,000.00", False, True), ("#### 1000.", False, True),
    ("#### 1000\n#### 7", True, False), ("about 1000 or 7", False, False), ("", False, False), ("#### ", False, False),
])
def test_both_readings(solution, own, flexible):
    reference = "500 * 2 = <<500*2=1000>>1000\n#### 1000"
    assert is_marked_right(solution, reference) is own and is_flexibly_right(solution, reference) is flexible


def test_two_texts_without_an_answer_do_not_agree():
    assert not is_marked_right("none", "none") and not is_flexibly_right("none", "none")
