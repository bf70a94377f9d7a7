"Repetition and topic: bounds, lengths, refusals."

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modernllm.core.config import InputError
from modernllm.evaluation.text_statistics import distinct, frequent_words, repeated, shared, topic_retention, words


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=4, max_size=60), st.integers(1, 4))
def test_distinct_counts_ngrams(items, n):
    grams = {",".join(map(str, items[i : i + n])) for i in range(len(items) - n + 1)}
    assert distinct(items, n) == pytest.approx(len(grams) / (len(items) - n + 1))
    assert 0 < distinct(items, n) <= 1 and repeated(items, n) == pytest.approx(1 - distinct(items, n))
    assert repeated(items + items, n) + 1e-9 >= (len(items) - n + 1) / (2 * len(items) - n + 1)


def test_words_without_digits_and_punctuation():
    assert words("The tide @-@ 1 994 , tide_wave ; Élan <unk> a") == ["the", "tide", "tide", "wave", "élan", "unk"]
    assert frequent_words(["b1b of of", "of it"], 1) == {"of"}


def test_a_text_without_content_shares_nothing():
    assert shared("moon", "the of", frozenset({"the", "of"})) == 0 == shared("the moon", "", frozenset())
    assert shared("moon", "moon moon sun", frozenset()) == pytest.approx(2 / 3)


@pytest.mark.parametrize("call, told", [
    (lambda: distinct([1, 2], 3), "n: given 3, allowed 1 to the 2 items"),
    (lambda: distinct([1, 2], 0), "n: given 0"),
    (lambda: topic_retention(["a"], ["b"], frozenset()), "1 prompts and 1 texts"),
    (lambda: topic_retention(["a", "b"], ["b"], frozenset()), "2 prompts and 1 texts"),
])  # fmt: skip
def test_bad_input(call, told):
    with pytest.raises(InputError, match=told):
        call()
