"""Task metrics: loaded without a network, right on cases counted by hand."""

import socket

import pytest
from rouge_score.rouge_scorer import RougeScorer

from modernllm.core.config import InputError
from modernllm.evaluation import metrics


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_every_module_loads_offline():
    metrics.load_metric.cache_clear()
    assert {metrics.load_metric(name).name for name in metrics.METRIC_MODULES} == set(metrics.METRIC_MODULES)


def test_labels():
    assert metrics.compute_metrics("sst2", [1, 1, 0, 0], [1, 0, 0, 0]) == {"accuracy": 0.75, "f1": pytest.approx(2 / 3)}
    three = metrics.compute_metrics("labels", [0, 1, 2, 2], [0, 1, 2, 1])
    assert three == {"accuracy": 0.75, "f1": pytest.approx((1 + 2 / 3 + 2 / 3) / 3)}


def test_rouge_is_the_mean_of_the_reference_implementation():
    predictions, references = ["the cat sat. It slept.", "a dog"], ["The cat sat down. It slept well.", "no match here"]
    scorer = RougeScorer(["rouge1", "rougeL"])
    found = metrics.compute_metrics("samsum", predictions, references)
    for name in ("rouge1", "rougeL"):
        values = [scorer.score(r, p)[name].fmeasure for p, r in zip(predictions, references)]
        assert found[name] == pytest.approx(sum(values) / 2)
    assert found["rougeLsum"] >= found["rougeL"] > 0
    assert found == metrics.compute_metrics("samsum", predictions, references)  # no bootstrap inside


def test_numbers():
    found = metrics.compute_metrics("gsm8k", ["#### 4", "It is 5.", "#### 6."], ["#### 4", "#### 5", "#### 6"])
    assert found == {"exact_match": pytest.approx(1 / 3), "exact_match_flexible": 1.0}


@pytest.mark.parametrize("task, predictions, references, said", [
    ("sst", [1], [1], "sst2"), ("sst2", [1], [1, 0], "1 predictions and 2 references"), ("gsm8k", [], [], "at least 1"),
])
def test_bad_input_is_named(task, predictions, references, said):
    with pytest.raises(InputError, match=said):
        metrics.compute_metrics(task, predictions, references)
