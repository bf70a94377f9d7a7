import json
import math
import re
import subprocess

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernllm.core.records import Record
from modernllm.reporting.results import example_records, rows, summarise
from modernllm.reporting.tables import (
    cost_table, escape, headline, mark, markdown, metrics_table, name_parts, number, plain, samples, settings_table,
    shorten, spread,
)


def value_of(text):
    return float(text.replace(",", "").replace("−", "-").replace(" × 10^", "e").rstrip("^"))


@given(st.floats(1e-3, 1e6), st.floats(1e-6, 1e3))
def test_a_spread_is_shown_to_a_sensible_digit(mean, sd):
    left, right = map(value_of, spread(mean, sd).split(" ± "))
    decimals = len(spread(mean, sd).partition(" ± ")[0].partition(".")[2])
    assert decimals == len(spread(mean, sd).partition(" ± ")[2].partition(".")[2])
    assert abs(left - mean) <= 0.5000001 * 10**-decimals and abs(right - sd) <= 0.5000001 * 10**-decimals


@given(st.floats(-1e8, 1e8).filter(lambda x: abs(x) > 1e-12))
def test_a_number_keeps_four_digits(value):
    assert math.isclose(value_of(number(value)), value, rel_tol=6e-4)


@pytest.mark.parametrize("mean, sd, text", [
    (98.6, math.nan, "98.60"), (98.6, None, "98.60"), (1234.56, 120.0, "1,235 ± 120"), (0.001234, 0.00056, "0.0012 ± 0.0006"),
    (2.0, 0.0, "2"), (104.317, 0.096, "104.32 ± 0.10"), (0.0971018, 1.7e-17, "0.09710"), (0.0, 0.0, "0"),
])
def test_examples_of_spread(mean, sd, text):
    assert spread(mean, sd) == text


@pytest.mark.parametrize("value, text", [
    (3e-4, "0.0003"), (1e-7, "1e-07"), (True, "yes"), (None, "–"), (24_000_000, "24,000,000"), ("bf16", "bf16"),
])
def test_what_was_chosen_is_not_rounded(value, text):
    assert plain(value) == text


def pandoc_text(markdown_text):
    import pypandoc

    done = subprocess.run([pypandoc.get_pandoc_path(), "-f", "markdown", "-t", "plain", "--wrap=none"],
                          input=markdown_text, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_escaped_text_is_shown_exactly():
    text = "*a* _b_ `c` [d](e) {{< var f >}} <g> @h #i $j$ k~l m^n | o\\ \"p\" 'q' -- r... 1. s @-@ :t: \u00e9"
    assert pandoc_text("x " + escape(text)) == "x " + text


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30))
def test_escape_leaves_no_shortcode(text):
    assert "{{<" not in escape(text) and not re.search(r"(?<!\\)[@$<]", escape(text))


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
