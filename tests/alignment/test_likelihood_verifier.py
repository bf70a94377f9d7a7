"""Likelihood verifier: scores by hand, in any batch, saved and loaded through the command; what is refused."""

import json

import numpy as np
import pytest
import torch

from modernllm.alignment.judging import JudgedRows
from modernllm.alignment.likelihood_verifier import (
    FILE, LikelihoodVerifier, fit_likelihood_verifier, likelihood_features, load_verifier, solution_logprobs)
from modernllm.alignment.sampling import span_flops
from modernllm.core.config import InputError
from modernllm.data.chat_templates import chat_tokens

PAIRS = [("one or two?", "two"), ("three or four, or even more than that?", "It is more.\n#### 9"),
         ("one?", "a longer answer than the others")]


def judged(labels):
    rows = [{"question": q, "answer": a, "right": right} for (q, a), right in zip(PAIRS, labels)]
    return JudgedRows("questions", "train", rows=rows)


def test_log_probabilities_are_those_of_one_row_alone(model, tokenizer):
    together = solution_logprobs(model, tokenizer, PAIRS)
    for (question, answer), found in zip(PAIRS, together):
        ids, said = chat_tokens(tokenizer, [{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = [logits[k - 1, token].item() for k, (token, flag) in enumerate(zip(ids, said)) if flag]
        assert np.allclose(found, wanted, atol=1e-4)
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(together, solution_logprobs(model, tokenizer, PAIRS, batch_tokens=1)))
    features = likelihood_features([np.array([-0.5, -2.0])])
    assert features.tolist() == [[-2.5, -1.25, -2.0, 1]]


def test_saved_and_loaded(model, tokenizer, tmp_path):
    verifier = fit_likelihood_verifier(model, tokenizer, judged([True, False, True]), instruction="Choose.")
    scores = verifier.scores(PAIRS)
    assert all(0 <= score <= 1 for score in scores) and verifier.score(*PAIRS[0]) == pytest.approx(scores[0], abs=1e-5)
    without = LikelihoodVerifier(model, tokenizer, verifier.weights, verifier.bias)  # the instruction
    assert scores != without.scores(PAIRS)
    verifier.save(tmp_path)
    again = load_verifier(tmp_path)
    assert isinstance(again, LikelihoodVerifier) and again.scores([]) == []
    assert again.scores(PAIRS) == pytest.approx(scores, abs=1e-6)
    assert json.loads((tmp_path / FILE).read_text())["instruction"] == "Choose."


def test_flops_are_those_of_a_forward_pass_with_logits_at_the_solution_alone(model, tokenizer):
    verifier = LikelihoodVerifier(model, tokenizer, (0.0,) * 4, 0.0)
    short, long = verifier.flops([("1 + 1", "2"), ("1 + 1" * 9, "2")])
    ids, said = chat_tokens(tokenizer, [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}])
    logits = len(solution_logprobs(model, tokenizer, [("1 + 1", "2")])[0])
    assert sum(said) == logits < len(ids) - 1 and short == span_flops(model, 1, len(ids) - 1, logits) < long


def test_what_is_refused(model, tokenizer, tmp_path):
    with pytest.raises(InputError, match="labels: all 3 of questions, train, are right; needed: right and wrong ones"):
        fit_likelihood_verifier(model, tokenizer, judged([True] * 3))
    with pytest.raises(InputError, match="a solution has no token with a log-probability"):
        likelihood_features([np.empty(0)])
    with pytest.raises(InputError):
        load_verifier(tmp_path)
    with pytest.raises(InputError, match="verifier nowhere: there is no such folder; `modernllm verify` makes one"):
        load_verifier("nowhere")
    with pytest.raises(InputError, match="pair 1 is .*; allowed: a problem and a solution, both texts"):
        solution_logprobs(model, tokenizer, [PAIRS[0], ("1 + 1", None)])
