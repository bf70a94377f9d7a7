import pytest
import yaml

from modernllm.core.config import InputError
from modernllm.core.records import Record, publish
from modernllm.reporting.results import conclude, example_records
from modernllm.reporting.variables import MISSING, collect, flatten, key, lookup, missing, notice, of_study, promised, write


def test_names_by_rule(smoke):
    flat = flatten(collect("smoke"))
    assert flat["example.small.test_loss"] == "4.307 ± 0.013"
    assert flat["example.small.params.max_tokens"] == "100,000" and flat["example.small.n"] == "4"
    assert flat["example.leader.test_loss"] == "medium" and flat["example.lead.test_loss"] == "7.0 %"
    assert flat["example.title"] == "An example" and flat["example.data"] == "invented \\(generated; invented for examples\\)"
    assert flat["example.items.test_loss"] == "8,000" and flat["example.hours"] == "0.24"  # of 8 runs
    assert flat["profile"] == "smoke" and flat["commits"] == "0000000" and "not a result" in flat["notice"]
    assert all(isinstance(value, str) for value in flat.values())


def test_a_single_run_has_no_spread():
    values = of_study(example_records()[:1])
    assert values["small"]["test_loss"] == "4.292" and values["leader"] == {}


def test_unknown_is_an_error_and_missing_is_not(smoke):
    flat = flatten(collect("cpu"))
    assert lookup("example.small.test_loss", flat, "cpu") is None
    assert lookup("example.leader.test_loss", flat, "cpu") is None
    for name in ("example.smal.test_loss", "exampel.small.test_loss", "example", "nothing"):
        with pytest.raises(InputError, match="unknown variable"):
            lookup(name, flat, "cpu")
    publish(example_records("cpu")[0])
    flat = flatten(collect("cpu"))
    with pytest.raises(InputError, match="did you mean 'example.small.test_loss'"):
        lookup("example.small.test_los", flat, "cpu")  # the variant has records: nothing can bring this name any more
    assert promised("example.medium.anything", "cpu") and not promised("example.small.anything", "cpu")


def test_of_a_conclusion_the_first_sentence_may_be_quoted(smoke):
    assert "example.verdict" not in flatten(collect("smoke"))
    conclude("Kept: `small` (−0.3, p < 0.05). It has more parameters.", "smoke", "example")
    assert flatten(collect("smoke"))["example.verdict"] == "Kept: `small` (−0.3, p < 0.05)."


def test_runs_that_are_missing_are_named(smoke):
    assert missing("smoke") == []
    publish(example_records("cpu")[0])
    assert missing("cpu") == [f"example/{v}/s{s}" for v in ("small", "medium") for s in range(4)][1:]


def test_notice_by_data():
    records = example_records("cpu")
    assert notice(records, "cpu") == ""  # said by the captions of what is made from it
    values = records[0].to_dict()
    values["data"][0] |= {"source": "embedded", "generated": False}
    assert "stands in" in notice([Record.make(values)], "cpu")
    values["data"][0] |= {"source": "mirror"}
    assert notice([Record.make(values)], "cpu") == "" and notice([], "smoke") != ""


def test_written_for_quarto(smoke, tmp_path):
    path = write(collect("smoke"), tmp_path, ["example.large.test_loss"])
    values = yaml.safe_load(path.read_text())
    assert values["example"]["large"]["test_loss"] == MISSING and values["example"]["small"]["test_loss"].startswith("4.3")


def test_names_that_quarto_cannot_say_are_changed():
    assert key("lr=0.001,width=64") == "lr_0_001_width_64"


def test_a_variant_cannot_take_a_name_of_the_report():
    record = Record.make(example_records()[0].to_dict() | {"variant": "leader"})
    with pytest.raises(InputError, match="rename it"):
        of_study([record])
