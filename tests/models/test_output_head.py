"Loss, perplexity and log-probabilities of any causal model equal those of its own logits."

import copy

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from tiny_causal import KINDS, tiny_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from modernllm.evaluation.perplexity import token_nats
from modernllm.models.config import ModernLLMConfig
from modernllm.models.output_head import output_head, token_logprobs
from modernllm.models.transformer import ModernDecoderLM
from modernllm.training.objectives import LanguageModelling

IDS = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": IDS[:, :-1], "targets": IDS[:, 1:].clone()}
BATCH["targets"][0, :3] = -100


def of_logits(model) -> torch.Tensor:
    "Summed cross-entropy of the model's own logits."
    logits = model(input_ids=BATCH["input_ids"]).logits[:, -11:].float()
    return F.cross_entropy(logits.flatten(0, 1), BATCH["targets"].flatten(), reduction="sum")


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_every_causal_architecture(kind):
    model = tiny_model(kind)
    assert model is not None, "no longer builds so small"
    scored = BATCH["targets"] >= 0
    expected = of_logits(model)
    assert LanguageModelling().loss(model, BATCH).total.item() == pytest.approx(expected.item(), rel=1e-4)
    assert -token_logprobs(model, BATCH["input_ids"], BATCH["targets"], scored).sum().item() == pytest.approx(
        expected.item(), rel=1e-4)


def test_most_architectures_are_fast():
    kinds = ["llama", "qwen3", "gemma2", "gpt2", "mistral", "mixtral", "phi3", "olmo2", "gpt_neox", "smollm3", "modernllm"]
    assert [k for k in kinds if output_head(tiny_model(k), {"input_ids": IDS}) is None] == []


class Scaled(ModernDecoderLM):
    "A subclass of our own that does more than a product."

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 0.5
        return out


def tiny(name):
    torch.manual_seed(0)
    shape = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                 initializer_range=0.3)
    if name == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape, attention_dropout=0.2)).eval()
    return {"ours": ModernDecoderLM, "scaled": Scaled}[name](ModernLLMConfig(**shape)).eval()


def test_a_subclass_that_changes_the_logits_is_noticed():
    model = tiny("scaled")
    assert output_head(model, {"input_ids": IDS}) is None
    assert LanguageModelling().loss(model, BATCH).total.item() == pytest.approx(of_logits(model).item(), rel=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_the_test_leaves_model_and_random_numbers_alone(training):
    model = tiny("llama").train(training)
    model.model.layers[0].eval()
    modes = [m.training for m in model.modules()]
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert output_head(model, {"input_ids": IDS}) is not None
    assert torch.equal(torch.rand(4), expected) and [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks for m in model.modules()) and all(p.grad is None for p in model.parameters())


def test_asked_again_when_the_model_changes():
    model = tiny("llama")
    assert output_head(model, {"input_ids": IDS}) is not None
    model.add_adapter(peft.LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    assert output_head(model, {"input_ids": IDS}) is None
    ours = tiny("ours")
    ours.lm_head.register_forward_hook(lambda module, args, out: out * 2)
    assert output_head(ours, {"input_ids": IDS}) is None
    assert LanguageModelling().loss(ours, BATCH).total.item() == pytest.approx(of_logits(ours).item(), rel=1e-5)


CAUSAL = {"task_type": "CAUSAL_LM"}
ADAPTERS = {
    "lora": peft.LoraConfig(**CAUSAL, target_modules=["q_proj"], init_lora_weights=False),
    "lora on the head": peft.LoraConfig(**CAUSAL, target_modules=["lm_head"], init_lora_weights=False),
    "lora on all": peft.LoraConfig(**CAUSAL, target_modules="all-linear", init_lora_weights=False),
    "dora": peft.LoraConfig(**CAUSAL, use_dora=True, target_modules=["v_proj"], init_lora_weights=False),
    "head trained": peft.LoraConfig(**CAUSAL, target_modules=["q_proj"], modules_to_save=["lm_head"],
                                    init_lora_weights=False),
    "tokens trained": peft.LoraConfig(**CAUSAL, target_modules=["q_proj"], trainable_token_indices=[5, 7],
                                      init_lora_weights=False),
    "ia3": peft.IA3Config(**CAUSAL, target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"],
                          init_ia3_weights=False),
    "oft": peft.OFTConfig(**CAUSAL, target_modules=["q_proj"], oft_block_size=8, init_weights=False),
    "prompt": peft.PromptTuningConfig(**CAUSAL, num_virtual_tokens=3),
    "p-tuning": peft.PromptEncoderConfig(**CAUSAL, num_virtual_tokens=3, encoder_hidden_size=16),
    "prefix": peft.PrefixTuningConfig(**CAUSAL, num_virtual_tokens=3),
}


@pytest.mark.parametrize("base", ["llama", "ours"])
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.filterwarnings("ignore")
def test_adapters_count_in_loss_and_perplexity(base, adapter):
    torch.manual_seed(1)
    model = peft.get_peft_model(tiny(base), copy.deepcopy(ADAPTERS[adapter])).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
        plain = of_logits(tiny(base))
        expected = of_logits(model)
    assert abs(expected - plain) > 1e-2  # the adapter does something
    loss = LanguageModelling().loss(model, BATCH).total
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None for p in trained)
    tokens = IDS.flatten().numpy()
    with torch.no_grad():
        row = torch.from_numpy(np.concatenate([[1], tokens[:-1]]))[None]
        nats = F.cross_entropy(model(input_ids=row).logits[0, -24:].float(), torch.from_numpy(tokens), reduction="none")
    np.testing.assert_allclose(token_nats(model, tokens, first=1, context=24), nats.numpy(), rtol=1e-3, atol=1e-4)


def test_a_bias_that_starts_at_zero_is_not_left_out():
    model = tiny("llama")
    model.lm_head.bias = nn.Parameter(torch.zeros(64))
    LanguageModelling().loss(model, BATCH).total.backward()
    assert model.lm_head.bias.grad.abs().sum() > 0
