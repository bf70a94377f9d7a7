"""Latency: what is timed, any causal model, prompts that do not fit, what is recorded, refusals."""

import time
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from modernllm.benchmarking.latency import PromptTimes, profile_model, times_in_turns, token_seconds
from modernllm.core.config import InputError
from modernllm.data.tokenizers import train_bpe
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["the ferry left the harbour"] * 30, 280)


def ours(**more):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    return ModernDecoderLM(ModernLLMConfig(vocab_size=290, **{**shape, **more})).eval()


@pytest.fixture(scope="module", params=["ours", "gpt2"])
def model(request):
    if request.param == "ours":
        return ours()
    return GPT2LMHeadModel(GPT2Config(vocab_size=290, n_embd=32, n_layer=1, n_head=2, n_positions=64)).eval()


def test_rows_say_what_was_measured_and_what_does_not_fit(model, tokenizer):
    model.train()
    profile = profile_model(model, tokenizer, (16, 56, 64), new_tokens=8, rounds=2)
    assert model.training
    model.eval()
    table = profile.table().set_index("prompt")
    measured, short = table.loc[[16, 56]], table.loc[64]
    assert measured.drop(columns="note").gt(0).all(axis=None) and (measured["note"] == "").all()
    assert short.drop("note").isna().all() and short["note"] == "does not fit: with 8 new tokens it exceeds the context of 64"
    assert [len(one.decode) for one in profile.prompts] == [14, 14, 0]
    assert profile.parameters == sum(p.numel() for p in model.parameters())
    assert short["note"] in str(profile) and len(str(profile).splitlines()) == 5


def test_an_end_token_does_not_stop_the_clock(tokenizer, monkeypatch):
    model = ours()
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every token is equally likely: greedily the first, which is made the end
    model.generation_config.eos_token_id = model.config.eos_token_id = 0
    assert len(token_seconds(model, torch.ones(1, 4, dtype=torch.long), 6)) == 6
    assert model.generation_config.eos_token_id == 0


def test_prefill_and_steps_are_timed_apart(tokenizer):
    model = ours()
    inputs = []  # tokens of each forward pass

    def slow_prompt(module, given, named):
        inputs.append((*given, *named.values())[0].shape[1])
        time.sleep(0.5 * (inputs[-1] > 1))

    model.model.register_forward_pre_hook(slow_prompt, with_kwargs=True)  # the hook turns the fast step off
    first, *later = token_seconds(model, torch.ones(1, 8, dtype=torch.long), 3)
    assert inputs == [8, 1, 1] and first >= 0.5 and len(later) == 2 and min(later) < 0.5


def test_models_have_their_turns_in_every_round():
    order, models = [], {name: ours() for name in ("a", "b")}
    for name, model in models.items():
        model.register_forward_pre_hook(lambda *_, name=name: order.append(name))
    found = times_in_turns({name: (model, torch.ones(1, 8, dtype=torch.long)) for name, model in models.items()}, 2, 3)
    assert order == ["a", "a", "b", "b"] * 4 and [len(times.decode) for times in found.values()] == [3, 3]


def test_a_rolling_cache_takes_any_prompt(tokenizer):
    profile = profile_model(ours(cache_window=32), tokenizer, (100,), new_tokens=4, rounds=1)
    assert profile.prompts[0].note == "" and profile.prompts[0].prefill


def test_quantiles_and_rates():
    row = PromptTimes(200, prefill=(0.1, 0.2, 0.3), decode=(0.01, 0.01, 0.04), peak=7.0).row()
    assert row["prefill_ms_p50"] == pytest.approx(200) and row["prefill_ms_p95"] == pytest.approx(290)
    assert row["prefill_tokens_per_s"] == pytest.approx(1000) and row["decode_tokens_per_s"] == pytest.approx(50)
    assert np.isnan(PromptTimes(9, (), (), float("nan"), "no").row()["decode_ms_p50"])


def test_a_record_holds_every_number_that_was_measured(tokenizer):
    run = Mock()
    profile_model(ours(), tokenizer, (16, 512), new_tokens=4, rounds=1).record_into(run)
    kept = {call.args[0]: call.kwargs for call in run.metric.call_args_list}
    assert kept["latency_16_decode_tokens_per_s"]["better"] == "higher" and kept["latency_16_peak_mb"]["unit"] == "MB"
    assert kept["latency_16_prefill_ms_p95"]["unit"] == "ms" and len(kept) == 8 and not any("512" in name for name in kept)
    assert "does not fit" in run.text.call_args.args[1][-1]


@pytest.mark.parametrize("given, said", [
    ({"new_tokens": 1}, "new_tokens: given 1; allowed: a whole number, 2 or more"), ({"rounds": 0}, "rounds: given 0"),
    ({"rounds": 1.5}, "rounds: given 1.5"), ({"prompts": (0,)}, r"prompts: given \[0\]; allowed"),
    ({"prompts": ()}, r"prompts: given \[\]"),
    ({"prompts": (8, 8)}, "each once"),
])  # fmt: skip
def test_bad_input(tokenizer, given, said):
    with pytest.raises(InputError, match=said):
        profile_model(ours(), tokenizer, **given)
