"Word problems: every equation is right, the last one gives the answer, and no problem is in two splits."

import re

import pytest

from modernllm.core.config import InputError
from modernllm.data.sources import load
from modernllm.data.word_problems import NEW_THINGS, ROWS, word_problems
from modernllm.evaluation.answers import is_marked_right, marked_answer
from modernllm.evaluation.calculator import equations

SOME = 1000


@pytest.fixture(scope="module")
def rows():
    return {split: word_problems(split, SOME) for split in ROWS}


def numbers(text: str) -> list[int]:
    return list(map(int, re.findall(r"\d+", text)))


@pytest.mark.parametrize("split", ROWS)
def test_every_equation_is_right(rows, split):
    for row in rows[split]:
        found = equations(row["answer"])
        assert len(found) == row["answer"].count("<<") == row["steps"] and 1 <= row["steps"] <= 4
        assert all(left == right and right.denominator == 1 and right >= 2 for _, left, right in found)
        assert marked_answer(row["answer"]) == str(found[-1][2]) and is_marked_right(row["answer"], row["answer"])


@pytest.mark.parametrize("split", ROWS)
def test_an_equation_uses_numbers_of_the_problem_and_earlier_results(rows, split):
    for row in rows[split]:
        known = {2, *numbers(row["question"])}  # half of them, twice as many
        for written, _, result in equations(row["answer"]):
            assert set(numbers(written.split("=")[0])) <= known
            known.add(result)
        assert "{" not in row["question"] + row["answer"]


def test_splits_share_no_problem(rows):
    told = [row["question"] for some in rows.values() for row in some]
    assert len(set(told)) == len(told)
    same = [{(row["template"], *(written for written, *_ in equations(row["answer"]))) for row in rows[split]}
            for split in ("train", "validation", "test")]
    assert not same[0] & same[1] and not same[0] & same[2] and not same[1] & same[2]


def test_the_harder_splits_are_outside_of_train(rows):
    trained = {row["template"] for row in word_problems("train", 5000)}
    assert not trained & {row["template"] for row in rows["test_templates"]}
    assert all({row["template"] for row in rows[split]} <= trained for split in ("validation", "test", "test_numbers"))
    largest = max(max(numbers(row["question"] + row["answer"])) for row in rows["train"])
    assert all(max(numbers(row["question"] + row["answer"])) > largest for row in rows["test_numbers"])
    assert all(any(thing in row["question"] for thing in NEW_THINGS) == (split == "test_templates")
               for split, some in rows.items() for row in some)


@pytest.mark.parametrize("split", ROWS)
def test_steps_are_equally_frequent(rows, split):
    for steps in range(1, 5):
        assert 0.2 < sum(row["steps"] == steps for row in rows[split]) / SOME < 0.3


def test_the_first_rows_are_those_of_the_whole_split():
    assert word_problems("test", 20) == word_problems("test")[:20] and len(word_problems("test")) == ROWS["test"]


def test_the_catalogue_has_them():
    loaded = load("word_problems", "test_numbers")
    assert loaded.generated and len(loaded.dataset) == ROWS["test_numbers"]
    with pytest.raises(InputError, match="split of word_problems"):
        load("word_problems", "test_number")
    with pytest.raises(InputError, match="did you mean 'test_numbers'"):
        word_problems("test_number")
