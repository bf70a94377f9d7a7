"""A compiled model is only asked what it was made for, and is told what it is short of."""

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from modernllm.core.config import InputError
from modernllm.synthetic.compiler import compile_t5
from modernllm.synthetic.language import Count, Select, count, gather, tokens
from modernllm.synthetic.layout import make_plan
from modernllm.synthetic.program import Program, interpret
from modernllm.synthetic.running import answer


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


def test_saving_and_loading_keeps_the_function(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = T5ForConditionalGeneration.from_pretrained(tmp_path)
    assert answer(again, [[7, 8, 9], [4]]) == [[9, 8, 7], [4]]


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
    with pytest.raises(InputError, match="2 different tokens are offered with rank 0"):
        interpret(Program("same", tokens, count("past") * 0), [4])


def test_what_a_head_cannot_do_is_refused(config):
    far = Program("far", tokens, Count(Select("shift", -9)))
    with pytest.raises(InputError, match="exact to distance 7"):
        make_plan(far, config, 16)
    unknown = Program("unknown", tokens, count("past", where=count("shift", shift=-1)))
    with pytest.raises(InputError, match="known at the end row"):
        compile_t5(unknown, config, max_length=16)
