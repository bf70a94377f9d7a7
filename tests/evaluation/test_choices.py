"""Scores of choices: any model, any batch, the same numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from modernllm.core.config import InputError
from modernllm.data.tokenizers import train_bpe
from modernllm.evaluation import choices
from modernllm.evaluation.choices import (
    Question,
    Row,
    answer_choices,
    continuation_logprobs,
    encode_continuation,
    shared_runs,
)
from modernllm.models.output_head import logprobs_at

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


def alone(model, ids, own):
    scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(scores[i - 1, ids[i]].item() for i in range(len(ids) - own, len(ids)))


def watch(monkeypatch, read):
    "Keep the shapes of what the model reads."

    def watched(model, ids, *more, **rest):
        read.append(ids.shape)
        return logprobs_at(model, ids, *more, **rest)

    monkeypatch.setattr(choices, "logprobs_at", watched)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=5), min_size=1, max_size=12))
def test_a_run_serves_the_rows_that_begin_it_and_no_run_begins_another(rows):
    runs = shared_runs([Row(tuple(ids), 1) for ids in rows])
    assert sorted(k for served in runs.values() for k in served) == list(range(len(rows)))
    assert all(run[: len(rows[k]) - 1] == tuple(rows[k][:-1]) for run, served in runs.items() for k in served)
    assert not any(a != b and b[: len(a)] == a for a in runs for b in runs)


def test_labels_behind_one_prompt_are_one_run(model, monkeypatch):
    prompts, read = [[5, 6, 7], [9, 8], [4, 4, 4, 4]], []
    rows = [([*prompt, *label], len(label)) for prompt in prompts for label in ([10], [11], [10, 12])]
    watch(monkeypatch, read)
    assert continuation_logprobs(model, rows)[0] == pytest.approx([alone(model, *row) for row in rows], abs=1e-4)
    assert [shape[0] for shape in read] == [3]


class NoCache(LlamaForCausalLM):
    "Forgets what it has read: what it answers behind a cache is wrong."

    def forward(self, input_ids, past_key_values=None, use_cache=None, attention_mask=None, **more):
        return super().forward(input_ids=input_ids, use_cache=use_cache, **more)


SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize("make, used", [
    (lambda: LlamaForCausalLM(LlamaConfig(**SMALL)), True),
    (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2)), True),
    (lambda: MistralForCausalLM(MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=8)), True),
    (lambda: NoCache(LlamaConfig(**SMALL)), False),
])  # fmt: skip
def test_what_all_rows_begin_with_is_read_once_where_that_is_exact(make, used, monkeypatch):
    torch.manual_seed(0)
    model, shots = make().eval(), [(7 * i) % 60 for i in range(20)]
    rows = [([*shots, *range(k, k + 2 + k % 3), label], 1) for k in range(12) for label in (61, 62)]
    rows.append(([*shots, 3, 61, 62, 63], 3))
    read = []
    watch(monkeypatch, read)
    for batch_tokens in (1, 60, 10_000):
        read.clear()
        found, _ = continuation_logprobs(model, rows, batch_tokens=batch_tokens)
        assert found == pytest.approx([alone(model, *row) for row in rows], abs=1e-4)
        assert all((shape[1] < 20) == used for shape in read[2:])


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
