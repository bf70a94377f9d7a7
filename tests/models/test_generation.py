"Text from prompts: repeatable, independent of the batch, and strict about its arguments."

from unittest.mock import patch

import pytest
import torch
from transformers import GenerationConfig

from modernllm.core.config import InputError
from modernllm.data.tokenizers import SMALLEST, train_bpe
from modernllm.models import transformer
from modernllm.models.config import ModernLLMConfig
from modernllm.models.convert import to_llama
from modernllm.models.decoding import decode
from modernllm.models.generation import MANY_TOKENS, generate_text
from modernllm.models.transformer import ModernDecoderLM


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["some text"], vocab_size=SMALLEST)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = ModernLLMConfig(
        vocab_size=SMALLEST, hidden_size=32, num_hidden_layers=2, initializer_range=0.2, max_position_embeddings=64
    )
    return ModernDecoderLM(config)


def test_the_seed_decides(model, tokenizer):
    texts = [generate_text(model, tokenizer, ["one", "two"], max_new_tokens=12, seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_global_state_is_left_alone(model, tokenizer):
    model.train()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    generate_text(model, tokenizer, ["a"], max_new_tokens=3)
    assert torch.equal(torch.rand(1), expected) and model.training


def test_everything_is_given_back_after_an_exception(model, tokenizer):
    model.train()
    model.model.layers[0].eval()
    settings, random = model.generation_config, torch.get_rng_state()
    with patch.object(type(model), "_sample", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        generate_text(model, tokenizer, ["a"], max_new_tokens=3)
    assert model.training and model.model.layers[1].training and not model.model.layers[0].mlp.training
    assert model.generation_config is settings and torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("held", [
    {"repetition_penalty": 5.0}, {"num_beams": 3}, {"no_repeat_ngram_size": 1}, {"suppress_tokens": list(range(100, 200))},
    {"min_new_tokens": 12}, {"do_sample": True, "temperature": 3.0}, {"num_return_sequences": 2, "do_sample": True},
    {"max_length": 5}, {"min_p": 0.9, "top_k": 1}, {"return_dict_in_generate": True},
])  # fmt: skip
def test_the_arguments_alone_decide(model, tokenizer, held):
    model.generation_config = GenerationConfig()
    asked = lambda: [generate_text(model, tokenizer, ["abc", "d"], max_new_tokens=15, temperature=t, seed=1) for t in (0, 1.0)]
    expected = asked()
    model.generation_config = GenerationConfig(**held)
    try:
        assert asked() == expected
    finally:
        model.generation_config = GenerationConfig()


def test_all_end_tokens_count(model, tokenizer):
    (text,) = generate_text(model, tokenizer, ["abc"], max_new_tokens=15, temperature=0)
    ids = model.generate(torch.tensor([tokenizer("abc")["input_ids"]]), max_new_tokens=15, do_sample=False, pad_token_id=0)[0, 3:]
    place = next(i for i in range(2, 15) if ids[i] not in ids[:i])
    for holder in (model.config, model.generation_config):
        holder.eos_token_id = [tokenizer.eos_token_id, int(ids[place])]
        try:
            (cut,) = generate_text(model, tokenizer, ["abc"], max_new_tokens=15, temperature=0)
        finally:
            holder.eos_token_id = None
        assert cut == tokenizer.decode(ids[:place]) != text
    assert generate_text(model, tokenizer, ["abc"], max_new_tokens=15, temperature=0) == [text]


def test_a_prompt_does_not_depend_on_its_neighbours(model, tokenizer):
    prompts = ["a", "a longer prompt", "", "bcd"]
    together = generate_text(model, tokenizer, prompts, max_new_tokens=15, temperature=0)
    assert together == [generate_text(model, tokenizer, [p], max_new_tokens=15, temperature=0)[0] for p in prompts]


def test_one_candidate_is_the_most_likely_token(model, tokenizer):
    greedy = generate_text(model, tokenizer, ["abc"], max_new_tokens=15, temperature=0)
    for only in ({"top_k": 1}, {"top_p": 1e-6}):
        assert generate_text(model, tokenizer, ["abc"], max_new_tokens=15, **only) == greedy


@pytest.mark.parametrize("new, shared", [(MANY_TOKENS - 1, 0), (MANY_TOKENS, 1)])
def test_a_llama_is_written_by_our_loop_where_that_pays(model, tokenizer, new, shared):
    llama = to_llama(model)
    settings = dict(max_new_tokens=new, temperature=2.0, copies=2, seed=1)
    with patch.object(transformer, "decode", autospec=True, side_effect=decode) as ours:
        texts = generate_text(llama, tokenizer, ["some", "a text"], **settings)
    assert ours.call_count == shared
    assert texts == generate_text(model, tokenizer, ["some", "a text"], **settings)


def test_a_rolling_cache_takes_any_length(tokenizer):
    config = ModernLLMConfig(
        vocab_size=SMALLEST, hidden_size=32, num_hidden_layers=1, max_position_embeddings=16, cache_window=12, cache_sinks=4
    )
    long = generate_text(ModernDecoderLM(config), tokenizer, ["a" * 40, "b"], max_new_tokens=30, temperature=0)
    assert all(long)


@pytest.mark.parametrize("arguments, named", [
    ({"prompts": []}, "prompts"), ({"prompts": "text"}, "prompts"), ({"prompts": [1]}, "prompts"),
    ({"prompts": ["a" * 80]}, "prompts: one has 80 tokens, more than the context of 64"),
    ({"max_new_tokens": 0}, "max_new_tokens"), ({"max_new_tokens": 64}, "context of 64"),
    ({"temperature": -1.0}, "temperature"), ({"temperature": float("nan")}, "temperature"),
    ({"top_k": 0}, "top_k"), ({"top_p": 0.0}, "top_p"), ({"top_p": 1.01}, "top_p"),
])
def test_refused(model, tokenizer, arguments, named):
    with pytest.raises(InputError, match=named):
        generate_text(model, tokenizer, **{"prompts": ["a"], **arguments})
