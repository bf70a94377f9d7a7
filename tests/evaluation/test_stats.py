"""Comparisons out of records: who takes part, which seeds are paired, what a single run is good for."""

from types import SimpleNamespace

import pytest

from modernllm.core.config import InputError
from modernllm.evaluation.stats import compare_to_baseline, by_seed


def records(**values):
    return [SimpleNamespace(variant=name, seed=seed, status="killed" if value is None else "finished",
                            metrics={"loss": SimpleNamespace(value=value)})
            for name, losses in values.items() for seed, value in enumerate(losses)]  # fmt: skip


def test_killed_runs_and_runs_without_the_metric_take_no_part():
    found = records(base=[1.0, 2.0], other=[1.5, None])
    found[1].metrics = {}
    assert by_seed(found, "loss") == {"base": {0: 1.0}, "other": {0: 1.5}}


def test_the_correction_counts_the_tests_that_were_made():
    found = records(base=[1.0, 1.1, 1.2], paired=[0.5, 0.61, 0.7], more=[1.0, 1.1, 1.2, 1.3], single=[0.1])
    rows = compare_to_baseline(found, "loss", "base").set_index("variant")
    assert list(rows.paired) == [True, False, False] and list(rows.n) == [3, 4, 1]
    assert rows.p_holm["paired"] == pytest.approx(2 * rows.p["paired"]) and rows.p_holm["more"] == rows.p["more"]
    assert rows.difference["single"] == pytest.approx(-1.0) and rows[["low", "p", "p_holm"]].loc["single"].isna().all()


def test_a_baseline_that_is_not_there_is_named():
    with pytest.raises(InputError, match="bsae.*did you mean 'base'"):
        compare_to_baseline(records(base=[1.0], other=[1.0]), "loss", "bsae")
    assert compare_to_baseline(records(base=[1.0, 2.0]), "loss", "base").empty
