"The arithmetic against models that are really built, trained and asked."

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM,
)

from modernllm.models import budget
from modernllm.models.config import ModernLLMConfig
from modernllm.models.kernels import BLOCK
from modernllm.models.transformer import ModernDecoderLM
from modernllm.training.objectives import LanguageModelling


@st.composite
def configs(draw):
    kv_heads, dropout = draw(st.integers(1, 2)), st.sampled_from([0.0, 0.1])
    heads = kv_heads * draw(st.integers(1, 3))
    window = draw(st.sampled_from([None, 10, 70]))
    fields = {
        "vocab_size": draw(st.integers(20, 200)), "hidden_size": 4 * heads, "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": draw(st.sampled_from([None, 2, 16])),
        "sliding_window": window, "full_attention_every": draw(st.sampled_from([None, 2])) if window else None,
        "final_logit_softcapping": draw(st.sampled_from([None, 20.0])), "residual_dropout": draw(dropout),
        "embedding_dropout": draw(dropout), "attention_dropout": draw(dropout),
        **{name: draw(st.booleans()) for name in ("tie_word_embeddings", "qk_norm", "attention_gate", "attention_sinks")},
    }
    if draw(st.booleans()):
        fields |= {
            "num_local_experts": draw(st.integers(2, 4)), "num_experts_per_tok": draw(st.integers(1, 2)),
            "decoder_sparse_step": draw(st.integers(1, min(2, fields["num_hidden_layers"]))),
            "shared_expert_intermediate_size": draw(st.sampled_from([None, 24])),
        }
    return ModernLLMConfig.checked(**fields)


def step(model, ids):
    return LanguageModelling().loss(model, {"input_ids": ids, "targets": ids}).total


@settings(max_examples=25, deadline=None)
@given(configs())
def test_parameters_are_those_of_the_built_model(config):
    with torch.device("meta"):
        model = ModernDecoderLM(config)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    counts = budget.parameters(config)
    assert budget.total_parameters(config).total == sum(sizes.values())
    assert counts["norms"].total == sum(n for name, n in sizes.items() if "norm" in name)
    unused = config.num_local_experts - config.num_experts_per_tok
    experts = sum(n for name, n in sizes.items() if ".experts." in name)
    idle = experts // config.num_local_experts * unused if experts else 0
    assert counts["experts"].total - counts["experts"].active == idle
    assert all(count.total == count.active for name, count in counts.items() if name != "experts")


@settings(max_examples=10, deadline=None)
@given(configs(), st.integers(1, 3), st.integers(2, 150))
def test_training_flops_are_the_counted_products(config, batch_size, context):
    ids = torch.randint(0, config.vocab_size, (batch_size, context))
    with FlopCounterMode(display=False) as counted:
        step(ModernDecoderLM(config), ids).backward()
    expected = batch_size * context * sum(budget.training_flops(config, context, BLOCK).values())
    assert counted.get_total_flops() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_generation_with_a_cache(kv_heads):
    config = ModernLLMConfig.checked(vocab_size=50, hidden_size=32, num_attention_heads=4, num_key_value_heads=kv_heads)
    model, ids = ModernDecoderLM(config).eval(), torch.arange(12).view(2, 6)
    with torch.no_grad():
        cache = model(ids[:, :5], use_cache=True).past_key_values
        with FlopCounterMode(display=False) as counted:
            model(ids[:, 5:], past_key_values=cache, output_attentions=True)
    assert counted.get_total_flops() == 2 * sum(budget.forward_flops(config, 6).values())
    assert sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values)) == 12 * budget.cache_bytes(config)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.none() | st.integers(1, 300))
def test_mean_keys_counts_pairs(context, window):
    pairs = sum(q - k < (window or context) for q in range(context) for k in range(q + 1))
    assert budget.mean_keys(context, window) * context == pytest.approx(pairs)
    assert budget.mean_keys(context, window) <= budget.mean_keys(context, window, BLOCK)


def test_table_of_a_model_is_that_of_its_config(capsys):
    config = ModernLLMConfig.checked(vocab_size=100, hidden_size=32)
    budget.print_param_table(config)
    printed = capsys.readouterr().out
    budget.print_param_table(ModernDecoderLM(config))
    assert capsys.readouterr().out == printed
    assert [line.split()[0] for line in printed.splitlines()[1:]] == [
        "embedding", "attention", "feed-forward", "experts", "norms", "head", "total"]


@pytest.mark.parametrize("kind, config", [
    (GPT2LMHeadModel, GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=32)),
    (LlamaForCausalLM, LlamaConfig(vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                                   num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)),
])
def test_flops_of_models_of_transformers_are_the_counted_products(kind, config):
    model, n, context = kind._from_config(config, attn_implementation="eager"), 3, 20
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.randint(0, 60, (n, context)), use_cache=False)
    found = budget.model_flops(model, context)
    every_key = found["attention"] * context / budget.mean_keys(context)  # eager attention computes all products
    assert counter.get_total_flops() == n * context * (found["matrices"] + found["head"] + every_key)


def test_flops_of_foreign_experts_are_unknown():
    with torch.device("meta"):
        model = MixtralForCausalLM(MixtralConfig(vocab_size=60, hidden_size=64, intermediate_size=24, num_hidden_layers=1))
    assert budget.model_flops(model, 16) is None
