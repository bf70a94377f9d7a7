"""Supervised fine-tuning: packed and padded training, limits of the context, adapters, scores."""

import json

import pytest
import torch

from modernllm.alignment.conversations import ConversationRows, read_conversations
from modernllm.alignment.sft import SFTSettings, answer_conversations, encode_conversations, evaluate_sft, train_sft
from modernllm.core.config import InputError
from modernllm.data.tokenizers import train_bpe
from modernllm.models import ModernDecoderLM, ModernLLMConfig
from modernllm.models.generation import end_tokens
from modernllm.models.sources import load_pretrained, save_model


@pytest.fixture(scope="module")
def rows():
    return {split: read_conversations("generated_instructions", split).sample(40) for split in ("train", "validation", "test")}


@pytest.fixture(scope="module")
def tokenizer(rows):
    return train_bpe([json.dumps(messages) for messages in rows["train"].conversations], 300)


def make(tokenizer, context=128):
    torch.manual_seed(0)
    return ModernDecoderLM(ModernLLMConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                           intermediate_size=64, max_position_embeddings=context))


def config(settings, **given):
    return settings.training(**{"max_steps": 12, "learning_rate": 3e-3, "precision": "fp32", "eval_every": 6} | given)


def test_packed_and_padded_training_start_at_the_same_loss_and_learn(tokenizer, rows, tmp_path):
    found = {}
    for packed in (True, False):
        settings = SFTSettings(batch_size=4, packed=packed, answers=4, max_new_tokens=4)
        found[packed] = train_sft(make(tokenizer), tokenizer, rows["train"], rows["validation"], settings, config(settings),
                                  folder=tmp_path / str(packed))
    assert found[True].first == found[False].first and {"loss", "rougeL"} <= set(found[True].best)
    assert all(tuned.best["loss"] < 0.9 * tuned.first["loss"] for tuned in found.values())
    assert found[True].result.tokens > found[False].result.tokens  # as many rows a step hold more tokens


def test_generation_ends_where_an_answer_ends_also_after_loading(tokenizer, tmp_path):
    chats = [{"messages": [{"role": "user", "content": f"{k}?"}, {"role": "assistant", "content": "yes"}]} for k in range(8)]
    rows, model, settings = ConversationRows("made", "train", chats), make(tokenizer), SFTSettings(batch_size=4, packed=False)
    train_sft(model, tokenizer, rows, rows, settings, config(settings, max_steps=60))
    save_model(tmp_path, model, tokenizer)
    loaded, _ = load_pretrained(tmp_path)
    ask = [[{"role": "user", "content": "3?"}]]
    for one in (model, loaded):
        assert end_tokens(one, tokenizer) == sorted(tokenizer.convert_tokens_to_ids(["<|end|>", "<|endoftext|>"]))
        said = answer_conversations(one, tokenizer, ask, max_new_tokens=16)[0]
        assert (said.text, said.ended) == ("yes", True)


def test_an_adapter_is_trained_alone(tokenizer, rows):
    from modernllm.hf.adapters import LoraSettings, add_lora

    model = add_lora(make(tokenizer), LoraSettings(r=4))
    before = {name: p.clone() for name, p in model.named_parameters()}
    settings = SFTSettings(batch_size=4)
    train_sft(model, tokenizer, rows["train"], rows["validation"], settings, config(settings, max_steps=2))
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all("lora" in name for name in changed)


def test_a_conversation_longer_than_the_context_is_left_out_and_none_left_is_refused(tokenizer, rows):
    long = {"messages": [{"role": "user", "content": "ada " * 200}, {"role": "assistant", "content": "ADA"}]}
    both = ConversationRows("made", "train", [long, *rows["train"].rows[:2]])
    encoded = encode_conversations(make(tokenizer), tokenizer, both, SFTSettings())
    assert len(encoded) == 2 and "1 of 3 examples too long or empty, left out" in encoded.note
    alone = ConversationRows("made", "train", [long])
    with pytest.raises(InputError, match="none of 1 examples has at most 128 tokens and an answer"):
        encode_conversations(make(tokenizer), tokenizer, alone, SFTSettings())
    said = answer_conversations(make(tokenizer), tokenizer, both.prompts, max_new_tokens=4)
    assert said[0] is None and said[1].tokens <= 4


@pytest.mark.parametrize(("settings", "said"), [
    ({"max_length": 999}, "max_length is 999; allowed: at most the model's context of 128 tokens"),
    ({"answers": 4, "max_new_tokens": 127}, "no prompt leaves max_new_tokens=127 of the context of 128 tokens"),
])
def test_what_does_not_fit_is_one_line(tokenizer, rows, settings, said):
    settings = SFTSettings(**settings)
    with pytest.raises(InputError, match=said) as caught:
        train_sft(make(tokenizer), tokenizer, rows["train"], rows["validation"], settings, config(settings))
    assert "\n" not in str(caught.value)


def test_a_model_that_does_not_separate_conversations_is_not_trained_on_packed_rows(tokenizer, rows):
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=32, n_layer=1, n_head=2))
    with pytest.raises(InputError, match="^packed: BloomForCausalLM does not keep .* apart; allowed: false, or another model"):
        train_sft(model, tokenizer, rows["train"], rows["validation"], SFTSettings(), config(SFTSettings()))
    settings = SFTSettings(packed=False)
    assert train_sft(model, tokenizer, rows["train"], rows["validation"], settings, config(settings, max_steps=1)).best


def test_scores(tokenizer, rows):
    scores = evaluate_sft(make(tokenizer), tokenizer, rows["test"], SFTSettings(answers=3, max_new_tokens=2), precision="fp32")
    table = scores.table().set_index("metric")
    assert table.loc["rougeL", "n"] == 3 == len(scores.examples) and len(scores.followed) == 66
    assert table.loc["instructions: all", "n"] == 66 and table.loc["loss", "n"] == scores.n_tokens
    assert scores.show(1).startswith("asked: ") and "wanted: " in scores.show(1)
