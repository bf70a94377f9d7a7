"""The front page is true: it is what its notebook makes, it names what is there, and its five steps work as written."""

import os
import re
import shutil
import subprocess

import nbformat
import pytest

from modernllm.core.installation import command_line
from modernllm.core.records import load_records
from modernllm.reporting.readme import questions, readme


def test_readme_is_what_its_notebook_makes(root, monkeypatch):
    monkeypatch.chdir(root)
    assert (root / "README.md").read_text(encoding="utf-8") == readme(), "run `make sync`"


def test_every_link_leads_somewhere(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!\w+:|#)([^)\s]+)\)", text):
        assert (root / target).exists(), target


def test_everything_at_the_root_is_in_the_tree(root):
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    shown = set(re.findall(r"^([\w.]+)/?  ", (root / "README.md").read_text(encoding="utf-8"), re.M))
    there = {name.split("/")[0] for name in listed.stdout.split()}
    assert {name for name in there if not name.startswith(".")} - {"README.md"} <= shown


def test_the_example_names_what_exists(root):
    text = (root / "README.md").read_text(encoding="utf-8").split("## In a notebook")[1]
    code = re.search(r"```python\n(.*?)```", text, re.S)[1]
    imports = "\n".join(line for line in code.splitlines() if line.startswith("from "))
    assert imports.count("\n") == 2
    exec(compile(imports, "README.md", "exec"), {})


def notebook(path, *sources):
    "A notebook of code cells, the first tagged as the one that holds the parameters."
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)


def test_a_study_in_five_steps_up_to_the_paper(root, project, shared_cache):
    text = (root / "README.md").read_text(encoding="utf-8").split("## Add a study in five steps")[1].split("A test performs")[0]
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, re.S)
    assert [kind for kind, _ in blocks] == ["sh", "yaml", "python", "python", "python", "python", "markdown", "markdown", "sh"]
    make, plan, parameters, work, summary_parameters, table, section, slide, run = (code for _, code in blocks)
    for name in ("settings.ini", "Snakefile", "constraints.txt"):
        shutil.copy(root / name, project / name)

    subprocess.run(make, shell=True, cwd=project, check=True)
    folder = project / "nbs/studies/vocabulary"
    (folder / "plan.yaml").write_text(plan)
    notebook(folder / "run.ipynb", parameters, work)
    notebook(folder / "summary.ipynb", summary_parameters, table)

    def modernllm(*words):
        command = command_line(*words)
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert run.split() == ["make", "plan", "STUDY=vocabulary", "make", "reproduce", "STUDY=vocabulary"]
    assert "2 of 2 runs" in modernllm("study", "status", "vocabulary")
    modernllm("study", "run", "vocabulary")
    assert "nothing to do" in modernllm("study", "run", "vocabulary")

    values = {record.variant: record.metrics["bytes_per_token"].value for record in load_records("smoke", "vocabulary")}
    assert 1 < values["small"] < values["large"]
    assert (project / "data/results/smoke/vocabulary.csv").exists()
    assert "[Vocabulary and token length](studies/vocabulary)" in questions({}, "smoke")
    from modernllm.reporting.staging import sources, stage, staged_text

    shutil.copytree(root / "report", project / "report", ignore=shutil.ignore_patterns("build"))
    for kept in [*(project / "report/sections").iterdir(), *(project / "report/slides").iterdir()]:
        kept.unlink()
    section_path, slide_path = re.findall(r"`report/(s\w+/vocabulary[\w.-]+)`", text)
    for path, content in ((section_path, section), (slide_path, slide)):
        (project / "report" / path).write_text(content, encoding="utf-8")
    for what, path in (("paper", section_path), ("slides", slide_path)):  # as they are, none of them names the study
        assert path in sources(stage(what, "smoke")[0], f"{what}.qmd")
    head = '---\ntitle: One study\nnotice: "{{< var notice >}}"\nformat:\n  acl-typst: default\n---\n'
    body = "\n# Results\n\n{{< include /_studies/results.qmd >}}\n"
    (project / "report/paper.qmd").write_text(head + body, encoding="utf-8")
    modernllm("report", "build", "paper")
    assert (project / "report/build/smoke/paper.pdf").read_bytes().startswith(b"%PDF")
    staged = staged_text("paper", project / "report/build/smoke/paper-source")
    assert f"with the small vocabulary and for\n{values['large']:.3g}"[:-2] in staged and "#tbl-vocabulary-validation" in staged
