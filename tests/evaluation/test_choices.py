"""Scores of choices: any model, any batch, the same numbers."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from modernllm.core.config import InputError
from modernllm.data.tokenizers import train_bpe
from modernllm.evaluation.choices import Question, answer_choices, continuation_logprobs, encode_continuation

TEXT = ["the cat sat on the mat and the dog lay on the log"] * 30


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXT, 285)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **shape)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def rows(tokenizer):
    return [encode_continuation(tokenizer, "the cat sat on", text) for text in (" the mat", " a log and a dog", " it", "")[:3]]


def test_any_batch_gives_the_sum_over_the_logits(model, rows):
    by_hand = []
    for ids, own in rows:
        scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        by_hand.append(sum(scores[i - 1, ids[i]].item() for i in range(len(ids) - own, len(ids))))
    for batch_tokens in (1, 30, 10_000):
        assert continuation_logprobs(model, rows, batch_tokens=batch_tokens)[0] == pytest.approx(by_hand, abs=1e-4)


def test_training_mode_is_restored(model, rows):
    model.train()
    continuation_logprobs(model, rows)
    assert model.training
    model.eval()


def test_a_prompt_beyond_the_context_loses_its_beginning_and_is_counted(model, tokenizer):
    long = encode_continuation(tokenizer, "the cat " * 40, " sat")
    short = long[0][-33:], long[1]
    sums, cut = continuation_logprobs(model, [long, short])
    assert cut == 1 and sums[0] == pytest.approx(sums[1], abs=1e-5)


def test_white_space_at_the_end_of_a_prompt_goes_with_the_choice(tokenizer):
    assert encode_continuation(tokenizer, "the cat ", "sat") == encode_continuation(tokenizer, "the cat", " sat")


def test_an_empty_prompt_begins_a_text(tokenizer):
    ids, own = encode_continuation(tokenizer, "", "the cat")
    assert ids[0] == tokenizer.bos_token_id and own == len(ids) - 1


def test_normalised_by_characters(model, tokenizer):
    question = Question("the cat sat on", ("the mat", "the log and the dog"), 0)
    scores = answer_choices(model, tokenizer, [question])
    (sums,) = scores.logprobs
    assert scores.chosen() == [max((0, 1), key=lambda k: sums[k])]
    assert scores.chosen(normalised=True) == [max((0, 1), key=lambda k: sums[k] / len(question.choices[k]))]
    assert [row["chance"] for row in scores.rows()] == [0.5, 0.5]


@pytest.mark.parametrize("choices, answer", [(("a",), 0), (("a", ""), 0), (("a", "b"), 2), (("a", "b"), -1)])
def test_a_question_that_cannot_be_asked(choices, answer):
    with pytest.raises(InputError, match="choices"):
        Question("prompt", choices, answer)


def test_no_questions(model, tokenizer):
    with pytest.raises(InputError, match="no questions"):
        answer_choices(model, tokenizer, [])
