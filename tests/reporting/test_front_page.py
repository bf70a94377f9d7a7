"What the front page says of a study: an answer with the numbers of its records, or that it was not run."

import pytest

from modernllm.core.config import InputError
from modernllm.core.project import settings
from modernllm.core.records import publish
from modernllm.reporting.readme import first_lines, hardware, questions, quoted, tree
from modernllm.reporting.results import conclude, example_records


def test_a_study_is_answered_from_its_records(smoke):
    answer = "{example.medium.test_loss} | {example.items.test_loss} items"
    told = {"example": ("Is larger better?", answer, "n is {example.small.n}")}
    assert "| not finished in profile cpu yet |  | – |" in questions(told, "cpu")
    first, *rest = example_records("cpu")
    publish(first)
    assert "| not finished in profile cpu yet |  | – |" in questions(told, "cpu")
    for record in rest:
        publish(record)
    row = questions(told, "cpu").splitlines()[-1]
    assert row == r"| [Is larger better?](studies/example) | 4.007 ± 0.013 \| 8,000 items | n is 4 | 0.24 |"
    assert "AMD" not in hardware("cpu") and hardware("cpu") == "unknown, ? cores"


def test_a_study_that_is_not_told_of_concludes_for_itself(smoke):
    assert "| [An example](studies/example) | see the paper |" in questions({}, "smoke")
    conclude("Larger is better. By much.", "smoke", "example")
    assert "| [An example](studies/example) | Larger is better. |" in questions({}, "smoke")


def test_the_tree_says_what_a_run_of_a_study_does():
    said = first_lines(settings().studies / "gqa" / "run.ipynb")[1]
    assert any(line.split() == ["gqa/", *said.split()] for line in tree({"nbs/": ""}).splitlines())


def test_an_unknown_name_is_one_line():
    with pytest.raises(InputError, match="unknown variable 'example.small.test_los'; did you mean 'example.small.test_loss'"):
        quoted("{example.small.test_los}", {"example.small.test_loss": "4"})
