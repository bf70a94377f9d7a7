"What records have cost: sums, limits, badges, files."

import json

import pytest

from modernllm.cli.app import main
from modernllm.core.config import InputError
from modernllm.core.records import Record, publish
from modernllm.reporting.check import problems
from modernllm.reporting.costs import badges, check_ledger, cost_summary, ledger, ledger_line, run_costs, write_costs
from modernllm.reporting.results import example_records


def dearer(records, **cost):
    return [Record.make({**record.to_dict(), "cost": {**record.cost.to_dict(), **cost}}) for record in records]


def publish_all(records):
    for record in records:
        publish(record)


def test_sums_hold_lost_work(report):
    publish_all(dearer(example_records("cpu"), useful_cpu_hours=1.0, lost_cpu_hours=0.25, usd=0.05, lost_gpu_hours=0.5))
    found = cost_summary("cpu")
    assert found["total"] == {"runs": 8, "core_hours": 10.0, "lost_core_hours": 2.0, "gpu_hours": 4.0, "lost_gpu_hours": 4.0,
                              "usd": 0.4}
    assert found["studies"]["example"]["by_run"]["small/s0"] == {
        "status": "finished", "core_hours": 1.25, "lost_core_hours": 0.25, "gpu_hours": 0.5, "lost_gpu_hours": 0.5, "usd": 0.05}
    assert run_costs([]) == [] and cost_summary("gpu") == {
        "profile": "gpu", "studies": {}, "total": dict.fromkeys(found["total"], 0) | {"runs": 0}}


def test_runs_side_by_side_take_less_time_than_their_sum(report):
    first, *rest = dearer(example_records("cpu"), useful_gpu_hours=1.0)
    late = {"started": "2026-01-01T00:30:00+00:00", "finished": "2026-01-01T03:00:00+02:00"}
    publish_all([Record.make({**first.to_dict(), **late}), *rest])
    found = cost_summary("cpu")["studies"]["example"]
    assert (found["gpu_hours"], found["span_hours"]) == (8.0, 1.0)


def test_killed_runs_cost_too(report):
    first, *rest = example_records("cpu")
    publish_all([Record.make({**first.to_dict(), "status": "killed"}), *rest])
    assert cost_summary("cpu")["total"]["runs"] == 8


@pytest.fixture
def selecting(report):
    "The example's plan with a selection over one of its variants, which the other picks."
    plan = report.parent / "nbs/studies/example/plan.yaml"
    picking = plan.read_text().replace("medium: {}", "medium: {pick: 1}")
    plan.write_text(picking + "select: {from: [small], metric: test_loss}\n")
    return plan


def test_limits(selecting, capsys):
    small, medium = (example_records("cpu")[:4], example_records("cpu")[4:])
    publish_all(dearer(small, usd=12.0) + dearer(medium, usd=25.0))
    assert ledger("cpu") == [{"study": "example", "sweep": 48.0, "runbook": 148.0}]
    assert check_ledger("cpu") == []
    assert check_ledger("cpu", {"sweep": 48.0}) == ["costs: the sweep of study example has cost 48.00 USD; allowed: less than 48"]
    publish_all(dearer(medium, usd=25.5))
    assert check_ledger("cpu") == ["costs: the runbook of study example has cost 150.00 USD; allowed: less than 150"]
    assert ledger_line("cpu") == ("costs of profile 'cpu': dearest sweep 48.00 USD of less than 50 (example), "
                                  "dearest runbook 150.00 USD of less than 150 (example)")
    assert any(line.startswith("costs: the runbook of study example") for line in problems("cpu"))
    assert main(["report", "check", "--profile", "cpu"]) == 2
    shown = capsys.readouterr()
    assert "dearest sweep 48.00 USD" in shown.out and "costs: the runbook of study example has cost 150.00 USD" in shown.err


def test_what_waits_for_no_selection_is_of_the_sweep(selecting):
    publish_all(dearer(example_records("cpu"), usd=2.0))
    assert ledger("cpu") == [{"study": "example", "sweep": 8.0, "runbook": 16.0}]
    selecting.write_text(selecting.read_text().replace("medium: {pick: 1}", "medium: {}"))  # measured beside what is ranked
    assert ledger("cpu") == [{"study": "example", "sweep": 16.0, "runbook": 16.0}]


def test_all_selections_of_a_study_are_its_sweep(selecting):
    text, rule = selecting.read_text(), "{from: [%s], metric: test_loss}"
    head = text.partition("select:")[0].replace("pick: 1", "pick: {first: 1}")
    selecting.write_text(head + f"select: {{first: {rule % 'small'}, second: {rule % 'medium'}, again: {rule % 'small'}}}\n")
    publish_all(dearer(example_records("cpu"), usd=2.0))
    assert ledger("cpu") == [{"study": "example", "sweep": 16.0, "runbook": 16.0}]


def test_a_study_without_selection_or_plan(report):
    record, *rest = dearer(example_records("cpu"), usd=60.0)
    publish_all([record, *rest, Record.make({**record.to_dict(), "study": "gone"})])
    assert {row["study"]: (row["sweep"], row["runbook"]) for row in ledger("cpu")} == {
        "example": (0.0, 480.0), "gone": (0.0, 60.0)}
    assert ledger_line("cpu") == "costs of profile 'cpu': dearest runbook 480.00 USD of less than 150 (example)"
    assert ledger_line("gpu") == "costs of profile 'gpu': no records"


@pytest.mark.parametrize("limits, told", [
    ({"swep": 1}, "unknown limit 'swep'; did you mean 'sweep'"),
    ({"sweep": -1}, "limit of a sweep is -1; allowed: a price in USD above 0"),
    ({"sweep": float("nan")}, "limit of a sweep is nan"), ({"runbook": "150"}, "limit of a runbook is '150'"),
    ({"runbook": True}, "limit of a runbook is True"),
])
def test_bad_limits(report, limits, told):
    with pytest.raises(InputError, match=told):
        check_ledger("cpu", limits)


def test_badges_tell_cost_and_progress(report):
    first, *rest = dearer(example_records("cpu"), usd=0.05)
    publish_all(rest)
    drawn = badges("cpu")
    assert "0.210 core-hours, 0.35 USD" in drawn["cost"] and "GPU" not in drawn["cost"]
    assert "profile cpu: 0 of 1 studies finished, 7 runs on record" in drawn["progress"]
    publish(first)
    assert "1 of 1 studies finished, 8 runs on record" in badges("cpu")["progress"] != drawn["progress"]


def test_equal_records_give_equal_files(smoke):
    written = write_costs("smoke")
    before = [path.read_bytes() for path in written]
    assert [path.name for path in written] == ["COST_SUMMARY.json", "badge-cost.svg", "badge-progress.svg"]
    assert json.loads(before[0])["total"]["runs"] == 8
    assert [path.read_bytes() for path in write_costs("smoke")] == before
