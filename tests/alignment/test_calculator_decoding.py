"Values of annotations are computed while they are written, whatever the tokenizer, and nothing else is touched."

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modernllm.alignment.calculator_decoding import CalculatorDecoding, token_texts, written_value
from modernllm.alignment.sampling import sample_answers
from modernllm.data.tokenizers import train_bpe
from modernllm.evaluation.calculator import calculate, equations

TEXT = "Mia has 48/2 = $<<48/2=24>>24 cards, <<2-5=-3>>-3 and << 1.5 * 3 = 4.5 >>4.5.\n#### 24"


def sentencepiece_like() -> PreTrainedTokenizerFast:
    "Pieces with a mark in place of a blank, which is dropped at the beginning of a text; numbers and signs in one piece."
    pieces = ["<unk>", "<end>", "▁so", "▁s", "▁", "<<", ">>", "=", "=-", "▁=", "24", "48", *"0123456789/-.so"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)} | {">": len(pieces), "<": len(pieces) + 1}, [
        ("▁", "s"), ("▁s", "o"), ("<", "<"), (">", ">"), ("2", "4"), ("4", "8"), ("=", "-"), ("▁", "="),
    ], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>")


TOKENIZERS = {"bytes": train_bpe([TEXT], 264), "merged": train_bpe([TEXT] * 50, 285), "pieces": sentencepiece_like()}


def forced(tokenizer, wanted: str, rows: int = 1) -> tuple[list[str], list[int]]:
    "What rows write that want a text, token by token; each row begins one token later than the row before."
    plan = tokenizer(wanted, add_special_tokens=False)["input_ids"]
    plans = [[plan[0]] * row + plan + [plan[0]] * (rows - row) for row in range(rows)]
    calculator, written = CalculatorDecoding(tokenizer), [[] for _ in range(rows)]
    for place in range(len(plan) + rows):
        scores = torch.zeros(rows, len(tokenizer))
        for row in range(rows):
            scores[row, plans[row][place]] = 1.0
        ids = torch.tensor([[plan[0], *row] for row in written])
        for row, token in zip(written, calculator(ids, scores).argmax(-1).tolist()):
            row.append(token)
    return [tokenizer.decode(row[n : n + len(plan)]) for n, row in enumerate(written)], calculator.computed


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("wanted, there", [
    ("so <<48/2=99>>", "<<48/2=24>>"), ("so <<5-8=9>>", "<<5-8=-"), ("so <<8/3=9.99>>", "<<8/3=2.67>>"),
    ("so <<2*4.5=3>>", "<<2*4.5=9"), ("so <<5-8=-9>>", "<<5-8=-3"), ("so <<48/2 =99>>", "<<48/2 =24"),
])
def test_the_value_is_computed(name, wanted, there):
    tokenizer = TOKENIZERS[name]
    if "*" in wanted and name == "pieces":
        pytest.skip("this vocabulary has no *")
    (text,), computed = forced(tokenizer, wanted)
    assert there in text and computed == [1]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("wanted", [
    "48/2=99 4", "<<8=8", "<48/2=99>>", "<<1/0=4>>", "<<9**9**9=4>>", "<<" + "(" * 60 + "1=4>>", "<<__import__('os')=4>>",
    "<<2=2=9>>", "<<4/=9>>", "<<>>4", "<<=4>>", "<<4", "<<-=-4>>",
])
def test_everything_else_is_left_to_the_model(name, wanted):
    tokenizer = TOKENIZERS[name]
    (text,), computed = forced(tokenizer, wanted)
    plain = tokenizer.decode(tokenizer(wanted, add_special_tokens=False)["input_ids"])
    if wanted in ("<<8=8", "<<2=2=9>>"):  # 8 and 2 are expressions; their values are what was wanted up to there
        assert computed == [1] and text[:5] == plain[:5]
    else:
        assert text == plain and computed == [0]


def test_10_000_nested_brackets_and_long_text_are_left_alone():
    tokenizer = TOKENIZERS["bytes"]
    calculator = CalculatorDecoding(tokenizer)
    scores = torch.randn(1, len(tokenizer))
    for text in ("<<" + "(" * 10_000 + "1" + ")" * 10_000 + "=", "<<" + "9" * 10_000 + "*9="):
        calculator.open, calculator.computed = [text[:-1]], [0]
        assert torch.equal(calculator(tokenizer(text[-1], return_tensors="pt")["input_ids"], scores), scores)
        assert calculator.computed == [0]


def test_rows_are_followed_one_by_one():
    tokenizer = TOKENIZERS["merged"]
    wanted = " has <<48/2=99>>24 and <<2-5=9>>3"
    texts, computed = forced(tokenizer, wanted, rows=3)
    assert texts[0].startswith(" has <<48/2=24>>") and computed == [2, 2, 2] and all("<<48/2=24>>" in text for text in texts)


def test_an_end_token_closes_an_annotation():
    tokenizer = TOKENIZERS["bytes"]
    calculator = CalculatorDecoding(tokenizer)
    scores = torch.randn(1, len(tokenizer))
    for token in [*tokenizer("x<<4/2")["input_ids"], tokenizer.eos_token_id, *tokenizer("=")["input_ids"]]:
        after = calculator(torch.tensor([[token]]), scores)
    assert torch.equal(after, scores) and calculator.computed == [0]


def test_given_logits_are_not_changed():
    tokenizer = TOKENIZERS["bytes"]
    calculator = CalculatorDecoding(tokenizer)
    for token in tokenizer("x<<4/2=")["input_ids"]:
        scores = torch.zeros(1, len(tokenizer))
        after = calculator(torch.tensor([[token]]), scores)
    assert not scores.any() and after.isfinite().sum() == 1


@given(st.fractions(max_denominator=10**7))
def test_values_are_written_exactly_or_to_two_places(value):
    written = written_value(value)
    if written is None:
        assert 0 < abs(value) <= Fraction(1, 200)
    elif value.denominator in (1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 1000, 10**6):
        assert calculate(written) == value and not (("." in written) and written.endswith("0"))
    else:
        assert abs(calculate(written) - value) <= Fraction(1, 200)
    assert written != "-0"


@pytest.mark.parametrize("batch_size", [1, 64])
def test_sampled_answers_hold_computed_values(model, tokenizer, batch_size):
    wanted = tokenizer("<<7*8=11>>")["input_ids"]
    own = model.lm_head.forward
    steps = iter(range(10**6))
    try:
        model.lm_head.forward = lambda x: own(x).index_fill(-1, torch.tensor([wanted[next(steps) % len(wanted)]]), 50.0)
        settings = {"max_new_tokens": len(wanted), "batch_size": batch_size}
        (answers,) = sample_answers(model, tokenizer, ["a"], 1, calculator=True, **settings)
        steps = iter(range(10**6))
        (plain,) = sample_answers(model, tokenizer, ["a"], 1, **settings)
    finally:
        del model.lm_head.forward
    assert (answers[0].text, answers[0].computed) == ("<<7*8=56>>", 1)
    assert (plain[0].text, plain[0].computed) == ("<<7*8=11>>", 0)
    assert equations(answers[0].text)[0][1:] == (56, 56)


def test_texts_of_tokens_are_kept():
    assert token_texts(TOKENIZERS["bytes"]) is token_texts(TOKENIZERS["bytes"])
