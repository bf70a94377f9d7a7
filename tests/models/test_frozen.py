"""Frozen layers in bfloat16: the same training, bit for bit, and the same weights afterwards."""

from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from modernllm.models.frozen import NarrowLinear, frozen_in_bfloat16, frozen_linears
from modernllm.models.output_head import output_head
from modernllm.training.config import TrainConfig
from modernllm.training.objectives import LanguageModelling
from modernllm.training.trainer import Trainer

IDS = torch.arange(48).view(2, 24) % 50


class Batches:
    def __getitem__(self, i):
        return {"input_ids": (IDS + i) % 50, "targets": (IDS + i + 1) % 50}


def adapted(tied=True):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                         attention_bias=True, tie_word_embeddings=tied)
    return get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))


@pytest.mark.parametrize("tied", [True, False])
def test_a_lora_training_is_the_same_bit_for_bit(tied):
    runs = []
    for held in (nullcontext, frozen_in_bfloat16):
        model = adapted(tied)
        with held(model):
            trainer = Trainer(model, LanguageModelling(), Batches(), TrainConfig(max_steps=4, precision="bf16", log_every=1))
            losses = [row["loss"] for row in trainer.fit().history["train"]]
            narrow = sum(p.dtype == torch.bfloat16 for p in model.parameters())
        assert narrow == (0 if held is nullcontext else 2 * 7 + 2 * 4)
        runs.append((losses, model.merge_and_unload().state_dict()))
    assert runs[0][0] == runs[1][0] and len(runs[0][0]) == 4
    assert all(runs[1][1][name].equal(weight) and weight.dtype == torch.float32 for name, weight in runs[0][1].items())


def test_the_head_is_found_inside_and_an_error_gives_the_weights_back():
    model = adapted(tied=False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(KeyError), frozen_in_bfloat16(model):
        assert output_head(model.train(), {"input_ids": IDS}) is not None
        assert model(input_ids=IDS).logits.dtype == torch.float32  # without autocast
        raise KeyError
    assert all(p.equal(before[name]) for name, p in model.named_parameters())
    assert not any(isinstance(module, NarrowLinear) for module in model.modules())


def test_trained_and_shared_weights_stay():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2), "c": torch.nn.Embedding(2, 2)})
    assert frozen_linears(model) == []
    model.requires_grad_(False)
    model["b"].weight = model["c"].weight
    assert frozen_linears(model) == [model["a"]]
