"Conversion to ternary layers: which layers of which models, what is saved, and what is refused."

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM, OpenAIGPTConfig,
    OpenAIGPTLMHeadModel, PreTrainedConfig, PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput
from transformers.pytorch_utils import Conv1D

from modernllm.core.config import InputError
from modernllm.distill.bitlinear import BitLinear
from modernllm.distill.bitnet_convert import count_weights, gpt2_with_linears, to_bitnet
from modernllm.hf.adapters import LoraSettings, add_lora
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM

TOKENS = {"vocab_size": 60, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 64}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
MODELS = {  # model_type → (fields, linear layers in one of the two layers)
    "llama": (SIZE, 7), "qwen3": ({**SIZE, "head_dim": 8, "num_key_value_heads": 2}, 7), "phi": (SIZE, 6),
    "gpt_neox": (SIZE, 4), "opt": ({**SIZE, "ffn_dim": 48, "word_embed_proj_dim": 32}, 6), "gpt2": (GPT2, 4),
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4}, 4), "modernllm": (SIZE, 7),
}


@pytest.fixture(autouse=True)
def eager():
    "`transformers` compiles parts of its layers."
    with torch.compiler.set_stance("force_eager"):
        yield


def build(kind, **more):
    torch.manual_seed(0)
    if kind == "modernllm":
        model = ModernDecoderLM(ModernLLMConfig(**TOKENS, **MODELS[kind][0], **more))
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **TOKENS, **MODELS[kind][0], **more))
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)  # biases and norms too
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(torch.arange(24).view(2, 12) % 60).logits


def set_strength(model, strength):
    for layer in model.modules():
        if isinstance(layer, BitLinear):
            layer.strength = strength


@pytest.mark.parametrize("kind", MODELS)
def test_all_layers_but_the_head(tmp_path, kind):
    model = build(kind)
    full, head = logits(model), model.get_output_embeddings().weight.detach().clone()
    converted = to_bitnet(model)
    ternary = [name for name, module in converted.named_modules() if isinstance(module, BitLinear)]
    assert len(ternary) == 2 * MODELS[kind][1]
    left = [name for name, module in converted.named_modules() if isinstance(module, (nn.Linear, Conv1D)) and name not in ternary]
    assert len(left) == 1 and type(converted.get_output_embeddings()) is nn.Linear
    assert torch.equal(converted.get_output_embeddings().weight, head)
    rounded = logits(converted)
    assert (rounded - full).norm() > 0.05 * full.norm()
    set_strength(converted, 0.0)
    torch.testing.assert_close(logits(converted), full, atol=1e-4, rtol=1e-4)
    set_strength(converted, 1.0)
    converted.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path).eval()  # the layers of transformers
    assert not any(isinstance(module, BitLinear) for module in read.modules())
    torch.testing.assert_close(logits(read), rounded, atol=1e-3, rtol=1e-3)
    again = to_bitnet(read)
    assert torch.equal(logits(again), rounded) and count_weights(again) == count_weights(converted)


def test_gpt2_keeps_its_function():
    torch.manual_seed(0)
    gpt2 = build("gpt2", n_inner=48, activation_function="relu", scale_attn_weights=False)
    other = gpt2_with_linears(gpt2)
    ids = torch.randint(3, 60, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, :4], ids[1, :4] = 0, TOKENS["pad_token_id"]
    with torch.no_grad():
        both = [model(ids, attention_mask=mask, output_hidden_states=True) for model in (gpt2, other)]
    for ours, theirs in zip(both[1].hidden_states, both[0].hidden_states):
        torch.testing.assert_close(ours[mask == 1], theirs[mask == 1], atol=1e-4, rtol=1e-4)
    texts = [model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False) for model in (gpt2, other)]
    assert torch.equal(*texts)
    assert other.generation_config is gpt2.generation_config and not other.training
    assert other.lm_head.weight is other.transformer.wte.weight
    assert not any(isinstance(module, Conv1D) for module in other.modules())


@pytest.mark.parametrize("field", ["scale_attn_by_inverse_layer_idx", "add_cross_attention"])
def test_what_a_ternary_gpt2_cannot_express(field):
    with pytest.raises(InputError, match=f"cannot express {field}=True"):
        to_bitnet(GPT2LMHeadModel(GPT2Config(**TOKENS, **GPT2, **{field: True})))


def test_layers_that_stay_are_remembered(tmp_path):
    model = to_bitnet(build("llama"), keep=["o_proj", "layers.1.mlp.up_proj"])
    kept = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    assert sorted(kept) == ["lm_head", "model.layers.0.self_attn.o_proj", "model.layers.1.mlp.up_proj",
                            "model.layers.1.self_attn.o_proj"]
    model.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"keep: given \['q_proj'\]; the model is ternary already"):
        to_bitnet(read, keep=["q_proj"])
    assert [name for name, module in to_bitnet(read).named_modules() if type(module) is nn.Linear] == kept
    assert torch.equal(logits(read.eval()), logits(model.eval()))
    assert set(read.config.quantization_config["modules_to_not_convert"]) == set(kept)


def test_twice_is_once():
    model = to_bitnet(build("llama"), keep=["o_proj"])
    before, config = logits(model), copy.deepcopy(model.config.quantization_config)
    assert to_bitnet(model) is model and torch.equal(logits(model), before)
    assert set(model.config.quantization_config["modules_to_not_convert"]) == set(config["modules_to_not_convert"])
    assert not any(layer.eight_bit_backward for layer in model.modules() if isinstance(layer, BitLinear))
    to_bitnet(model, eight_bit_backward=True)
    assert all(layer.eight_bit_backward for layer in model.modules() if isinstance(layer, BitLinear))


def test_counts():
    model = to_bitnet(build("modernllm", tie_word_embeddings=True))
    ternary = 2 * (4 * 32 * 32 + 3 * 32 * 48)
    assert count_weights(model) == {"ternary": ternary, "full precision": 60 * 32 + 5 * 32}  # embeddings once, five norms


class OnlyHead(PreTrainedModel):
    "Embeddings and a head, and nothing between."

    config_class = PreTrainedConfig

    def __init__(self):
        super().__init__(PreTrainedConfig())
        self.embed, self.lm_head = nn.Embedding(8, 4), nn.Linear(4, 8)

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids):
        return CausalLMOutput(logits=self.lm_head(self.embed(input_ids)))


def with_adapter():
    return get_peft_model(build("llama"), LoraConfig(r=2, target_modules=["q_proj"]))


def changed():
    model = build("llama")
    model.model.layers[0].mlp.up_proj.forward = lambda x: x
    return model


def quantised(**config):
    model = build("llama")
    model.config.quantization_config = config
    return model


@pytest.mark.parametrize("make, keep, words", [
    (OnlyHead, (), "OnlyHead has no linear layers that could be ternary"),
    (lambda: build("llama"), ["q_proj", "k_proj", "v_proj", "o_proj", "mlp.gate_proj", "up_proj", "down_proj"], "has no linear"),
    (lambda: build("llama"), ["c_attn"], "keep: no linear layer is called 'c_attn'; there are down_proj, gate_proj"),
    (lambda: build("modernllm", head_dim=6, num_key_value_heads=1), (), "k_proj has 6 outputs, which cannot be packed"),
    (lambda: OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=60, n_embd=16, n_layer=1, n_head=2)), (), "is a Conv1D"),
    (with_adapter, (), "not of a PeftModel"), (lambda: nn.Linear(4, 4), (), "not of a Linear"),
    (changed, (), "up_proj is a changed layer of class Linear"),
    (lambda: quantised(quant_method="bitsandbytes"), (), "quantised already, by bitsandbytes"),
    (lambda: quantised(quant_method="bitnet", linear_class="bitlinear"), (), "packed ternary weights.* that training left"),
    (lambda: quantised(quant_method="bitnet", quantization_mode="online", use_rms_norm=True), (), "use_rms_norm is True"),
])
def test_what_is_refused(make, keep, words):
    with pytest.raises(InputError, match=words):
        to_bitnet(make(), keep)


def test_a_model_that_reads_weights_past_the_rounding_is_refused_and_left_as_it_was():
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(**TOKENS, hidden_size=32, num_hidden_layers=2, state_size=4, time_step_rank=4)).train()
    model.backbone.layers[0].eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    parameters, kinds = list(map(id, model.parameters())), [type(module) for module in model.modules()]
    with pytest.raises(InputError, match=r"reads the weights of dt_proj without calling the layer.*keep=\['dt_proj'\]"):
        to_bitnet(model)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert parameters == list(map(id, model.parameters())) and modes == [module.training for module in model.modules()]
    assert kinds == [type(module) for module in model.modules()]
    model.eval()
    converted = to_bitnet(model, keep=["dt_proj"])
    assert sum(isinstance(module, BitLinear) for module in converted.modules()) == 6 and logits(converted).isfinite().all()


def test_no_adapter_goes_on_ternary_layers():
    for targets in ("attention", "all", "q_proj"):
        with pytest.raises(InputError, match=f"the model has no linear layer '{targets}'"):
            add_lora(to_bitnet(build("llama")), LoraSettings(targets=(targets,)))
