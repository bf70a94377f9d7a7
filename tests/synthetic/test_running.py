"""A compiled model is only asked what it was made for, and is told what it is short of."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from modernllm.core.config import InputError
from modernllm.data.tokenizers import train_bpe
from modernllm.synthetic.compiler import compile_t5
from modernllm.synthetic.drawing import draw_heads, panels
from modernllm.synthetic.exactness import compile_longest, count_error
from modernllm.synthetic.language import Count, Select, count, gather, tokens
from modernllm.synthetic.layout import make_plan
from modernllm.synthetic.program import Program, interpret
from modernllm.synthetic.running import answer, answer_text
from modernllm.synthetic.tasks import make_task


@pytest.fixture
def model(config):
    return compile_t5("reverse", config, max_length=8)


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
    compile_t5("reverse", config, build, max_length=8).save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert answer(again, [[7, 8, 9], [4]]) == [[9, 8, 7], [4]]
    with pytest.raises(InputError, match="exact to 8"):
        answer(again, [[5] * 9])


def test_text_in_text_out(config):
    tokenizer = train_bpe(["a rose is a rose is a rose"] * 20, vocab_size=265)
    fields = {**config.to_dict(), "vocab_size": len(tokenizer)}
    model = compile_t5("set", T5Config(**fields), max_length=16)
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
        ({"d_model": 40}, "channels, config has 40"),
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
    model = compile_t5(task, config)
    for kernel in ("eager", "sdpa"):
        model.set_attn_implementation(kernel)
        assert count_error(model, task, [[5] * 16, [5, 6] * 8, []]) < 1e-4  # rounding forgives 1/64


@pytest.mark.parametrize("name", ["set", "delete", "mixture"])
def test_every_head_that_reads_the_input_is_drawn(config, name):
    task = make_task(name, 60, 12)
    plan = make_plan(task.program, config, 12)
    ids = [*([task.parts[1][0]] if task.parts else []), 7, 8, 7, task.setting.separator, 8][: 3 if name == "set" else 5]
    found = panels(plan, ids)
    assert len(draw_heads(plan, ids).axes) >= len(found)
    assert [panel.out[-1] for panel in found if panel.what.startswith("fetch")] == [1]
    assert all((panel.chosen <= panel.seen).all() for panel in found)


def test_bfloat16_refuses_lengths_it_cannot_count(config):
    with pytest.raises(InputError, match="holds whole numbers to 256"):
        compile_t5("reverse", T5Config(**{**config.to_dict(), "d_ff": 512}), "exact_bf16", max_length=300)


def test_live_fill_leaves_the_function_and_gives_gradients(config):
    model = compile_t5("set", config, "soft", max_length=12)
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
