"""The smoke profile of a commit by that commit's own library, through Snakemake and papermill."""

import shutil
import subprocess

import pytest

from modernllm.workflow.code_versions import current_hashes, smoke_results
from modernllm.core.config import RunFailed

ONE_RUN = """
title: One descent
question: Does it run?
profiles: {smoke: {}}
variants: {base: {}}
"""


@pytest.fixture
def commits(project, root):
    "A repository whose first commit has another library and a study, and whose second one has a plan with a mistake."
    for name in ("modernllm", "Snakefile", "settings.ini"):
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy
        copy(root / name, project / name)
    shutil.copytree(root / "tests/studies/tiny", project / "nbs/studies/tiny")
    plan, seeding = project / "nbs/studies/tiny/plan.yaml", project / "modernllm/core/seeding.py"
    plan.write_text(ONE_RUN)
    seeding.write_text(seeding.read_text() + "\n\nOTHER = True\n")
    (project / ".gitignore").write_text("__pycache__/\nruns/\ndata/cache/\ndata/records/smoke/\ndata/results/smoke/\n")

    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(["git", *who, *words], cwd=project, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    found = []
    for text in (ONE_RUN, ONE_RUN.replace("base: {}", "base: {params: {step: 3}}")):
        plan.write_text(text)
        git("add", "-A")
        git("commit", "-qm", "step")
        found.append(git("rev-parse", "HEAD").strip())
    yield found
    assert len(git("worktree", "list").splitlines()) == 1 and git("status", "--porcelain") == ""
    assert not list(project.glob("runs/*")) and not list(project.glob("data/records/*"))


def test_a_commit_runs_with_its_own_library(commits):
    said = []
    ((record, inside),) = smoke_results("tiny", commits[0], 1, said.append)
    assert (record.provenance.commit, record.provenance.dirty) == (commits[0], False)
    assert record.provenance.source_hash != current_hashes("tiny")[0] and record.provenance.sources_checked
    assert record.status == "finished" and set(inside) == {"point x"}
    assert any("tiny/base/s0 finished" in line for line in said)
    with pytest.raises(RunFailed, match=f"cannot run at commit {commits[1][:7]}: .*did you mean 'steps'"):
        smoke_results("tiny", commits[1], 1, said.append)
