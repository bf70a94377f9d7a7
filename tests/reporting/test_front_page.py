"What the front page says of a study: nothing before its summary, then one metric of its variants."

import pytest

from modernllm.core.config import InputError
from modernllm.core.records import publish
from modernllm.reporting import readme
from modernllm.reporting.readme import answer
from modernllm.reporting.results import conclude, example_records, frame, summarise, write


def test_a_study_is_quoted_once_its_summary_is_there(smoke, monkeypatch):
    assert answer("example", profile="cpu") == "no results of profile cpu yet"
    publish(example_records("cpu")[0])
    assert answer("example", profile="cpu") == "no results of profile cpu yet, 1 of its runs on record"
    write(summarise(frame("smoke", "example")), "smoke", "example")
    assert answer("example", profile="smoke").startswith("small ") and "n = 4, 4" in answer("example", profile="smoke")
    monkeypatch.setattr(readme, "MOST_NAMED", 1)
    assert answer("example", profile="smoke").startswith("2 variants, from medium ")
    conclude("Larger is better. By much.", "smoke", "example")
    assert answer("example", profile="smoke") == "Larger is better. (generated data)"
    with pytest.raises(InputError, match="no metric 'speed'"):
        answer("example", "speed", "smoke")


def test_what_was_read_from_no_split_names_none(smoke):
    record = example_records("cpu")[0]
    record.metrics["steps"] = record.metrics["test_loss"].model_copy(update={"split": None, "unit": "steps"})
    publish(record)
    write(summarise(frame("cpu", "example")), "cpu", "example")
    assert answer("example", "steps", "cpu").endswith("(steps, n = 1, generated data)")
