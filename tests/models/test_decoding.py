"Our loop behind `generate` against that of `transformers`: the same tokens, and who does what."

from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from peft import LoraConfig, get_peft_model

from modernllm.models import decoding, transformer
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM

MODELS = {
    "plain": {},
    "grouped, normed": {"num_key_value_heads": 2, "qk_norm": True},
    "sinks, gate": {"attention_sinks": True, "attention_gate": True, "num_key_value_heads": 1},
    "windows": {"sliding_window": 6, "full_attention_every": 2},
    "windows, sinks, norms": {"sliding_window": 5, "attention_sinks": True, "qk_norm": True},
    "experts": {"num_local_experts": 4, "decoder_sparse_step": 2, "shared_expert_intermediate_size": 24},
    "cap, own head": {"final_logit_softcapping": 5.0, "tie_word_embeddings": False},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}},
    "rolling": {"cache_window": 12, "cache_sinks": 4},
}
WAYS = {
    "greedy": {"do_sample": False},
    "until a token": {"do_sample": False, "eos_token_id": 7},
    "sampling": {"do_sample": True, "top_k": 0},
    "top k and p": {"do_sample": True, "top_k": 9, "top_p": 0.9, "temperature": 0.7, "num_return_sequences": 2,
                    "eos_token_id": 7},
    "processors": {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 5,
                   "eos_token_id": 7},
}


def build(**options):
    torch.manual_seed(0)
    fields = dict(vocab_size=60, hidden_size=32, num_attention_heads=4, num_hidden_layers=2, initializer_range=0.3)
    model = ModernDecoderLM(ModernLLMConfig(**fields, max_position_embeddings=64, **options)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # scales of norms, and sinks: not all alike
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    return model


def prompts(padding=(0, 4, 1)):
    ids = torch.randint(1, 60, (len(padding), 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, length in enumerate(padding):
        mask[row, :length] = 0
    return {"input_ids": ids, "attention_mask": mask}


def generate(model, seed=0, **how):
    torch.manual_seed(seed)
    return model.generate(**{"max_new_tokens": 20, "pad_token_id": 0, **how})


@contextmanager
def theirs():
    with patch.object(transformer, "can_decode", lambda *_, **__: False):
        yield


@contextmanager
def steps():
    "Counts how many loops of each kind of step are begun."
    counts = {"FastStep": 0, "ModelStep": 0}

    def counted(name, kind):
        def make(*args):
            counts[name] += 1
            return kind(*args)
        return patch.object(decoding, name, make)

    with counted("FastStep", decoding.FastStep), counted("ModelStep", decoding.ModelStep):
        yield counts


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_the_same_tokens(options):
    model, kind = build(**options), "ModelStep" if "cache_window" in options else "FastStep"
    for way in WAYS.values():
        for inputs in (prompts(), {"input_ids": prompts()["input_ids"]}):
            with steps() as begun:
                ours = generate(model, **inputs, **way)
            assert begun[kind] == sum(begun.values()) == 1
            with theirs():
                assert torch.equal(ours, generate(model, **inputs, **way))


def test_a_step_is_the_model():
    model, inputs = build(qk_norm=True, attention_gate=True), prompts((0,))
    with torch.inference_mode():
        cache = model(inputs["input_ids"], use_cache=True).past_key_values
        step = decoding.FastStep(model, cache, None, torch.tensor([[8]]), 1, 9)
        for token in (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5):  # more than there is room for at first
            tokens = torch.tensor([token])
            torch.testing.assert_close(step(tokens), model(tokens[:, None], past_key_values=cache).logits[:, -1],
                                       atol=1e-4, rtol=1e-4)


def test_generation_from_embeddings_and_from_given_positions():
    model, inputs = build(), prompts()
    embedded = model.get_input_embeddings()(inputs["input_ids"]).detach()
    for extra in ({"inputs_embeds": embedded}, {"input_ids": inputs["input_ids"], "position_ids": torch.arange(9)[None] * 2 + 1}):
        how = {"attention_mask": inputs["attention_mask"], "do_sample": False, **extra}
        ours = generate(model, **how)
        with theirs():
            assert torch.equal(ours, generate(model, **how))


def test_what_it_does_not_do_is_done_by_transformers():
    model, inputs = build(), prompts()
    ours = generate(model, **inputs, do_sample=False)
    with patch.object(transformer, "decode", side_effect=AssertionError):
        whole = generate(model, **inputs, do_sample=False, return_dict_in_generate=True)
        assert torch.equal(whole.sequences, ours) and whole.past_key_values.get_seq_length() == 28
        static = generate(model, **inputs, do_sample=False, cache_implementation="static")
        without = generate(model, **inputs, do_sample=False, use_cache=False)
        assert torch.equal(static, ours) and torch.equal(without, ours)
        generate(model, **inputs, do_sample=False, num_beams=2)
        generate(model.train(), **inputs, do_sample=False)


def test_foreign_modules_hooks_and_other_types_are_asked_at_every_step():
    model, inputs, seen = build(), prompts(), []
    plain = generate(model, **inputs, do_sample=False)
    hook = model.model.norm.register_forward_hook(lambda *_: seen.append(1))
    with steps() as begun:
        assert torch.equal(generate(model, **inputs, do_sample=False), plain)
    assert begun == {"FastStep": 0, "ModelStep": 1} and len(seen) == 20
    hook.remove()
    with torch.autocast("cpu", torch.bfloat16), steps() as begun:
        generate(model, **inputs, do_sample=False)
    assert begun["ModelStep"] == 1
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")).eval()
    with steps() as begun:
        ours = generate(adapted, **inputs, do_sample=False)
    assert begun["ModelStep"] == 1 and not torch.equal(ours, plain)
    with theirs():
        assert torch.equal(ours, generate(adapted, **inputs, do_sample=False))
    merged = adapted.merge_and_unload()
    with steps() as begun:
        assert torch.equal(generate(merged, **inputs, do_sample=False), ours)
    assert begun["FastStep"] == 1
    narrow = build().bfloat16()
    with steps() as begun:
        generate(narrow, **inputs, do_sample=False)
    assert begun["ModelStep"] == 1


def test_changed_weights_are_seen_and_results_can_be_used_in_training():
    model, inputs = build(), prompts((0,))
    before = generate(model, **inputs, do_sample=False)
    model.lm_head.weight.data.neg_()  # leaves no trace in the parameter's version
    after = generate(model, **inputs, do_sample=False)
    assert not torch.equal(before, after)
    model.train()(after, labels=after).loss.backward()
