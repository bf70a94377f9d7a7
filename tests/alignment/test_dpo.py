"""Preference training: ln 2 at the start, plain and with an adapter; options; resume; and what is refused."""

import json
import math
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from modernllm.alignment.dpo import DPOSettings, Preference, answer_logprobs, evaluate_pairs, train_dpo, with_reference
from modernllm.alignment.dpo_loss import dpo_loss
from modernllm.alignment.preference_datasets import read_preferences
from modernllm.alignment.preference_encoding import encode_preferences
from modernllm.core.config import InputError
from modernllm.data.encoding import IGNORE
from modernllm.data.tokenizers import train_bpe
from modernllm.hf.adapters import LoraSettings, add_lora
from modernllm.training.callbacks import Callback

TRAIN, HELD = (read_preferences("generated_preferences", split).sample(24) for split in ("train", "validation"))
TOKENIZER = train_bpe([row["prompt"][0]["content"] + row["chosen"] for row in TRAIN.rows], 300)
SHORT = {"max_steps": 4, "learning_rate": 5e-3, "precision": "fp32", "eval_every": 2, "checkpoint_every_steps": 2}


def new_model(vocabulary=len(TOKENIZER), context=120):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                                        num_attention_heads=2, max_position_embeddings=context, pad_token_id=0))


def trained(model, folder=None, callbacks=(), **given):
    settings = DPOSettings(batch_size=8, **given)
    return train_dpo(model, TOKENIZER, TRAIN, HELD, settings, settings.training(**SHORT), folder=folder, callbacks=callbacks)


@pytest.mark.parametrize("adapter", [False, True])
def test_loss_is_ln_2_at_the_start_and_falls(adapter):
    model = add_lora(new_model(), LoraSettings(r=4)) if adapter else new_model()
    tuned = trained(model)
    assert tuned.first["loss"] == pytest.approx(math.log(2), abs=1e-6) and tuned.first["kl"] == pytest.approx(0, abs=1e-6)
    assert tuned.best["loss"] != tuned.first["loss"] and tuned.best["kl"] > 0
    names = {"margin", "accuracy", "kl", "chosen_logprob", "rejected_logprob", "chosen_length", "rejected_length", "loss"}
    assert names <= tuned.result.history["train"][0].keys() and names <= tuned.best.keys()


def test_first_step_of_every_batch_is_ln_2_whatever_it_is_padded_to():
    model = new_model()
    pairs = with_reference(encode_preferences(TOKENIZER, TRAIN, max_length=120), model, batch_size=24)
    for chosen in ([0], [3, 1], range(24)):
        out = Preference().loss(model, pairs.batch(chosen))
        assert out.total.item() / out.weight.item() == pytest.approx(math.log(2), abs=1e-6)


def test_reference_of_an_adapter_that_was_trained_is_the_base():
    model = add_lora(new_model(), LoraSettings(r=4))
    pairs = encode_preferences(TOKENIZER, HELD, max_length=120)
    before = answer_logprobs(new_model(), pairs)
    trained(model)
    after = with_reference(pairs, model).reference
    assert all((a == b).all() for one, other in zip(before, after) for a, b in zip(one, other))
    assert any((a != b).any() for one, other in zip(before, answer_logprobs(model, pairs)) for a, b in zip(one, other))


def test_log_probabilities_are_those_of_the_full_logits():
    model, pairs = new_model(), encode_preferences(TOKENIZER, HELD, max_length=120)
    batch = pairs.batch([0, 1, 2])
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    each = logits.gather(-1, batch["targets"].clamp(min=0)[..., None])[..., 0] * (batch["targets"] != IGNORE)
    expected = each.sum(1).view(2, 3).T.tolist()
    found = [[float(side.sum()) for side in pair] for pair in answer_logprobs(model, pairs)[:3]]
    assert torch.allclose(torch.tensor(found), torch.tensor(expected), atol=1e-3)


@pytest.mark.parametrize("given", [{"loss": "ipo"}, {"length_normalised": True}, {"sft_weight": 0.1}])
def test_options_change_the_loss(given):
    model = new_model()
    pairs = with_reference(encode_preferences(TOKENIZER, TRAIN, max_length=120), model)
    other = new_model()
    with torch.no_grad():
        other.lm_head.weight.mul_(1.5)
    plain, changed = (evaluate_pairs(other, Preference(**options), pairs) for options in ({}, given))
    assert plain["loss"] != pytest.approx(changed["loss"], rel=1e-3)
    assert ("sft_weight" in given) == (changed["preference_loss"] == plain["preference_loss"])
    if "sft_weight" in given:  # nats a token of the chosen answers
        assert changed["loss"] - plain["loss"] == pytest.approx(0.1 * -plain["chosen_logprob"] / plain["chosen_length"], rel=0.05)


def test_another_reference_of_the_same_vocabulary_is_used():
    reference = new_model()
    with torch.no_grad():
        reference.lm_head.weight.mul_(2)
    settings = DPOSettings(batch_size=8)
    tuned = train_dpo(new_model(), TOKENIZER, TRAIN, HELD, settings, settings.training(**SHORT), reference=reference)
    assert tuned.first["kl"] > 1e-3


class DiesAtThree(Callback):
    def updated(self, trainer):
        if trainer.step == 3:
            raise KeyboardInterrupt


def test_the_same_run_twice_is_equal_bit_for_bit(tmp_path):
    one, other = (trained(new_model(), tmp_path / name) for name in ("a", "b"))
    assert one.result.history == other.result.history and (tmp_path / "a").exists()


def test_a_killed_training_ends_with_the_same_weights(tmp_path):
    whole = trained(new_model(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(new_model(), tmp_path / "killed", callbacks=[DiesAtThree()])
    assert list((tmp_path / "killed").iterdir())
    resumed = trained(new_model(), tmp_path / "killed")
    assert resumed.result.history == whole.result.history
    assert all(torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values()))


def refused(words, call):
    with pytest.raises(InputError) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_reference_or_a_model_of_another_vocabulary_is_refused():
    settings = DPOSettings(batch_size=8)
    config = settings.training(**SHORT)
    refused("reference: has a vocabulary of 400 tokens, the model one of 300",
            lambda: train_dpo(new_model(), TOKENIZER, TRAIN, HELD, settings, config, reference=new_model(400)))
    refused("model: has a vocabulary of 40 tokens", lambda: train_dpo(new_model(40), TOKENIZER, TRAIN, HELD, settings, config))
    pairs = encode_preferences(TOKENIZER, TRAIN, max_length=120)
    refused("reference: has a vocabulary of 40 tokens", lambda: with_reference(pairs, new_model(40)))
    refused("reference: the pairs have no log-probabilities", lambda: Preference().loss(new_model(), pairs.batch([0])))


def test_a_prompt_that_fills_the_context_is_refused_with_file_and_line(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"prompt": f"request {n}", "chosen": "yes", "rejected": "no"} for n in range(20)]
    rows[7]["prompt"] = "many words " * 80
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held, learnt = (read_preferences(str(path), split) for split in ("validation", "train"))
    wrong = learnt if any(row["line"] == 8 for row in learnt.rows) else held
    refused("mine.jsonl:8: prompt has", lambda: encode_preferences(TOKENIZER, wrong, max_length=120))
    refused("none of 24 pairs has at most 12 tokens", lambda: encode_preferences(TOKENIZER, TRAIN, max_length=12))


def test_a_tokenizer_without_a_chat_template_is_refused():
    plain = train_bpe(["some text"])
    plain.chat_template = None
    refused("chat template is missing", lambda: encode_preferences(plain, TRAIN, max_length=120))


WRONG = [({"beta": 0.0}, "beta"), ({"loss": "hinge"}, "loss"), ({"sft_weight": -1.0}, "sft_weight")]


def test_control_tokens_spelt_out_in_a_prompt_or_an_answer_are_text():
    row = {"prompt": [{"role": "user", "content": "a <|assistant|> b"}], "chosen": "yes <|end|>", "rejected": "no"}
    pairs = encode_preferences(TOKENIZER, replace(TRAIN, rows=[row]), max_length=120)
    control = TOKENIZER.convert_tokens_to_ids(["<|assistant|>", "<|end|>"])
    assert pairs.prompts[0].count(control[0]) == 1 and pairs.prompts[0][-1] == control[0]
    assert pairs.chosen[0].count(control[1]) == 1 and pairs.chosen[0][-1] == pairs.rejected[0][-1] == control[1]


@pytest.mark.parametrize("given, words", WRONG)
def test_settings_are_checked(given, words):
    refused(words, lambda: DPOSettings(**given))
    refused(words, lambda: Preference(**given))


def test_loss_is_checked():
    two, three = torch.zeros(2), torch.zeros(3)
    refused("unknown loss 'dop'; did you mean 'dpo'?", lambda: dpo_loss(two, two, two, two, 0.1, "dop"))
    refused("beta is 0", lambda: dpo_loss(two, two, two, two, 0))
    refused("have shapes (2,), (2,), (2,), (3,)", lambda: dpo_loss(two, two, two, three))
    refused("chosen_lengths, rejected_lengths", lambda: dpo_loss(two, two, two, two, chosen_lengths=two + 1))
    refused("chosen_lengths, rejected_lengths", lambda: dpo_loss(two, two, two, two, chosen_lengths=two, rejected_lengths=two))
