"The memory of a step as predicted, against what graphs keep, what lives during a step, and what a process grows by."

import peak_memory
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from live_memory import live_peaks, saved_bytes
from test_budget import configs

from modernllm.core.config import InputError
from modernllm.models import logprobs, memory
from modernllm.models.config import ModernLLMConfig

TINY = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
EXPERTS = {"num_local_experts": 4, "shared_expert_intermediate_size": 24}


@settings(max_examples=15, deadline=None)
@given(configs(), st.integers(1, 3), st.integers(40, 150), st.sampled_from(memory.DEVICES))
def test_activations_are_what_the_graph_saves(config, batch_size, context, device):
    if device == "cuda" and (config.attention_sinks or config.sliding_window or config.attention_dropout):
        device = "cpu"  # the imitated card has none of these
    torch.manual_seed(0)
    expected = sum(memory.activations(config, batch_size, context, device).values())
    saved = saved_bytes(config, batch_size, context, device)
    filled = config.num_local_experts and device == "cpu"  # blocks of rows are, by more or less
    assert saved == (pytest.approx(expected, rel=0.05) if filled else expected)


@pytest.mark.parametrize("experts", [{}, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize("device, checkpointing", [("cpu", False), ("cuda", False), ("cuda", True)])
def test_what_lives_at_the_height_of_a_step(experts, device, checkpointing):
    torch.manual_seed(0)
    config = ModernLLMConfig.checked(**TINY, **experts)
    live = live_peaks(config, 16, 64, device, checkpointing)
    said = memory.step_memory(config, 16, 64, device, checkpointing)
    beside = 4 * config.vocab_size * config.hidden_size * (device == "cpu")  # inside one operation, where it is not seen
    back = max(said[moment] for moment in ("backward", "last layer", "at end"))
    assert max(said["in loss"] - beside, back) == pytest.approx(max(live.values()), rel=0.15 if checkpointing else 0.03)


def test_checkpointing_and_cards_need_less_and_more_tokens_need_more():
    config = ModernLLMConfig.checked(**TINY | {"num_hidden_layers": 8})
    peaks = [memory.step_memory(config, 32, 128, *how)["peak"] for how in (("cuda", True), ("cuda",), ("cpu",))]
    assert peaks == sorted(peaks)
    assert memory.step_memory(config, 33, 128, "cuda")["peak"] > peaks[1]


@pytest.mark.parametrize("fields, context, device, named", [
    ({}, 1025, "cpu", "context"),
    ({"sliding_window": 8}, 16, "cuda", "sliding_window"),
    ({"attention_sinks": True}, 16, "cuda", "attention_sinks"),
    ({}, 16, "cude", "did you mean 'cuda'"),
])
def test_memory_that_cannot_be_predicted_is_refused(fields, context, device, named):
    with pytest.raises(InputError, match=named) as caught:
        memory.step_memory(ModernLLMConfig.checked(**TINY, **fields), 1, context, device)
    assert "\n" not in str(caught.value)


def test_the_loss_takes_as_many_rows_as_predicted():
    assert memory.LOSS_ROWS == {"cpu": logprobs.ROWS["cpu"], "cuda": logprobs.ROWS_ELSEWHERE}


MEASURED = ["small 4", "2 of 4 experts 4", "64 experts 1", "checkpointed 16"]


@pytest.fixture(scope="module")
def peaks():
    return dict(zip(MEASURED, peak_memory.measured(MEASURED), strict=True))


@pytest.mark.parametrize("name", MEASURED)
def test_predicted_peak_is_the_measured_one(peaks, name):
    assert peak_memory.predicted(name) == pytest.approx(peaks[name], rel=0.1)
