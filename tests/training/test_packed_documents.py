"Packed documents: which models keep them apart, and the refusal of those that do not."

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.utils import logging

from modernllm.core.config import InputError
from modernllm.models.config import ModernLLMConfig
from modernllm.models.frozen import NarrowLinear, frozen_in_bfloat16
from modernllm.models.transformer import ModernDecoderLM
from modernllm.training.objectives import LanguageModelling, check_documents, separates_documents

SMALL = dict(vocab_size=64, num_hidden_layers=2, num_attention_heads=4)
WIDE = SMALL | dict(hidden_size=32, intermediate_size=64, max_position_embeddings=64)
LLAMA = WIDE | dict(num_key_value_heads=2, head_dim=8, pad_token_id=0)
BART = dict(vocab_size=64, d_model=32, decoder_layers=2, encoder_layers=2, decoder_attention_heads=4, encoder_attention_heads=4,
            decoder_ffn_dim=64, encoder_ffn_dim=64, max_position_embeddings=64)
APART = {"llama": LLAMA, "qwen3": LLAMA, "gemma2": LLAMA, "mixtral": LLAMA | {"num_local_experts": 4}, "gpt_neox": WIDE,
         "gpt2": dict(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)}
MIXED = {
    "opt": SMALL | dict(hidden_size=32, ffn_dim=64, max_position_embeddings=64, word_embed_proj_dim=32),
    "bloom": dict(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
    "mpt": dict(vocab_size=64, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
    "xglm": dict(vocab_size=64, d_model=32, ffn_dim=64, num_layers=2, attention_heads=4, max_position_embeddings=64),
    "mamba": dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4),
    "falcon_h1": LLAMA | dict(mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1),
    "recurrent_gemma": {k: v for k, v in LLAMA.items() if k != "max_position_embeddings"}
    | dict(num_hidden_layers=3, lru_width=32, attention_window_size=16),
    "bart": BART,
    "electra": WIDE | dict(embedding_size=32, is_decoder=True),
}
TWO = torch.arange(5).repeat(2)[None]


def build(name, fields):
    torch.manual_seed(0)
    logging.set_verbosity_error()
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**fields))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", APART)
def test_models_that_keep_documents_apart_pass(name, dtype):
    assert separates_documents(build(name, APART[name]).to(dtype))


def test_rounding_of_frozen_layers_is_no_mixing(monkeypatch):
    "On some processors a product in bfloat16 is rounded otherwise when it has other rows."
    forward = NarrowLinear.forward
    monkeypatch.setattr(NarrowLinear, "forward", lambda self, x: forward(self, x) * (1 + 2**-9 * (len(x) == 1)))
    for name, fields, apart in (("llama", APART["llama"], True), ("opt", MIXED["opt"], False)):
        model = build(name, fields).requires_grad_(False)
        model.get_input_embeddings().weight.requires_grad_(True)
        with frozen_in_bfloat16(model):
            assert separates_documents(model) == apart


@pytest.mark.parametrize("name", MIXED)
def test_models_that_do_not_are_refused_by_name(name):
    model = build(name, MIXED[name])
    batch = {"input_ids": torch.arange(10)[None], "targets": torch.arange(10)[None], "position_ids": TWO}
    with pytest.raises(InputError, match=f"^separate_documents: {type(model).__name__} ") as caught:
        LanguageModelling().loss(model, batch)
    assert "\n" not in str(caught.value)
    check_documents(model, {"position_ids": torch.arange(10)[None]})  # one document: nothing to keep apart
    check_documents(model, {"input_ids": TWO})


@pytest.mark.parametrize("fields", [{}, {"num_local_experts": 4}, {"sliding_window": 4, "attention_sinks": True}])
def test_the_test_leaves_no_trace_and_is_made_once(fields, monkeypatch):
    shape = dict(vocab_size=7, hidden_size=32, num_hidden_layers=2, residual_dropout=0.5)
    model = ModernDecoderLM(ModernLLMConfig(**shape, **fields)).train()
    model.model.layers[0].eval()  # part of a model may be frozen
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    check_documents(model, {"position_ids": TWO})
    assert [m.training for m in model.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(model, "forward", None)
    check_documents(model, {"position_ids": TWO})
