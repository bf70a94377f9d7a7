import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernllm.cli.app import main
from modernllm.core.config import InputError
from modernllm.core.project import settings
from modernllm.workflow.equivalence import Equivalence, save_equivalence
from modernllm.core.provenance import notebook_hash, source_hash
from modernllm.core.records import Record, publish
from modernllm.reporting.check import bibliography_keys, check, problems, results_part, typed_numbers
from modernllm.reporting.current import stale
from modernllm.reporting.results import example_records
from modernllm.reporting.staging import study_tables
from modernllm.reporting.variables import collect, flatten


def add(report, text, file="sections/example.qmd"):
    with (report / file).open("a") as out:
        out.write(f"\n{text}\n")


def test_a_good_report_passes(smoke, capsys):
    assert problems("smoke") == []
    check("smoke")
    assert "consistent with its records" in capsys.readouterr().out


@pytest.mark.parametrize("wrong, message", [
    ("It reached 4.31.", "sections/example.qmd:12: '4.31' is typed into a results section"),
    ("`0.5`", "'0.5' is typed"),
    ("$x = 1.25$", "'1.25' is typed"),
    ("about 1e-3", "'1e-3' is typed"),
    ("24,000 tokens", "'24,000' is typed"),
    ("{{< var example.small.test_los >}}", "sections/example.qmd:12: unknown variable 'example.small.test_los'; did you mean"),
    ("{{< vidoe x >}}", "sections/example.qmd:12: unknown shortcode 'vidoe'"),
    ("{{< include /_tables/exampel-test.md >}}", "missing result: table exampel-test"),
    ("see @fig-los", "sections/example.qmd:12: unknown cross-reference '@fig-los'; did you mean 'fig-loss'?"),
    ("see @tbl-none", "unknown cross-reference '@tbl-none'"),
    ("see @eq-b", "unknown cross-reference '@eq-b'; did you mean 'eq-a'?"),
    ("says [@knuth1948literate]", "unknown citation '@knuth1948literate'; did you mean 'knuth1984literate'?"),
    ("![x](figures/none.svg){#fig-x}", "missing result: figure none"),
    ("![x](figures/example-loss.svg){#fig-loss}", "label 'fig-loss' is given 2 times"),
])
def test_each_fault_is_found(smoke, wrong, message):
    add(smoke, wrong)
    found = problems("smoke")
    assert len(found) == 1 and message in found[0], found


def test_all_faults_are_listed_and_counted(smoke, capsys):
    add(smoke, "4.31 and @fig-los")
    add(smoke, "{{< var nothing.at.all >}}", "slides.qmd")
    with pytest.raises(InputError, match="the report of profile 'smoke' has 3 problems"):
        check("smoke")
    assert len(capsys.readouterr().err.splitlines()) == 3 + 8  # and every example record is older than the code


def test_numbers_outside_results_are_prose(smoke):
    add(smoke, "\n# Discussion\n\nLiterature says 65.8.", "paper.qmd")
    assert problems("smoke") == []


def test_a_typed_abstract_is_found(smoke):
    text = (smoke / "paper.qmd").read_text()
    (smoke / "paper.qmd").write_text(text.replace("It reached {{< var example.small.test_loss >}}.", "It reached 4.31."))
    assert [line for line in problems("smoke") if "paper.qmd:7: '4.31'" in line]


def test_what_is_typed_is_not_built(smoke, capsys):
    add(smoke, "It reached 45.67 points.")
    for what in ("all", "paper"):
        assert main(["report", "build", what, "--profile", "smoke"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "sections/example.qmd:12: '45.67' is typed" in err
    assert not settings().build("smoke").exists()


def test_missing_results_fail(smoke):
    found = problems("cpu")
    assert "paper.qmd: missing result: table example-test" in found
    assert "missing result: study example has no record of its 8 runs in profile cpu" in found
    assert any("variables, such as example." in line for line in found)
    publish(example_records("cpu")[0])
    assert "missing result: example/medium/s3 has no record in profile cpu" in problems("cpu")


def test_stale_results_are_listed_and_do_not_fail(smoke, project, capsys):
    notebook = project / "nbs/studies/example/run.ipynb"
    values = example_records()[0].to_dict() | {"params": {"hidden_size": 64, "max_tokens": 100}}
    values["provenance"] |= {"source_hash": source_hash(notebook), "notebook_hash": notebook_hash(notebook), "threads": 1}
    publish(Record.make(values))
    lines = stale("smoke")
    assert len(lines) == 7 and not any("small/s0" in line for line in lines)
    words = "max_tokens: 100000 → 100; threads: 2 → 1; changed code: library, run.ipynb"
    assert f"example/small/s1: changed parameter ({words})" in lines
    notebook.write_text(notebook.read_text().replace("max_tokens = 100", "max_tokens = 100; more = 1"))
    assert "example/small/s0: changed parameter (more: not set → 1; changed code: run.ipynb)" in stale("smoke")
    check("smoke")
    assert capsys.readouterr().err.count("stale: ") == 8


def test_results_of_code_that_no_commit_holds_are_listed(smoke):
    values = example_records("cpu")[0].to_dict()
    for dirty in (False, True):
        values["provenance"]["dirty"] = dirty
        publish(Record.make(values))
        assert ("example/small/s0: made from files with changes that no commit holds" in stale("cpu")) == dirty


def test_a_comparison_of_code_stands_in_the_report(smoke, project):
    notebook = project / "nbs/studies/example/run.ipynb"
    for record in example_records("cpu"):
        made = {**record.provenance.to_dict(), "threads": 1}
        publish(Record.make(record.to_dict(), params={"hidden_size": 64, "max_tokens": 100}, provenance=made))
    then = {"commit": "0" * 40, "source_hash": "0" * 64, "notebook_hash": "0" * 64}
    now = {"commit": "1" * 40, "source_hash": source_hash(notebook), "notebook_hash": notebook_hash(notebook)}
    counts = {"runs": 8, "metrics": 16, "curve_points": 80, "artifacts": 0, "set_aside": [], "differences": []}
    entry = Equivalence.make(counts, study="example", then=then, now=now, packages={}, python="3.11", date="2026-01-01")
    assert len(stale("cpu")) == 8 and "by equivalence" not in study_tables("cpu")["example-cost.md"]
    save_equivalence(entry)
    assert stale("cpu") == []
    assert "8 of 8 runs count by equivalence" in study_tables("cpu")["example-cost.md"]
    different = {"name": "small/s0 metric test_loss", "then": 4.1, "now": 4.2}
    save_equivalence(Equivalence.make(entry.to_dict(), differences=[different], reason="the loss left out a token"))
    assert "example/small/s0: differs: the loss left out a token" in stale("cpu")
    assert "code differ\\: the loss left out a token" in study_tables("cpu")["example-cost.md"]


def test_a_record_of_a_study_that_is_gone_is_stale(smoke):
    publish(Record.make(example_records()[0].to_dict() | {"study": "gone"}))
    assert "gone/small/s0: there is no such study any more" in stale("smoke")


LINES = ["# A", "# Results", "## B", "## C {.results}", "text 1.5", "", "### Results of D"]


@given(st.lists(st.sampled_from(LINES), max_size=12))
def test_results_parts_keep_their_place(lines):
    text = "\n".join(lines) + "\n"
    part = results_part(text)
    assert len(part) == len(text) and part.count("\n") == text.count("\n")
    for kept, line in zip(part.splitlines(), text.splitlines()):
        assert kept.strip() in ("", line.strip())
    assert results_part(text, inside=True) == text


@pytest.mark.parametrize("prose", [
    "2 cores and 10 seeds", "GPT-2", "see @fig-1.5", "[x](http://a.b/1.5)", "![x](figures/a-1.5.svg){#fig-a width=45.5%}",
    "<!-- 1.5 -->", "{{< var a.b.c1.5 >}}", "one. 2 runs", "in 2026, 3 runs",
])
def test_what_is_no_typed_result(prose):
    assert typed_numbers({"d": f"# Results\n{prose}\n"}, "d") == []


def test_bibliography_keys():
    assert bibliography_keys("@misc{a2020b,\n title={@x{y}},\n}\n@article{c:d,") == {"a2020b", "c:d"}


def test_the_abstract_has_at_most_200_words(root, monkeypatch):
    monkeypatch.chdir(root)
    text = re.search(r"^abstract: \|\n((?:  .*\n)+)", (root / "report/paper.qmd").read_text(encoding="utf-8"), re.M)[1]
    values = flatten(collect("cpu"))
    words = re.sub(r"\{\{< var (\S+) >\}\}", lambda found: values[found[1]], text).split()
    assert len(words) <= 200
