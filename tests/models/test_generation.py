"Text from prompts: repeatable, independent of the batch, and strict about its arguments."

import pytest
import torch

from modernllm.core.config import InputError
from modernllm.data.tokenizers import SMALLEST, train_bpe
from modernllm.models.config import ModernLLMConfig
from modernllm.models.generation import generate_text
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


def test_a_prompt_does_not_depend_on_its_neighbours(model, tokenizer):
    prompts = ["a", "a longer prompt", "", "bcd"]
    together = generate_text(model, tokenizer, prompts, max_new_tokens=15, temperature=0)
    assert together == [generate_text(model, tokenizer, [p], max_new_tokens=15, temperature=0)[0] for p in prompts]


def test_one_candidate_is_the_most_likely_token(model, tokenizer):
    greedy = generate_text(model, tokenizer, ["abc"], max_new_tokens=15, temperature=0)
    for only in ({"top_k": 1}, {"top_p": 1e-6}):
        assert generate_text(model, tokenizer, ["abc"], max_new_tokens=15, **only) == greedy


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
