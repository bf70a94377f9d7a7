import re

import pytest

from modernllm.core.config import InputError
from modernllm.core.records import Record
from modernllm.reporting.results import example_records
from modernllm.reporting.task_results import item_scores, mistakes, mistakes_table, paired_tests


def answered(variant: str, items: str, **errors: int) -> Record:
    metrics = {f"test_{name}_errors": {"value": count, "unit": "examples", "split": "test"} for name, count in errors.items()}
    changes = {"variant": variant, "metrics": metrics, "texts": {"test_items": [items]}, "curves": {}}
    return Record.make(example_records()[0].to_dict() | changes)


def test_a_record_without_scores_is_named():
    with pytest.raises(InputError, match=re.escape("record example/small/s0 has no text 'test_items'; it has samples")):
        item_scores(example_records()[0])


def test_records_of_different_test_sets_are_not_compared():
    groups = {"lora": [answered("lora", "1 0 1")], "full": [answered("full", "1 0")]}
    with pytest.raises(InputError, match="3 and 2 items"):
        paired_tests(groups, "lora")


def test_without_mistakes_there_is_nothing_to_sort():
    assert mistakes(answered("lora", "1 1 1")).empty
    assert mistakes_table({"lora": [answered("lora", "1 1 1")]}).empty


def test_a_threshold_decides_what_is_a_mistake():
    record = answered("lora", "0.1 0.3 0.5", too_long=1)
    assert mistakes(record, passes=0.3)[["category", "errors", "of"]].values.tolist() == [["too long", 1, 1]]
    assert mistakes(record).of.tolist() == [3]
