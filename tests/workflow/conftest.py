"""The test studies in a project of their own, whose steps are run in this process, with a stand-in for papermill."""

import json
import shutil
from pathlib import Path

import pytest

from modernllm.core.locks import unlock
from modernllm.workflow import execute, graph
from modernllm.workflow.step_status import read_status


def in_this_process(notebook, output, parameters, threads=1, gpus=0):
    "What papermill would do, without a kernel and without an executed notebook."
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    names = {}
    try:
        for cell in cells:
            exec("".join(cell["source"]), names)
            if "parameters" in cell["metadata"].get("tags", []):
                names.update(parameters)
    finally:
        if "run" in names:
            unlock(names["run"]._lock)  # a kernel would end and give the folder back


class Lab:
    "The two test studies in a project of their own."

    def __init__(self, folder: Path):
        self.folder, self.studies = folder, folder / "nbs/studies"

    def edit(self, file: str, right: str, wrong: str):
        path = self.studies / file
        assert right in path.read_text()
        path.write_text(path.read_text().replace(right, wrong))

    def states(self, *studies, profile="smoke") -> dict:
        return {row.name: (row.state, row.why) for row in graph.status(list(studies) or None, profile)}

    def stale(self, *studies, profile="smoke") -> list:
        return sorted(name for name, (state, _) in self.states(*studies, profile=profile).items() if state != "up to date")

    def run(self, *studies, profile="smoke") -> dict:  # step: what it said
        rows, selections, summaries = graph.prepare(list(studies) or None, profile)
        said = {}
        nodes = json.loads((self.folder / "runs" / profile / "graph.json").read_text())["runs"]
        for row in rows:
            folder = self.folder / "runs" / profile / row.study / row.variant / f"s{row.seed}"
            fronts = [path.removesuffix("/.select.done") for path in nodes[row.name]["inputs"]]
            for selection in [name for name in selections if name in fronts]:
                selections.remove(selection)
                status = execute.step("select", selection, profile)
                said[selection if "/" in selection else f"{selection}/selection"] = "failed" if status else "finished"
            if row.stale:
                execute.step("run", str(folder))
                said[row.name] = read_status(folder, "run")["state"]
        for study in summaries:
            execute.step("summary", study, profile)
            said[study] = read_status(self.folder / "runs" / profile / study, "summary")["state"]
        return said

    def record(self, name: str, profile="smoke") -> Path:
        return self.folder / "runs" / profile / name / "metrics.json"


@pytest.fixture
def lab(project, root, monkeypatch):
    "Nothing has run yet."
    shutil.copytree(root / "tests/studies", project / "nbs/studies", dirs_exist_ok=True)
    monkeypatch.setattr(execute, "run_notebook", in_this_process)
    told = {"packages": {}, "python": "3.11", "hardware": {}, "threads": 1}
    monkeypatch.setattr("modernllm.core.runs.environment", lambda: told)  # slow, and tested elsewhere
    monkeypatch.setattr("modernllm.core.runs.git_state", lambda root: {"commit": None, "dirty": None})
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return Lab(project)
