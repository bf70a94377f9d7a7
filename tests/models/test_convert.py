"Equal to transformers' Llama, number for number, and honest about what a Llama cannot say."

from unittest.mock import patch

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from modernllm.core.config import InputError
from modernllm.models import decoding
from modernllm.models.config import ModernLLMConfig
from modernllm.models.convert import check_stored_weights, from_llama, share_llama, to_llama, to_qwen3
from modernllm.models.transformer import ModernDecoderLM

TINY = dict(vocab_size=50, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4)
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SHAPES = {
    "plain": {}, "grouped": {"num_key_value_heads": 2}, "one kv head": {"num_key_value_heads": 1},
    "untied": {"tie_word_embeddings": False}, "wide heads": {"head_dim": 16}, "llama3 rope": {"rope_parameters": LLAMA3},
}


@pytest.fixture(scope="module", params=SHAPES)
def pair(request):
    torch.manual_seed(0)
    # large weights, so that a difference anywhere shows in the logits
    shape = dict(TINY, tie_word_embeddings=True) | SHAPES[request.param]
    llama = LlamaForCausalLM(LlamaConfig(**shape, initializer_range=0.2)).eval()
    return from_llama(llama), llama


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_full_forward_and_gradients(pair):
    ids = torch.randint(0, 50, (3, 150))
    losses = []
    for model in pair:
        model.zero_grad()
        losses.append(model(ids, labels=ids).loss)
        losses[-1].backward()
    close(*losses)
    with torch.no_grad():
        close(*(model(ids).logits for model in pair))
    theirs = dict(pair[1].named_parameters())
    for name, ours in pair[0].named_parameters():
        torch.testing.assert_close(ours.grad, theirs[name].grad, atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_cached_and_padded(pair):
    ids = torch.randint(0, 50, (3, 40))
    mask = torch.ones(3, 40, dtype=torch.long)
    mask[0, :9] = mask[1, :25] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits, cached = [], []
    for model in pair:
        logits.append(model(ids, attention_mask=mask, position_ids=positions).logits[mask.bool()])
        first = model(ids[:, :30], attention_mask=mask[:, :30], position_ids=positions[:, :30], use_cache=True)
        rest = model(ids[:, 30:], attention_mask=mask, position_ids=positions[:, 30:], past_key_values=first.past_key_values)
        cached.append(rest.logits)
    close(*logits)
    close(*cached)
    close(cached[0][2], logits[0][-10:])


@pytest.mark.parametrize("how", [{"do_sample": False}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}])
def test_generates_the_same(pair, how):
    ids = torch.randint(2, 50, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    texts = []
    for model in pair:
        torch.manual_seed(0)
        texts.append(model.generate(ids, attention_mask=mask, max_new_tokens=12, pad_token_id=0, eos_token_id=1, **how))
    assert torch.equal(*texts)


def test_on_the_same_weights_our_loop_writes_the_same(pair):
    shared = share_llama(pair[1])
    assert {p.data_ptr() for p in shared.parameters()} == {p.data_ptr() for p in pair[1].parameters()}
    ids = torch.randint(2, 50, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[0, :5] = 0
    settings = dict(attention_mask=mask, max_new_tokens=40, do_sample=False, pad_token_id=0, eos_token_id=1)
    with patch.object(decoding.FastStep, "__call__", autospec=True, side_effect=decoding.FastStep.__call__) as fast:
        ours = shared.generate(ids, **settings)
    assert fast.called
    assert torch.equal(ours, pair[1].generate(ids, **settings))


def _hooked(llama):
    llama.model.layers[1].mlp.register_forward_hook(lambda *_: None)


def _biased(llama):
    llama.model.layers[0].self_attn.o_proj.bias = torch.nn.Parameter(torch.ones(32))


def _other_norm(llama):
    llama.model.norm.variance_epsilon = 0.1


def _adapted(llama):
    peft.get_peft_model(llama, peft.LoraConfig(target_modules=["q_proj"]))  # replaces layers in place


def _other_activation(llama):
    llama.model.layers[0].mlp.act_fn = torch.nn.ReLU()


@pytest.mark.parametrize("change", [
    _hooked, _biased, _other_norm, _adapted, _other_activation, torch.nn.Module.train, torch.nn.Module.bfloat16,
    lambda llama: llama.config.update({"hidden_act": "gelu"}), lambda llama: llama.set_attn_implementation("flex_attention"),
])
def test_weights_are_shared_only_with_a_plain_llama(change):
    llama = LlamaForCausalLM(LlamaConfig(**TINY)).eval()
    assert share_llama(llama) is not None
    change(llama)
    assert share_llama(llama) is None


def test_there_and_back_is_the_same(pair, tmp_path):
    ours, llama = pair
    again = to_llama(ours)
    assert all(torch.equal(a, b) for a, b in zip(llama.state_dict().values(), again.state_dict().values()))
    again.save_pretrained(tmp_path)
    for source in (tmp_path, str(tmp_path)):
        read = from_llama(source)
        assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), read.state_dict().values()))
    assert read.config.to_dict() == ours.config.to_dict()


@pytest.mark.parametrize("options, named", [
    ({"qk_norm": True}, ["qk_norm"]),
    ({"final_logit_softcapping": 15.0}, ["final_logit_softcapping"]),
    ({"attention_sinks": True}, ["attention_sinks"]), ({"attention_gate": True}, ["attention_gate"]),
    ({"sliding_window": 8, "full_attention_every": 2}, ["sliding_window"]), ({"cache_window": 8}, ["cache_window"]),
    ({"qk_norm": True, "final_logit_softcapping": 15.0}, ["qk_norm", "final_logit_softcapping"]),
])
def test_what_a_llama_cannot_say(options, named):
    with pytest.raises(InputError) as caught:
        to_llama(ModernDecoderLM(ModernLLMConfig(**TINY, **options)))
    assert all(name in str(caught.value) for name in named)


class Rounded(torch.nn.Linear):
    "A layer that computes with other weights than it stores."

    def forward(self, x):
        return x @ self.weight.round().T


def test_weights_that_are_not_used_as_they_are_stored_are_not_copied():
    ours, llama = ModernDecoderLM(ModernLLMConfig(**TINY)), LlamaForCausalLM(LlamaConfig(**TINY))
    check_stored_weights(ours)
    for model, convert in ((ours, to_llama), (llama, from_llama)):
        model.model.layers[1].mlp.up_proj.__class__ = Rounded
        with pytest.raises(InputError, match="has layers of class Rounded, which compute with other weights than they store"):
            convert(model)
    packed = LlamaForCausalLM(LlamaConfig(**TINY))
    packed.config.quantization_config = {"quant_method": "bitnet"}
    with pytest.raises(InputError, match="LlamaForCausalLM has quantised layers"):
        from_llama(packed)


@pytest.mark.parametrize("options", [
    {"attention_bias": True}, {"mlp_bias": True}, {"hidden_act": "gelu"},
    {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
])
def test_what_ours_cannot_say(options):
    with pytest.raises(InputError, match=next(iter(options))):
        from_llama(LlamaForCausalLM(LlamaConfig(**TINY, **options)))


def test_folders_that_hold_no_llama(tmp_path):
    with pytest.raises(InputError, match="not a folder with a config.json"):
        from_llama(tmp_path)
    ModernLLMConfig(**TINY).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="'modernllm'.*must be 'llama'"):
        from_llama(tmp_path)


def test_a_folder_without_weights(tmp_path):
    LlamaConfig(**TINY).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="cannot be read") as caught:
        from_llama(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"num_key_value_heads": 2, "tie_word_embeddings": False, "head_dim": 16}])
def test_normed_heads_are_a_qwen3(options, tmp_path):
    torch.manual_seed(0)
    ours = ModernDecoderLM(ModernLLMConfig(**TINY, **options, qk_norm=True, initializer_range=0.2)).eval()
    for layer in ours.model.layers:
        torch.nn.init.normal_(layer.self_attn.q_norm.weight, 1, 0.3)
    to_qwen3(ours).save_pretrained(tmp_path)
    ids = torch.randint(0, 50, (2, 40))
    with torch.no_grad():
        close(ours(ids).logits, AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits)
    for fields, named in (({}, "qk_norm=False"), ({"qk_norm": True, "attention_gate": True}, "attention_gate=True")):
        with pytest.raises(InputError, match=named):
            to_qwen3(ModernDecoderLM(ModernLLMConfig(**TINY, **fields)))
