"""Tasks and their rows: which rows a split holds, files of one's own, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernllm.core.config import InputError
from modernllm.hf.tasks import TASKS, find_task, own_task, read_task


@pytest.fixture
def file(tmp_path):
    def write(*rows, name="mine.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n", encoding="utf-8")
        return path
    return write


def rows_of(n, label=lambda i: ["bad", "good"][i % 2]):
    return [{"text": f"film {i}", "label": label(i)} for i in range(n)]


@pytest.mark.parametrize("name", TASKS)
def test_no_row_is_in_two_splits(name):
    others = {"sst2": "generated_reviews", "word_problems": name, "query_rewriting": "generated_rewrites"}
    task, stand_in = find_task(name), others.get(name, "generated_pairs")
    splits = {split: read_task(task, split, stand_in) for split in ("train", "validation", "test")}
    texts = [row[task.template.given] for rows in splits.values() for row in rows.rows]
    assert len(set(texts)) == len(texts)
    assert all(len(rows) and (rows.split, rows.name) == (split, stand_in) for split, rows in splits.items())


def test_the_test_of_sst2_is_its_whole_validation_split():
    from modernllm.data.generated import SIZES

    read = {split: len(read_task(TASKS["sst2"], split, "generated_reviews")) for split in ("train", "validation", "test")}
    assert read["test"] == SIZES["validation"] and read["train"] + read["validation"] == SIZES["train"]


@given(st.integers(1, 700))
def test_a_sample_is_a_part_and_always_the_same(n):
    rows = read_task(TASKS["sst2"], "train", "generated_reviews")
    part = rows.sample(n)
    assert len(part) == min(n, len(rows)) and part.rows == rows.sample(n).rows
    assert all(row in rows.rows for row in part.rows) and (part.fingerprint != rows.fingerprint) == (n < len(rows))


def test_a_file_of_few_answers_is_a_task_with_labels(file):
    task = own_task(file(*rows_of(40)), "text", "label")
    assert task.labels == ("bad", "good") and task.best_metric == "accuracy"
    train, held = read_task(task, "train"), read_task(task, "validation")
    assert len(train) + len(held) == 40 and held.source == "own" and "/" not in held.name
    assert {row["label"] for row in train.rows} == {0, 1}


def test_a_file_of_many_answers_is_a_task_with_texts(file):
    task = own_task(file(*rows_of(40, lambda i: f"answer {i}")), "text", "label")
    assert task.labels == () and task.best_metric == "rougeL"


def test_numbers_are_answers_too(file):
    assert own_task(file(*rows_of(40, lambda i: i % 3)), "text", "label").labels == ("0", "1", "2")


@pytest.mark.parametrize("rows, given, words", [
    ([*rows_of(12), {"text": "film"}], {}, ["mine.jsonl:13", "no column 'label'", "text"]),
    ([*rows_of(12), '{"text": "film", "lab'], {}, ["mine.jsonl:13", "is not JSON"]),
    ([*rows_of(12), "[1]"], {}, ["mine.jsonl:13", "is a list"]),
    ([*rows_of(12), {"text": " ", "label": "bad"}], {}, ["mine.jsonl:13", "text", "not empty"]),
    ([*rows_of(12), {"text": "film", "label": None}], {}, ["mine.jsonl:13", "label is None"]),
    ([*rows_of(12), {"text": "film", "label": "fine"}], {"labels": ("bad", "good")}, ["mine.jsonl:13", "'fine'", "bad, good"]),
    (rows_of(5), {}, ["5 rows", "10 or more"]),
])  # fmt: skip
def test_a_file_that_cannot_be_used_is_named_with_its_line(file, rows, given, words):
    with pytest.raises(InputError) as caught:
        own_task(file(*rows), "text", "label", **given)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_unknown_names(file, tmp_path):
    with pytest.raises(InputError, match="did you mean 'sst2'"):
        find_task("sst")
    with pytest.raises(InputError, match="there is no such file"):
        own_task("nowhere.jsonl")
    with pytest.raises(InputError, match="is a folder"):
        own_task(tmp_path)
    with pytest.raises(InputError, match="split"):
        read_task(own_task(file(*rows_of(20)), "text", "label"), "test")


def test_rules_of_a_known_task_are_not_for_an_own_file_of_its_name(tmp_path):
    from modernllm.hf.prompting import Classified
    from modernllm.hf.task_evaluation import score_predictions

    path = tmp_path / "preferences.jsonl"
    path.write_text("".join(f'{{"input": "text {k}", "target": "{"ab"[k % 2]}"}}\n' for k in range(40)))
    task = own_task(path)
    rows = read_task(task, "train")
    found = Classified([0] * len(rows), [[0.9, 0.1]] * len(rows), 0)
    assert not any(example.categories for example in score_predictions(task, rows, found).examples)
