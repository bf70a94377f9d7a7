"Sampled answers: functions of seed, prompt and number, drawn from the model's distribution, counted."

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from modernllm.alignment.sampling import Candidate, DrawnTokens, answer_flops, cost, sample_answers
from modernllm.core.config import InputError
from modernllm.models.budget import forward_flops
from modernllm.models.config import ModernLLMConfig
from modernllm.models.generation import continue_prompts

PROMPTS = ["one", "a longer one", "two"]


@pytest.fixture(scope="module")
def six(model, tokenizer):
    return sample_answers(model, tokenizer, PROMPTS, 6, max_new_tokens=10, seed=3)


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"batch_size": 4}, {"batch_size": 7}, {"batch_size": 100}])
def test_batches_do_not_matter(model, tokenizer, six, settings):
    assert sample_answers(model, tokenizer, PROMPTS, 6, max_new_tokens=10, seed=3, **settings) == six


def test_an_answer_does_not_depend_on_those_beside_it(model, tokenizer, six):
    for k in (1, 2, 5):
        assert sample_answers(model, tokenizer, PROMPTS, k, max_new_tokens=10, seed=3) == [row[:k] for row in six]
    assert sample_answers(model, tokenizer, PROMPTS, 2, max_new_tokens=10, seed=3, first=4) == [row[4:] for row in six]
    assert sample_answers(model, tokenizer, PROMPTS[::-1], 6, max_new_tokens=10, seed=3) == six[::-1]
    assert len({c.text for c in six[0]}) == 6
    assert sample_answers(model, tokenizer, PROMPTS, 6, max_new_tokens=10, seed=4) != six


def test_temperature_0_is_greedy(model, tokenizer):
    greedy = continue_prompts(model, tokenizer, PROMPTS, max_new_tokens=10, temperature=0)
    for settings in ({"temperature": 0}, {"temperature": 1e-6}, {"top_p": 1e-6}):
        drawn = sample_answers(model, tokenizer, PROMPTS, 1, max_new_tokens=10, **settings)
        assert [c.text for (c,) in drawn] == [said.text for said in greedy]


@pytest.mark.parametrize("top_p, expected", [(None, [0.644, 0.237, 0.087, 0.032]), (0.8, [0.731, 0.269, 0, 0])])
def test_tokens_follow_the_distribution(top_p, expected):
    rows = 20_000
    uniforms = torch.rand(rows, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scores = DrawnTokens(uniforms, 1.0, top_p)(None, torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(rows, -1))
    assert (scores.isfinite().sum(-1) == 1).all()
    shares = torch.bincount(scores.argmax(-1), minlength=4) / rows
    assert shares.tolist() == pytest.approx(expected, abs=0.01) and (shares[2:] > 0).all() == (top_p is None)


def test_a_token_without_probability_is_never_drawn():
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]])
    for u in (0.0, 0.25, 0.5, 1 - 2**-53):
        drawn = DrawnTokens(torch.tensor([[u]], dtype=torch.float64), 1.0)(None, logits)
        assert drawn.argmax().item() == (1 if u < 0.5 else 3)


def test_tokens_and_flops_are_those_of_single_steps(model, tokenizer, six):
    c, said = model.config, six[1][0]
    prompt = len(tokenizer(PROMPTS[1])["input_ids"])
    one = lambda position: forward_flops(c, position)
    reading = sum(one(p)["matrices"] + one(p)["attention"] for p in range(1, prompt + 1)) + one(1)["head"]
    writing = sum(sum(one(p).values()) for p in range(prompt + 1, prompt + said.tokens))
    assert said.tokens == 10 and (said.prompt_flops, said.flops) == pytest.approx((reading, writing))
    assert cost(six[1]).flops == pytest.approx(reading + 6 * writing) and cost(six[1]).tokens == 60
    windows = ModernLLMConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, sliding_window=4,
                              full_attention_every=2)
    less = answer_flops(type("", (), {"config": windows}), 10, 5)[1]
    assert less == pytest.approx(sum(sum(forward_flops(windows, [4, p]).values()) for p in range(11, 15)))


@pytest.mark.parametrize("tied", [True, False])
def test_flops_of_other_models_count_each_matrix_once(tied):
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
                         tie_word_embeddings=tied)
    model = LlamaForCausalLM(config)
    used = sum(p.numel() for p in model.model.layers.parameters()) + 32 + 64 * 32  # layers, last norm, output layer
    assert answer_flops(model, 7, 4) == (2 * used * 7, 2 * used * 3) and answer_flops(model, 7, 1)[1] == 0


def test_cost_counts_the_prompt_once():
    said = Candidate("", True, tokens=5, flops=10.0, prompt_flops=100.0)
    assert cost([said]) == (5, 110.0) and cost([said] * 3) == (15, 130.0)


@pytest.mark.parametrize("arguments, named", [
    ({"n": 0}, "n: 0 is not allowed"), ({"n": -1}, "n: -1"), ({"batch_size": 0}, "batch_size: 0"),
    ({"temperature": 0}, "n: 2 answers at temperature 0"), ({"temperature": -1}, "temperature"), ({"top_p": 0}, "top_p"),
    ({"prompts": []}, "prompts"), ({"prompts": "one"}, "prompts"), ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"max_new_tokens": 200}, "context of 128"), ({"prompts": ["a" * 200]}, "context of 128"),
])
def test_refused(model, tokenizer, arguments, named):
    with pytest.raises(InputError, match=named) as caught:
        sample_answers(model, tokenizer, **{"prompts": ["one"], "n": 2, "max_new_tokens": 4, **arguments})
    assert "\n" not in str(caught.value)
