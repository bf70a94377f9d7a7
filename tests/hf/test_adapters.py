"Adapters: what is saved, and that saving asks nobody for the base."

import peft.utils.save_and_load
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from modernllm.hf.adapters import LoraSettings, add_lora, save_adapter
from modernllm.models.pretrained import Weights


def test_an_adapter_is_saved_without_the_hub_and_without_matrices_of_the_base(tmp_path, monkeypatch):
    def ask(*_):
        raise AssertionError("the hub was asked for the base")

    monkeypatch.setattr(peft.utils.save_and_load, "check_file_exists_on_hf_hub", ask)
    shape = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**shape))
    model.name_or_path = model.config._name_or_path = "org/name"
    adapted = add_lora(model, LoraSettings(r=2, targets=("q_proj", "lm_head")))
    save_adapter(tmp_path, adapted, Weights("org/name", "hub", tmp_path, None, "0" * 64))
    kept = load_file(tmp_path / "adapter_model.safetensors")
    assert len(kept) == 4 and all("lora_" in name for name in kept)
