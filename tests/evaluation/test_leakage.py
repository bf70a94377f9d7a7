"""Runs of words that training text shares with prompts."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modernllm.core.config import InputError
from modernllm.evaluation.leakage import SHORTEST, leakage, ngrams, overlapping, plain_words

WORDS = [f"word{k}" for k in range(40)]


def text(seed, length):
    return " ".join(random.Random(seed).sample(WORDS, length))


@pytest.mark.parametrize("length, found", [(7, False), (8, True), (12, True), (13, True), (30, True)])
def test_a_prompt_inside_a_text_is_found_from_eight_words_on(length, found):
    prompt = text(1, length)
    inside = f"{text(2, 20)} {prompt} {text(3, 20)}"
    table = leakage([text(4, 30), inside], {"set": [prompt]})
    assert table.loc[0, ["prompts", "too short", "compared", "overlapping"]].tolist() == [1, not found, found, found]


def test_a_long_prompt_shares_thirteen_words_a_short_one_all():
    long, short = text(1, 30).split(), text(2, 10).split()
    for shared, places in ((12, []), (13, [0])):
        assert overlapping([" ".join(long[5 : 5 + shared])], {"s": [" ".join(long)]}) == {"s": places}
    for shared, places in ((9, []), (10, [0])):
        assert overlapping([" ".join(short[:shared])], {"s": [" ".join(short)]}) == {"s": places}


def test_case_punctuation_and_line_breaks_make_no_difference():
    prompt = "The man's well-known hat, which he had lost, was found in May 1923 by a boy."
    changed = "THE man s well @-@ known\nhat which he  had lost was found -- in may 1923 by a BOY"
    assert plain_words(prompt) == plain_words(changed) and overlapping([changed], {"s": [prompt]}) == {"s": [0]}


def test_a_run_of_several_sets_and_prompts_counts_for_each():
    shared = text(1, 15)
    prompts = {"a": [shared, text(2, 20), f"{text(3, 5)} {shared}"], "b": [shared], "c": ["short"]}
    assert overlapping([shared], prompts) == {"a": [0, 2], "b": [0], "c": []}
    table = leakage(iter([shared]), prompts).set_index("set")
    assert table.loc["a", "share"] == pytest.approx(2 / 3) and table["share"].isna().tolist() == [False, False, True]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=30), st.lists(st.sampled_from("abc"), min_size=8, max_size=16))
def test_equal_to_a_search_by_hand(train, prompt):
    length = min(13, len(prompt))
    pieces = [prompt[i : i + length] for i in range(len(prompt) - length + 1)]
    inside = any(train[i : i + length] in pieces for i in range(len(train) - length + 1))
    assert overlapping([" ".join(train)], {"s": [" ".join(prompt)]}) == {"s": [0] if inside else []}
    assert ngrams(prompt, length) == {tuple(piece) for piece in pieces}


@pytest.mark.parametrize("n", [0, -1, SHORTEST - 1])
def test_short_runs_are_refused(n):
    with pytest.raises(InputError, match=f"n: given {n}; allowed: {SHORTEST} or more"):
        leakage([], {}, n=n)


def test_nothing_to_compare():
    assert leakage([], {"s": []}).loc[0, "prompts"] == 0 and overlapping(["text"], {}) == {}
