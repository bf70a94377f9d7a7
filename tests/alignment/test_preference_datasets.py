"""Preference pairs: splits without a shared prompt, HH-RLHF's form, mistakes in arithmetic, own files and what is refused."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernllm.alignment.preference_datasets import (
    PreferenceRows, _pairs, _split_public, arithmetic_preferences, opening, parse_conversation, read_preferences,
)
from modernllm.core.config import InputError
from modernllm.evaluation.answers import marked_answer
from modernllm.evaluation.calculator import equations

GOOD = [{"prompt": f"What is {n} + 1?", "chosen": str(n + 1), "rejected": str(n)} for n in range(30)]


def written(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_own_file_is_split_by_prompt(tmp_path):
    rows = GOOD + [{**row, "rejected": "nothing"} for row in GOOD]
    splits = [read_preferences(written(tmp_path / "mine.jsonl", rows), split) for split in ("train", "validation")]
    assert [len(part) for part in splits] == [54, 6] and splits[0].source == "own"
    train, held = ({opening(row["prompt"]) for row in part.rows} for part in splits)
    assert not train & held


BROKEN = [
    ({"chosen": "a", "rejected": "b"}, "has no column 'prompt'"),
    ({"prompt": "p", "rejected": "b"}, "has no column 'chosen'"),
    ({"prompt": "p", "chosen": "a"}, "has no column 'rejected'"),
    ('{"prompt": "p", "chosen"\n', "is not JSON"),
    ('["p", "a", "b"]\n', "is a list"),
    ({"prompt": "p", "chosen": "same", "rejected": " same "}, "chosen and rejected are both 'same'"),
    ({"prompt": "p", "chosen": "", "rejected": "b"}, "chosen is ''"),
    ({"prompt": "p", "chosen": "a", "rejected": None}, "rejected is None"),
    ({"prompt": " ", "chosen": "a", "rejected": "b"}, "prompt is ' '"),
    ({"prompt": [], "chosen": "a", "rejected": "b"}, "prompt is []"),
    ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}, "prompt has the message"),
    ({"prompt": [{"role": "assistant", "content": "hi"}], "chosen": "a", "rejected": "b"}, "prompt has the roles assistant"),
    ({"prompt": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}], "chosen": "a", "rejected": "b"},
     "prompt has the roles user, assistant"),
    ({"prompt": [{"role": "user", "content": "hi"}] * 2, "chosen": "a", "rejected": "b"}, "prompt has the roles user, user"),
]


@pytest.mark.parametrize("row, words", BROKEN)
def test_broken_rows_are_refused_with_their_line(tmp_path, row, words):
    path = written(tmp_path / "mine.jsonl", [*GOOD[:3], row, *GOOD[3:]])
    with pytest.raises(InputError) as error:
        read_preferences(path, "train")
    assert f"mine.jsonl:4: {words}" in str(error.value) and "\n" not in str(error.value)


def test_equal_answers_are_refused():
    pair = {"prompt": [{"role": "user", "content": "Well?"}], "chosen": "Yes.", "rejected": "No."}
    with pytest.raises(InputError, match="pair 1 has equal answers; allowed: two different ones"):
        PreferenceRows("made", "train", rows=[pair, pair | {"rejected": "Yes."}])


def test_files_that_are_missing_or_too_small_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        read_preferences(str(tmp_path / "none.jsonl"), "train")
    with pytest.raises(InputError, match="holds 9 different prompts; needed: 10 or more"):
        read_preferences(written(tmp_path / "few.jsonl", GOOD[:9]), "train")
    with pytest.raises(InputError, match="unknown set of preferences 'samsum'"):
        read_preferences("samsum", "train")
    with pytest.raises(InputError, match="unknown split 'test'"):
        read_preferences(written(tmp_path / "mine.jsonl", GOOD), "test")


def test_messages_and_a_system_prompt_are_kept(tmp_path):
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"},
            {"role": "user", "content": "bye"}]
    path = written(tmp_path / "mine.jsonl", [*GOOD, {"prompt": chat, "chosen": "a", "rejected": "b"}])
    rows = read_preferences(path, "train").rows + read_preferences(path, "validation").rows
    assert [row["prompt"] for row in rows if row["line"] == 31] == [chat]


def test_ties_and_broken_rows_of_public_sets_are_counted():
    asked = "\n\nHuman: Hi\n\nAssistant: "
    rows = [{"chosen": asked + "a", "rejected": asked + "b"}, {"chosen": asked + "a", "rejected": asked + "a "},
            {"chosen": asked + "a", "rejected": "\n\nHuman: Ho\n\nAssistant: a"}, {"chosen": asked, "rejected": asked + "a"}]
    kept, ties, broken = _pairs(rows)
    assert kept == [{"prompt": [{"role": "user", "content": "Hi"}], "chosen": "a", "rejected": "b"}] and (ties, broken) == (1, 2)


def test_later_turns_of_a_conversation_are_on_its_side():
    rows = []
    for n in range(300):
        said = ("user", f"Question {n}"), ("assistant", "Yes?"), ("user", "Go on")
        chat = [{"role": role, "content": text} for role, text in said]
        rows += [{"prompt": chat[:1]}, {"prompt": chat}]
    parts = [_split_public(rows, split) for split in ("train", "validation", "test")]
    sides = [{opening(row["prompt"]) for row in part} for part in parts]
    assert sum(map(len, parts)) == 600 and all(parts) and not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


@given(st.lists(st.text(st.characters(exclude_characters=":"), min_size=1).filter(str.strip), min_size=2, max_size=6))
def test_conversations_are_read_as_they_were_written(said):
    said = said[: len(said) // 2 * 2]
    text = "".join(f"\n\n{('Human', 'Assistant')[n % 2]}: {words}" for n, words in enumerate(said))
    assert [message["content"] for message in parse_conversation(text)] == [words.strip() for words in said]


def problem(rng):
    a, b, c = rng.randint(12, 60), rng.randint(2, 9), rng.randint(2, 30)
    d, e = a * b, a * b + c
    steps = f"They buy {a} * {b} = <<{a}*{b}={d}>>{d} sweets.\nWith {c} more it is {d} + {c} = <<{d}+{c}={e}>>{e}."
    return {"question": f"Each of {b} children buys {a} sweets and finds {c}.", "answer": f"{steps}\n#### {e}"}


def test_wrong_solutions_are_wrong_for_one_reason():
    rows = [problem(random.Random(n)) for n in range(200)]
    pairs = arithmetic_preferences(rows, 3)
    assert len(pairs) == 200 and {row["mistake"] for row in pairs.rows} == {"result", "operation", "number"}
    for row in pairs.rows:
        false = [text for text, left, right in equations(row["rejected"]) if left != right]
        assert marked_answer(row["rejected"]) not in (None, marked_answer(row["chosen"]))
        assert len(equations(row["rejected"])) == 2 and len(false) == (row["mistake"] == "result")
        assert str(equations(row["rejected"])[-1][2]) == marked_answer(row["rejected"])
        same = sum(a == b for a, b in zip(row["chosen"].split("\n"), row["rejected"].split("\n")))
        assert row["rejected"].count("\n") == 2 and same <= 1


def test_solutions_without_steps_are_left_out():
    rows = [{"question": "?", "answer": "It is 3.\n#### 3"}, problem(random.Random(0))]
    pairs = arithmetic_preferences(rows)
    assert len(pairs) == 1 and "1 of 2" in pairs.note


def test_hh_rlhf_is_split_without_shared_prompts(real_mirror):
    parts = [read_preferences("hh_helpful_base", split) for split in ("train", "validation", "test")]
    sides = [{opening(row["prompt"]) for row in part.rows} for part in parts]
    assert sum(map(len, parts)) == 2348 and parts[0].ties == 2 and not sides[0] & sides[1] and not sides[0] & sides[2]
