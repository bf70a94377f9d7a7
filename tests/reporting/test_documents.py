import json
import shutil
import subprocess
import sys

import pytest

from modernllm.cli.app import main
from modernllm.core.config import InputError
from modernllm.core.project import atomic_write, settings
from modernllm.core.records import Record, publish
from modernllm.reporting.documents import render
from modernllm.reporting.results import example_records
from modernllm.workflow.staleness import summary_asked, summary_stamp


def build(what="paper"):
    said = []
    render(what, "smoke", progress=said.append)
    return said[-1].split(" with ")[0].split(" (")[0]


def change_section(report):
    with (report / "sections/example.qmd").open("a") as file:
        file.write("\nMore.\n")


def change_record(report):
    values = example_records()[0].to_dict()
    values["metrics"]["test_loss"]["value"] += 1
    publish(Record.make(values))


def remove_record(report):
    settings().records("smoke").joinpath("example/medium/s3.json").unlink()


def change_figure(report):
    path = settings().figures("smoke") / "example-loss.svg"
    path.write_text(path.read_text() + "<!-- drawn again -->\n")


def conclude(report):
    atomic_write(settings().results("smoke") / "example-verdict.md", "Medium is better.\n")


def remove_output(report):
    (settings().build("smoke") / "paper.pdf").unlink()


def remove_stamp(report):
    (settings().build("smoke") / ".paper.made").write_text("0" * 64)


def remove_staged(report):
    shutil.rmtree(settings().build("smoke") / "paper-source")


CHANGES = change_section, change_record, remove_record, change_figure, conclude, remove_output, remove_stamp, remove_staged


def test_each_change_makes_the_document_again(smoke, quarto):
    quarto()
    assert build() == "paper: made" and build() == "paper: up to date"
    for change in CHANGES:
        change(smoke)
        assert build() == "paper: made", change.__name__
        assert build() == "paper: up to date", change.__name__


def test_code_that_makes_a_document_is_part_of_it(smoke, quarto, monkeypatch):
    from modernllm.core.provenance import static_closure
    from modernllm.reporting import documents

    for name in ("staging", "tables", "variables", "results", "text", "render", "figures", "glyphs"):
        assert f"modernllm.reporting.{name}" in static_closure(["modernllm.reporting.documents"])
    quarto()
    assert build() == "paper: made"
    monkeypatch.setattr(documents, "source_hash", lambda modules: "0" * 64)
    assert build() == "paper: made" and build() == "paper: up to date"


def test_what_changes_during_a_build_is_made_at_the_next(smoke, quarto, monkeypatch):
    from modernllm.reporting import render as rendering

    quarto()
    original = rendering.make

    def make(*args):
        out = original(*args)
        change_section(smoke)
        return out

    with monkeypatch.context() as patch:
        patch.setattr(rendering, "make", make)
        assert build() == "paper: made"
    assert build() == "paper: made" and build() == "paper: up to date"


def test_what_is_missing_is_said_each_time(smoke, quarto):
    quarto()
    with (smoke / "paper.qmd").open("a") as file:
        file.write("\n{{< include /_tables/example-none.md >}}\n")
    for last in ("made", "up to date"):
        said = []
        render("paper", "smoke", progress=said.append)
        assert said[0] == "paper: missing in profile smoke: table example-none" and said[-1].startswith(f"paper: {last}")


def test_an_unknown_document(report):
    with pytest.raises(InputError, match="unknown document 'papr'; did you mean 'paper'"):
        render("papr", "smoke")


def test_a_command_with_nothing_to_do_imports_nothing_heavy(smoke, project, quarto, capsys):
    quarto()
    study = project / "nbs/studies/example"
    (study / "summary.ipynb").write_text((study / "run.ipynb").read_text())
    atomic_write(settings().results("smoke") / "example.csv", "study\n")
    atomic_write(summary_stamp("example", "smoke"), json.dumps(summary_asked("example", "smoke")))
    assert main(["report", "build", "--profile", "smoke"]) == 0
    assert (settings().results("smoke") / "COST_SUMMARY.json").exists()
    first = capsys.readouterr().out
    heavy = {"pandas", "numpy", "matplotlib", "seaborn", "torch", "transformers", "snakemake", "papermill", "pypandoc", "typst"}
    words = f"""import sys
from modernllm.cli.app import main
status = main(["report", "build", "--profile", "smoke"])
print(*sorted({heavy} & set(sys.modules)), file=sys.stderr)
sys.exit(status)"""
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout == first and "small" in first
    lines = done.stderr.splitlines()
    assert lines[-1] == "" and sum(": up to date (quarto" in line for line in lines) == 2
