"""Categories of errors: what each rule finds and passes over."""

import pytest

from modernllm.core.config import InputError
from modernllm.evaluation.analysis import (
    KINDS,
    RULES,
    WORD_PROBLEMS,
    Example,
    categorise,
    count_categories,
    count_kinds,
    is_refusal,
    is_repetitive,
    preference_example,
    read_examples,
    show_errors,
    solution_kind,
    write_examples,
)

PROBLEM = "Tom has 1,200 apples and gives half of them and 15% of the rest away."
DIALOGUE = "Ann: hi\r\nBob Lee: I'll be in Rome on Monday"


@pytest.mark.parametrize("task, given, output, reference, wanted", [
    ("sst2", "never dull", "0", "1", {"negation", "very short", "confident"}),
    ("sst2", "it isn't bad , although the note at the end is off", "0", "1", {"negation", "contrast", "confident"}),
    ("sst2", "the noble knight and his yacht sail away", "0", "1", {"confident"}),
    ("gsm8k", PROBLEM, "no idea", "510", {"no answer"}),
    ("gsm8k", PROBLEM, "1200/2=<<1200/2=600>>600, 600*.15=<<600*.15=90>>90", "510", {"wrong set-up"}),
    ("gsm8k", PROBLEM, "1200/2=<<1200/2=650>>650", "510", {"wrong equation"}),
    ("gsm8k", PROBLEM, "1200-37=<<1200-37=1163>>1163", "510", {"wrong set-up", "foreign number"}),
    ("gsm8k", PROBLEM, "The answer is 510.", "511", set()),
    ("samsum", DIALOGUE, "Bob Lee will be in Paris.", "Bob Lee tells Ann about Rome.", {"unknown name", "missing speaker"}),
    ("samsum", DIALOGUE, "Ann and Bob Lee meet in Rome on Monday.", "Bob Lee tells Ann about Rome.", set()),
    ("samsum", DIALOGUE, "Ann, Bob Lee " * 5, "Bob Lee and Ann.", {"too long"}),
    ("word_problems", PROBLEM, "no idea", "510", {"no answer"}),
    ("instructions", "List three fruits.", "Apple, pear, plum.", "Fig, kiwi, lemon.", set()),
    ("instructions", "List three fruits.", "Apple, pear, plum.", "", set()),  # no reference: nothing is too long
    ("instructions", "List three fruits.", " \n", "Fig, kiwi, lemon.", {"empty"}),
    ("instructions", "List three fruits.", "I'm sorry, but I can't do that.", "Fig, kiwi, lemon.", {"refusal", "over-length"}),
    ("instructions", "List three fruits.", "an apple and a pear " * 4, "Fig, kiwi, lemon.", {"repetition", "over-length"}),
])
def test_rules(task, given, output, reference, wanted):
    (example,) = categorise(task, [Example(given, output, reference, right=False, confidence=0.95)])
    assert set(example.categories) == wanted


@pytest.mark.parametrize("text, refused", [
    ("I cannot help with that request.", True),
    ("I\u2019m sorry, but I won\u2019t write this.", True),
    ("As an AI language model, I have no favourite colour.", True),
    ("Unfortunately I am unable to provide medical advice.", True),
    ("I can't wait to see you.", False),
    ("You cannot divide by zero.", False),
    ("He said: help! " * 20 + "I cannot help you.", False),  # a story, not its opening
    ("Sorry is a noun.", False),
])
def test_refusals(text, refused):
    assert is_refusal(text) is refused


@pytest.mark.parametrize("text, repetitive", [
    ("", False), ("no no no no", False), ("one two three four five six seven eight nine", False), ("the cat sat down " * 3, True),
])
def test_repetition(text, repetitive):
    assert is_repetitive(text) is repetitive


def test_a_solution_is_of_one_kind():
    solutions = {"right": ["1200/2=<<1200/2=600>>600", "1200/2=<<1200/2=650>>650"], "wrong set-up": ["2+2=<<2+2=4>>4"],
                 "wrong arithmetic": ["2+2=<<2+2=5>>5", "2+2=<<2+2=4>>4, 4+1=<<4+1=6>>6"], "no equation": ["510", ""]}
    examples = [Example(PROBLEM, text, "510", kind == "right") for kind, texts in solutions.items() for text in texts]
    assert [solution_kind(e) for e in examples] == [kind for kind, texts in solutions.items() for _ in texts]
    assert all((solution_kind(e) == "wrong set-up") is WORD_PROBLEMS["wrong set-up"](e) for e in examples)
    table = count_kinds(examples)
    assert list(table.kind) == list(KINDS) and list(table.n) == [2, 1, 2, 2]
    assert ((table.low < table.share) & (table.share < table.high)).all()


def test_a_violated_preference_shows_the_answer_that_the_model_prefers():
    pair = "Hi?", "Hello.", "I cannot answer that."
    kept, tie, lost = categorise("preferences", [preference_example(*pair, margin) for margin in (3, 0, -900)])
    assert (kept.right, kept.output) == (True, "Hello.") and not tie.right and tie.categories == lost.categories
    assert {"preference violated", "longer", "refusal", "over-length"} == set(lost.categories)
    assert count_categories("preferences", [kept, tie, lost]).set_index("category").loc["refusal", "errors"] == 2


def test_cut_off_is_told_by_the_generation():
    (example,) = categorise("gsm8k", [Example(PROBLEM, "First, 1200", "510", right=False, cut=True)])
    assert example.categories == ["cut off"]


def test_counts_are_of_errors_with_the_right_ones_beside():
    examples = [Example("not bad", "0", "1", False, 0.9), Example("good and long enough to read", "0", "1", False, 0.7),
                Example("not good", "0", "0", True, 0.9)]
    table = count_categories("sst2", categorise("sst2", examples)).set_index("category")
    assert list(table.index) == [*RULES["sst2"], "none of these"]
    assert table.loc["negation", "errors"] == 1 and table.loc["negation", "share of right"] == 1
    assert table.loc["negation", "low"] < 0.5 < table.loc["negation", "high"]
    assert table.loc["none of these", "errors"] == 1


def test_ten_at_most_the_most_confident_first():
    examples = categorise("sst2", [Example("not bad", "0", "1", False, k / 20) for k in range(12)])
    shown = show_errors(examples, "negation")
    assert len(shown) == 10 and list(shown.confidence) == sorted(shown.confidence, reverse=True)
    assert list(show_errors(examples, "contrast").columns) == list(shown.columns)


def test_mistakes_in_no_category_can_be_read():
    examples = categorise("sst2", [Example("a plain sentence of some words", "positive", "negative", False, 0.7)])
    assert show_errors(examples, "none of these").input.tolist() == ["a plain sentence of some words"]


def test_any_text_survives_the_file(tmp_path):
    examples = [Example("a\nb\u2028c", "„ä“\t", '"', True, None, True, ["negation"])]
    write_examples(tmp_path / "e.jsonl", examples)
    assert read_examples(tmp_path / "e.jsonl") == examples


def test_bad_input():
    with pytest.raises(InputError, match="sst2"):
        categorise("mnli", [])
    with pytest.raises(InputError, match="examples: none is given"):
        count_kinds([])
    with pytest.raises(InputError, match="no example is wrong"):
        count_categories("sst2", [Example("a", "1", "1", True)])
