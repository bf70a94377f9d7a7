"""Two small studies through Snakemake and papermill, from the command line, in a copy of the project."""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from modernllm.core.installation import command_line

STUDY = """
title: Slow
question: Is it interrupted?
profiles: {smoke: {}}
variants: {a: {}}
"""
STAGED = """
title: Staged
question: Which rate, and then which start?
profiles: {smoke: {seeds: [0]}}
select:
  rate: {from: [slow, fast], metric: distance, top_k: 2, baseline: slow, thin: 0.1}
  start: {from: [near], metric: distance}
variants:
  slow: {params: {learning_rate: 0.2}, profiles: {smoke: {seeds: [0, 1]}}}
  fast: {params: {learning_rate: 0.3}}
  near: {pick: {rate: 1}, params: {start_at: 2.0}}
  final: {pick: {start: 1}, params: {steps: 9}}
  second: {pick: {rate: 2}, when: {rate: thin}}
"""
SLEEP = """
import time
from pathlib import Path

Path(run_dir, "started").touch()
try:
    time.sleep(100)
except KeyboardInterrupt:
    time.sleep(0.5)
    Path(run_dir, "saved").touch()
    raise
"""


class Project:
    "A copy of what a batch needs, with the test studies in the place of the real ones."

    def __init__(self, folder, root):
        self.folder = folder
        for name in ("modernllm", "Snakefile", "settings.ini"):
            copy = shutil.copytree if (root / name).is_dir() else shutil.copy
            copy(root / name, folder / name)
        shutil.copytree(root / "tests/studies", folder / "nbs/studies")
        drop = ("MODERNLLM_", "OMP_", "PYTEST_")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
        self.env |= {"PYTHONPATH": str(folder)}

    def start(self, *words) -> subprocess.Popen:
        command = command_line(*words)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=self.env, **pipes)

    def call(self, *words) -> tuple[int, str, str]:  # exit status, stdout, stderr
        process = self.start(*words)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def edit(self, file, right, wrong):
        path = self.folder / "nbs/studies" / file
        assert right in path.read_text()
        path.write_text(path.read_text().replace(right, wrong))

    def ran(self, since: float) -> set[str]:  # runs whose record was written since then
        base = self.folder / "runs/smoke"
        paths = [path for path in base.glob("*/*/s*/metrics.json") if path.stat().st_mtime > since]
        return {path.parent.relative_to(base).as_posix() for path in paths}


@pytest.fixture
def copy(tmp_path, root):
    "In a folder whose name means something to shells, to Snakemake (a wildcard, a fragment) and to YAML."
    folder = tmp_path / "it's #1, {x} [é] %s $HOME*? &"
    folder.mkdir()
    return Project(folder, root)


def test_a_study_from_nothing_to_its_table_and_again(copy):
    copy.edit("tiny/plan.yaml", "learning_rate: [0.1, 0.3]}", "learning_rate: [0.1, 0.3], start_at: [0.0]}")
    status, out, err = copy.call("study", "run", "--profile", "smoke", "--jobs", "2")
    assert status == 0, out + err
    assert "5 runs and 2 summaries to do" in out and "[8/8]" in out
    base, pick, after = copy.folder / "runs/smoke/tiny/base/s0", "tiny/pick1/s0", "tiny_next/after/s0"
    assert "after 8 steps, finished" in (base / "run.ipynb").read_text()
    assert json.loads((base / "metrics.json").read_text())["provenance"]["sources_checked"]
    assert (copy.folder / "data/results/smoke/tiny_next.csv").exists()

    status, out, err = copy.call("study", "run", "--profile", "smoke")
    assert status == 0 and out == "nothing to do: 5 runs and their summaries are up to date\n", out + err

    # A fresh clone has the records and not the runs.
    (copy.folder / "runs").rename(copy.folder / "kept")
    (copy.folder / "data/results/smoke/tiny.csv").unlink()
    status, out, err = copy.call("study", "run", "--profile", "smoke")
    assert status == 0 and "0 runs and 1 summaries to do" in out and copy.ran(0) == set(), out + err
    assert (copy.folder / "data/results/smoke/tiny.csv").exists() and not list(copy.folder.glob("runs/smoke/*/*/s*/run.ipynb"))
    shutil.rmtree(copy.folder / "runs")
    (copy.folder / "kept").rename(copy.folder / "runs")

    # One run raises, another one has a new parameter: the second goes on, and the notebook of the first shows its cell.
    copy.edit("tiny/plan.yaml", "variants:\n", "variants:\n  broken: {params: {fail: true}}\n")
    copy.edit("tiny_next/plan.yaml", "after: {}", "after: {params: {learning_rate: 0.2}}")
    now = time.time()
    status, out, err = copy.call("study", "run", "--profile", "smoke", "--keep-going")
    assert status == 1 and copy.ran(now) == {after}, out + err
    assert err.count("\n") == 1 and "tiny/broken/s0 failed: ValueError: this run was told to fail (cell" in err
    executed = json.loads((copy.folder / "runs/smoke/tiny/broken/s0/run.ipynb").read_text())
    outputs = [output for cell in executed["cells"] for output in cell.get("outputs", [])]
    assert [output["ename"] for output in outputs if output["output_type"] == "error"] == ["ValueError"]
    assert "last try failed" in copy.call("study", "status")[1]

    # A narrower sweep has another winner, and new code in the study behind it: nothing else runs.
    copy.edit("tiny/plan.yaml", "  broken: {params: {fail: true}}\n", "")
    copy.edit("tiny/plan.yaml", "learning_rate: [0.1, 0.3], start_at", "learning_rate: [0.1], start_at")
    copy.edit("tiny_next/run.ipynb", "learning_rate * 2", "learning_rate * 2.5")
    now = time.time()
    status, out, err = copy.call("study", "run", "--profile", "smoke", "--jobs", "2")
    assert status == 0 and copy.ran(now) == {pick, after}, out + err
    assert json.loads((copy.folder / "runs/smoke" / pick / "metrics.json").read_text())["params"]["learning_rate"] == 0.1


def test_two_selections_one_after_the_other(copy):
    shutil.rmtree(copy.folder / "nbs/studies/tiny_next")
    (copy.folder / "nbs/studies/tiny/plan.yaml").write_text(STAGED)
    status, out, err = copy.call("study", "run", "--profile", "smoke", "--jobs", "2")
    assert status == 0, out + err
    assert "6 runs and 1 summaries to do" in out and "tiny/selections/start finished" in out and len(copy.ran(0)) == 5
    assert "tiny/second/s0 not promoted after" in out
    metrics = json.loads((copy.folder / "runs/smoke/tiny/final/s0/metrics.json").read_text())
    assert metrics["params"] == {"learning_rate": 0.3, "start_at": 2.0, "steps": 9, "fail": False}
    status, out, err = copy.call("study", "run", "--profile", "smoke")
    assert status == 0 and out == "nothing to do: 6 runs and their summaries are up to date\n", out + err
    assert "tiny/second/s0: not promoted (margin " in copy.call("study", "status")[1]


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2, 3, 4]], ids=["new processes", "forks of one"])
def test_ctrl_c_lets_the_notebook_finish_its_work(copy, seeds):
    shutil.rmtree(copy.folder / "nbs/studies")
    folder, base = copy.folder / "nbs/studies/slow", copy.folder / "runs/smoke/slow/a"
    folder.mkdir(parents=True)
    (folder / "plan.yaml").write_text(STUDY.replace("smoke: {}", f"smoke: {{seeds: {seeds}}}"))
    names = ("study", "variant", "seed", "profile", "run_dir", "inputs")
    sources = [("parameters", "\n".join(f"{name} = ''" for name in names)), ("work", SLEEP)]
    cells = [{"cell_type": "code", "id": tag, "metadata": {"tags": [tag]}, "source": source, "outputs": [],
              "execution_count": None} for tag, source in sources]  # fmt: skip
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    notebook = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    for name in ("run", "summary"):
        (folder / f"{name}.ipynb").write_text(json.dumps(notebook))
    process = copy.start("study", "run", "--profile", "smoke", "--jobs", "2")
    while len(runs := [path.parent for path in base.glob("*/started")]) < min(len(seeds), 2):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    status, _, err = copy.call("study", "run", "--profile", "smoke")
    assert status == 2 and f"process {process.pid} is running studies" in err
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.strip() == "interrupted", out + err
    for run in runs:
        assert (run / "saved").exists() and json.loads((run / "status.json").read_text())["run"]["state"] == "interrupted"
        assert not (run / "metrics.json").exists()
    assert f"{len(seeds)} of {len(seeds)} runs of profile smoke would run" in copy.call("study", "status")[1]


@pytest.mark.parametrize("words, told", [
    (["study", "run", "tinny"], "did you mean 'tiny'"),
    (["study", "status", "--profile", "smoky"], "did you mean 'smoke'"),
])  # fmt: skip
def test_bad_names_on_the_command_line(copy, words, told):
    status, _, err = copy.call(*words)
    assert status == 2 and told in err and err.count("\n") == 1


def test_a_bad_plan_on_the_command_line(copy):
    copy.edit("tiny/plan.yaml", "params: {steps: 8}", "params: {step: 8}")
    status, _, err = copy.call("study", "run", "tiny")
    assert status == 2 and "did you mean 'steps'" in err and err.count("\n") == 1
    copy.edit("tiny/plan.yaml", "params: {step: 8}", "params: {steps: 8")
    status, _, err = copy.call("study", "run", "tiny")
    assert status == 2 and "plan.yaml:" in err and "not valid YAML" in err and err.count("\n") == 1
    assert not (copy.folder / "runs/smoke/tiny").exists()
