"""Saved models: what is loaded is what was saved, by kind; what does not belong together is refused."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, T5Config, T5ForConditionalGeneration

from modernllm.core.config import InputError
from modernllm.data.tokenizers import train_bpe, with_tokens
from modernllm.models.config import ModernLLMConfig
from modernllm.models.pretrained import model_folder
from modernllm.models.sources import load_pretrained, load_tokenizer, save_model
from modernllm.models.transformer import ModernDecoderLM

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["The sea was calm."] * 5, 270)


MODELS = {
    "causal": lambda: ModernDecoderLM(ModernLLMConfig(vocab_size=270, **SIZES)),
    "seq2seq": lambda: T5ForConditionalGeneration(T5Config(vocab_size=270, d_model=8, d_kv=4, num_heads=2, d_ff=8, num_layers=1)),
    "classification": lambda: LlamaForSequenceClassification(LlamaConfig(vocab_size=270, intermediate_size=16, **SIZES)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_saved_is_loaded(kind, tokenizer, tmp_path):
    model = MODELS[kind]()
    save_model(tmp_path / "model", model, tokenizer)
    again, words = load_pretrained(tmp_path, kind)  # the folder around it will do
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values())) and not again.training
    assert words("sea").input_ids == load_tokenizer(tmp_path)("sea").input_ids == tokenizer("sea").input_ids
    assert model_folder(tmp_path) == tmp_path / "model"


def test_what_is_no_model_is_refused_in_one_line(tokenizer, tmp_path):
    with pytest.raises(InputError, match="has no config.json"):
        load_pretrained(tmp_path)
    save_model(tmp_path, MODELS["causal"](), with_tokens(tokenizer, ["<|task|>"]))
    wrong = {"causal": "271 tokens, the model 270", "caual": "did you mean 'causal'",
             "seq2seq": "is a causal model; allowed: kind=causal"}  # fmt: skip
    for kind, said in wrong.items():
        with pytest.raises(InputError, match=said) as caught:
            load_pretrained(tmp_path, kind)
        assert "\n" not in str(caught.value)
