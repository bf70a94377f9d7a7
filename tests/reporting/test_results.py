import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernllm.core.records import Record, publish
from modernllm.reporting.current import published
from modernllm.reporting.results import example_records, frame, leader, rows, short_commit, summarise, to_csv, write

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6)


def with_values(values, better="lower"):
    "Example runs of `small` whose only metric has these values."
    base = example_records()[0].to_dict()
    metric = base["metrics"]["test_loss"] | {"better": better}
    return [Record.make(base | {"seed": i, "metrics": {"m": metric | {"value": v}}}) for i, v in enumerate(values)]


@given(VALUES)
def test_mean_and_deviation_are_those_of_the_runs(values):
    row = summarise(rows(with_values(values))).iloc[0]
    assert row.n == len(values)
    assert math.isclose(row["mean"], statistics.fmean(values), rel_tol=1e-9, abs_tol=1e-6)
    if len(values) == 1:
        assert math.isnan(row.sd)
    else:
        assert math.isclose(row.sd, statistics.stdev(values), rel_tol=1e-6, abs_tol=1e-6)


def test_killed_runs_and_their_numbers_do_not_count():
    records = with_values([1.0, 3.0])
    killed = Record.make(records[1].to_dict() | {"status": "killed"})
    assert summarise(rows([records[0], killed]))["mean"].tolist() == [1.0]


def test_variants_come_in_the_order_of_the_plan(smoke):
    assert list(dict.fromkeys(record.variant for record in published("smoke"))) == ["small", "medium"]


def test_no_records_give_an_empty_table(report):
    assert frame("cpu").empty and summarise(frame("cpu", "example")).empty


def test_all_commits_are_named_and_uncommitted_changes_marked():
    records = with_values([1.0, 2.0])
    values = records[1].to_dict()
    values["provenance"] |= {"commit": "a" * 40, "dirty": True}
    records[1] = Record.make(values)
    assert short_commit(records[1]) == "aaaaaaa+"
    assert summarise(rows(records)).commit[0] == "0000000 aaaaaaa+"


def test_leader_follows_the_better_side():
    runs = rows(example_records())
    assert leader(summarise(runs), "test_loss")[0] == "medium"
    assert leader(summarise(runs.assign(better="higher")), "test_loss")[0] == "small"
    assert leader(summarise(runs.assign(better=None)), "test_loss") is None
    assert leader(summarise(runs.query("variant == 'small'")), "test_loss") is None


def test_csv_is_the_same_each_time_and_in_the_folder_of_its_profile(smoke, project):
    summary = summarise(frame("smoke", "example"))
    path = write(summary, "smoke", "example")
    assert path == project / "data/results/smoke/example.csv" and path.read_text() == to_csv(summary)
    assert len(path.read_text().splitlines()) == 1 + 4 and "\r" not in path.read_text()


def test_profiles_do_not_mix(smoke):
    publish(example_records("cpu")[0])
    assert len(frame("smoke")) == 16 and len(frame("cpu")) == 2


@pytest.mark.parametrize("variant", ["lr=0.001,width=64", "a+b"])
def test_a_cell_of_a_matrix_is_a_variant(variant):
    record = Record.make(example_records()[0].to_dict() | {"variant": variant})
    assert summarise(rows([record])).variant.tolist() == [variant] * 2
