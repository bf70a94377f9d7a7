"""Scores and error categories of rewritten questions, on cases counted by hand."""

import pytest

from modernllm.core.config import InputError
from modernllm.data.rewrites import conversation_text
from modernllm.evaluation.analysis import Example, categorise
from modernllm.evaluation.metrics import compute_metrics
from modernllm.evaluation.rewrites import ELLIPSES, ellipsis_of, loss_band, rewrite_matches, rouge_band

HISTORY = ["Who was Ada Byrne?", "A painter from Northford."]
QUERY, REFERENCE = "Where was she born?", "Where was Ada Byrne born?"


@pytest.mark.parametrize("query, reference, kind", [
    (QUERY, REFERENCE, "pronoun"),
    ("Is that safe?", "Is Jollof rice safe?", "pronoun"),
    ("What happened in 2002?", "What happened to Tom Glavine in 2002?", "bare noun phrase"),
    ("And the first prize?", "What was the first prize of Ada Byrne?", "bare noun phrase"),
    ("What other albums did she make?", "What albums other than Blue did Ada make?", "comparison"),
    ("How does a ESA compare?", "How does a ESA compare to a 529 plan?", "comparison"),
    ("What about goulash?", "Is goulash a stew?", "topic shift"),
    ("Ok, and how about The Song of Salt?", "What is The Song of Salt about?", "topic shift"),
    ("What are labor laws?", "What are labor laws in the US?", "bare noun phrase"),
    ("what is an atom", "What is an atom?", "complete"),
    ("How about this?", "How about this?", "complete"),
])
def test_kinds_of_ellipsis(query, reference, kind):
    assert ellipsis_of(query, reference) == kind


@pytest.mark.parametrize("said, wanted", [
    (REFERENCE, set()),
    ("where was she born", {"copied", "entity missing"}),
    ("Where was Ada born?", {"entity missing"}),
    ("Where was Ada Byrne of Oakdale born?", {"foreign word"}),
    ("", {"entity missing"}),
])
def test_mistakes(said, wanted):
    (example,) = categorise("query_rewriting", [Example(conversation_text(HISTORY, QUERY), said, REFERENCE, False)])
    assert set(example.categories) - set(ELLIPSES) == wanted and set(example.categories) & set(ELLIPSES) == {"pronoun"}


def test_scores_of_rewrites():
    text = conversation_text(HISTORY, QUERY)
    found = compute_metrics("rewrites", ["where was Ada Byrne born ?", QUERY], [REFERENCE] * 2, [text] * 2)
    assert found == {"rougeL": pytest.approx((1 + 2 * 3 / (4 + 5)) / 2), "exact_match": 0.5, "entity_recall": 0.5}
    with pytest.raises(InputError, match="0 queries"):
        compute_metrics("rewrites", [QUERY], [REFERENCE])


def test_nothing_to_add_is_all_found():
    assert rewrite_matches(["Nothing like it."], ["Is IT rare?"], ["Is it rare"])["entity_recall"] == [1.0]


def test_bands():
    assert [rouge_band(value) for value in (0.0, 0.499, 0.5, 0.6447, 0.65, 0.8, 1.0)] == [
        "poor", "poor", "decent", "decent", "good", "excellent", "excellent"]
    assert [loss_band(value) for value in (9.0, 1.51, 1.5, 0.8, 0.4, 0.3093)] == [
        "poor", "poor", "decent", "good", "excellent", "excellent"]
