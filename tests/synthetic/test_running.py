"""A compiled model is only asked what it was made for, and is told what it is short of."""

import contextlib
import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from modernllm.core.config import InputError
from modernllm.data.tokenizers import train_bpe
from modernllm.synthetic.compiler import compile_t5
from modernllm.synthetic.drawing import draw_heads, panels
from modernllm.synthetic.exactness import compile_longest, count_error, teacher_forced_exactness
from modernllm.synthetic.language import Count, Select, count, gather, tokens
from modernllm.synthetic.layout import make_plan
from modernllm.synthetic.program import Program, interpret
from modernllm.synthetic.running import answer, answer_text
from modernllm.synthetic.tasks import make_task


@pytest.fixture
def model(config):
    return compile_t5("reverse", config, max_length=8)[0]


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([5, 60], "token 60 is outside the vocabulary"),
        ([5, -1], "token -1 is outside the vocabulary"),
        ([5, 0], "token 0 is special"),
        ([5, 1, 5], "token 1 is special"),
        ([2], "token 2 is special"),
        ([5] * 9, "has 9 tokens, the model is exact to 8"),
    ],
)
def test_bad_sequences_are_refused(model, ids, said):
    with pytest.raises(InputError, match=said):
        answer(model, [[5], ids])


def test_too_long_goes_on_with_a_warning(model):
    with pytest.warns(UserWarning, match="exact to 8"):
        answer(model, [[5] * 9], go_on=True)


def test_another_dtype_is_refused(model):
    with pytest.raises(InputError, match="made for float32, the model is in bfloat16"):
        answer(model.to(torch.bfloat16), [[5]])


def test_a_model_that_was_not_compiled_is_refused(config):
    with pytest.raises(InputError, match="not compiled"):
        answer(T5ForConditionalGeneration(config), [[5]])


@pytest.mark.parametrize("build", ["exact", "exact_bf16"])
def test_saving_and_loading_keeps_function_format_and_bound(config, tmp_path, build):
    compile_t5("reverse", config, build, max_length=8)[0].save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert answer(again, [[7, 8, 9], [4]]) == [[9, 8, 7], [4]]
    with pytest.raises(InputError, match="exact to 8"):
        answer(again, [[5] * 9])


def test_text_in_text_out(config):
    tokenizer = train_bpe(["a rose is a rose is a rose"] * 20, vocab_size=265)
    fields = {**config.to_dict(), "vocab_size": len(tokenizer)}
    model, _ = compile_t5("set", T5Config(**fields), max_length=16)
    text = " a rose is a rose"
    new = tokenizer.decode(list(dict.fromkeys(tokenizer(text, add_special_tokens=False)["input_ids"])))
    assert answer_text(model, tokenizer, [text, ""]) == [new, ""] and len(new) < len(text)
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(InputError, match="pad and end must be 0 and 1"):
        answer_text(model, tokenizer, [" a rose"])


@pytest.mark.parametrize(
    ("short", "said"),
    [
        ({"num_layers": 4}, "needs 5 encoder layers, config has 4"),
        ({"num_decoder_layers": 1}, "needs 2 decoder layers, config has 1"),
        ({"d_ff": 30}, "feed-forward units in one layer, config has 30"),
        ({"d_model": 40}, r"needs 89 channels \(tokens 16, d1 16, e7 16, 18 others\), config has 40"),
        ({"num_heads": 1}, "needs more heads"),
        ({"d_kv": 8}, "a head needs more"),
    ],
)
def test_a_config_that_is_too_small_is_told_what_it_lacks(config, short, said):
    with pytest.raises(InputError, match=said):
        compile_t5("delete", T5Config(**{**config.to_dict(), **short}), max_length=16)


@pytest.mark.parametrize("length", [0, -3])
def test_lengths_that_are_none_are_refused(config, length):
    with pytest.raises(InputError, match=f"max_length is {length}; allowed: 1 or more"):
        compile_t5("set", config, max_length=length)


def test_a_task_is_not_compiled_for_more_than_it_was_made_for(config):
    with pytest.raises(InputError, match="max_length is 20; allowed: 1 to 8"):
        compile_t5(make_task("duplicate", 60, 8), config, max_length=20)


def test_lengths_that_no_build_holds_are_refused(config):
    with pytest.raises(InputError, match="for any of the lengths 300, 400: .*feed-forward units"):
        compile_longest("set", config, "exact", (300, 400))


def test_sums_that_would_lose_whole_numbers_are_refused(config):
    program = Program("steep", tokens, count("past") * 50)
    with pytest.raises(InputError, match="add up to 50; a sum is exact for 42 at most"):
        compile_t5(program, T5Config(**{**config.to_dict(), "d_ff": 1000}), max_length=8)


def test_what_heads_count_is_far_from_being_wrong(config):
    task = make_task("set", 60, 16)
    model, plan = compile_t5(task, config)
    for kernel in ("eager", "sdpa"):
        model.set_attn_implementation(kernel)
        assert count_error(model, plan, [[5] * 16, [5, 6] * 8, []]) < 1e-4  # rounding forgives 1/64


@pytest.mark.parametrize("name", ["set", "delete", "mixture"])
def test_every_head_that_reads_the_input_is_drawn(config, name):
    task = make_task(name, 60, 12)
    plan = make_plan(task.program, config, 12)
    ids = [*([task.parts[1][0]] if task.parts else []), 7, 8, 7, task.setting.separator, 8][: 3 if name == "set" else 5]
    found = panels(plan, ids)
    assert len(draw_heads(plan, ids).axes) >= len(found)
    assert [panel.pattern.out[-1] for panel in found if panel.pattern.steps] == [1]
    assert all(set(chosen) <= set(seen) for panel in found for chosen, seen in zip(panel.pattern.chosen, panel.pattern.seen))


def test_bfloat16_refuses_lengths_it_cannot_count(config):
    with pytest.raises(InputError, match="holds whole numbers to 256"):
        compile_t5("reverse", T5Config(**{**config.to_dict(), "d_ff": 512}), "exact_bf16", max_length=300)


def test_live_fill_leaves_the_function_and_gives_gradients(config):
    model, _ = compile_t5("set", config, "soft", max_length=12)
    assert answer(model, [[7, 8, 7, 9]]) == [[7, 8, 9]]
    loss = model(input_ids=torch.tensor([[7, 8, 7, 1]]), labels=torch.tensor([[8, 7, 1]])).loss
    loss.backward()
    moved = [p.grad.abs().sum() > 0 for n, p in model.named_parameters() if n.endswith((".o.weight", ".wo.weight"))]
    assert torch.isfinite(loss) and all(moved)


def test_undefined_programs_are_refused_by_the_interpreter():
    mixed = Program("mixed", gather(tokens), count("past"))
    with pytest.raises(InputError, match="different values"):
        interpret(mixed, [4, 5])
    with pytest.raises(InputError, match="a flag must be 0 or 1, this program made it 2"):
        interpret(Program("two", tokens, count("past", where=count("all"))), [4, 5])
    with pytest.raises(InputError, match="2 different tokens answer to 0"):
        interpret(Program("same", tokens, count("past") * 0), [4])


def test_what_a_head_cannot_do_is_refused(config):
    far = Program("far", tokens, Count(Select("shift", -9)))
    with pytest.raises(InputError, match="exact to distance 7"):
        make_plan(far, config, 16)
    unknown = Program("unknown", tokens, count("past", where=count("shift", shift=-1)))
    with pytest.raises(InputError, match="known at the end row"):
        compile_t5(unknown, config, max_length=16)


# What a caller's program may have set: put right for the answer and left as it was, or refused.

ASKED = [[9, 4, 30, 30, 7, 12, 51, 8], [5, 6], [], [3] * 5]
SAID = [ids[::-1] for ids in ASKED]
AUTOCAST = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
GENERATION = {
    "repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "encoder_no_repeat_ngram_size": 1, "min_length": 20,
    "min_new_tokens": 20, "forced_bos_token_id": 9, "forced_eos_token_id": 9, "suppress_tokens": [5, 6, 7, 8],
    "begin_suppress_tokens": list(range(3, 60)),
    "bad_words_ids": [[8], [12]], "return_dict_in_generate": True, "num_return_sequences": 2, "num_beams": 3, "do_sample": True,
    "eos_token_id": [1, 12], "decoder_start_token_id": 9, "use_cache": False, "max_time": 1e-9, "prompt_lookup_num_tokens": 3,
    "guidance_scale": 3.0, "stop_strings": ["a"], "exponential_decay_length_penalty": (1, 9.0), "sequence_bias": [[[9], 50.0]],
    "length_penalty": -5.0, "max_length": 1, "temperature": 0.1,
}


@pytest.fixture(scope="module")
def compiled():
    return compile_t5("reverse", T5Config(vocab_size=60, d_model=192, d_kv=64, num_heads=8, d_ff=160, num_layers=3,
                                          num_decoder_layers=3), max_length=8)


@pytest.fixture
def shared(compiled):
    "One compiled model; whoever changes it takes a copy."
    return compiled[0]


@pytest.mark.parametrize("name", GENERATION)
def test_generation_settings_do_not_reach_an_answer(shared, name):
    model = copy.deepcopy(shared)
    setattr(model.generation_config, name, GENERATION[name])
    before = model.generation_config
    assert answer(model, ASKED) == answer(model, ASKED, num_beams=2) == SAID
    assert model.generation_config is before and getattr(before, name) == GENERATION[name]


@pytest.mark.parametrize("around", [contextlib.nullcontext, AUTOCAST])
@pytest.mark.parametrize("mode", ["train", "one part", "gradient checkpointing"])
def test_modes_do_not_reach_an_answer(shared, compiled, mode, around):
    model = copy.deepcopy(shared)
    (model.decoder if mode == "one part" else model).train()
    if mode == "gradient checkpointing":
        model.gradient_checkpointing_enable()
    modes = [module.training for module in model.modules()]
    with around():
        assert answer(model, ASKED) == SAID and teacher_forced_exactness(model, ASKED, SAID) == [True] * len(ASKED)
        assert count_error(model, compiled[1], ASKED) < 1e-4
        assert torch.is_autocast_enabled("cpu") == (around is AUTOCAST)
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(InputError):
        answer(model, [[5] * 9])
    assert [module.training for module in model.modules()] == modes


def one_format(model):
    model.decoder.block[0].layer[0].SelfAttention.k.bfloat16()


def wrapped(model):
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q", "v"]))


def adapted(model):
    model.add_adapter(LoraConfig(r=2, target_modules=["q", "v"]))


def quantised(model):
    model.encoder.block[0].layer[0].SelfAttention.q = torch.ao.nn.quantized.dynamic.Linear(192, 512, bias_=False)


def other_activation(model):
    model.encoder.block[0].layer[1].DenseReluDense.act = torch.nn.GELU()


def other_weights(model):
    model.encoder.block[0].layer[0].SelfAttention.o.weight.data[0, 0] += 1e-3


def trained(model):
    model(input_ids=torch.tensor([[7, 1]]), labels=torch.tensor([[7, 1]])).loss.backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()


def other_scale(model):
    model.config.scale_decoder_outputs = not model.config.scale_decoder_outputs


def other_start(model):
    model.config.decoder_start_token_id = 5


def other_kernel(model):
    model.decoder.config._attn_implementation = "flex_attention"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (one_format, r"made for float32, the model is in bfloat16 \(decoder.block.0.layer.0.SelfAttention.k.weight\)"),
        (wrapped, "the model is a peft.*without adapters"),
        (adapted, r"encoder.block.0.layer.0.SelfAttention.q is a peft\.tuners\.lora.*Linear; allowed: a T5 as it was compiled"),
        (quantised, "encoder.block.0.layer.0.SelfAttention.q is a torch.ao.*quantised"),
        (other_activation, "DenseReluDense.act is a torch.nn.modules.activation.GELU"),
        (other_weights, "the weights or the config have changed since the model was compiled"),
        (trained, "the weights or the config have changed"),
        (other_scale, "the weights or the config have changed"),
        (other_start, "the weights or the config have changed"),
        (other_kernel, "attention is 'flex_attention'; the model is exact with: eager, sdpa"),
    ],
)
def test_a_model_that_is_not_as_compiled_is_refused(shared, change, said):
    model = copy.deepcopy(shared)
    changed = change(model)
    with pytest.raises(InputError, match=said) as refusal:
        answer(model if changed is None else changed, ASKED)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_of_less_than_float32_are_refused(shared, precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with pytest.raises(InputError, match="float32 products are computed in .*'highest'"):
            answer(shared, ASKED)
    finally:
        torch.set_float32_matmul_precision(before)
    assert answer(shared, ASKED) == SAID


def test_models_without_a_digest_still_answer(shared):
    model = copy.deepcopy(shared)
    del model.config.synthetic["digest"]
    assert answer(model, ASKED) == SAID


def test_a_special_token_spelt_in_a_text_is_text():
    tokenizer = train_bpe(["a rose is a rose is a rose"] * 20, vocab_size=265)
    fields = dict(d_model=128, d_kv=32, num_heads=4, d_ff=64, num_layers=2, num_decoder_layers=2)
    model, _ = compile_t5("reverse", T5Config(vocab_size=len(tokenizer), **fields), max_length=24)
    text = "<|end|><|pad|>"
    assert answer_text(model, tokenizer, [text]) == [text[::-1]]
