"""Last words: any model, any batch, the same numbers, and what greedy generation writes."""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from modernllm.core.config import InputError
from modernllm.data.tokenizers import train_bpe
from modernllm.evaluation.choices import Row, continuation_logprobs, encode_continuation
from modernllm.evaluation.last_word import Passage, predict_last_words, predict_rows, split_last_word

TEXT = ["the cat sat on the mat and the dog lay on the log"] * 30


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXT, 285)


def small(kind, size):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=size, max_position_embeddings=32, **shape)
    if kind == "own head":  # a bias: its logits are taken as they are
        model = LlamaForCausalLM(config)
        model.lm_head = torch.nn.Linear(32, size)
        return model.eval()
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=2, n_positions=32)).eval()
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def rows(tokenizer):
    pairs = [("the cat sat on the", " mat"), ("the dog", " lay"), ("and", " the"), ("the cat and the dog lay", " log")]
    return [Row(tuple(ids), own) for ids, own in (encode_continuation(tokenizer, *pair) for pair in pairs)]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "own head"])
def test_any_batch_gives_the_logits_of_a_row_alone(kind, rows, tokenizer):
    model = small(kind, len(tokenizer))
    for batch_tokens in (1, 12, 10_000):
        for row, found in zip(rows, predict_rows(model, rows, batch_tokens=batch_tokens)):
            scores = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)[len(row.ids) - row.own - 1 : -1]
            target = torch.tensor(row.ids[-row.own :])
            assert found.nats == pytest.approx(-scores.gather(1, target[:, None]).sum().item(), abs=1e-4)
            assert list(found.ids) == scores.argmax(-1).tolist() and found.right == (list(found.ids) == target.tolist())


def test_nats_are_those_of_choices_and_right_is_what_generate_writes(rows, tokenizer):
    model = small("llama", len(tokenizer))
    found = predict_rows(model, rows)
    assert [-one.nats for one in found] == pytest.approx(continuation_logprobs(model, rows)[0], abs=1e-4)
    for row, one in zip(rows, found):
        written = model.generate(torch.tensor([row.ids[: -row.own]]), max_new_tokens=1, do_sample=False, pad_token_id=0)
        assert written[0, -1] == one.ids[0]


def test_accuracy_and_perplexity_are_by_word(rows, tokenizer):
    model, passages = small("llama", len(tokenizer)), [Passage("the cat sat on the", "mat"), Passage("the dog", "lay")]
    scores = predict_last_words(model, tokenizer, passages)
    accuracy, perplexity = scores.rows()
    assert perplexity["value"] == pytest.approx(math.exp(sum(one.nats for one in scores.predictions) / 2))
    assert accuracy["value"] == sum(one.right for one in scores.predictions) / 2 and accuracy["chance"] == 0
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"] and perplexity["low"] is None


def test_a_long_passage_keeps_its_end_and_the_mode_is_restored(tokenizer):
    model = small("llama", len(tokenizer)).train()
    long, end = "the cat " * 40, "the cat " * 9
    scores = predict_last_words(model, tokenizer, [Passage(long + "sat on the", "mat")])
    assert scores.cut == 1 and model.training
    assert predict_last_words(model, tokenizer, [Passage(end, "mat")]).cut == 0


@pytest.mark.parametrize("text", ["", "word", " word\n"])
def test_a_text_of_one_word_is_refused(text):
    with pytest.raises(InputError, match="two words or more"):
        split_last_word(text)


def test_no_passages(tokenizer):
    with pytest.raises(InputError, match="no passages"):
        predict_last_words(None, tokenizer, [])
