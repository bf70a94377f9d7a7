"Several continuations of a prompt: the same as of the prompt given several times, with the prompt read once."

from unittest.mock import patch

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    MistralConfig,
    MistralForCausalLM,
)

from modernllm.data.tokenizers import SMALLEST, train_bpe
from modernllm.models.generation import continue_prompts
from small_models import build
from tiny_causal import tiny_model

PROMPTS = ["a", "a longer prompt", "", "bcd"]
SIZES = {"vocab_size": SMALLEST, "hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 64}
OURS = {
    "plain": {}, "windows": {"sliding_window": 5, "full_attention_every": 2},
    "rolling": {"cache_window": 12, "cache_sinks": 4}, "sinks": {"attention_sinks": True, "num_key_value_heads": 2},
    "experts": {"num_local_experts": 4},
}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "initializer_range": 0.2}


def others():
    torch.manual_seed(0)
    yield "llama", LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS))
    yield "windows of transformers", MistralForCausalLM(MistralConfig(**SIZES, **HEADS, sliding_window=5))
    gpt2 = GPT2Config(vocab_size=SMALLEST, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.2)
    yield "gpt2", GPT2LMHeadModel(gpt2)


MODELS = {name: build(**SIZES, **fields) for name, fields in OURS.items()} | dict(others())


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["some text"], vocab_size=SMALLEST)


def tokens_read(model, run) -> int:
    "Tokens that the backbone reads in its first call."
    read = []
    handle = model.get_input_embeddings().register_forward_hook(lambda _, args, __: read.append(args[0].numel()))
    try:
        run()
    finally:
        handle.remove()
    return read[0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 1.5, "seed": 1}], ids=["greedy", "sampled"])
def test_copies_are_the_prompts_several_times(name, tokenizer, settings):
    model = MODELS[name].eval()
    copied = continue_prompts(model, tokenizer, PROMPTS, max_new_tokens=12, copies=3, **settings)
    assert copied == continue_prompts(model, tokenizer, [p for p in PROMPTS for _ in range(3)], max_new_tokens=12, **settings)
    assert (len({said.text for said in copied[3:6]}) == 1) == (settings["temperature"] == 0)


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_is_read_once(name, tokenizer):
    model = MODELS[name].eval()
    read = lambda copies: tokens_read(model, lambda: continue_prompts(
        model, tokenizer, PROMPTS, max_new_tokens=2, temperature=0, copies=copies))
    assert read(1) == read(3) == len(PROMPTS) * len("a longer prompt")
    assert "_prefill" not in vars(model)


def test_our_decoding_loop_runs(tokenizer):
    ours = patch("modernllm.models.transformer.decode", side_effect=RuntimeError("our loop"))
    with ours, pytest.raises(RuntimeError, match="our loop"):
        continue_prompts(MODELS["plain"], tokenizer, PROMPTS, max_new_tokens=2, copies=2)
    assert "_prefill" not in vars(MODELS["plain"])


@pytest.mark.parametrize("config", [
    LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
], ids=["LoRA", "prompt tuning", "prefix tuning"])
def test_adapters(tokenizer, config):
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS))
    model = get_peft_model(base, config).eval()
    once = continue_prompts(model, tokenizer, PROMPTS, max_new_tokens=6, temperature=0)
    copied = continue_prompts(model, tokenizer, PROMPTS, max_new_tokens=6, temperature=0, copies=2)
    assert copied[::2] == copied[1::2] == once


@pytest.mark.parametrize("kind", [
    "bloom", "deepseek_v3", "falcon_mamba", "jamba", "mamba2", "minimax", "openai-gpt", "recurrent_gemma", "rwkv", "xlm",
])
def test_other_caches_and_none(kind):
    model = tiny_model(kind)
    ids = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(0)).tolist()
    words = {f"p{i}": row for i, row in enumerate(ids)}

    class Words:
        eos_token_id = pad_token_id = 2

        def __call__(self, prompt, **_):
            return {"input_ids": words[prompt]}

        def batch_decode(self, rows, **_):
            return [" ".join(map(str, row)) for row in rows]

    settings = {"max_new_tokens": 5, "temperature": 0}
    apart = continue_prompts(model, Words(), [p for p in words for _ in range(2)], **settings)
    assert continue_prompts(model, Words(), list(words), copies=2, **settings) == apart


def test_a_logits_processor_is_called(tokenizer):
    class Only(LogitsProcessor):
        def __call__(self, input_ids, scores):
            assert input_ids.shape[0] == 4
            return torch.full_like(scores, float("-inf")).index_fill(1, torch.tensor([tokenizer("x")["input_ids"][0]]), 0.0)

    said = continue_prompts(MODELS["plain"], tokenizer, ["a", "bc"], max_new_tokens=3, copies=2, logits_processor=[Only()])
    assert [(one.text, one.ended, one.tokens) for one in said] == [("xxx", False, 3)] * 4
    assert [one.prompt_tokens for one in said] == [1, 1, 2, 2]


def test_the_end_token_is_counted(tokenizer):
    class End(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores.index_fill(1, torch.tensor([tokenizer.eos_token_id]), 1e4)

    (said,) = continue_prompts(MODELS["plain"], tokenizer, ["a"], max_new_tokens=3, logits_processor=[End()])
    assert said.ended and (said.text, said.tokens) == ("", 1)
