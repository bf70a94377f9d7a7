import json
import subprocess

import pandas as pd

from modernllm.core.records import Record
from modernllm.reporting.results import example_records, rows, summarise
from modernllm.reporting.tables import (
    cost_table, headline, mark, markdown, metrics_table, name_parts, samples, settings_table, shorten,
)


def test_metric_names_are_taken_apart():
    assert name_parts("test_sliding_word_ppl_closed", "test") == ("test sliding", "closed word ppl")
    assert name_parts("test_exact_match", "test") == ("test", "exact match")
    assert name_parts("bytes_per_token", "validation") == ("validation", "bytes per token")


def with_metrics(names):
    base = example_records()[0].to_dict()
    return Record.make(base | {"metrics": {name: base["metrics"]["test_loss"] for name in names}})


def test_readings_of_a_split_are_rows():
    summary = summarise(rows([with_metrics(["test_loss", "test_nats", "test_raw_loss", "test_raw_token_ppl"])]))
    assert list(metrics_table(summary, "test")) == ["variant", "n", "nats/token"]
    table = metrics_table(summary, "test", all_readings=True)
    assert table.reading.tolist() == ["test", "test raw"] and table["token ppl"].tolist()[0] == "–"


def test_metrics_without_split_or_better_side_are_in_no_table():
    values = example_records()[0].to_dict()
    values["metrics"]["parameters"] = {"value": 10, "unit": "parameters", "split": None}
    summary = summarise(rows([Record.make(values)]))
    assert "parameters" not in metrics_table(summary, "test") and len(metrics_table(summary, "validation")) == 0


def test_pandoc_reads_the_table_with_its_label():
    import pypandoc

    text = markdown(cost_table(summarise(rows(example_records()))), "example-cost", "A caption.")
    done = subprocess.run([pypandoc.get_pandoc_path(), "-f", "markdown", "-t", "json", "--columns=10000"], input=text,
                          capture_output=True, text=True, check=True)
    block = json.loads(done.stdout)["blocks"][0]
    assert block["t"] == "Table" and block["c"][0][0] == "tbl-example-cost"
    assert {width["t"] for _, width in block["c"][2]} == {"ColWidthDefault"}


def test_settings_that_differ_come_first():
    assert settings_table(example_records()).setting.tolist() == ["hidden size", "max tokens"]


def test_data_that_is_no_result_is_marked():
    summary = summarise(rows(example_records()))
    assert mark(summary) == "**Generated data.**"
    summary.attrs["profile"] = "smoke"
    assert "not a result" in mark(summary)
    assert mark(pd.DataFrame()) == ""


def test_samples_are_quoted_and_short():
    records = example_records()
    values = records[0].to_dict() | {"texts": {"samples": ["word " * 200 + "{{< include x >}}", "second"]}}
    text = samples([Record.make(values)], "samples")
    assert text.startswith("- **small**: word") and len(text) < 400 and "second" not in text
    assert shorten("a\n\n b") == "a b"


def test_headline_says_what_it_is(smoke):
    text = headline("smoke")
    assert "example, test split" in text and "74.2 ± 1.0" in text and "not a result" in text
    assert headline("cpu") == "no records in profile cpu yet"
